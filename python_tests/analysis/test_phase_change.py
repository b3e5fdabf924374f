"""The phase-change rule on curves whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_fast import InputError
from icl_fast.analysis import PhaseChange, find_phase_change, phase_change_of
from icl_fast.analysis.phase_change import _Fits

EVEN = np.arange(10, 2001, 10)
SPACED = np.unique(np.geomspace(10, 2000, 24).astype(int))


def logistic(steps: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 before, 1 after; 10% at `start` and 90% at `end`, in log steps."""
    rate = np.log(81) / np.log(end / start)
    return np.asarray(1 / (1 + (np.sqrt(start * end) / steps) ** rate))


def found(
    steps: np.ndarray, scores: np.ndarray, matching: float = 0.8, by_example: np.ndarray | None = None
) -> PhaseChange:
    return find_phase_change(steps.tolist(), scores.tolist(), [matching] * len(steps), by_example)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.sampled_from([EVEN, SPACED]),
    start=st.floats(60, 700),
    abruptness=st.floats(1.5, 2.5),
    drop=st.floats(0.3, 1.5),
    noise=st.sampled_from([0.0, 0.01]),
    seed=st.integers(0, 1000),
)
def test_a_change_is_found_where_it_is(
    steps: np.ndarray, start: float, abruptness: float, drop: float, noise: float, seed: int
) -> None:
    end = start * abruptness
    scores = -0.05 - drop * logistic(steps, start, end) + np.random.default_rng(seed).normal(0, noise, len(steps))
    change = found(steps, scores)
    assert change.happened
    assert change.window is not None
    assert change.start is not None
    assert change.end is not None
    assert change.drop == pytest.approx(drop, rel=0.12)
    # no closer than snapshots are spaced
    gap = (steps[1:] / steps[:-1])[np.searchsorted(steps, start) - 1 :].max()
    assert change.window[0] == pytest.approx(start, rel=gap * 1.1 - 1)
    assert change.window[1] == pytest.approx(end, rel=gap * 1.1 - 1)
    assert steps[change.start] <= change.window[0] * 1.001 < steps[change.start + 1] * 1.002
    assert steps[change.end - 1] * 0.998 < change.window[1] * 0.999 <= steps[change.end]
    assert change.abruptness == pytest.approx(change.window[1] / change.window[0])


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """With noise of the snapshots, and examples that are unlike each other and gain more or less in the change."""
    random, start, end, covered = np.random.default_rng(0), 300.0, 700.0, []
    for _ in range(60):
        shape = logistic(SPACED, start, end)[:, None]
        gain = random.normal(0.4, 0.8, (1, 150))
        by_example = random.normal(-0.05, 0.5, (1, 150)) - gain * shape + random.normal(0, 0.2, (len(SPACED), 150))
        by_example += random.normal(0, 0.015, (len(SPACED), 1))
        change = found(SPACED, by_example.mean(1), by_example=by_example)
        assert change.resampled == "examples and snapshots"
        assert change.start_interval is not None
        assert change.end_interval is not None
        covered.append(
            [
                change.start_interval[0] <= start <= change.start_interval[1],
                change.end_interval[0] <= end <= change.end_interval[1],
                change.drop_interval[0] <= gain.mean() * (shape[-1] - shape[0]).item() <= change.drop_interval[1],
            ]
        )
    assert (np.mean(covered, axis=0) >= 0.88).all()  # 95% and 60 draws: below 0.88 once in 100


def smooth_curves(steps: np.ndarray) -> dict[str, np.ndarray]:
    """From 0 to 1 over the whole training."""
    curves = {f"steps^{power:g}": steps**power for power in (-1.0, -0.5, -0.1, 0.3, 1.0)}
    curves |= {"log": np.log(steps), "parabola": np.log(steps / steps[0]) ** 2}
    return {name: (of - of[0]) / (of[-1] - of[0]) for name, of in curves.items()}


@pytest.mark.parametrize("steps", [EVEN, SPACED], ids=["even", "spaced"])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_what_is_smooth_is_no_change(steps: np.ndarray, noise: float) -> None:
    steps = steps.astype(float)
    for name, curve in smooth_curves(steps).items():
        errors = np.random.default_rng(0).normal(0, noise, (100, len(steps)))
        passed = _Fits(steps).fit(-0.05 - 0.4 * curve + errors).passed
        assert passed.mean() <= 0.03, name


def test_a_straight_line_is_no_change_and_its_abruptness_is_said() -> None:
    change = found(EVEN, np.linspace(-0.05, -0.45, len(EVEN)))
    assert not change.happened
    assert 0.2 < change.drop < 0.4
    assert change.evidence < 0
    assert change.support == 0
    first, last = 10 + 0.1 * 1990, 10 + 0.9 * 1990  # 10% and 90% of the way
    assert change.smooth_abruptness == pytest.approx(last / first, rel=0.01)


