"""The run without ablation, layer by layer, as the fast ways to ablate read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from icl_fast.models import Transformer
from icl_fast.models.blocks import Attention, Block, GatedMLP
from icl_fast.models.positions import Positions
from icl_fast.ops import frozen_attention
from icl_fast.ops._attention import SCORES_AT_A_TIME, unseen_keys
from icl_fast.ops._project import project

STREAM_BYTES, CACHE_BYTES = 4 << 20, 2 << 20  # of ablated streams at a time, and of what is wide in an MLP
TILE_SCORES = 2**19  # of patterns at a time on a CPU, in whose caches they stay


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
        return self.attention.qkv(self.block.norm1(self.resid), self.positions, linear)

    @cached_property
    def qk_parts(self) -> tuple[Tensor, Tensor]:
        """Queries and keys [n,H,T,3D] whose products of bfloat16 give the scores to 2^-16: what is rounded off stands
        beside what is left. Errors of scores would otherwise be most of those of an ablation."""
        (q, q_rest), (k, k_rest) = (_parts(x) for x in self.qkv[:2])
        return torch.cat((q, q_rest, q), -1), torch.cat((k, k, k_rest), -1)

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
        return linear(self.attention.out, merged(self.z))

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
        ups = (mlp.gate, mlp.up) if isinstance(mlp, GatedMLP) else (self.block.up,)
        return tuple(linear(up, normed) for up in ups)

    @cached_property
    def mlp_written(self) -> Tensor:
        """What the MLP writes before any norm after it, [n,R,C]."""
        hidden = self.block.activation(self.hidden[0])
        return linear(self.block.down, hidden.mul_(self.hidden[1]) if len(self.hidden) == 2 else hidden)

    @cached_property
    def post(self) -> Tensor:
        """The residual stream after the layer, [n,R,C]."""
        if self.block.mlp is None:
            return self.mid
        post: Tensor = self.mid + self.block.after2(self.mlp_written)
        return post

    def stream_slices(self, ablations: int) -> list[slice]:
        """So many ablations, as few at a time as fit STREAM_BYTES with an array as wide as all heads, [A,n,T,H*D]."""
        config = self.block.config
        return self._slices(
            ablations, self.resid.shape[1] * max(config.width, config.heads * config.d_head), STREAM_BYTES
        )

    def hidden_slices(self, ablations: int) -> list[slice]:
        """The same of CACHE_BYTES and an array as wide as the MLP, [A,n,R,M]."""
        rows = self.resid.shape[1] if self.rows is None else self.rows.shape[1]
        return self._slices(ablations, rows * self.block.config.hidden_width, CACHE_BYTES)

    def _slices(self, ablations: int, numbers: int, most: int) -> list[slice]:
        """On a CPU few enough for what is computed to stay in its caches: fresh memory costs a quarter more."""
        each = len(self.resid) * numbers * self.resid.element_size()
        step = max(1, most // max(1, each) if self.resid.device.type == "cpu" else ablations)
        return [slice(start, min(start + step, ablations)) for start in range(0, ablations, step)]

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
        if layer < last:  # what the last one writes is computed if it is asked for
            resid = base.post


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor rounded to bfloat16, and what is rounded off it; both in its dtype."""
    narrow = x.bfloat16().to(x.dtype)
    return narrow, x - narrow


def attend(
    attention: Attention, q: Tensor, k: Tensor, values: Tensor, rows: Tensor | None, products: str | None = None
) -> Tensor:
    """Values of A variants summed with the one pattern of q and k [n,H,T,D]: [A,n,H,R,D].

    Args:
        values: [A,n,H,T,D], or of groups of heads [A,n,KV,T,D].
        rows: 0-based positions [n,R]; None: all.
        products: those of `frozen_attention`, where it computes them.
    """
    variants, count, kv, length, depth = values.shape
    heads = q.shape[1]
    group = heads // kv
    if not attention.plain_scores:
        if rows is not None:
            summed = pattern_of(attention, q, k, rows).view(count, kv, -1, length) @ values  # [A,n,KV,H/KV*R,D]
            return summed.view(variants, count, heads, -1, depth)
        z = values.new_empty(variants, count, heads, length, depth)
        for examples, at, pattern in pattern_tiles(attention, q, k):
            summed = pattern.view(len(pattern), kv, -1, at.stop) @ values[:, examples, :, : at.stop]
            z[:, examples, :, at] = summed.view(variants, len(pattern), heads, -1, depth)
        return z
    windows, values = attention.windows, values.contiguous()
    parts = [  # of the first head of each group, of the second, ...: all of them read the values as they are
        frozen_attention(
            q[:, one::group],
            k[:, one::group],
            values,
            scale=attention.scale,
            window=None if windows is None else windows[one::group],
            rows=rows,
            products=products,
        )
        for one in range(group)
    ]
    if group == 1:
        return parts[0]
    # as merged() wants them: side by side, [A,n,R,KV,H/KV,D]
    return torch.stack([part.transpose(2, 3) for part in parts], dim=4).flatten(3, 4).transpose(2, 3)


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
            yield examples, at, _pattern(attention, q[examples, :, at], k[examples, :, : at.stop], rows, row)


def pattern_of(attention: Attention, q: Tensor, k: Tensor, rows: Tensor) -> Tensor:
    """The pattern [n,H,R,T] of q and k [n,H,T,D] at 0-based positions [n,R]."""
    return _pattern(attention, q.gather(2, rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])), k, rows)


def _pattern(attention: Attention, queries: Tensor, k: Tensor, rows: Tensor, seen: int = 0) -> Tensor:
    """The pattern [n,H,R,S] of some rows and the first S keys.

    Args:
        queries: [n,H,R,D].
        k: [n,H,S,D].
        rows: 0-based positions of the queries, [n or 1,R].
        seen: how many of the first keys come before all of them.
    """
    wide = torch.promote_types(k.dtype, torch.float32)
    queries, k_wide = queries.to(wide), k.to(wide)
    if attention.plain_scores:
        scores = (queries * attention.scale) @ k_wide.mT
    else:
        scores = attention.scores(queries, k_wide, rows)
    window = None
    if attention.windows is not None:
        window, seen = torch.tensor([w or 0 for w in attention.windows], device=k.device), 0
    unseen = unseen_keys(rows - seen, k.shape[2] - seen, window)
    scores[..., seen:].masked_fill_(unseen, float("-inf"))
    return scores.softmax(-1).to(k.dtype)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """What a projection makes of x [...,C], by our own product."""
    projected = project(x, layer.weight)
    return projected if layer.bias is None else projected.add_(layer.bias)


def merged(z: Tensor) -> Tensor:
    """Results of the heads [..., H,R,D] side by side: [..., R,H*D]."""
    return z.transpose(-2, -3).flatten(-2)
