"""Scores and derivatives of loss by position on curves whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from icl_fast import InputError
from icl_fast.analysis import (
    compare_by_position,
    icl_score,
    icl_score_variants,
    loss_by_log_position,
    loss_by_log_tokens,
    loss_heatmap,
)

POSITIONS = np.arange(1, 513)
FALLING = np.stack([6 - 0.1 * s * np.log(POSITIONS) for s in range(4)])  # [snapshot, position]


def test_the_papers_score_and_its_variants() -> None:
    np.testing.assert_allclose(icl_score(FALLING), -0.1 * np.arange(4) * np.log(10), atol=1e-12)
    pairs = [(1, 512), (50, 500), (500, 50)]
    variants = icl_score_variants(FALLING, pairs)
    assert variants.shape == (4, 3)
    for k, (early, late) in enumerate(pairs):
        np.testing.assert_array_equal(variants[:, k], FALLING[:, late - 1] - FALLING[:, early - 1])
    np.testing.assert_array_equal(variants[:, 2], -variants[:, 1])


def test_several_positions_are_averaged() -> None:
    expected = FALLING[:, [498, 499, 500]].mean(1) - FALLING[:, [48, 49, 50]].mean(1)
    np.testing.assert_allclose(icl_score(FALLING, (49, 50, 51), range(499, 502)), expected)


def test_a_sweep_gives_its_own_score(made_sweep: Callable[..., xr.Dataset], token_losses: np.ndarray) -> None:
    sweep = made_sweep(token_losses, [0, 5, 9])
    np.testing.assert_allclose(icl_score(sweep, 3, 31), sweep["icl_score"].sel(ablation="none"))
    heatmap = loss_heatmap(sweep)
    assert heatmap.dims == ("snapshot", "position")
    assert heatmap["tokens"].values.tolist() == [0, 500, 900]
    np.testing.assert_allclose(heatmap, token_losses[:, 0].mean(1))  # of the whole model
    few = sweep.isel(position=[2, 30])  # as a sweep of positions `paper` has them
    np.testing.assert_allclose(icl_score(few, 3, 31), sweep["icl_score"].sel(ablation="none"))
    np.testing.assert_array_equal(loss_heatmap(heatmap.transpose()), heatmap)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=12, unique=True), st.floats(-3, 3), st.floats(-3, 3))
def test_a_loss_linear_in_log_position(positions: list[int], level: float, slope: float) -> None:
    at = np.sort(positions)
    losses = xr.DataArray(
        [level + slope * np.log(at), level + 0 * at], dims=("snapshot", "position"), coords={"position": at}
    )
    slopes = loss_by_log_position(losses)
    assert slopes.dims == losses.dims
    np.testing.assert_array_equal(slopes["position"], at)
    np.testing.assert_allclose(slopes[0], slope, atol=1e-9)
    np.testing.assert_allclose(slopes[1], 0, atol=1e-9)


def test_a_loss_quadratic_in_log_position() -> None:
    logs = np.log(POSITIONS)
    slopes = loss_by_log_position((3 * logs**2)[None])
    np.testing.assert_allclose(slopes[0, 1:-1], 6 * logs[1:-1], atol=1e-9)
    # one-sided of first order: the slope half way to the neighbour
    assert float(slopes[0, 0]) == pytest.approx(3 * (logs[0] + logs[1]))
    assert float(slopes[0, -1]) == pytest.approx(3 * (logs[-2] + logs[-1]))


@given(st.floats(-3, 3), st.integers(2, 40), st.integers(3, 300))
def test_bins_keep_a_loss_linear_in_log_position(slope: float, bins: int, length: int) -> None:
    losses = (2 + slope * np.log(np.arange(1, length + 1)))[None]
    slopes = loss_by_log_position(losses, bins=bins)
    assert 2 <= slopes.sizes["position"] <= min(bins, length)
    np.testing.assert_allclose(slopes, slope, atol=1e-9)


def test_bins_against_loops() -> None:
    losses = np.random.default_rng(0).normal(size=(2, 512))
    slopes = loss_by_log_position(losses, bins=8)
    members = [[i for i in range(1, 513) if min(int(8 * np.log(i) / np.log(512) + 1e-9), 7) == b] for b in range(8)]
    at = [np.mean([np.log(i) for i in of_bin]) for of_bin in members if of_bin]
    means = np.array([np.mean([losses[:, i - 1] for i in of_bin], axis=0) for of_bin in members if of_bin])
    np.testing.assert_allclose(slopes["position"], np.exp(at))
    np.testing.assert_allclose(slopes.values.T, np.gradient(means, at, axis=0))
    assert np.abs(slopes[:, -1]).max() < np.abs(loss_by_log_position(losses)[:, -1]).min() / 10


@given(st.floats(-3, 3), st.integers(2, 9))
def test_a_loss_linear_in_log_tokens(slope: float, count: int) -> None:
    tokens = [0, *(7 * 3**k for k in range(count))]
    curve = np.array([9.0, *(slope * np.log(tokens[1:]))])
    slopes = loss_by_log_tokens(curve, tokens)
    assert slopes["tokens"].values.tolist() == tokens[1:]  # no logarithm of 0
    np.testing.assert_allclose(slopes, slope, atol=1e-9)
    both = loss_by_log_tokens(np.stack([curve, 2 * curve], axis=1), tokens)
    assert both.dims == ("snapshot", "position")
    np.testing.assert_allclose(both[:, 1], 2 * slope, atol=1e-9)


@given(st.floats(-3, 3), st.integers(2, 30), st.integers(3, 60))
def test_bins_of_snapshots(slope: float, bins: int, count: int) -> None:
    """Exact for a loss linear in ln(tokens), of one curve or of one a position."""
    tokens = [0, *(1000 * k for k in range(1, count))]
    curve = np.array([9.0, *(slope * np.log(tokens[1:]))])
    slopes = loss_by_log_tokens(curve, tokens, bins=bins)
    assert 2 <= slopes.sizes["snapshot"] <= min(bins, count - 1)
    np.testing.assert_allclose(slopes, slope, atol=1e-9)
    both = loss_by_log_tokens(np.stack([curve, 2 * curve], axis=1), tokens, bins=bins)
    np.testing.assert_allclose(both[:, 1], 2 * slope, atol=1e-9)
    np.testing.assert_array_equal(both["tokens"], slopes["tokens"])
    first = [t for t in tokens[1:] if np.log(t) < np.log(1000) + (np.log(tokens[-1]) - np.log(1000)) / bins - 1e-9]
    assert float(slopes["tokens"][0]) == pytest.approx(np.exp(np.log(first).mean()))


def test_a_sweeps_loss_curve_by_log_tokens(made_sweep: Callable[..., xr.Dataset], token_losses: np.ndarray) -> None:
    sweep = made_sweep(token_losses, [0, 5, 9])
    curve = sweep["loss"].values[:, 0].astype(np.float64).mean(1)
    slope = (curve[2] - curve[1]) / np.log(9 / 5)
    slopes = loss_by_log_tokens(sweep)
    assert slopes["snapshot"].values.tolist() == [5, 9]
    np.testing.assert_allclose(slopes, [slope, slope])


def test_where_the_difference_forms() -> None:
    small, ahead = np.full(100, 5.0), np.full(100, 4.0)
    late = 5 - np.linspace(0, 1, 100)
    result = compare_by_position({"small": small, "ahead": ahead, "late": late}, "small")
    assert result["model"].values.tolist() == ["ahead", "late"]
    np.testing.assert_allclose(result["difference"], [ahead - small, late - small])
    np.testing.assert_allclose(result["formed"], [1, 9 / 99])
    np.testing.assert_allclose(result["summed"], [0.1, sum(range(10)) / sum(range(100))])
    assert compare_by_position({"a": small, "b": late}, "a", first=50)["formed"].item() == pytest.approx(49 / 99)


@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-5, 5))
def test_shares_do_not_depend_on_scale_or_level(seed: int, scale: float, level: float) -> None:
    a, b = np.random.default_rng(seed).uniform(1, 2, (2, 30))
    b += 2
    result = compare_by_position({"a": a, "b": b}, "a")
    scaled = compare_by_position({"a": level + scale * a, "b": level + scale * b}, "a")
    swapped = compare_by_position({"a": a, "b": b}, "b")
    for name in ("formed", "summed"):
        np.testing.assert_allclose(scaled[name], result[name], rtol=1e-6)
        np.testing.assert_allclose(swapped[name], result[name])


def test_the_bound_on_a_differences_standard_error(
    made_sweep: Callable[..., xr.Dataset], token_losses: np.ndarray
) -> None:
    for other in (token_losses[:, :1] * 0.5, 9 - token_losses[:, :1], token_losses[:, 1:2]):
        losses = np.concatenate([other, token_losses[:, 1:]], axis=1)
        sweeps = {"a": made_sweep(token_losses, [0, 5, 9]), "b": made_sweep(losses, [0, 5, 9])}
        result = compare_by_position({name: sweep.isel(snapshot=-1) for name, sweep in sweeps.items()}, "a")
        paired = (losses[-1, 0] - token_losses[-1, 0]).std(0, ddof=1) / np.sqrt(12)
        assert (result["difference_sem_at_most"].values[0] >= paired * (1 - 1e-6)).all()
        errors = [sweep["position_loss_sem"].values[-1, 0] for sweep in sweeps.values()]
        np.testing.assert_allclose(result["difference_sem_at_most"][0], errors[0] + errors[1])


def test_bad_input(made_sweep: Callable[..., xr.Dataset], token_losses: np.ndarray) -> None:
    with pytest.raises(InputError, match="position 500: no loss there; there are 32 from 1 to 32"):
        icl_score(FALLING[:, :32], 5)
    with pytest.raises(InputError, match="at least one position"):
        icl_score(FALLING, ())
    with pytest.raises(InputError, match="at least one pair"):
        icl_score_variants(FALLING, [])
    with pytest.raises(InputError, match=r"must be \[snapshot, position\] and not empty, got \[512\]"):
        loss_heatmap(FALLING[0])
    broken = FALLING.copy()
    broken[2, 3] = np.nan
    with pytest.raises(
        InputError, match="losses: 1 of 2048 values are not finite, the first at snapshot index 2, posit"
    ):
        loss_by_log_position(broken)
    sweep = made_sweep(token_losses, [0, 5, 9])
    with pytest.raises(InputError, match="positions must rise"):
        loss_heatmap(sweep.isel(position=slice(None, None, -1)))
    with pytest.raises(InputError, match="needs 2 or more, got 1 by position"):
        loss_by_log_position(FALLING[:, :1])
    with pytest.raises(InputError, match="bins: a derivative needs 2 or more, got 1"):
        loss_by_log_position(FALLING, bins=1)
    with pytest.raises(InputError, match="needs 2 or more, got 1 by position"):
        loss_by_log_position(FALLING[:, :1], bins=4)
    with pytest.raises(InputError, match="needs 2 or more, got 1 by snapshot"):
        loss_by_log_tokens(np.ones(2), [0, 5])
    with pytest.raises(InputError, match="do not say how many"):
        loss_by_log_tokens(np.ones(2))
    for tokens in ([1, 2], [1, 3, 3], [-1, 0, 1]):
        with pytest.raises(InputError, match="tokens must rise"):
            loss_by_log_tokens(np.ones(3), tokens)
    sweep["position_loss"][1, 0, 4] = np.nan
    with pytest.raises(InputError, match="at snapshot 5, position 5"):
        loss_heatmap(sweep)


def test_bad_comparisons(made_sweep: Callable[..., xr.Dataset], token_losses: np.ndarray) -> None:
    flat = np.ones(20)
    with pytest.raises(InputError, match="baseline: 'c' must be one of"):
        compare_by_position({"a": flat, "b": flat + 1}, "c")
    with pytest.raises(InputError, match="two models or more"):
        compare_by_position({"a": flat}, "a")
    with pytest.raises(InputError, match="losses of b: their positions are not those of a"):
        compare_by_position({"a": flat, "b": flat[:19]}, "a")
    with pytest.raises(InputError, match="losses of b do not differ from those of a"):
        compare_by_position({"a": flat, "b": flat}, "a")
    with pytest.raises(InputError, match="first: no loss at position 21; there are 1 to 20"):
        compare_by_position({"a": flat, "b": flat + 1}, "a", first=21)
    sweep = made_sweep(token_losses, [0, 5, 9])
    with pytest.raises(InputError, match=r"losses of a must be \[position\], got \[snapshot, position\]"):
        compare_by_position({"a": sweep, "b": sweep}, "a")
