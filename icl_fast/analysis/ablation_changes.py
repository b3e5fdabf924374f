"""What each ablation of a sweep changes, with standard errors paired over examples."""

from __future__ import annotations

import numpy as np
import xarray as xr

from icl_fast.analysis.arrays import ablated, unablated, variable

_KEPT = {"position_loss": "effect_sem", "icl_score": "icl_effect_sem"}  # variable -> that of its error in a store


def ablation_changes(results: xr.Dataset) -> xr.Dataset:
    """Ablated minus un-ablated: of the loss, of the loss at each position, and of the ICL score, each with its error.

    Every example is its own control: errors are of the differences, which are far smaller than those of the two losses.

    Args:
        results: what `sweep` wrote or `ablate` gave, of any version.

    Returns:
        Dataset without the ablation "none": `position_loss_change` [..., ablation, position], and, where they were
        measured, `loss_change` (the mean over examples at one random position each: the paper's loss curve) and
        `icl_score_change` [..., ablation], in nats; each with its standard error `..._change_sem`, NaN for a single
        example and where a store of before keeps none.

    Raises:
        InputError: no losses of ablations, nothing ablated, or no ablation "none".
    """
    changes: dict[str, xr.DataArray] = {}
    for name, error in _KEPT.items():
        if name == "position_loss" or name in results:
            changes[f"{name}_change"] = change = _change(results, name)
            known = error in results
            changes[f"{name}_change_sem"] = (
                ablated("results", results[error]) if known else xr.full_like(change, np.nan)
            )
    if "loss" in results:
        by_example = _change(results, "loss").astype(np.float64)
        count = by_example.sizes["example"]
        changes["loss_change"] = change = by_example.mean("example")
        scatter = by_example.std("example", ddof=1) if count > 1 else xr.full_like(change, np.nan)
        changes["loss_change_sem"] = scatter / count**0.5
    found = xr.Dataset(changes, attrs={"source": "Olsson et al. 2022, Data Collection (2)"})
    for values in found.data_vars.values():
        values.attrs = {"units": "nats per token"}
    return found


def _change(results: xr.Dataset, name: str) -> xr.DataArray:
    of_all = variable("results", results, name)
    return ablated("results", of_all) - unablated("results", results, name)
