"""Learning times and transience on curves whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.analysis.learning import LEARNED, learning_time, transience
from icl_fast.errors import InputError

SEEN = [100, 200, 300, 400, 500]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_learning_time_is_when_it_stays_below(losses: list[float]) -> None:
    seen = [32 * (i + 1) for i in range(len(losses))]
    expected = math.nan
    for i in reversed(range(len(losses))):
        if losses[i] >= LEARNED:
            break
        expected = seen[i]
    assert float(learning_time(seen, losses)) == pytest.approx(expected, nan_ok=True)
    first = next((at for at, loss in zip(seen, losses, strict=True) if loss < LEARNED), math.nan)
    assert float(learning_time(seen, losses, for_good=False)) == pytest.approx(first, nan_ok=True)


def test_learning_times_of_a_population() -> None:
    losses = np.array([[0.7, 0.7, 0.1], [0.2, 0.7, 0.1], [0.7, 0.7, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.1]])
    assert learning_time(SEEN, losses).tolist() == [400, 500, 100]
    assert learning_time(SEEN, losses, for_good=False).tolist() == [200, 500, 100]
    assert learning_time(SEEN, losses, threshold=0.15)[0] == 500
    assert np.isnan(learning_time(SEEN, np.full(5, 0.5)))
    assert pytest.approx(0.4 * math.log(2)) == LEARNED


def test_a_rise_and_a_straight_fall() -> None:
    seen = np.arange(103) * 1e6
    up, down = np.linspace(0.5, 0.9, 43), 0.9 - 0.005 * np.arange(1, 61)
    found = transience(seen, np.concatenate([up, down]), chance=0.5, smooth=1)
    assert found.height == pytest.approx(0.9)
    assert found.peak == 42e6
    assert found.onset == 38e6  # 0.86 lies between 37 and 38
    assert found.end == pytest.approx(0.6)
    assert found.decay == pytest.approx(-0.005)
    assert found.transient
    kept = transience(seen, np.concatenate([up, np.full(60, 0.8)]), chance=0.5)
    assert not kept.transient
    assert kept.decay < 0


def test_a_curve_that_only_rises_is_not_transient() -> None:
    found = transience(SEEN, [0.5, 0.6, 0.7, 0.8, 0.9], chance=0.5, smooth=1)
    assert (found.peak, found.height, found.transient) == (500, 0.9, False)
    assert math.isnan(found.decay)


def test_noise_is_no_rise() -> None:
    for height, transient in ((0.58, False), (0.62, True)):
        assert transience(SEEN, [0.5, 0.5, height, 0.5, 0.5], chance=0.5, smooth=1).transient == transient


def test_one_outlier_is_no_peak() -> None:
    values = [0.5, 0.5, 0.99, 0.5, 0.5]
    assert transience(SEEN, values, chance=0.5).height == 0.5
    assert transience(SEEN, values, chance=0.5, smooth=1).height == 0.99
    flat = transience(SEEN, values, chance=0.5)
    assert not flat.transient


def test_bad_curves_are_refused() -> None:
    with pytest.raises(InputError, match="sequences: must rise"):
        learning_time([1, 1, 2], [0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="sequences: must rise"):
        learning_time([1, 2], [0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="losses"):
        learning_time([1, 2], [0.1, math.nan])
    with pytest.raises(InputError, match="accuracy"):
        transience([1, 2], [[0.1], [0.2]], chance=0.5)
    with pytest.raises(InputError, match="smooth"):
        transience([1, 2], [0.1, 0.2], chance=0.5, smooth=2)
