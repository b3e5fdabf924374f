"""Is a curve of training one smooth fall, or is there a plateau and a change? (Singh 2025, 4.4.2)"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from icl_fast.analysis.arrays import Floats, finite
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
    above = values - convex_below(at, values)
    span = float(np.ptp(values))
    return float(above.max()) / span if span else 0.0


def convex_below(x: Floats, y: Floats) -> Floats:
    """The greatest convex function under points `[n]` whose x rises, at these x."""
    corners: list[int] = []
    for point in range(len(x)):
        while len(corners) > 1 and _is_above(x, y, corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    below: Floats = np.interp(x, x[corners], y[corners])
    return below


def _is_above(x: Floats, y: Floats, first: int, middle: int, last: int) -> bool:
    """Whether the middle point is on or above the line through the others."""
    rise = (y[last] - y[first]) * (x[middle] - x[first])
    return bool((y[middle] - y[first]) * (x[last] - x[first]) >= rise)
