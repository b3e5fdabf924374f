"""Ablations with frozen patterns, in delta form: what was removed is carried through the layers.

With d = x - x' the difference between the streams of the two runs (Olsson et al. 2022, "Per-token losses (attention
head ablations)": patterns are those of the first run),

    d  <-  d + sum_{h removed} z_h W_O^h + sum_{h not removed} P_h (LN(x) - LN(x - d)) W_V^h W_O^h
    d  <-  d + MLP(LN(x)) - MLP(LN(x - d))

and every difference is computed as one, so that rounding errors are relative to d and not to x.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import Ablation
from icl_fast.measure.ablation.removal import Removal
from icl_fast.measure.base_pass import BaseLayer, attend, merged, slices
from icl_fast.ops import gelu_difference, layer_norm_difference


class Delta:
    """What A ablations have removed from the stream, layer by layer. `ablations` are sorted by their first layer."""

    def __init__(self, ablations: Sequence[Ablation], mode: AblationMode, removal: Removal, resid: Tensor) -> None:
        self.ablations, self.mode, self.removal = ablations, mode, removal
        self.removed = resid.new_empty(len(ablations), *resid.shape)  # [A,n,T,C], of which the first `alive` are filled
        self.alive = 0

    def layer(self, base: BaseLayer) -> None:
        """Go through a layer; after the last one, `removed` holds its rows only."""
        alive = self.ablations[: self.alive]
        moved = attention_change(self.removed[: self.alive], base, alive, self.mode, self.removal) if alive else None
        if base.rows is not None:
            self.removed = base.take(self.removed)
        if moved is not None:
            add_product(self.removed[: self.alive], moved, base.attention.out)
        while self.alive < len(self.ablations) and self.ablations[self.alive].first_layer == base.layer:
            self.removed[self.alive] = self.removal.of_stream(base, self.ablations[self.alive].heads_of(base.layer))
            self.alive += 1
        if base.block.mlp is not None and self.alive:
            up, activation, down = base.block.mlp_parts
            hidden = base.hidden.flatten(0, 1)  # [n*R,M]
            for removed in slices(self.removed[: self.alive], base.hidden):
                normed = norm_difference(base.mid, removed, base.block.norm2)
                change = normed.flatten(1, 2) @ up.weight.T
                change = gelu_difference(hidden, change, approximate=activation.approximate)
                add_product(removed, change, down)


def attention_change(
    removed: Tensor, base: BaseLayer, ablations: Sequence[Ablation], mode: AblationMode, removal: Removal
) -> Tensor | None:
    """What each ablation takes from the results of the heads of a layer, [A,n,R,H*D]; None: nothing.

    Args:
        removed: what it has taken from the stream before the layer, [A,n,T,C].
        base: the layer.
        ablations: what is removed in each run.
        mode: which heads' values are preserved.
        removal: how heads are removed.
    """
    preserved = mode.preserved_heads("v", base.layer, base.heads)
    q, k, v = base.qkv
    if len(preserved) == v.shape[1]:
        if not any(ablation.heads_of(base.layer) for ablation in ablations):
            return None
        z = v.new_zeros(len(ablations), *base.z.shape)
    else:
        normed = norm_difference(base.resid, removed, base.block.norm1)
        weight = base.attention.v.weight.view(v.shape[1], v.shape[3], -1)  # [H,D,C]
        if base.rows is not None and base.rows.shape[1] < v.shape[3]:  # fewer rows than values are wide: sum first
            sums = base.pattern.flatten(1, 2) @ normed  # [A,n,H*R,C]
            z = sums.view(*normed.shape[:2], *base.pattern.shape[1:3], -1) @ weight.mT
        else:
            values = normed @ weight.flatten(0, 1).T
            values = values.view(*values.shape[:3], *weight.shape[:2]).transpose(2, 3)
            z = attend(base.attention, q, k, values, base.rows)  # [A,n,H,R,D]
        z[:, :, list(preserved)] = 0
    for index, ablation in enumerate(ablations):
        if heads := ablation.heads_of(base.layer):
            z[index][:, list(heads)] = removal.of_heads(base, heads)
    return merged(z)


def norm_difference(stream: Tensor, removed: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LN(x) - LN(x - d) for a stream [n,R,C] and what A ablations took from it [A,n,R,C]: [A,n,R,C]."""
    flat = layer_norm_difference(stream.flatten(0, 1), removed.flatten(1, 2), norm.weight, eps=norm.eps)
    difference: Tensor = flat.view(removed.shape)
    return difference


def add_product(removed: Tensor, change: Tensor, linear: nn.Linear) -> None:
    """removed [A,n,R,C] += change [...,K] W^T, without the bias: it is in both runs."""
    removed.view(-1, removed.shape[-1]).addmm_(change.reshape(-1, change.shape[-1]), linear.weight.T)
