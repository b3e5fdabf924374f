"""What is said of runs, over seeds and settings."""

from __future__ import annotations

import numpy as np
import pytest

from icl_fast.errors import InputError
from icl_fast.toy import (
    Coopetition,
    Setting,
    add_flow,
    diagram,
    plateau_length,
    plateaus,
    record_at,
    saddle,
    settings_grid,
    simulate,
    simulate_clamps,
    simulate_settings,
    summarise,
)

STEPS = np.arange(0, 70, 10)


def said(first: list[float], second: list[float]) -> dict[str, float]:
    relative = np.array([first, second]).T[:, :, None]
    return {name: values[0] for name, values in summarise(STEPS, relative).items()}


def test_a_transient_mechanism_and_a_divot() -> None:
    found = said([2.0, 1.0, 0.4, 0.1, 0.3, 0.8, 0.9], [2.0, 1.0, 0.95, 1.0, 0.4, 0.1, 0.0])
    assert found["transient"]
    assert found["divot"]
    assert not found["stuck"]
    assert (found["emergence_1"], found["emergence_2"], found["lowest_step"]) == (20, 40, 30)
    assert (found["takeover"], found["divot_step"]) == (50, 30)
    assert found["divot_size"] == pytest.approx(0.05)
    assert (found["lowest_1"], found["final_1"], found["final_2"]) == (0.1, 0.9, 0.0)
    assert (found["learned_1"], found["learned_2"]) == (False, True)


def test_half_of_the_fall_must_come_back() -> None:
    for last, transient in ((0.61, True), (0.59, False)):
        assert said([1.0, 0.9, 0.2, 0.2, 0.3, 0.4, last], [1.0] * 7)["transient"] == transient


def test_a_rise_that_stays_is_no_divot_nor_is_a_tiny_one() -> None:
    assert not said([1.0] * 7, [1.0, 0.9, 1.0, 1.2, 1.5, 1.4, 1.3])["divot"]
    assert not said([1.0] * 7, [1.0, 0.9, 0.909, 0.8, 0.7, 0.6, 0.5])["divot"]
    assert said([1.0] * 7, [1.0, 0.9, 0.911, 0.8, 0.7, 0.6, 0.5])["divot"]


def test_stuck() -> None:
    found = said([2.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.6], [2.0] + [1.0] * 6)
    assert found["stuck"]
    assert not found["transient"]
    assert np.isnan([found[name] for name in ("emergence_1", "takeover", "lowest_step", "divot_step")]).all()


def test_a_diverged_run_is_nothing_else() -> None:
    found = said([1.0, 0.4, np.inf, np.nan, np.nan, np.nan, np.nan], [1.0] * 7)
    assert found["diverged"]
    assert not any(found[name] for name in ("stuck", "transient", "divot", "learned_1", "learned_2"))


def test_plateau_length() -> None:
    losses = np.array([[4.0, 2.0, 0.9, 0.1], [4.0, 2.0, 2.0, 1.1]]).T
    np.testing.assert_array_equal(plateau_length(STEPS[:4], losses, np.array([2.0, 2.0])), [20, np.nan])


