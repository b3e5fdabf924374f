"""The run without ablation, layer by layer, as the fast ways to ablate read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from icl_fast.models import Transformer
from icl_fast.models.blocks import Attention, Block, GatedMLP
from icl_fast.models.positions import Positions
from icl_fast.ops import frozen_attention
from icl_fast.ops._attention import SCORES_AT_A_TIME, causal_scores, unseen_keys

CACHE_BYTES = 4 << 20
TILE_SCORES = 2**18  # of patterns at a time on a CPU: what softmax makes of them stays in its second-level cache


@dataclass
class BaseLayer:
    """One layer. R is T, except in a last layer of which only `rows` are wanted.

    Attributes:
        layer: its number.
        block: its weights.
        resid: the residual stream before it, [n,T,C].
        positions: what attention is told of them.
        rows: 0-based positions [n,R], or None: all.
    """

    layer: int
    block: Block
    resid: Tensor
    positions: Positions
    rows: Tensor | None

    @property
    def attention(self) -> Attention:
        return self.block.attention

    @property
    def heads(self) -> int:
        """How many heads the layer has."""
        return self.attention.config.heads

    @cached_property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as attention sees them, each [n,H,T,D]."""
        return self.attention.qkv(self.block.norm1(self.resid), self.positions)

    @cached_property
    def z(self) -> Tensor:
        """Results of the heads, [n,H,R,D]."""
        q, k, v = self.qkv
        return attend(self.attention, q, k, v[None], self.rows)[0]

    @cached_property
    def pattern(self) -> Tensor:
        """Attention patterns of the rows, [n,H,R,T]. For few rows only: it is held in memory."""
        assert self.rows is not None
        q, k, _ = self.qkv
        return pattern_of(self.attention, q, k, self.rows)

    def pattern_tiles(self, first: int = 0) -> Iterator[tuple[slice, slice, Tensor]]:
        """As `pattern_tiles`, of the layer's own queries and keys."""
        q, k, _ = self.qkv
        return pattern_tiles(self.attention, q, k, first)

    @cached_property
    def attended(self) -> Tensor:
        """What attention writes before any norm after it, [n,R,C]."""
        attended: Tensor = self.attention.out(merged(self.z))
        return attended

    @cached_property
    def mid(self) -> Tensor:
        """The residual stream after attention, [n,R,C]."""
        mid: Tensor = self.take(self.resid) + self.block.after1(self.attended)
        return mid

    @cached_property
    def mlp_reads(self) -> Tensor:
        """The residual stream that the MLP reads, [n,R,C]."""
        return self.block.mlp_reads(self.take(self.resid), self.mid)

    @cached_property
    def hidden(self) -> tuple[Tensor, ...]:
        """What the MLP projects up, each [n,R,M]: what it activates and, gated, what that is multiplied by."""
        mlp, normed = self.block.mlp, self.block.mlp_norm(self.mlp_reads)
        return (mlp.gate(normed), mlp.up(normed)) if isinstance(mlp, GatedMLP) else (self.block.up(normed),)

    @cached_property
    def mlp_written(self) -> Tensor:
        """What the MLP writes before any norm after it, [n,R,C]."""
        hidden, down = self.block.activation(self.hidden[0]), self.block.down
        written: Tensor = down(hidden * self.hidden[1] if len(self.hidden) == 2 else hidden)
        return written

    @cached_property
    def post(self) -> Tensor:
        """The residual stream after the layer, [n,R,C]."""
        if self.block.mlp is None:
            return self.mid
        post: Tensor = self.mid + self.block.after2(self.mlp_written)
        return post

    @property
    def hidden_bytes(self) -> int:
        """Of one array as wide as the MLP, [n,R,M]."""
        rows = self.resid.shape[1] if self.rows is None else self.rows.shape[1]
        return len(self.resid) * rows * self.block.config.hidden_width * self.resid.element_size()

    def take(self, stream: Tensor) -> Tensor:
        """The rows of a stream [..., n,T,C]: [..., n,R,C]."""
        if self.rows is None:
            return stream
        index = self.rows[:, :, None].expand(*stream.shape[:-2], -1, stream.shape[-1])
        return stream.gather(-2, index)


