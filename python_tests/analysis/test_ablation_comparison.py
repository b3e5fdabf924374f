"""Full beside pattern-preserving ablation: differences written out, and a real model swept both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from icl_fast import InputError
from icl_fast.analysis import compare_ablations
from icl_fast.data.positions import icl_positions
from icl_fast.measure import open_results, sweep

STEPS = [0, 5, 9]
MadeSweep = Callable[..., xr.Dataset]


@pytest.fixture
def other_losses(token_losses: np.ndarray) -> np.ndarray:
    """Losses of the same whole model and other ablations of it."""
    other = token_losses + np.random.default_rng(7).normal(0, 0.3, token_losses.shape)
    other[:, 0] = token_losses[:, 0]
    return other


def test_against_the_examples(made_sweep: MadeSweep, token_losses: np.ndarray, other_losses: np.ndarray) -> None:
    result = compare_ablations(
        made_sweep(token_losses, STEPS, mode="full"), made_sweep(other_losses, STEPS, mode="pattern-preserving")
    )
    assert list(result["ablation"].values) == ["0.0", "0.1", "1.0", "1.1"]
    assert list(result["snapshot"].values) == STEPS
    (early,), (late,) = icl_positions(32)
    at = np.arange(12)
    for s in range(3):
        for a in range(4):
            at_random, scores = [], []
            for losses in (token_losses, other_losses):
                effect = losses[s, a + 1] - losses[s, 0]  # [example, position]
                at_random.append(effect[at, at])  # example n keeps position n + 1
                scores.append(effect[:, late - 1] - effect[:, early - 1])
            for kind, (full, pattern) in (("loss", at_random), ("icl", scores)):
                for name, effect in (("full", full), ("pattern", pattern)):
                    assert result[f"{kind}_{name}"][s, a] == pytest.approx(effect.mean(), abs=1e-6)
                    assert result[f"{kind}_{name}_sem"][s, a] == pytest.approx(
                        effect.std(ddof=1) / np.sqrt(12), rel=1e-5
                    )
                assert result[f"{kind}_difference"][s, a] == pytest.approx((full - pattern).mean(), abs=1e-6)
                paired = (full - pattern).std(ddof=1) / np.sqrt(12)
                if kind == "loss":
                    assert result["loss_difference_sem"][s, a] == pytest.approx(paired, rel=1e-5)
                else:
                    assert result["icl_difference_sem_at_most"][s, a] >= paired * (1 - 1e-9)


def test_a_real_run_swept_both_ways(tiny_run: Path, tmp_path: Path) -> None:
    sweeps = {
        mode: open_results(sweep(tiny_run, out=tmp_path / mode, mode=mode, examples=9, dtype="float64"))
        for mode in ("full", "pattern-preserving")
    }
    result = compare_ablations(sweeps["full"], sweeps["pattern-preserving"])
    trained = result.isel(snapshot=-1)
    by_layer = {layer: trained.sel(ablation=trained["layer"] == layer) for layer in (0, 1)}
    # nothing attends after the last layer; before it, patterns pass on some of a head's effect
    assert np.abs(by_layer[1]["loss_difference"]).max() < 1e-6
    assert np.abs(by_layer[1]["icl_difference"]).max() < 1e-9
    assert np.abs(by_layer[0]["loss_difference"]).min() > 1e-5
    with pytest.raises(InputError, match="full: was swept in mode pattern-preserving"):
        compare_ablations(sweeps["pattern-preserving"], sweeps["full"])
    other = sweeps["full"].copy()
    identity = json.loads(other.attrs["sweep"])
    identity["snapshots"] = {step: "0" * 64 for step in identity["snapshots"]}
    other.attrs["sweep"] = json.dumps(identity)
    with pytest.raises(InputError, match="are of other weights"):
        compare_ablations(other, sweeps["pattern-preserving"])


def test_sweeps_that_say_nothing_of_themselves_are_compared_by_what_they_hold(
    made_sweep: MadeSweep, token_losses: np.ndarray, other_losses: np.ndarray
) -> None:
    named = made_sweep(token_losses, STEPS, mode="full"), made_sweep(other_losses, STEPS)
    xr.testing.assert_identical(
        compare_ablations(*(x.drop_attrs(deep=False) for x in named)), compare_ablations(*named)
    )


def test_one_example_has_no_standard_error(made_sweep: MadeSweep, token_losses: np.ndarray) -> None:
    full, pattern = (made_sweep(token_losses[:, :, :1], STEPS, mode=mode) for mode in ("full", "pattern"))
    result = compare_ablations(full, pattern)
    assert np.isfinite(result["loss_full"]).all()
    assert np.isnan(result["loss_full_sem"]).all()
    assert (result["loss_difference"] == 0).all()


def test_bad_input(made_sweep: MadeSweep, token_losses: np.ndarray) -> None:
    full, pattern = (made_sweep(token_losses, STEPS, mode=mode) for mode in ("full", "pattern-preserving"))
    with pytest.raises(InputError, match="pattern_preserving: was swept in mode value-preserving"):
        compare_ablations(full, made_sweep(token_losses, STEPS, mode="value-preserving"))
    with pytest.raises(InputError, match="mode pattern-preserving of chosen heads only"):
        compare_ablations(full, made_sweep(token_losses, STEPS, preserve_heads="1.0"))
    with pytest.raises(InputError, match="the same snapshots: 5 is in one sweep alone"):
        compare_ablations(full, pattern.isel(snapshot=[0, 2]))
    with pytest.raises(InputError, match=r"the same ablations: 1\.1 is in one sweep alone"):
        compare_ablations(full.isel(ablation=slice(4)), pattern)
    with pytest.raises(InputError, match="the same snapshots: they have other orders"):
        compare_ablations(full, pattern.isel(snapshot=[2, 1, 0]))
    with pytest.raises(InputError, match="swept with other evaluation"):
        compare_ablations(full, made_sweep(token_losses, STEPS, text="other"))
    with pytest.raises(InputError, match="the whole model's losses differ"):
        compare_ablations(full, made_sweep(token_losses + 0.1, STEPS))
    with pytest.raises(InputError, match="full: holds no loss"):
        compare_ablations(full.drop_vars("loss"), pattern)
    for plan, message in (
        ("[]", "is not a JSON object"),
        (3, "is not a JSON object"),
        ('{"mode": "full"}', "lacks eval"),
    ):
        with pytest.raises(InputError, match=f"full: attribute plan {message}"):
            compare_ablations(full.assign_attrs(plan=plan), pattern)
    pattern["icl_score"][1, 2] = np.nan
    with pytest.raises(InputError, match=r"pattern_preserving: icl_score: 1 of 12 .* at snapshot 5, ablation 0\.1"):
        compare_ablations(full, pattern)
