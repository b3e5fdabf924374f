"""Ablations whose patterns change: the layers above the first removed head run again, all ablations side by side.

What is preserved of a head is taken from the run without ablation; a preserved pattern is that of preserved queries and
keys. The layers below the first removed head are those of the run without ablation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from icl_fast.measure.ablation.differences import norm_difference
from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import Ablation
from icl_fast.measure.ablation.removal import Removal
from icl_fast.measure.base_pass import BaseLayer, attend, merged

# with which preserved sites a projection is that of the run without ablation
PRESERVED_WITH = {"q": ("q", "pattern"), "k": ("k", "pattern"), "v": ("v",)}


class Rerun:
    """The streams of A ablated runs, layer by layer. `ablations` are sorted by their first layer."""

    def __init__(self, ablations: Sequence[Ablation], mode: AblationMode, removal: Removal, resid: Tensor) -> None:
        self.ablations, self.mode, self.removal = ablations, mode, removal
        self.resid = resid.new_empty(len(ablations), *resid.shape)  # [A,n,T,C], of which the first `alive` are filled
        self.alive = 0
        while self.alive < len(ablations) and ablations[self.alive].embed:
            self.resid[self.alive] = removal.embedding()
            self.alive += 1

    def layer(self, base: BaseLayer) -> None:
        """Go through a layer; after the last one, `resid` holds its rows only."""
        block = base.block
        moved = self._attention(base) if self.alive else None
        if base.rows is not None:
            self.resid = base.take(self.resid)
        before, old = self.resid[: self.alive].clone() if block.config.parallel else None, self.alive
        if moved is not None:
            self.resid[: self.alive] += moved
        while self.alive < len(self.ablations) and self.ablations[self.alive].first_layer == base.layer:
            taken = self.removal.of_stream(base, self.ablations[self.alive].heads_of(base.layer))
            change = norm_difference(base.attended, taken[None], block.after1)[0]
            self.resid[self.alive] = base.mid - change
            self.alive += 1
        if block.mlp is None or not self.alive:
            return
        if before is not None:
            self.resid[old : self.alive] += block.after2(base.mlp_written)  # it reads nothing of what they remove
        streams = self.resid[: self.alive if before is None else old]
        reads = streams if before is None else before
        for part in base.hidden_slices(len(streams)):
            streams[part] += block.mlp_out(reads[part])

    def _attention(self, base: BaseLayer) -> Tensor:
        """What attention writes in each run that is alive, [A,n,R,C]."""
        alive, attention = self.resid[: self.alive], base.attention
        variants, count = alive.shape[:2]
        own = attention.qkv(base.block.norm1(alive).flatten(0, 1), base.positions)  # each [A*n,H,T,D]
        for name, mine, first in zip("qkv", own, base.qkv, strict=True):
            sites = PRESERVED_WITH[name]
            heads = sorted({h for at in sites for h in self.mode.preserved_heads(at, base.layer, base.heads)})
            if heads:
                mine.view(variants, count, *mine.shape[1:])[:, :, heads] = first[:, heads]
        q, k, v = own
        rows = None if base.rows is None else base.rows.repeat(variants, 1)
        z = attend(attention, q, k, v[None], rows)[0]
        z = z.view(variants, count, *z.shape[1:])  # [A,n,H,R,D]
        for index, ablation in enumerate(self.ablations[: self.alive]):
            if heads_removed := ablation.heads_of(base.layer):
                z[index][:, list(heads_removed)] = self.removal.replacement(base.layer, heads_removed)
        written: Tensor = base.block.after1(attention.out(merged(z)))
        return written
