"""Full and pattern-preserving ablation of the same run, compared."""

from __future__ import annotations

import numpy as np
import xarray as xr

from icl_fast.analysis.arrays import Floats, ablated, finite, icl_effects, plan_of, unablated, variable
from icl_fast.errors import InputError
from icl_fast.measure.store import json_attribute

_DIMS = ("snapshot", "ablation")
_SAME = ("evaluation", "examples", "replacement", "icl_positions")
# nats, mean over examples, between two losses of the same whole model: bfloat16 stays below it, other text far above
_MOST_APART = 0.05


def compare_ablations(full: xr.Dataset, pattern_preserving: xr.Dataset) -> xr.Dataset:
    """What removing each head does with and without its effect on later attention patterns.

    Olsson et al. 2022, Data Collection (2): full ablation changes "all Q, K, and V calculations, and attention
    patterns"; pattern-preserving ablation only "downstream V calculations". Their difference is what a head does
    through later patterns; it is 0 in the last layer.

    Args:
        full: what a sweep of mode `full` wrote, with positions `all` or `paper`.
        pattern_preserving: the same run swept in mode `pattern-preserving`: same snapshots, examples and ablations.

    Returns:
        Dataset with dims (snapshot, ablation), the sweep's coords, and without ablation "none". For each of `loss` (the
        mean over examples at one random position each: the paper's loss curve) and `icl`: `<it>_full`, `<it>_pattern`
        (ablated minus un-ablated, nats) with their standard errors paired by example `…_sem`, and `<it>_difference`
        (full minus pattern-preserving). `loss_difference_sem` is paired by example too. Of the ICL score a sweep keeps
        sums over examples only: `icl_difference_sem_at_most` is the sum of the two standard errors, which that of the
        difference cannot exceed however they are correlated.

    Raises:
        InputError: another mode, another run, other snapshots, ablations or examples, a missing variable,
            or a value that is not finite.
    """
    named = {"full": full, "pattern_preserving": pattern_preserving}
    _check_modes(named)
    _check_same_run(full, pattern_preserving)
    effects = {name: _loss_effects(name, dataset) for name, dataset in named.items()}
    icl = {name: icl_effects(name, dataset) for name, dataset in named.items()}
    icl_errors = {
        name: ablated(name, variable(name, dataset, "icl_effect_sem")).transpose(*_DIMS).values
        for name, dataset in named.items()
    }
    by_pattern = effects["full"] - effects["pattern_preserving"]  # [snapshot, ablation, example]
    values = {
        "loss_full": effects["full"].mean(-1),
        "loss_full_sem": _standard_error(effects["full"]),
        "loss_pattern": effects["pattern_preserving"].mean(-1),
        "loss_pattern_sem": _standard_error(effects["pattern_preserving"]),
        "loss_difference": by_pattern.mean(-1),
        "loss_difference_sem": _standard_error(by_pattern),
        "icl_full": icl["full"],
        "icl_full_sem": icl_errors["full"],
        "icl_pattern": icl["pattern_preserving"],
        "icl_pattern_sem": icl_errors["pattern_preserving"],
        "icl_difference": icl["full"] - icl["pattern_preserving"],
        "icl_difference_sem_at_most": icl_errors["full"] + icl_errors["pattern_preserving"],
    }
    return xr.Dataset(
        {name: (_DIMS, value, {"units": "nats"}) for name, value in values.items()},
        coords=ablated("full", full["icl_score"]).coords,
        attrs={"source": "Olsson et al. 2022, Data Collection (2)"},
    )


def _loss_effects(name: str, dataset: xr.Dataset) -> Floats:
    """Losses without each head minus those of the whole model, [snapshot, ablation, example]."""
    dims = (*_DIMS, "example")
    whole = finite(f"{name}: loss of the whole model", unablated(name, dataset, "loss"), ("snapshot", "example"))
    return finite(f"{name}: loss", ablated(name, variable(name, dataset, "loss")), dims) - whole[:, None]


def _standard_error(effects: Floats) -> Floats:
    """Of the mean over the last axis; NaN for a single example, as in a sweep."""
    count = effects.shape[-1]
    if count == 1:
        return np.full(effects.shape[:-1], np.nan)
    error: Floats = effects.std(-1, ddof=1) / np.sqrt(count)
    return error


def _check_modes(named: dict[str, xr.Dataset]) -> None:
    """Raises: InputError: a sweep that says it was of another mode."""
    expected = {"full": [], "pattern_preserving": ["pattern"]}
    for name, dataset in named.items():
        plan = plan_of(name, dataset)
        if plan and (plan["preserve"] != expected[name] or (plan["preserve"] and plan["preserve_heads"] is not None)):
            only = " of chosen heads only" if plan["preserve"] and plan["preserve_heads"] is not None else ""
            raise InputError(f"{name}: was swept in mode {plan['mode']}{only}")


def _check_same_run(full: xr.Dataset, pattern: xr.Dataset) -> None:
    """Raises: InputError: the two sweeps are not of the same snapshots, ablations and examples."""
    for dim in ("snapshot", "ablation"):
        first, second = ([*dataset[dim].values] if dim in dataset.coords else [] for dataset in (full, pattern))
        if not first or first != second:
            lone = [x for x in [*first, *second] if x not in first or x not in second]
            what = f"{lone[0]} is in one sweep alone" if lone else "they have other orders, or none"
            raise InputError(f"full and pattern_preserving must have the same {dim}s: {what}")
    plans = [plan_of(name, dataset) for name, dataset in (("full", full), ("pattern_preserving", pattern))]
    if all(plans):
        for plan in plans:  # other positions may be listed: no effect depends on them
            plan["icl_positions"] = [plan["positions"][end] for end in ("early", "late")]
        for key in _SAME:
            if plans[0][key] != plans[1][key]:
                raise InputError(f"full and pattern_preserving were swept with other {key}")
    weights = [json_attribute(dataset, "sweep").get("snapshots") for dataset in (full, pattern)]
    if all(weights) and weights[0] != weights[1]:
        raise InputError("full and pattern_preserving are of other weights: sweep the same run twice")
    losses = [
        finite(f"{name}: loss of the whole model", unablated(name, dataset, "loss"), ("snapshot", "example"))
        for name, dataset in (("full", full), ("pattern_preserving", pattern))
    ]
    if losses[0].shape != losses[1].shape or np.abs(losses[0] - losses[1]).mean() > _MOST_APART:
        raise InputError("full and pattern_preserving: the whole model's losses differ; sweep one run on one text")