def test_a_slow_change_is_none_though_no_smooth_curve_describes_it() -> None:
    change = found(EVEN, -0.05 - 0.5 * logistic(EVEN, 40, 1200))
    assert change.evidence > 10
    assert change.abruptness == pytest.approx(30, rel=0.25)
    assert not change.happened


def test_all_signs_are_needed() -> None:
    scores = -0.5 * logistic(SPACED, 200, 500)
    assert found(SPACED, scores).happened
    assert not found(SPACED, scores, matching=0.05).happened
    assert not found(SPACED, scores * 0.3).happened


def test_the_change_is_the_same_with_other_snapshots() -> None:
    random = np.random.default_rng(3)
    windows = []
    for steps in (EVEN, EVEN[::6], SPACED, EVEN[3::11]):
        change = found(steps, -0.05 - 0.3 * logistic(steps, 850, 1600) + random.normal(0, 0.01, len(steps)))
        assert change.happened
        windows.append(change.window)
    np.testing.assert_allclose(windows, np.broadcast_to([850, 1600], (4, 2)), rtol=0.15)


DEMO = json.loads((Path(__file__).parent / "demo_curves.json").read_text())["curves"]


@pytest.mark.parametrize("model", list(DEMO))
def test_runs_of_the_demo_are_judged_alike_whichever_snapshots_were_taken(model: str) -> None:
    """Snapshots every 25 steps, and spaced as in configs/demo and closer."""
    steps, scores = np.arange(25, 2401, 25), np.array(DEMO[model])
    windows = []
    for first, factor in ((None, None), (50, 1.25), (50, 1.2)):
        taken = steps if first is None else snapshots(first, factor)
        change = found(taken, scores[np.searchsorted(steps, taken)])
        assert change.happened == (not model.startswith("one_layer "))
        windows.append((change.window, change.start_interval, change.end_interval))
    if change.happened:
        (start, end), *_ = (window for window, _, _ in windows)
        assert end / start < 3
        for _, of_start, of_end in windows[1:]:  # the best known ends are in the intervals of fewer snapshots
            assert of_start[0] <= start <= of_start[1]
            assert of_end[0] <= end <= of_end[1]


def snapshots(first: float, factor: float) -> np.ndarray:
    """Those of an exponential schedule, of those there are."""
    wanted = first * factor ** np.arange(100)
    return np.unique(np.append(np.round(wanted[wanted < 2400] / 25) * 25, 2400)).astype(int)


def test_one_outlier_is_no_change() -> None:
    for at in (0, 3, 12, len(SPACED) - 1):
        scores = np.random.default_rng(0).normal(0, 0.02, len(SPACED))
        scores[at] -= 0.5
        assert not found(SPACED, scores).happened


def test_a_change_that_does_not_last_is_none() -> None:
    scores = -0.4 * logistic(SPACED, 60, 120) + 0.5 * logistic(SPACED, 300, 600)
    assert not found(SPACED, scores).happened


@pytest.mark.parametrize("scores", [np.linspace(0, 1, 24), np.zeros(24), np.full(24, -0.3)], ids=["rises", "0", "flat"])
def test_a_score_that_never_falls(scores: np.ndarray) -> None:
    change = found(SPACED[:24], scores[: len(SPACED)])
    assert not change.happened
    assert (change.drop, change.start, change.end, change.window, change.abruptness) == (0, None, None, None, None)
    assert change.start_interval is None


def test_few_snapshots_need_a_clear_change() -> None:
    steps = np.array([10, 20, 40, 80, 160, 320, 640])
    assert found(steps, np.array([0.0, 0.0, 0.0, -0.4, -0.4, -0.4, -0.4])).happened
    ragged = np.array([0.0, 0.04, -0.03, -0.35, -0.31, -0.4, -0.36])
    assert not found(steps, ragged).happened
    assert found(steps, ragged).support < 1


def test_duplicated_values_and_examples() -> None:
    """Scores in steps of 0.05, and examples that are all alike, which add nothing."""
    scores = np.round(-0.6 * logistic(SPACED, 200, 500) / 0.05) * 0.05
    alone, alike = found(SPACED, scores), found(SPACED, scores, by_example=np.repeat(scores[:, None], 5, 1))
    assert alone.happened
    assert alike.happened
    assert alone.resampled == "snapshots"
    assert alike.window == alone.window
    wide = np.random.default_rng(0).normal(1, 2, (1, 40))
    by_example = scores[:, None] * wide / wide.mean()
    spread = found(SPACED, scores, by_example=by_example).drop_interval
    assert spread[1] - spread[0] > 3 * (alone.drop_interval[1] - alone.drop_interval[0])


def test_step_0_is_left_out() -> None:
    """Untrained, a model predicts all positions equally badly; the score's fall from that is no phase change."""
    scores = np.append(0.0, -0.3 - 0.02 * logistic(SPACED, 200, 500))
    with_untrained = found(np.append(0, SPACED), scores)
    alone = found(SPACED, scores[1:])
    assert not with_untrained.happened
    assert with_untrained.drop == alone.drop
    assert with_untrained.start == (alone.start or 0) + 1
    assert with_untrained.end == (alone.end or 0) + 1
    assert with_untrained.window == alone.window


def test_of_what_a_sweep_holds() -> None:
    steps = np.append(0, SPACED)
    by_example = np.append(0, -0.4 * logistic(SPACED, 200, 500))[:, None] + np.random.default_rng(0).normal(size=(1, 9))
    matching = xr.DataArray(np.full((len(steps), 2, 2), 0.1), dims=("snapshot", "layer", "head"))
    matching[-1, 1, 0] = 0.7
    sweep = xr.Dataset(
        {
            "icl_score": (("snapshot", "ablation"), by_example.mean(1, keepdims=True)),
            "example_icl_score": (("snapshot", "example"), by_example),
        },
        coords={"snapshot": steps, "ablation": ["none"]},
    )
    change = phase_change_of(sweep, matching)
    assert change == find_phase_change(
        steps.tolist(), by_example.mean(1).tolist(), [0.1] * (len(steps) - 1) + [0.7], by_example
    )
    before = phase_change_of(sweep.drop_vars("example_icl_score"), matching)
    assert before is not None
    assert before.resampled == "snapshots"
    assert phase_change_of(sweep.isel(snapshot=slice(7)), matching.isel(snapshot=slice(7))) is None


def test_bad_input() -> None:
    with pytest.raises(InputError, match="got 3, 3 and 2"):
        find_phase_change([1, 2, 3], [0.0, 1.0, 2.0], [0.0, 1.0])
    with pytest.raises(InputError, match="steps must rise"):
        find_phase_change([1, 3, 2], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    with pytest.raises(InputError, match="7 snapshots after step 0 or more are needed, got 2"):
        find_phase_change([0, 1, 2], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    scores = -0.4 * logistic(SPACED, 200, 500)
    with pytest.raises(InputError, match="must be finite"):
        found(SPACED, np.where(np.arange(len(SPACED)) == 3, np.nan, scores))
    with pytest.raises(
        InputError, match=r"example_scores must be \[snapshot, example\] of 23 snapshots, got \(22, 5\)"
    ):
        found(SPACED[:23], scores[:23], by_example=np.zeros((22, 5)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-500, 500), min_size=7, max_size=40), st.integers(-300, 300))
def test_shifting_the_score_changes_nothing(values: list[int], by: int) -> None:
    steps = np.arange(10, 10 + 10 * len(values), 10)
    scores, shift = np.array(values) / 128, by / 128
    a, b = found(steps, scores), found(steps, scores + shift)
    assert a.drop == pytest.approx(b.drop, abs=1e-9)
    assert a.evidence == pytest.approx(b.evidence, abs=1e-3)
    assert a.drop >= 0
    assert 0 <= a.support <= 1
    if a.start is not None and a.end is not None:
        assert 0 <= a.start < a.end < len(scores)
        assert a.window is not None
        assert steps[a.start] <= a.window[0] * 1.001
        assert a.window[1] <= steps[a.end] * 1.001


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=7, max_size=20), st.integers(0, 99))
def test_the_grid_holds_the_least_squares(values: list[float], seed: int) -> None:
    """What a fit says of itself is so: `fitted` is a least-squares fit of its shape, and no other window is better."""
    steps, random = np.arange(10.0, 10 + 10 * len(values), 10), np.random.default_rng(seed)
    scores = np.array(values) + random.normal(0, 0.1, len(values))
    fits = _Fits(steps)
    best = fits.fit(scores[None])
    squares = ((scores - best.fitted[0]) ** 2).sum()
    for index in random.integers(len(fits.start), size=20):
        rate = np.log(81) / max(fits.end[index] - fits.start[index], 1e-300)
        middle = (fits.start[index] + fits.end[index]) / 2
        shape = 1 / (1 + np.exp(-np.clip(rate * (np.log(steps) - middle), -700, 700)))
        design = np.stack([np.ones_like(shape), -shape], 1)
        solved = np.linalg.lstsq(design, scores, rcond=None)[0]
        if solved[1] > 0:
            assert squares <= ((scores - design @ solved) ** 2).sum() + 1e-9
