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

from icl_fast.measure.ablation.differences import mlp_hidden_difference, norm_difference
from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import Ablation
from icl_fast.measure.ablation.removal import Removal
from icl_fast.measure.base_pass import BaseLayer, attend, merged, slices


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
        # of what a parallel MLP reads, ablations that start here change nothing
        before = self.removed[: self.alive].clone() if base.block.config.parallel else None
        if moved is not None:
            _add_written(self.removed[: self.alive], moved, base.attention.out, base.block.after1, base.attended)
        while self.alive < len(self.ablations) and self.ablations[self.alive].first_layer == base.layer:
            taken = self.removal.of_stream(base, self.ablations[self.alive].heads_of(base.layer))
            self.removed[self.alive] = norm_difference(base.attended, taken[None], base.block.after1)[0]
            self.alive += 1
        if base.block.mlp is None or not self.alive:
            return
        reads = self.removed[: self.alive] if before is None else before
        for removed, read in zip(
            slices(self.removed[: len(reads)], base.hidden_bytes), slices(reads, base.hidden_bytes), strict=True
        ):
            change = mlp_hidden_difference(base, read)
            _add_written(removed, change, base.block.down, base.block.after2, base.mlp_written)


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
        attention = base.attention
        weight = attention.v.weight.view(1, -1, v.shape[3], normed.shape[-1])  # [1,KV,D,C]
        weight = attention.of_each_head(weight.transpose(0, 2)).transpose(0, 2)[0]  # [H,D,C]
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


def add_product(removed: Tensor, change: Tensor, linear: nn.Linear) -> None:
    """removed [A,n,R,C] += change [...,K] W^T, without the bias: it is in both runs."""
    removed.view(-1, removed.shape[-1]).addmm_(change.reshape(-1, change.shape[-1]), linear.weight.T)


def _add_written(removed: Tensor, change: Tensor, linear: nn.Linear, after: nn.Module, written: Tensor) -> None:
    """removed [A,n,R,C] += what `change` [...,K] changes behind a projection and the norm after it, if there is one.

    Args:
        written: what the whole model has between the two, [n,R,C].
    """
    if isinstance(after, nn.Identity):
        add_product(removed, change, linear)
    else:
        removed += norm_difference(written, (change @ linear.weight.T).view(removed.shape), after)
