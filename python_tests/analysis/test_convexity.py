"""Non-convexity against its definition: the largest convex curve below, from all chords."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.analysis.convexity import non_convexity
from icl_fast.errors import InputError

TIME = np.linspace(0, 40, 2001)


def by_chords(x: np.ndarray, y: np.ndarray) -> float:
    """At each point the lowest of all chords that span it is the convex curve."""
    below = y.copy()
    for first in range(len(x)):
        for last in range(first + 1, len(x)):
            inside = slice(first, last + 1)
            chord = y[first] + (y[last] - y[first]) * (x[inside] - x[first]) / (x[last] - x[first])
            below[inside] = np.minimum(below[inside], chord)
    return float((y - below).max() / np.ptp(y)) if np.ptp(y) else 0.0


@given(
    st.lists(st.integers(-50, 50), min_size=2, max_size=25),
    st.lists(st.integers(1, 9), min_size=25, max_size=25),
)
def test_is_its_definition(values: list[int], steps: list[int]) -> None:
    x, y = np.cumsum(steps[: len(values)]).astype(float), np.array(values, float)
    assert non_convexity(x, y) == pytest.approx(by_chords(x, y), abs=1e-12)


@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
def test_exponentials_and_lines_are_convex(scale: float) -> None:
    assert non_convexity(TIME, 1.6 * np.exp(-TIME / scale) + 0.1) < 1e-12
    assert non_convexity(TIME, 5 - TIME / scale) < 1e-12


def test_the_longer_the_plateau_the_more() -> None:
    found = [non_convexity(TIME, 1 / (1 + np.exp(TIME - begins))) for begins in (1.0, 2.6, 5.0, 8.0)]
    assert found == pytest.approx([0.013, 0.103, 0.267, 0.412], abs=2e-3)
    step = np.where(TIME < 20, 1.0, 0.0)
    assert non_convexity(TIME, step) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize(
    ("x", "y"), [([0, 1], [1.0, 2, 3]), ([1, 1, 2], [3.0, 2, 1]), ([0], [1.0]), ([0, 1], [1.0, np.nan])]
)
def test_what_is_no_curve(x: list[float], y: list[float]) -> None:
    with pytest.raises(InputError):
        non_convexity(x, y)
