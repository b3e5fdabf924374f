"""Positions: which of them see which, and how they enter attention; the same for all models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icl_fast.models.config import ModelShape, RotaryScaling


@dataclass(frozen=True)
class Positions:
    """What the attention of every layer is told of positions; nothing by default.

    Attributes:
        added: `[T,C]`, added to what queries and keys read, after the norm ("shortformer", Press et al. 2021).
        rotary: cosines and sines `[T,R/2]` of the rotation of queries and keys (Su et al. 2021), R of whose D
            dimensions are rotated.
        local_rotary: those of layers with windows.
    """

    added: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    local_rotary: tuple[Tensor, Tensor] | None = None


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


def rotary_positions(length: int, config: ModelShape, *, device: torch.device | None = None) -> Positions:
    """The rotations of a model's queries and keys at the first `length` positions."""
    base, local = config.rotary_base, config.rotary_local_base
    rotary = _rotation(length, config.rotary_width, base, config.rotary_scaling, device)
    return Positions(
        rotary=rotary,
        local_rotary=rotary if local is None else _rotation(length, config.rotary_width, local, None, device),
    )


def _rotation(
    length: int, width: int, base: float, scaling: RotaryScaling | None, device: torch.device | None
) -> tuple[Tensor, Tensor]:
    # written as everybody writes it, for the angles of late positions keep the rounding errors of frequencies
    frequencies = 1.0 / base ** (torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    factor = 1.0
    if scaling is not None:
        frequencies, factor = stretched(frequencies, width, base, scaling), scaling.length
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    return angles.cos() * factor, angles.sin() * factor


def stretched(frequencies: Tensor, width: int, base: float, scaling: RotaryScaling) -> Tensor:
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    if scaling.kind == "llama3":
        turns = scaling.original_context * frequencies / (2 * math.pi)
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    else:

        def index(turns: float) -> float:  # of the frequency that makes so many in the original context
            return width * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = index(scaling.high), index(scaling.low)
        if scaling.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        count = torch.arange(len(frequencies), device=frequencies.device, dtype=torch.float32)
        kept = 1 - ((count - first) / max(last - first, 1e-3)).clamp(0, 1)
    return slow * (1 - kept) + frequencies * kept


def alibi_slopes(heads: int) -> list[float]:
    """By how much the score of head h falls with each position back (Press et al. 2022, ALiBi)."""
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / whole) for h in range(whole)]
    return slopes + [2 ** (-4 * (2 * h + 1) / whole) for h in range(heads - whole)]


def sinusoids(
    length: int,
    width: int,
    base: float = 10_000.0,
    *,
    precision: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """The position vectors of Vaswani et al. 2017, sines then cosines: `[T,width]`; angles computed in `precision`."""
    angles = position_angles(length, width + width % 2, base, precision=precision, dtype=dtype, device=device)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate the first R dimensions of x `[...,T,D]` in planes, by angles of cosine and sine `[T,R/2]`.

    Planes are dimensions (0,1), (2,3), ... where `interleaved`, else (0,R/2), (1,R/2+1), ...
    """
    width = 2 * cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    plane, rest = x[..., :width], x[..., width:]
    # (a, b) to (a cos - b sin, b cos + a sin), of whole rows: halves would be twice the operations, and their gradients
    # four times
    dim, pairs = (-1, (width // 2, 2)) if interleaved else (-2, (2, width // 2))
    swapped = plane.view(*plane.shape[:-1], *pairs).flip(dim).flatten(-2)
    cosines, sines = (torch.stack(halves, dim=dim).flatten(-2) for halves in ((cos, cos), (-sin, sin)))
    rotated = plane * cosines + swapped * sines
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated
