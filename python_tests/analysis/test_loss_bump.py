"""The loss curve in the phase change, on curves that have a bump and curves that have none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from icl_fast import InputError
from icl_fast.analysis import gained_inside, loss_bump
from icl_fast.analysis.loss_bump import convex_below

STEPS = np.arange(0, 2001, 20)
SMOOTH = 3 + 4 * (STEPS + 20.0) ** -0.3
CHANGE = 1 / (1 + (700 / np.maximum(STEPS, 1)) ** 6.0)  # 10% at 485, 90% at 1009
WINDOW = (485.0, 1009.0)


def test_a_bump_is_steeper_and_not_convex() -> None:
    bump = loss_bump(STEPS.tolist(), (SMOOTH - 0.6 * CHANGE).tolist(), WINDOW)
    assert bump.steeper
    assert bump.convex_elsewhere
    assert bump.height > 0.03
    # over ln(1009 / 485) 80% of the change and the smooth part are lost, fastest in the middle
    smooth = 4 * ((1009 + 20) ** -0.3 - (485 + 20) ** -0.3)
    assert bump.inside[0] == pytest.approx((smooth - 0.48) / np.log(1009 / 485), rel=0.15)
    assert bump.before[0] > bump.inside[0] < bump.after[0]


def test_a_smooth_curve_has_none() -> None:
    bump = loss_bump(STEPS.tolist(), SMOOTH.tolist(), WINDOW)
    assert not bump.steeper
    assert bump.height == pytest.approx(0, abs=1e-12)
    noisy = SMOOTH + np.random.default_rng(0).normal(0, 0.02, len(STEPS))
    assert not loss_bump(STEPS.tolist(), noisy.tolist(), WINDOW).steeper


def test_slopes_are_least_squares_along_ln() -> None:
    curve = 5 - 0.4 * np.log(np.maximum(STEPS, 1))
    bump = loss_bump(STEPS.tolist(), curve.tolist(), WINDOW)
    for slope, error in bump.slopes:
        assert slope == pytest.approx(-0.4)
        assert error == pytest.approx(0, abs=1e-7)
    random = np.random.default_rng(1)
    inside = (WINDOW[0] <= STEPS) & (WINDOW[1] >= STEPS)
    found = np.array(
        [
            loss_bump(STEPS.tolist(), (curve + random.normal(0, 0.05, len(STEPS))).tolist(), WINDOW).inside
            for _ in range(300)
        ]
    )
    assert inside.sum() > 20
    assert found[:, 0].std() == pytest.approx(found[:, 1].mean(), rel=0.15)  # the error is that of the slope
    expected = np.polyfit(np.log(STEPS[inside]), SMOOTH[inside], 1)[0]
    assert loss_bump(STEPS.tolist(), SMOOTH.tolist(), WINDOW).inside[0] == pytest.approx(expected)


def test_stretches_of_few_snapshots_have_no_slope() -> None:
    bump = loss_bump([10, 20, 30, 40, 50], [5.0, 4.0, 3.0, 2.5, 2.4], (10.0, 50.0))
    assert np.isnan(bump.before[0])
    assert np.isnan(bump.after[0])
    assert not bump.steeper
    assert bump.height_outside == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 1000), st.integers(-1000, 1000)), min_size=4, max_size=30, unique_by=lambda p: p[0]
    )
)
def test_the_greatest_convex_curve_below(points: list[tuple[int, int]]) -> None:
    x, y = np.array(sorted(points), dtype=float).T
    below = convex_below(x, y)
    assert (below <= y + 1e-9).all()
    assert (np.diff(np.diff(below) / np.diff(x)) >= -1e-9).all()
    if np.ptp(y) > 0 and np.linalg.matrix_rank(np.stack([x - x[0], y - y[0]])) == 2:
        hull = ConvexHull(np.stack([x, y], 1))
        lower = hull.equations[hull.equations[:, 1] < -1e-12]  # of each lower edge: normal, offset
        independent = np.max(-(lower[:, :1] * x + lower[:, 2:]) / lower[:, 1:2], axis=0)
        np.testing.assert_allclose(below, independent, atol=1e-6)


def test_the_share_gained_inside() -> None:
    assert gained_inside([0.0, -0.1, -0.3, -0.4], 1, 2) == pytest.approx(0.5)
    assert gained_inside([0.0, -0.1, -0.6, -0.4], 1, 2) == pytest.approx(1.25)
    assert np.isnan(gained_inside([0.1, 0.0], 0, 1))


def test_bad_input() -> None:
    with pytest.raises(InputError, match="steps must rise and be as many as losses, got 3 and 2"):
        loss_bump([1, 2, 3], [1.0, 2.0], (1, 2))
    with pytest.raises(InputError, match="3 finite ones after step 0"):
        loss_bump([0, 1, 2], [1.0, 2.0, 3.0], (1, 2))
    with pytest.raises(InputError, match="window: must rise from above 0, got 2 to 1"):
        loss_bump([1, 2, 3], [1.0, 2.0, 3.0], (2, 1))