def base_layers(model: Transformer, resid: Tensor, positions: Positions, rows: Tensor | None) -> Iterator[BaseLayer]:
    """The layers in turn, each at its first rows [n,T,C] or, in the last layer, at those of `rows` [n,R]."""
    last = len(model.blocks) - 1
    for layer, block in enumerate(model.blocks):
        base = BaseLayer(layer, block, resid, positions, rows if layer == last else None)
        yield base
        resid = base.post


def attend(attention: Attention, q: Tensor, k: Tensor, values: Tensor, rows: Tensor | None) -> Tensor:
    """Values [A,n,H,T,D] of A variants summed with the one pattern of q and k [n,H,T,D]: [A,n,H,R,D]."""
    if attention.plain_scores:
        return frozen_attention(q, k, values, scale=attention.scale, window=attention.windows, rows=rows)
    if rows is not None:
        return pattern_of(attention, q, k, rows) @ values
    out = torch.empty_like(values)
    for examples, at, pattern in pattern_tiles(attention, q, k):
        out[:, examples, :, at] = pattern @ values[:, examples, :, : at.stop]
    return out


def pattern_tiles(attention: Attention, q: Tensor, k: Tensor, first: int = 0) -> Iterator[tuple[slice, slice, Tensor]]:
    """The pattern of q and k [n,H,T,D] tile by tile: which examples, which rows, and [m,H,R,S] of these, S the keys up
    to the last row.

    Args:
        first: the first row of interest, 0-based.
    """
    count, heads, length, _ = q.shape
    scores = TILE_SCORES if q.device.type == "cpu" else SCORES_AT_A_TIME
    together = min(count, max(1, scores // (heads * length * length)))
    step = max(1, scores // (together * heads * length))
    for example in range(0, count, together):
        examples = slice(example, min(example + together, count))
        for row in range(first, length, step):
            at = slice(row, min(row + step, length))
            rows = torch.arange(at.start, at.stop, device=q.device)[None]
            yield examples, at, _pattern(attention, q[examples, :, at], k[examples, :, : at.stop], rows)


def pattern_of(attention: Attention, q: Tensor, k: Tensor, rows: Tensor) -> Tensor:
    """The pattern [n,H,R,T] of q and k [n,H,T,D] at 0-based positions [n,R]."""
    return _pattern(attention, q.gather(2, rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])), k, rows)


def _pattern(attention: Attention, queries: Tensor, k: Tensor, rows: Tensor) -> Tensor:
    """The pattern [n,H,R,S] of queries [n,H,R,D] at 0-based positions [n or 1,R] and the first S keys [n,H,S,D]."""
    window = None
    if attention.windows is not None:
        window = torch.tensor([w or 0 for w in attention.windows], device=k.device)
    wide = torch.promote_types(k.dtype, torch.float32)
    if attention.plain_scores:
        scores = causal_scores(queries.to(wide), k.to(wide), rows, attention.scale, window)
    else:
        unseen = unseen_keys(rows, k.shape[2], window)
        scores = attention.scores(queries.to(wide), k.to(wide), rows).masked_fill_(unseen, float("-inf"))
    return scores.softmax(-1).to(k.dtype)


def slices(streams: Tensor, each: int) -> tuple[Tensor, ...]:
    """The streams [A,n,R,C] of ablations, as few at a time as it takes for what is computed of them, of `each` bytes,
    to stay in a CPU's caches (a step on fresh memory takes a quarter longer)."""
    if streams.device.type != "cpu":
        return (streams,)
    return torch.split(streams, max(1, CACHE_BYTES // max(1, each)))


def merged(z: Tensor) -> Tensor:
    """Results of the heads [..., H,R,D] side by side: [..., R,H*D]."""
    return z.transpose(-2, -3).flatten(-2)
