"""Training curves of runs on exemplars, from their logs."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.runs import Run
from icl_fast.runs.run import LOG

Values = dict[tuple[str, str], np.ndarray]
_LOSSES = ("loss", "total_loss")  # of a line on training steps


def training_curves(run: Run) -> xr.Dataset:
    """What was measured of a run on exemplars while it was trained.

    `training_loss [logged, member]` at `logged_sequences`: the mean since the line before, in nats; where there is an
    L2 term `total_loss`, with that of the weights at that point. All else at
    `sequences [evaluation]`: `<metric> [evaluation, evaluator, member, ...]` for the metrics of
    `StrategyMetrics`. Members that differ in seeds alone have the same `setting [member]`.

    Raises:
        InputError: nothing is logged yet, the run is on text, or a line of the log is not what it logs.
    """
    records = run.read_log()
    if not records:
        raise InputError(f"run folder {run.path}: nothing is logged yet; train it first")
    members, settings = run.population.names, run.population.settings
    losses: list[tuple[int, Values]] = []
    evaluations: list[tuple[int, Values]] = []
    for number, record in enumerate(records, 1):
        try:
            lines = losses if _LOSSES[0] in record else evaluations
            lines.append((_sequences(record), _values(record, len(members))))
            if _layout(lines[-1][1]) != _layout(lines[0][1]):
                raise ValueError("other evaluators, metrics or heads than before")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            where = f"{run.path / LOG}: line {number}"
            raise InputError(f"{where}: is not what this run logs ({error!s:.200}); put back a copy") from None
    data = xr.Dataset(coords={"member": members, "setting": ("member", settings)})
    for name, logged_as in (("training_loss", "loss"), ("total_loss", "total_loss")):
        logged = [values[logged_as, ""] for _, values in losses if (logged_as, "") in values]
        if logged or logged_as == "loss":
            data[name] = ("logged", "member"), np.reshape(logged, (len(losses), len(members)))
            data[name].attrs["units"] = "nats"
    data["logged_sequences"] = "logged", np.array([seen for seen, _ in losses], np.int64)
    if evaluations:
        data["sequences"] = "evaluation", np.array([seen for seen, _ in evaluations], np.int64)
        names, metrics = (list(dict.fromkeys(part)) for part in zip(*evaluations[0][1], strict=True))
        data = data.assign_coords(evaluator=names)
        for metric in metrics:
            values = np.array([[values[name, metric] for name in names] for _, values in evaluations])
            per_head = ("layer", "head") if values.ndim == 5 else ()
            data[metric] = ("evaluation", "evaluator", "member", *per_head), values
    return data


def _sequences(record: dict[str, Any]) -> int:
    seen = record["sequences"]
    if type(seen) is not int or not 0 <= seen < 2**63:
        raise ValueError(f"sequences {seen!r:.80}")
    return seen


def _values(record: dict[str, Any], members: int) -> Values:
    """What a line holds: `[member]` or `[member, layer, head]` by evaluator and metric, or by name of loss and ""."""
    training = {name: {"": record[name]} for name in _LOSSES if name in record}
    parts = training or record["evaluators"]
    values = {
        (name, metric): np.array(value, np.float64)
        for name, of_one in parts.items()
        for metric, value in of_one.items()
    }
    if not values or not all(len(value) == members and value.ndim in (1, 3) for value in values.values()):
        raise ValueError(f"not {members} members")
    if len({metric for _, metric in values}) * len(parts) != len(values) or (
        training and any(value.ndim > 1 for value in values.values())
    ):
        raise ValueError("other metrics of one evaluator than of another")
    return values


def _layout(values: Values) -> dict[tuple[str, str], tuple[int, ...]]:
    return {name: value.shape for name, value in values.items()}
