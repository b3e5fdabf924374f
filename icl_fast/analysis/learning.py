"""When a curve of training says that something was learned, and whether it was lost again (Singh 2025, 3.3, C.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from icl_fast.analysis.arrays import Floats, finite
from icl_fast.errors import InputError

LEARNED = 0.4 * math.log(2)  # nats; the plateau of guessing one of two labels is log 2
LEAST_RISE = 0.1  # of accuracy; less is no strategy that comes, but noise of an evaluation


def learning_time(
    sequences: Sequence[int] | ArrayLike, losses: ArrayLike, *, threshold: float = LEARNED, for_good: bool = True
) -> Floats:
    """Sequences seen until the training loss is below a threshold (C.6: 0.4 log 2).

    Args:
        sequences: `[S]`, rising.
        losses: `[S]` or `[S,P]`, nats.
        for_good: until it stays below; else until it drops below for the first time, as C.6 words it.

    Returns:
        A number, or `[P]`: the first of the `sequences` after the last loss that is not below, NaN where the last loss
        of all is not; or the first whose loss is below, NaN where none is.

    Raises:
        InputError: different lengths, sequences that do not rise, or a value that is not finite.
    """
    seen, curve = _curve(sequences, losses, "losses")
    above = curve >= threshold
    if for_good:
        learned = len(seen) - above[::-1].argmax(0)  # the index after the last one above
        learned = np.where(above.any(0), learned, 0)
    else:
        learned = np.where(above.all(0), len(seen), above.argmin(0))
    times: Floats = np.where(learned < len(seen), seen[np.minimum(learned, len(seen) - 1)], np.nan)
    return times.reshape(np.shape(losses)[1:])


@dataclass(frozen=True)
class Transience:
    """A rise and fall: what Fig 3.2a annotates, by a rule fixed beforehand.

    Attributes:
        height: the highest value of the smoothed curve.
        peak: sequences at that height.
        onset: sequences when it is first within 10% of the rise from chance to the height.
        end: the smoothed curve's last value.
        decay: slope of the least-squares line from the peak to the end, per million sequences; NaN where the peak is
            the end.
        transient: whether the rise from chance is 0.1 or more and at least half of it is lost by the end.
    """

    height: float
    peak: float
    onset: float
    end: float
    decay: float
    transient: bool


def transience(
    sequences: Sequence[int] | ArrayLike, accuracy: ArrayLike, *, chance: float, smooth: int = 3
) -> Transience:
    """How a strategy's accuracy rises and falls.

    Args:
        sequences: `[S]`, rising.
        accuracy: `[S]`.
        chance: what guessing reaches, such as 1/2 for two labels in context.
        smooth: an odd number: how many values the running median is of; 1 for none.

    Raises:
        InputError: different lengths, sequences that do not rise, a value that is not finite, or an even `smooth`.
    """
    seen, curve = _curve(sequences, accuracy, "accuracy")
    if curve.shape[1] != 1 or np.ndim(accuracy) != 1:
        raise InputError(f"accuracy: must be one curve [S], got {list(np.shape(accuracy))}")
    if smooth < 1 or smooth % 2 == 0:
        raise InputError(f"smooth: must be odd and 1 or more, got {smooth}")
    from scipy.ndimage import median_filter  # here: most of what reads this module does without

    values = median_filter(curve[:, 0], size=smooth, mode="nearest")
    top = int(values.argmax())
    height, end = float(values[top]), float(values[-1])
    onset = int((values >= chance + 0.9 * (height - chance)).argmax()) if height > chance else top
    fall = slice(top, None)
    decay = float(np.polyfit(seen[fall] / 1e6, values[fall], 1)[0]) if top < len(values) - 1 else math.nan
    lost = height - chance >= LEAST_RISE and end <= chance + 0.5 * (height - chance)
    return Transience(height, float(seen[top]), float(seen[onset]), end, decay, lost)


def _curve(sequences: Sequence[int] | ArrayLike, values: ArrayLike, name: str) -> tuple[Floats, Floats]:
    """Both as float64, the values `[S,P]`."""
    dims = ("time", "member")[: np.ndim(values)]
    seen, curve = finite("sequences", np.asarray(sequences), ("time",)), finite(name, np.asarray(values), dims)
    if len(seen) != len(curve) or (np.diff(seen) <= 0).any():
        raise InputError(f"sequences: must rise and be as many as {name}, got {len(seen)} and {len(curve)}")
    return seen, curve.reshape(len(curve), -1)
