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
from icl_fast.measure.ablation.products import Products
from icl_fast.measure.ablation.removal import Removal
from icl_fast.measure.base_pass import BaseLayer, attend, merged
from icl_fast.ops._project import project


class Delta:
    """What A ablations have removed from the stream, layer by layer. `ablations` are sorted by their first layer."""

    def __init__(
        self,
        ablations: Sequence[Ablation],
        mode: AblationMode,
        removal: Removal,
        products: Products,
        resid: Tensor,
    ) -> None:
        self.ablations, self.mode, self.removal, self.products = ablations, mode, removal, products
        self.removed = resid.new_empty(len(ablations), *resid.shape)  # [A,n,T,C], of which the first `alive` are filled
        self.alive = 0

    def layer(self, base: BaseLayer) -> None:
        """Go through a layer; after the last one, `removed` holds its rows only."""
        through, before = self.alive, self.removed
        self.removed = base.take(before)
        while self.alive < len(self.ablations) and self.ablations[self.alive].first_layer == base.layer:
            taken = self.removal.of_stream(base, self.ablations[self.alive].heads_of(base.layer))
            self.removed[self.alive] = norm_difference(base.attended, taken[None], base.block.after1)[0]
            self.alive += 1
        for part in base.stream_slices(through):
            self._go_through(base, self.ablations[part], before[part], self.removed[part])
        if not base.block.config.parallel:  # else what it reads has not changed yet
            self._mlp(base, self.removed[through : self.alive], self.removed[through : self.alive])

    def _go_through(self, base: BaseLayer, ablations: Sequence[Ablation], before: Tensor, removed: Tensor) -> None:
        """What these had removed before the layer, [A,n,T,C], and what after it, [A,n,R,C], written in its place."""
        reads = removed.clone() if base.block.config.parallel else removed
        moved = attention_change(before, base, ablations, self.mode, self.removal, self.products)
        if moved is not None:
            self._add_written(removed, moved, base.attention.out, base.block.after1, base.attended)
        self._mlp(base, reads, removed)

    def _mlp(self, base: BaseLayer, reads: Tensor, removed: Tensor) -> None:
        """removed [A,n,R,C] += what the MLP writes less when `reads` is taken from what it reads."""
        if base.block.mlp is None:
            return
        for part in base.hidden_slices(len(removed)):
            change = mlp_hidden_difference(base, reads[part], self.products)
            self._add_written(removed[part], change, base.block.down, base.block.after2, base.mlp_written)

    def _add_written(
        self, removed: Tensor, change: Tensor, linear: nn.Linear, after: nn.Module, written: Tensor
    ) -> None:
        """removed [A,n,R,C] += what `change` [A,n,R,K] changes behind a projection and the norm after it, if any.

        A bias of the projection is in both runs.

        Args:
            written: what the whole model has between the two, [n,R,C].
        """
        weight = self.products.of(linear.weight)
        if isinstance(after, nn.Identity):
            project(change, weight, onto=removed)
        else:
            removed += norm_difference(written, project(change, weight), after)


def attention_change(
    removed: Tensor,
    base: BaseLayer,
    ablations: Sequence[Ablation],
    mode: AblationMode,
    removal: Removal,
    products: Products,
) -> Tensor | None:
    """What each ablation takes from the results of the heads of a layer, [A,n,R,H*D]; None: nothing.

    Args:
        removed: what it has taken from the stream before the layer, [A,n,T,C].
        base: the layer.
        ablations: what is removed in each run.
        mode: which heads' values are preserved.
        removal: how heads are removed.
        products: what their operands are rounded to.
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
        kv, depth = attention.config.kv, v.shape[3]
        group = base.heads // kv
        if base.rows is not None and group * base.rows.shape[1] < depth:  # less to sum than values are wide: sum first
            sums = base.pattern.flatten(1, 2) @ normed  # [A,n,H*R,C]
            weight = attention.v.weight.view(kv, depth, -1)
            z = sums.view(*normed.shape[:2], kv, -1, normed.shape[-1]) @ weight.mT  # [A,n,KV,H/KV*R,D]
            z = z.view(*normed.shape[:2], *base.pattern.shape[1:3], depth)
        else:
            values = project(normed, products.of(attention.v.weight))
            values = values.view(*values.shape[:3], kv, depth).transpose(2, 3)  # [A,n,KV,T,D]
            if products.rounded and attention.plain_scores:
                q, k = base.qk_parts
            z = attend(attention, q, k, values, base.rows, products.name)  # [A,n,H,R,D]
        z[:, :, list(preserved)] = 0
    for index, ablation in enumerate(ablations):
        if heads := ablation.heads_of(base.layer):
            z[index][:, list(heads)] = removal.of_heads(base, heads)
    return merged(z)
