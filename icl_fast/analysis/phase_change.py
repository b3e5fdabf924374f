"""Whether and when a model went through the phase change: a rule fixed beforehand, applied to what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter

from icl_fast.errors import InputError

MIN_DROP = 0.2
MIN_PREFIX_MATCHING = 0.2
START, END = 0.1, 0.9


@dataclass(frozen=True)
class PhaseChange:
    """The verdict and what it rests on.

    Attributes:
        happened: the drop reaches `MIN_DROP` and some head's prefix-matching score reaches `MIN_PREFIX_MATCHING`.
        drop: nats by which the smoothed ICL score fell from its highest value to its later minimum.
        prefix_matching: the best head's score at the end of training, 0 to 1.
        start: index of the last snapshot before 10% of the drop and before the end; None where the score never fell.
        end: index of the first snapshot past 90% of it.
    """

    happened: bool
    drop: float
    prefix_matching: float
    start: int | None
    end: int | None


def find_phase_change(
    steps: Sequence[int], icl_scores: Sequence[float], prefix_matching: Sequence[float]
) -> PhaseChange:
    """Apply the rule to a model's snapshots in order of training.

    A snapshot at step 0 is left out: untrained weights predict all positions equally badly, and the score's first
    change, from that to knowing how frequent tokens are, is not the one in question.

    The ICL score is smoothed by a running median of 3. The drop is its highest value before its minimum, minus that
    minimum; the interval reaches from the last snapshot before 10% of the drop to the first past 90% (Olsson et al.
    2022 mark it by eye: "the phase change interval"). A drop alone is not enough: any language model uses its context a
    little, so that the same change must also leave an induction head behind.

    Args:
        steps: optimizer steps, one a snapshot, rising.
        icl_scores: nats, one a snapshot.
        prefix_matching: the best head's prefix-matching score, one a snapshot.

    Raises:
        InputError: different lengths, fewer than 3 trained snapshots, or a value that is not finite.
    """
    scores, matching = np.asarray(icl_scores, dtype=float), np.asarray(prefix_matching, dtype=float)
    if not len(steps) == len(scores) == len(matching) or list(steps) != sorted(set(steps)):
        raise InputError(
            f"steps must rise and be as many as icl_scores and prefix_matching, "
            f"got {len(steps)}, {len(scores)} and {len(matching)}"
        )
    untrained = sum(step == 0 for step in steps)
    scores = scores[untrained:]
    if len(scores) < 3:
        raise InputError(f"steps: 3 snapshots after step 0 or more are needed, got {len(scores)}")
    if not (np.isfinite(scores).all() and np.isfinite(matching).all()):
        raise InputError("icl_scores and prefix_matching must be finite; leave out the snapshots that diverged")
    smooth = median_filter(scores, size=3, mode="nearest")
    bottom = int(smooth.argmin())
    top = int(smooth[: bottom + 1].argmax())
    drop = float(smooth[top] - smooth[bottom])
    final = float(matching[-1])
    if drop <= 0:
        return PhaseChange(False, 0.0, final, None, None)
    fallen = (smooth[top] - smooth[top : bottom + 1]) / drop
    end = int(np.flatnonzero(fallen > END)[0])
    # below 10% for the last time: a wiggle at the top does not begin the change, nor does a rise after its end
    start = int(np.flatnonzero(fallen[:end] < START)[-1])
    first = untrained + top
    return PhaseChange(drop >= MIN_DROP and final >= MIN_PREFIX_MATCHING, drop, final, first + start, first + end)
