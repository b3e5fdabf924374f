"""Positions: which of them see which, and how they enter attention; the same for all models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """What the attention of every layer is told of positions; nothing by default.

    Attributes:
        added: `[T,C]`, added to what queries and keys read, after the norm ("shortformer", Press et al. 2021).
        rotary: cosines and sines `[T,R/2]` of the rotation of queries and keys (Su et al. 2021), R of whose D
            dimensions are rotated.
    """

    added: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None


def causal_mask(
    length: int, *, windows: Sequence[int | None] | None = None, device: torch.device | None = None
) -> Tensor:
    """True where a query (row) may attend to a key: `[T,T]`, or `[H,T,T]` with the local windows of H heads."""
    index = torch.arange(length, device=device)
    distance = index[:, None] - index[None, :]
    if windows is None:
        return distance >= 0
    reach = torch.tensor([length if window is None else window for window in windows], device=device)[:, None, None]
    return (distance >= 0) & (distance < reach)


def softmax_or_zeros(scores: Tensor) -> Tensor:
    """Attention `[...,T]` of scores `[...,T]`; zeros in rows that see nothing, all -inf, also of gradients."""
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)


def position_angles(
    length: int,
    width: int,
    base: float,
    *,
    precision: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """The angle of position t in plane i, t / base^(2i/width): `[T,width/2]`, computed in `precision`."""
    frequencies = base ** (-torch.arange(0, width, 2, device=device, dtype=precision) / width)
    return torch.outer(torch.arange(length, device=device, dtype=precision), frequencies).to(dtype)


def sinusoids(
    length: int,
    width: int,
    *,
    precision: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """The position vectors of Vaswani et al. 2017, sines then cosines: `[T,width]`; angles computed in `precision`."""
    angles = position_angles(length, width + width % 2, 10_000.0, precision=precision, dtype=dtype, device=device)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate the first R dimensions of x `[...,T,D]` in planes, by angles of cosine and sine `[T,R/2]`.

    Planes are dimensions (0,1), (2,3), ... where `interleaved`, else (0,R/2), (1,R/2+1), ...
    """
    width = 2 * cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    plane, rest = x[..., :width], x[..., width:]
    a, b = (plane[..., 0::2], plane[..., 1::2]) if interleaved else plane.chunk(2, dim=-1)
    rotated = (a * cos - b * sin, b * cos + a * sin)
    joined = torch.stack(rotated, dim=-1).flatten(-2) if interleaved else torch.cat(rotated, dim=-1)
    return torch.cat((joined, rest), dim=-1) if rest.shape[-1] else joined
