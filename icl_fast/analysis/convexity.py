"""Is a curve of training one smooth fall, or is there a plateau and a change? (Singh 2025, 4.4.2)"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from icl_fast.analysis.arrays import finite
from icl_fast.errors import InputError


def non_convexity(x: ArrayLike, y: ArrayLike) -> float:
    """How far a falling curve rises above the largest convex curve below it, as a share of its range.

    An exponential decay is convex: 0. A plateau before a fall is not: the longer and flatter it is, the nearer to 1; a
    logistic fall that begins t0 before its middle, of time constant s, has 0.01 at t0 = s, 0.10 at 2.6 s, 0.27 at 5 s.

    Args:
        x: `[n]`, rising.
        y: `[n]`.

    Raises:
        InputError: different lengths, fewer than two points, an x that does not rise, a value that is not finite.
    """
    at, values = finite("x", np.asarray(x), ("point",)), finite("y", np.asarray(y), ("point",))
    if len(at) != len(values) or len(at) < 2 or (np.diff(at) <= 0).any():
        raise InputError(f"x: must rise, two or more and as many as y, got {len(at)} and {len(values)}")
    hull: list[int] = []  # the corners of the convex curve
    for point in range(len(at)):
        while len(hull) > 1 and _is_above(at, values, hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    above = values - np.interp(at, at[hull], values[hull])
    span = float(np.ptp(values))
    return float(above.max()) / span if span else 0.0


def _is_above(x: np.ndarray, y: np.ndarray, first: int, middle: int, last: int) -> bool:
    """Whether the middle point is on or above the line through the others."""
    rise = (y[last] - y[first]) * (x[middle] - x[first])
    return bool((y[middle] - y[first]) * (x[last] - x[first]) >= rise)
