"""What a change of the stream changes behind a norm and an MLP, each difference computed as one.

Never the difference of two results: rounding errors are then relative to the change and not to what is changed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icl_fast.measure.base_pass import BaseLayer
from icl_fast.models.blocks import GatedMLP
from icl_fast.ops import gelu_difference, layer_norm_difference
from icl_fast.ops._project import project


def norm_difference(stream: Tensor, removed: Tensor, norm: nn.Module) -> Tensor:
    """N(x) - N(x - d) for a stream [n,R,C] and what A ablations took from it [A,n,R,C]: [A,n,R,C]."""
    if isinstance(norm, nn.Identity):
        return removed
    if isinstance(norm, nn.RMSNorm):
        return rms_norm_difference(stream, removed, norm.weight, eps=norm.eps or 0.0)
    assert isinstance(norm, nn.LayerNorm)
    flat = layer_norm_difference(stream.flatten(0, 1), removed.flatten(1, 2), norm.weight, eps=norm.eps)
    difference: Tensor = flat.view(removed.shape)
    return difference


def rms_norm_difference(stream: Tensor, removed: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """RMSNorm(x) - RMSNorm(x - d) of x [n,R,C] and d [A,n,R,C]: [A,n,R,C].

    With r and r' the root mean squares of x and x - d,

        x / r - (x - d) / r' = d / r' + x (r'^2 - r^2) / (r r' (r + r')),   r'^2 - r^2 = mean(d (d - 2 x))
    """
    before = (stream.square().mean(-1, keepdim=True) + eps).sqrt()
    after = ((stream - removed).square().mean(-1, keepdim=True) + eps).sqrt()
    grown = (removed * (removed - 2 * stream)).mean(-1, keepdim=True)
    difference = removed / after + stream * (grown / (before * after * (before + after)))
    return difference if weight is None else difference * weight


def activation_difference(hidden: Tensor, change: Tensor, activation: nn.Module) -> Tensor:
    """a(h) - a(h - d) of h [n,R,M] and d [A,n,R,M]: [A,n,R,M]."""
    if isinstance(activation, nn.GELU):
        flat = gelu_difference(hidden.flatten(0, 1), change.flatten(1, 2), approximate=activation.approximate)
        difference: Tensor = flat.view(change.shape)
        return difference
    left = hidden - change
    if isinstance(activation, nn.ReLU):
        return torch.where((hidden > 0) & (left > 0), change, hidden.relu() - left.relu())
    assert isinstance(activation, nn.SiLU)
    # h s(h) - h' s(h') = d s(h') + h (s(h) - s(h')), s the sigmoid: s(h) - s(h') = s(h) s(-h') (1 - exp(-d))
    rising = -hidden.sigmoid() * (-left).sigmoid() * torch.expm1(-change.clamp_min(0))
    falling = left.sigmoid() * (-hidden).sigmoid() * torch.expm1(change.clamp_max(0))
    return change * left.sigmoid() + hidden * (rising + falling)


def mlp_hidden_difference(base: BaseLayer, removed: Tensor) -> Tensor:
    """How what the MLP projects down changes, [A,n,R,M], when A ablations take from what it reads [A,n,R,C]."""
    normed = norm_difference(base.mlp_reads, removed, base.block.mlp_norm)
    mlp, activation, up = base.block.mlp, base.block.activation, project(normed, base.block.up.weight)
    if not isinstance(mlp, GatedMLP):
        return activation_difference(base.hidden[0], up, activation)
    change = activation_difference(base.hidden[0], project(normed, mlp.gate.weight), activation)
    # a u - (a - da)(u - du) = da u + (a - da) du
    difference: Tensor = change * base.hidden[1] + (activation(base.hidden[0]) - change) * up
    return difference
