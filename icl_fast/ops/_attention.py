"""Pieces of the attention references: which keys a row sees, and sums in which a weight of 0 hides everything."""

from __future__ import annotations

import torch
from torch import Tensor

SCORES_AT_A_TIME = 2**22


def batch_blocks(batch: int, scores_per_example: int) -> list[slice]:
    step = max(1, SCORES_AT_A_TIME // max(1, scores_per_example))
    return [slice(start, start + step) for start in range(0, batch, step)]


def causal_scores(
    q: Tensor,  # [B,H,R,D]
    k: Tensor,  # [B,H,T,D]
    rows: Tensor,  # [B or 1,R]
    scale: float,
    window: Tensor | None,  # [H]
) -> Tensor:
    """Scores [B,H,R,T]: scale * q . k, -inf at keys after the row or before its window."""
    return ((q * scale) @ k.mT).masked_fill_(unseen_keys(rows, k.shape[2], window), float("-inf"))


def unseen_keys(rows: Tensor, length: int, window: Tensor | None) -> Tensor:
    """Whether a key comes after the row or before its window: [B or 1,H or 1,R,T], of rows [B or 1,R], window [H]."""
    distance = rows[:, None, :, None] - torch.arange(length, device=rows.device)
    if window is None:
        return distance < 0
    size = window[:, None, None]
    return (distance < 0) | ((size > 0) & (distance >= size))


def weigh(weights: Tensor, values: Tensor) -> Tensor:
    """weights [...,R,T] @ values [...,T,Dv] in which 0 * nan and 0 * inf are 0.

    So what a row does not see cannot reach it. A row that does give weight to a nan or an infinity is nan.
    """
    bad = ~values.isfinite()
    if not bad.any():
        return weights @ values
    reached = (weights != 0).to(values.dtype) @ bad.to(values.dtype) > 0
    return (weights @ values.masked_fill(bad, 0)).masked_fill_(reached, float("nan"))
