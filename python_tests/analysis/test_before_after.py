"""Attributions against sums written out, and on ablations whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from icl_fast import InputError
from icl_fast.analysis import attribute_heads, before_after_attribution, before_after_vector
from icl_fast.data.positions import icl_positions


def test_the_vector() -> None:
    np.testing.assert_allclose(before_after_vector(np.array([1.0, 2, 3]), np.array([4.0, 2, -1])), [0.6, 0, -0.8])


@given(st.integers(0, 10**6), st.floats(0.1, 3))
def test_undoing_the_change_is_minus_its_length(seed: int, share: float) -> None:
    before, after = np.random.default_rng(seed).normal(3, 1, (2, 20))
    vector = before_after_vector(before, after)
    length = np.linalg.norm(after - before)
    assert np.linalg.norm(vector) == pytest.approx(1)
    undone = after + share * (before - after)
    value, _ = before_after_attribution(vector, after[None], undone[None, None])
    assert value.shape == (1, 1)
    assert value[0, 0] == pytest.approx(-share * length)
    across = np.random.default_rng(seed + 1).normal(size=20)
    across -= across @ vector * vector
    value, _ = before_after_attribution(vector, after[None], (after + across)[None, None])
    assert value[0, 0] == pytest.approx(0, abs=1e-12)


def test_against_the_sum_written_out(made_sweep: Callable[..., xr.Dataset], token_losses: np.ndarray) -> None:
    steps = [0, 50, 90]
    sweep = made_sweep(token_losses, steps)
    result = attribute_heads(sweep, 0, 90)
    loss = sweep["loss"].values.astype(np.float64)
    (early,), (late,) = icl_positions(32)
    change = loss[2, 0] - loss[0, 0]
    assert result["before_after"].dims == ("snapshot", "ablation")
    assert list(result["ablation"].values) == ["0.0", "0.1", "1.0", "1.1"]
    assert list(result["layer"].values) == [0, 0, 1, 1]
    np.testing.assert_allclose(result["vector"], change / np.sqrt((change**2).sum()))
    for s in range(3):
        for a in range(4):
            products = [
                (loss[s, a + 1, n] - loss[s, 0, n]) * change[n] / np.sqrt((change**2).sum()) for n in range(len(change))
            ]
            assert result["before_after"][s, a] == pytest.approx(sum(products))
            # the standard error of a sum of n is n times that of their mean
            error = len(products) * np.std(products, ddof=1) / np.sqrt(len(products))
            assert result["before_after_sem"][s, a] == pytest.approx(error)
            score = token_losses[s, :, :, late - 1] - token_losses[s, :, :, early - 1]  # [1+ablation, example]
            effect = score[a + 1] - score[0]
            assert result["icl"][s, a] == pytest.approx(effect.mean())
            assert result["icl_sem"][s, a] == pytest.approx(effect.std(ddof=1) / np.sqrt(len(effect)))


def test_the_sign_of_an_induction_head(made_sweep: Callable[..., xr.Dataset]) -> None:
    random = np.random.default_rng(3)
    before = random.gamma(4.0, 0.8, (10, 32))
    after = before - np.linspace(0, 0.8, 32)  # the later, the better
    of_end = [after, before, after, after, after]  # without head 0.0: as it was before
    losses = np.stack([np.stack([before] * 5), np.stack(of_end)])
    result = attribute_heads(made_sweep(losses, [10, 20]), 10, 20).sel(snapshot=20)
    # example n keeps its loss at position n + 1, which fell by 0.8 n / 31; the score compares positions 31 and 3
    assert result["before_after"].values[0] == pytest.approx(-0.8 / 31 * np.sqrt((np.arange(10) ** 2).sum()))
    assert result["icl"].values[0] == pytest.approx(0.8 * 28 / 31)
    np.testing.assert_allclose(result["before_after"].values[1:], 0, atol=1e-7)
    np.testing.assert_allclose(result["icl"].values[1:], 0, atol=1e-7)


def test_one_example_has_no_standard_error() -> None:
    value, error = before_after_attribution(np.ones(1), np.ones((2, 1)), np.zeros((2, 3, 1)))
    np.testing.assert_array_equal(value, -np.ones((2, 3)))
    assert np.isnan(error).all()


def test_bad_input(made_sweep: Callable[..., xr.Dataset], token_losses: np.ndarray) -> None:
    losses = np.arange(4.0)
    with pytest.raises(InputError, match="there is no change"):
        before_after_vector(losses, losses)
    with pytest.raises(InputError, match="same examples, got 4 and 3"):
        before_after_vector(losses, losses[:3])
    with pytest.raises(InputError, match="losses after: 1 of 4 values are not finite, the first at example index 1"):
        before_after_vector(losses, np.array([0, np.nan, 2, 3]))
    with pytest.raises(InputError, match="disagree"):
        before_after_attribution(losses, np.ones((2, 4)), np.ones((3, 5, 4)))
    sweep = made_sweep(token_losses, [0, 50, 90])
    with pytest.raises(InputError, match="no snapshot at step 70; there are 0, 50, 90"):
        attribute_heads(sweep, 0, 70)
    with pytest.raises(InputError, match="both step 50"):
        attribute_heads(sweep, 50, 50)
    with pytest.raises(InputError, match="nothing was ablated"):
        attribute_heads(sweep.isel(ablation=[0]), 0, 50)
    with pytest.raises(InputError, match="holds no icl_score"):
        attribute_heads(sweep.drop_vars("icl_score"), 0, 50)
    sweep["loss"][1, 2, 7] = np.nan
    with pytest.raises(
        InputError, match=r"losses without heads: 1 of .* at snapshot 50, ablation 0.1, example index 7"
    ):
        attribute_heads(sweep, 0, 90)
