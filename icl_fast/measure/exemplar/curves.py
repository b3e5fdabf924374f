"""Training curves of runs on exemplars, from their logs."""

from __future__ import annotations

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.runs import Run


def training_curves(run: Run) -> xr.Dataset:
    """What was measured of a run on exemplars while it was trained.

    `training_loss [logged, member]` at `logged_sequences`: the mean since the line before, in nats. All else at
    `sequences [evaluation]`: `<metric> [evaluation, evaluator, member, ...]` for the metrics of
    `StrategyMetrics`.

    Raises:
        InputError: nothing is logged yet, or the run is on text.
    """
    records = run.read_log()
    losses = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "evaluators" in record]
    if not losses and not evaluations:
        raise InputError(f"run folder {run.path}: nothing is logged yet; train it first")
    members = run.population.names
    data = xr.Dataset(coords={"member": members})
    logged = np.array([record["loss"] for record in losses], np.float64).reshape(len(losses), len(members))
    data["training_loss"] = ("logged", "member"), logged
    data["logged_sequences"] = "logged", np.array([record["sequences"] for record in losses], np.int64)
    data["training_loss"].attrs["units"] = "nats"
    if evaluations:
        data["sequences"] = "evaluation", np.array([record["sequences"] for record in evaluations], np.int64)
        names = list(evaluations[0]["evaluators"])
        data = data.assign_coords(evaluator=names)
        for metric in evaluations[0]["evaluators"][names[0]]:
            values = np.array(
                [[record["evaluators"][name][metric] for name in names] for record in evaluations], np.float64
            )
            per_head = ("layer", "head") if values.ndim == 5 else ()
            data[metric] = ("evaluation", "evaluator", "member", *per_head), values
    return data
