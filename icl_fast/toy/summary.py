"""What is said of a run, by rules fixed here and printed with every table.

Relative loss: a mechanism's loss over its plateau, the loss where it predicts nothing (all its vectors 0).
"""

from __future__ import annotations

import numpy as np

from icl_fast.analysis.arrays import Floats
from icl_fast.errors import InputError

LEARNED = 0.5  # of the plateau
REGAINED = 0.5  # of what was gained
DIVOT = 0.01  # of the plateau
RULES = (
    "relative loss: a mechanism's loss over its plateau, the loss where it predicts nothing (all its vectors 0)",
    f"emerges: the first recorded step at which the relative loss is under {LEARNED}; stuck: neither mechanism does",
    f"transient: mechanism 1 emerges, and at the end its relative loss has regained {REGAINED} or more of its fall "
    "from 1 to its lowest",
    f"learned at the end: the last relative loss is under {LEARNED}",
    "takeover: where mechanism 1 emerged, the step from which on mechanism 2 has the lower relative loss, to the end",
    f"divot: mechanism 2's relative loss rises by {DIVOT} or more above its lowest so far, and later falls below that",
)


def plateau_length(steps: np.ndarray, losses: Floats, plateau: Floats) -> Floats:
    """The first recorded step at which a loss is under `LEARNED` of its plateau; NaN where it never is.

    Args:
        steps: [T], rising.
        losses: [T,R].
        plateau: [R], the loss at zero.

    Returns:
        [R].
    """
    return _first(steps, losses < LEARNED * plateau)


def summarise(steps: np.ndarray, relative: Floats) -> dict[str, np.ndarray]:
    """Each run of the coopetition model in a few numbers, by `RULES`.

    Args:
        steps: [T], rising.
        relative: [T,2,R], relative losses of both mechanisms.

    Returns:
        By name, [R]. Booleans: `diverged` (then nothing else holds), `stuck`, `transient`, `divot`, `learned_1`,
        `learned_2`. Steps, NaN where it does not happen: `emergence_1`, `emergence_2`, `lowest_step`, `takeover`,
        `divot_step`. Relative losses: `lowest_1`, `final_1`, `final_2`, `divot_size` (0 where there is no divot).

    Raises:
        InputError: other shapes.
    """
    if relative.ndim != 3 or relative.shape[:2] != (len(steps), 2):
        raise InputError(f"relative: must be [{len(steps)}, 2, runs], got {list(relative.shape)}")
    first, second = relative[:, 0], relative[:, 1]
    emergence = [_first(steps, loss < LEARNED) for loss in (first, second)]
    emerged = ~np.isnan(emergence[0])
    lowest = first.min(0)
    regained = (first[-1] - lowest) >= REGAINED * (1.0 - lowest)
    ahead = np.logical_and.accumulate((second < first)[::-1])[::-1]
    size, at = _divot(second)
    diverged = ~np.isfinite(relative).all((0, 1))
    return {
        "diverged": diverged,
        "stuck": np.isnan(emergence[0]) & np.isnan(emergence[1]) & ~diverged,
        "transient": emerged & regained,
        "divot": size > 0,
        "learned_1": first[-1] < LEARNED,
        "learned_2": second[-1] < LEARNED,
        "emergence_1": emergence[0],
        "emergence_2": emergence[1],
        "lowest_step": np.where(emerged, steps[first.argmin(0)], np.nan),
        "takeover": np.where(emerged, _first(steps, ahead), np.nan),
        "divot_step": np.where(size > 0, steps[at], np.nan),
        "lowest_1": lowest,
        "final_1": first[-1],
        "final_2": second[-1],
        "divot_size": size,
    }


def _divot(loss: Floats) -> tuple[Floats, np.ndarray]:
    """The largest rise [R] above the lowest value so far that is undone later, 0 if under `DIVOT`, and where [R]."""
    low = np.minimum.accumulate(loss)
    undone = np.minimum.accumulate(loss[::-1])[::-1] < low
    rise = np.where(undone, loss - low, 0.0)
    at = rise.argmax(0)
    size = np.take_along_axis(rise, at[None], 0)[0]
    return np.where(size >= DIVOT, size, 0.0), at


def _first(steps: np.ndarray, holds: np.ndarray) -> Floats:
    found: Floats = np.where(holds.any(0), steps[holds.argmax(0)].astype(float), np.nan)
    return found
