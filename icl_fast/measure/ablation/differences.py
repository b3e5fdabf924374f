"""What a change of the stream changes behind a norm and an MLP, each difference computed as one.

Never the difference of two results: rounding errors are then relative to the change and not to what is changed.
"""

from __future__ import annotations

from torch import Tensor, nn

from icl_fast.measure.ablation.products import Products
from icl_fast.measure.base_pass import BaseLayer
from icl_fast.models.blocks import GatedMLP
from icl_fast.ops import activation_difference, gated_difference, layer_norm_difference
from icl_fast.ops._project import project


def norm_difference(stream: Tensor, removed: Tensor, norm: nn.Module) -> Tensor:
    """N(x) - N(x - d) for a stream [n,R,C] and what A ablations took from it [A,n,R,C]: [A,n,R,C]."""
    if isinstance(norm, nn.Identity):
        return removed
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    assert norm.eps is not None
    centre = isinstance(norm, nn.LayerNorm)
    flat = layer_norm_difference(stream.flatten(0, 1), removed.flatten(1, 2), norm.weight, eps=norm.eps, centre=centre)
    difference: Tensor = flat.view(removed.shape)
    return difference


def mlp_hidden_difference(base: BaseLayer, removed: Tensor, products: Products) -> Tensor:
    """How what the MLP projects down changes, [A,n,R,M], when A ablations take from what it reads [A,n,R,C]."""
    normed = norm_difference(base.mlp_reads, removed, base.block.mlp_norm)
    mlp, activation = base.block.mlp, base.block.config.activation
    hidden, change = [x.flatten(0, 1) for x in base.hidden], project(normed, products.of(base.block.up.weight))
    up_change = change.flatten(1, 2)
    if isinstance(mlp, GatedMLP):
        gate_change = project(normed, products.of(mlp.gate.weight)).flatten(1, 2)
        flat = gated_difference(hidden[0], hidden[1], gate_change, up_change, activation=activation)
    else:
        flat = activation_difference(hidden[0], up_change, activation=activation)
    difference: Tensor = flat.view(change.shape)
    return difference
