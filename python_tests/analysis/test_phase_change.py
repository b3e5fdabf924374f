"""The phase-change rule on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from icl_fast import InputError
from icl_fast.analysis import find_phase_change

RISING = list(range(10, 1000, 10))
STEP = [0.0, -0.05, -0.05, -0.05, -0.05, -0.15, -0.25, -0.45, -0.45, -0.45, -0.45]


def matching(last: float) -> list[float]:
    return [0.0] * (len(STEP) - 1) + [last]


def test_a_clear_change() -> None:
    change = find_phase_change(RISING[: len(STEP)], STEP, matching(0.8))
    assert change.happened
    assert change.drop == pytest.approx(0.45)
    # 10% of the drop is -0.045, which the first value alone is above; 90% is -0.405
    assert (change.start, change.end) == (0, 7)


def test_both_signs_are_needed() -> None:
    assert not find_phase_change(RISING[: len(STEP)], STEP, matching(0.05)).happened
    assert not find_phase_change(RISING[: len(STEP)], [s * 0.4 for s in STEP], matching(0.9)).happened


def test_one_outlier_is_no_change() -> None:
    flat = [0.0] * 5 + [-0.9] + [0.0] * 5
    assert not find_phase_change(RISING[: len(flat)], flat, matching(0.9)).happened


def test_a_score_that_only_rises() -> None:
    change = find_phase_change(RISING[:11], np.linspace(0, 1, 11).tolist(), matching(0.9))
    assert not change.happened
    assert (change.drop, change.start, change.end) == (0.0, None, None)


def test_the_drop_is_measured_from_the_highest_value_before_the_minimum() -> None:
    scores = [0.0, 0.1, 0.1, 0.1, -0.3, -0.3, -0.3, 0.6, 0.6, 0.6, 0.6]
    change = find_phase_change(RISING[:11], scores, matching(0.5))
    assert change.drop == pytest.approx(0.4)
    assert (change.start, change.end) == (3, 4)


def test_the_untrained_snapshot_is_left_out() -> None:
    scores = [0.5, -0.1, -0.1, -0.1, -0.1, -0.3, -0.5, -0.5, -0.5]
    trained = find_phase_change(RISING[:8], scores[1:], [0.5] * 8)
    with_untrained = find_phase_change([0, *RISING[:8]], scores, [0.5] * 9)
    assert with_untrained.drop == trained.drop == pytest.approx(0.4)
    assert (trained.start, trained.end) == (3, 5)
    assert (with_untrained.start, with_untrained.end) == (4, 6)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="got 3, 3 and 2"):
        find_phase_change([1, 2, 3], [0.0, 1.0, 2.0], [0.0, 1.0])
    with pytest.raises(InputError, match="steps must rise"):
        find_phase_change([1, 3, 2], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    with pytest.raises(InputError, match="3 snapshots after step 0 or more are needed, got 2"):
        find_phase_change([0, 1, 2], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    with pytest.raises(InputError, match="must be finite"):
        find_phase_change([1, 2, 3], [0.0, float("nan"), 1.0], [0.0, 0.0, 0.0])


@example([10, 0, 0, 9, 9, -1], 0)  # falls, rises again, falls
@given(st.lists(st.integers(-500, 500), min_size=3, max_size=40), st.integers(-300, 300))
def test_shifting_the_score_changes_nothing(values: list[int], by: int) -> None:
    scores, shift = [value / 128 for value in values], by / 128  # exact in floating point, sums too
    a = find_phase_change(RISING[: len(scores)], scores, [0.5] * len(scores))
    b = find_phase_change(RISING[: len(scores)], [score + shift for score in scores], [0.5] * len(scores))
    assert a.drop == pytest.approx(b.drop, abs=1e-9)
    assert a.drop >= 0
    if a.start is not None and a.end is not None:
        assert 0 <= a.start <= a.end < len(scores)