def test_settings_are_simulated_like_single_runs() -> None:
    settings = settings_grid(Setting(dims=(5, 5, 5, 10)), mu=[0.0, 0.2], lr=[0.5, 1.0])
    found = simulate_settings(settings, [3, 4, 8], steps=400, every=20, shown=2, memory=1)  # a run at a time
    assert found["mu"].values.tolist() == [0.0, 0.0, 0.2, 0.2]
    assert found["lr"].values.tolist() == [0.5, 1.0, 0.5, 1.0]
    for index, setting in enumerate(settings):
        model, runs = Coopetition(setting.mu, setting.alpha), setting.runs([3, 4, 8])
        losses = simulate(model, runs, record_at(400, 20)).losses()
        one = found.isel(setting=index)
        np.testing.assert_allclose(one["loss"].transpose("step", "term", "shown"), losses[..., :2], rtol=1e-12)
        relative = losses[:, 1:3] / model.sizes(runs)
        for name, values in summarise(record_at(400, 20), relative).items():
            np.testing.assert_allclose(one[name].astype(float), values.astype(float), rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(
            one["quantiles"].sel(quantile=0.5).transpose("coarse_step", "mechanism"), np.median(relative, -1), rtol=1e-6
        )


def test_flow_is_added_for_the_seeds_shown() -> None:
    settings = [Setting(dims=(5, 5, 5, 10), lr=0.01)]
    found = add_flow(simulate_settings(settings, range(3), steps=2000, every=100, shown=2), settings)
    np.testing.assert_allclose(found["flow_loss"], found["loss"], atol=0.01)
    assert found["flow_final_1"].shape == (1, 2)


def test_diagram() -> None:
    settings = settings_grid(Setting(dims=(4, 4, 4, 4)), mu=[0.2, 0.0], alpha=[0.0, 0.1, 0.2])
    found = simulate_settings(settings, range(4), steps=300, every=30, shown=0)
    grid = diagram(found, "alpha", "mu")
    assert dict(grid.sizes) == {"alpha": 3, "mu": 2}
    index = settings.index(Setting(0.2, 0.1, (4, 4, 4, 4)))
    assert float(grid["stuck"].sel(mu=0.2, alpha=0.1)) == float(found["stuck"].isel(setting=index).mean())
    with pytest.raises(InputError, match="no grid"):
        diagram(found.isel(setting=slice(0, 5)), "alpha", "mu")


def test_clamps_make_learning_faster_and_the_last_curve_exponential() -> None:
    data = simulate_clamps((20, 20, 20), ["", "c", "bc"], range(5), steps=300)
    none, one, two = (data["plateau"].sel(clamp=name).fillna(np.inf) for name in ("none", "c", "bc"))
    assert (none > one).all()
    assert (one > two).all()
    logs = np.log(data["loss"].sel(clamp="bc").values)
    np.testing.assert_allclose(np.diff(logs[:50], 2, axis=0), 0, atol=1e-9)
    assert np.abs(np.diff(np.log(data["loss"].sel(clamp="none").values[:250]), 2, axis=0)).max() > 1e-3
    np.testing.assert_allclose(data["flow_loss"].values[:, 0], data["loss"].values[:, 0])
    assert float(np.abs(data["flow_loss"] - data["loss"]).max()) < 0.2


def test_plateau_follows_the_power_of_the_scale() -> None:
    """Steps near zero: for 1 vector the same at any scale, for 2 as its logarithm, for 3 as its inverse."""
    found = plateaus((1, 2, 3), (0.01, 0.02, 0.04), range(15), steps=100_000)["plateau"].median("seed")
    one, two, three = (found.sel(vectors=count).values for count in (1, 2, 3))
    assert one[0] == pytest.approx(one[2], abs=1)
    assert two[0] - two[1] == pytest.approx(two[1] - two[2], rel=0.15)
    assert two[0] - two[1] > 5
    np.testing.assert_allclose(three[:-1] / three[1:], 2, rtol=0.05)


def test_saddle_at_zero() -> None:
    found = saddle((2, 3, 4), (0.05, 0.1, 0.3))
    assert (found["change"].sel(direction="d-") < 0).all()
    assert (found["change"].sel(direction="d+") > 0).all()
    np.testing.assert_allclose(found["change"], found["predicted"], rtol=1e-9)
    assert found["lowest"].values[0] < 0
    assert found["largest"].values[1:].tolist() == [0, 0]


def test_bad_input() -> None:
    with pytest.raises(InputError, match="settings"):
        simulate_settings([], [0])
    with pytest.raises(InputError, match="all runs diverged"):
        simulate_settings([Setting(lr=1e5)], [0], steps=200)
    with pytest.raises(InputError, match="leave a vector to learn"):
        simulate_clamps((2, 2), ["ab"], [0])
    with pytest.raises(InputError, match="runs diverged at lr 10000, scale 1; lower it"):
        simulate_clamps((4, 4, 4), [""], [0, 1], lr=1e4, flow=False)
    with pytest.raises(InputError, match="vectors: must be 1 to"):
        plateaus((0,), (1.0,), [0])
    with pytest.raises(InputError, match=r"lr: 1 of 2 runs diverged at lr 3, scale 0\.1, 9; lower it"):
        plateaus((3,), (0.1, 9.0), [0], steps=50, lr=3.0)
    with pytest.raises(InputError, match=r"relative: must be \[7, 2, runs\]"):
        summarise(STEPS, np.ones((7, 3, 1)))
