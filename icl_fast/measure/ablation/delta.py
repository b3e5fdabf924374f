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

from icl_fast.measure.ablation.definition import AblationMode
from icl_fast.measure.ablation.names import Target
from icl_fast.measure.ablation.removal import Removal
from icl_fast.measure.base_pass import BaseLayer, attend, merged, slices
from icl_fast.ops import gelu_difference, layer_norm_difference


class Delta:
    """What A ablations have removed from the stream, layer by layer. `targets` are sorted by their first layer."""

    def __init__(self, targets: Sequence[Target], mode: AblationMode, removal: Removal, resid: Tensor) -> None:
        self.targets, self.mode, self.removal = targets, mode, removal
        self.removed = resid.new_empty(len(targets), *resid.shape)  # [A,n,T,C], of which the first `alive` are there
        self.alive = 0

    def layer(self, base: BaseLayer) -> None:
        """Go through a layer; after the last one, `removed` holds its rows only."""
        alive = self.targets[: self.alive]
        moved = attention_change(self.removed[: self.alive], base, alive, self.mode, self.removal) if alive else None
        if base.rows is not None:
            self.removed = base.take(self.removed)
        if moved is not None:
            add_product(self.removed[: self.alive], moved, base.attention.out)
        while self.alive < len(self.targets) and self.targets[self.alive].first_layer == base.layer:
            self.removed[self.alive] = self.removal.of_stream(base, self.targets[self.alive].heads_of(base.layer))
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
    removed: Tensor, base: BaseLayer, targets: Sequence[Target], mode: AblationMode, removal: Removal
) -> Tensor | None:
    """What each ablation takes from the results of the heads of a layer, [A,n,R,H*D]; None: nothing.

    Args:
        removed: what it has taken from the stream before the layer, [A,n,T,C].
        base: the layer.
        targets: the ablations.
        mode: which heads' values are preserved.
        removal: how heads are removed.
    """
    preserved = preserved_heads(mode, "v", base)
    q, k, v = base.qkv
    if len(preserved) == v.shape[1]:
        if not any(target.heads_of(base.layer) for target in targets):
            return None
        z = v.new_zeros(len(targets), *base.z.shape)
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
    for index, target in enumerate(targets):
        if heads := target.heads_of(base.layer):
            z[index][:, list(heads)] = removal.of_heads(base, heads)
    return merged(z)


def preserved_heads(mode: AblationMode, name: str, base: BaseLayer) -> tuple[int, ...]:
    """The heads of a layer whose activation `name` is that of the run without ablation."""
    if name not in mode.preserve:
        return ()
    if mode.heads is None:
        return tuple(range(base.qkv[0].shape[1]))
    return tuple(head for layer, head in mode.heads if layer == base.layer)


def norm_difference(stream: Tensor, removed: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LN(x) - LN(x - d) for a stream [n,R,C] and what A ablations took from it [A,n,R,C]: [A,n,R,C]."""
    flat = layer_norm_difference(stream.flatten(0, 1), removed.flatten(1, 2), norm.weight, eps=norm.eps)
    difference: Tensor = flat.view(removed.shape)
    return difference


def add_product(removed: Tensor, change: Tensor, linear: nn.Linear) -> None:
    """removed [A,n,R,C] += change [..., K] W^T, without the bias: it is in both runs."""
    removed.view(-1, removed.shape[-1]).addmm_(change.reshape(-1, change.shape[-1]), linear.weight.T)
