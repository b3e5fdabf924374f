"""What ablations change, against the examples written out; stores of before; a model ablated by the public call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr

from icl_fast import InputError, Transformer, TransformerConfig, ablate
from icl_fast.analysis import ablation_changes
from icl_fast.data.positions import icl_positions

STEPS = [0, 5, 9]
MadeSweep = Callable[..., xr.Dataset]


def test_against_the_examples(made_sweep: MadeSweep, token_losses: np.ndarray) -> None:
    changes = ablation_changes(made_sweep(token_losses, STEPS))
    assert changes["ablation"].values.tolist() == ["0.0", "0.1", "1.0", "1.1"]
    (early,), (late,) = icl_positions(32)
    examples = np.arange(12)
    for s in range(3):
        for a in range(4):
            effect = token_losses[s, a + 1] - token_losses[s, 0]  # [example, position]
            expected = {
                "position_loss": effect,
                "icl_score": effect[:, late - 1] - effect[:, early - 1],
                "loss": effect[examples, examples],  # example n keeps position n + 1
            }
            for name, of_each in expected.items():
                mean, error = of_each.mean(0), of_each.std(0, ddof=1) / np.sqrt(12)
                np.testing.assert_allclose(changes[f"{name}_change"][s, a], mean, atol=1e-6)
                np.testing.assert_allclose(changes[f"{name}_change_sem"][s, a], error, rtol=1e-4)


def test_a_store_of_before_lacks_errors(made_sweep: MadeSweep, token_losses: np.ndarray) -> None:
    whole = made_sweep(token_losses, STEPS)
    old = whole.drop_vars(["effect_sem", "icl_effect_sem", "icl_effect"], errors="ignore")
    changes, now = ablation_changes(old), ablation_changes(whole)
    for name in ("position_loss", "icl_score"):
        assert changes[f"{name}_change"].equals(now[f"{name}_change"])
        assert changes[f"{name}_change_sem"].isnull().all()
    assert changes["loss_change_sem"].equals(now["loss_change_sem"])
    without = ablation_changes(whole.drop_vars(["loss", "icl_score"]))
    assert list(without) == ["position_loss_change", "position_loss_change_sem"]


@pytest.mark.parametrize("examples", [1, 3])
def test_of_one_model(examples: int) -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocab=11, context=16, layers=1, width=8, heads=2))
    effects = ablate(model, torch.randint(11, (examples, 17)))
    changes = ablation_changes(effects)
    assert changes["icl_score_change"].dims == ("ablation",)
    np.testing.assert_array_equal(changes["icl_score_change"], effects["icl_effect"][1:])
    assert float(effects["icl_effect"][0]) == 0
    for error in ("loss_change_sem", "icl_score_change_sem", "position_loss_change_sem"):
        assert bool(changes[error].isnull().all()) == (examples == 1)


def test_what_is_no_sweep(made_sweep: MadeSweep, token_losses: np.ndarray) -> None:
    whole = made_sweep(token_losses, STEPS)
    with pytest.raises(InputError, match="holds no position_loss"):
        ablation_changes(xr.Dataset({"prefix_matching": ("head", [0.1])}))
    with pytest.raises(InputError, match="nothing was ablated"):
        ablation_changes(whole.isel(ablation=[0]))
    with pytest.raises(InputError, match="holds no ablation 'none'"):
        ablation_changes(whole.isel(ablation=[1, 2]))
