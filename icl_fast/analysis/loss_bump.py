"""What the phase change does to the loss curve, and how much of the in-context learning it brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.convexity import convex_below
from icl_fast.errors import InputError

_MEDIAN = 5  # snapshots; a single one that is off makes any curve not convex

Slope = tuple[float, float]  # and its standard error


@dataclass(frozen=True)
class LossBump:
    """A loss curve in the window of the phase change (Olsson et al. 2022, Argument 1).

    Attributes:
        before, inside, after: each a slope d loss / d ln(steps), nats, and its standard error from the scatter about
            the line: in the window, and in the stretches either side that are as long as it in ln(steps), as far as
            the training reaches. NaN where there are fewer than 3 snapshots.
        height: nats by which the curve lies above the greatest convex one under it, at most, in the window. On linear
            axes, after a running median of 5 snapshots.
        height_outside: the same outside the window: what noise does alone.
    """

    before: Slope
    inside: Slope
    after: Slope
    height: float
    height_outside: float

    @property
    def slopes(self) -> tuple[Slope, Slope, Slope]:
        """In their order."""
        return self.before, self.inside, self.after

    @property
    def steeper(self) -> bool:
        """Whether it is "a period of visibly steeper improvement than the parts of the curve before and after": by more
        than two standard errors of each difference. Along ln(steps): along steps almost all of a curve is steeper than
        what follows it."""
        slope, error = self.inside
        return all(other - slope > 2 * np.hypot(spread, error) for other, spread in (self.before, self.after))

    @property
    def convex_elsewhere(self) -> bool:
        """Whether the window is "the only place in training where the loss is not convex": nowhere else is it as far
        from it."""
        return self.height > self.height_outside


def loss_bump(steps: Sequence[int], losses: Sequence[float], window: tuple[float, float]) -> LossBump:
    """How a loss curve runs in a window: steeper than around it, and not convex.

    Args:
        steps: optimizer steps, or tokens, one a snapshot, rising; a snapshot at 0 is left out.
        losses: nats, one a snapshot.
        window: its ends in the same units, such as `PhaseChange.window`, of this model or of one to compare it with.

    Raises:
        InputError: different lengths, steps or a window that do not rise, fewer than 3 snapshots after 0, a loss that
            is not finite.
    """
    at, curve = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    if at.shape != curve.shape or at.ndim != 1 or (np.diff(at) <= 0).any():
        raise InputError(f"steps must rise and be as many as losses, got {len(at)} and {len(curve)}")
    at, curve = at[at > 0], curve[at > 0]
    start, end = window
    if len(at) < 3 or not np.isfinite(curve).all():
        raise InputError(f"losses: 3 finite ones after step 0 or more are needed, got {len(curve)}")
    if not 0 < start < end:
        raise InputError(f"window: must rise from above 0, got {start:g} to {end:g}")
    from scipy.ndimage import median_filter  # here: most of what reads this module does without

    longer = end / start
    smooth = median_filter(curve, size=_MEDIAN, mode="nearest")
    above = smooth - convex_below(at, smooth)
    within = (at >= start) & (at <= end)
    return LossBump(
        before=_slope(at, curve, start / longer, start),
        inside=_slope(at, curve, start, end),
        after=_slope(at, curve, end, end * longer),
        height=float(above[within].max(initial=0)),
        height_outside=float(above[~within].max(initial=0)),
    )


def gained_inside(icl_scores: Sequence[float], start: int, end: int) -> float:
    """The share of the last ICL score that is gained between two snapshots, such as `PhaseChange.start` and `.end`.

    It may exceed 1, where the score rises again. NaN for a last score of 0.

    Args:
        icl_scores: nats, one a snapshot.
        start, end: indices.
    """
    last = icl_scores[-1]
    return (icl_scores[end] - icl_scores[start]) / last if last else float("nan")


def _slope(at: Floats, curve: Floats, low: float, high: float) -> Slope:
    """d curve / d ln(at) between two values by least squares, and its standard error."""
    inside = (at >= low * (1 - 1e-9)) & (at <= high * (1 + 1e-9))
    if inside.sum() < 3:
        return float("nan"), float("nan")
    x, y = np.log(at[inside]), curve[inside]
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    scatter = ((y - y.mean() - slope * x) ** 2).sum() / (len(x) - 2)
    return slope, float(np.sqrt(scatter / (x @ x)))
