"""Exemplar models over snapshots: strategies, progress measures, grafts (Singh 2025, 4.4.3, 5.6.1)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.measure.exemplar.answers import METRICS, StrategyMetrics
from icl_fast.measure.exemplar.measured_model import MeasuredModel
from icl_fast.measure.store import Arrays
from icl_fast.models import ExemplarModel, ExemplarShape
from icl_fast.models.grafts import graft

# of `AttentionMetrics`: the dims after those of all metrics
_ATTENTION: dict[str, tuple[str, ...]] = {
    "induction": ("layer", "head"),
    "previous_token": ("layer", "head"),
    "own": ("layer", "head"),
    "query": ("layer", "head", "place", "position"),
}
_DIMS = ("snapshot", "clamp", "evaluator", "member")


def strategy_variables(shape: ExemplarShape) -> dict[str, tuple[str, ...]]:
    """Of `strategies_dataset` on models of this shape: name -> dims."""
    return {
        **{name: (name,) for name in _DIMS},
        "sequences": ("snapshot",),
        **{metric: (*_DIMS, *_ATTENTION.get(metric, ())) for metric in _measured(shape)},
    }


def _measured(shape: ExemplarShape) -> tuple[str, ...]:
    """The metrics of models of this shape."""
    return (*METRICS, *_ATTENTION) if shape.architecture == "transformer" else METRICS


@dataclass(frozen=True)
class Transplant:
    """Parts of a donor that every snapshot is given before it is measured.

    "layer-2" and "unembed" of the last snapshot: Fig 5.6b. "embed" and "layer-1" of one on the way: Fig 5.6c.

    Attributes:
        donor: of the snapshots' members, or of one member for all.
        parts: as in `icl_fast.models.grafts`.
    """

    donor: ExemplarModel
    parts: tuple[str, ...]

    def __call__(self, model: ExemplarModel) -> ExemplarModel:
        """A copy of the model with the donor's parts.

        Raises:
            InputError: a donor that does not fit, an unknown part.
        """
        if self.donor.members not in (1, model.members):
            raise InputError(f"donor: has {self.donor.members} members; must have 1 or {model.members}")
        grafted = copy.deepcopy(model)
        for member in range(model.members):
            graft(grafted, self.donor, self.parts, member=member, donor_member=min(member, self.donor.members - 1))
        return grafted


def strategy_arrays(by_clamp: Sequence[Sequence[MeasuredModel]]) -> Arrays:
    """The metrics of one snapshot, each `[clamp, evaluator, member, ...]`.

    Args:
        by_clamp: the snapshot's model under each clamp, on each evaluator.
    """
    names = _measured(by_clamp[0][0].model.config)
    attention = names != METRICS
    metrics = [[one.means(attention=attention) for one in under_one] for under_one in by_clamp]

    def array(metric: str) -> np.ndarray:
        rows = [torch.stack([_value(one, metric) for one in under_one]) for under_one in metrics]
        return torch.stack(rows).cpu().numpy()

    return {metric: array(metric) for metric in names}


def strategies_dataset(
    parts: Sequence[Arrays], steps: list[int], seen: list[int], clamps: list[str], evaluators: list[str]
) -> xr.Dataset:
    """The `strategy_arrays` of all snapshots as one Dataset.

    Returns:
        The metrics of `StrategyMetrics`, each `[snapshot, clamp, evaluator, member]`; `induction`, `previous_token` and
        `own` of `AttentionMetrics`, `[snapshot, clamp, evaluator, member, layer, head]`, and `query`, with `place` of
        the right label and `position` after those, of models with attention. `snapshot` holds steps, `sequences` how
        many were seen.
    """
    found = xr.Dataset(coords={"snapshot": steps, "clamp": clamps, "evaluator": evaluators})
    found["sequences"] = "snapshot", np.array(seen, np.int64)
    for metric in parts[0]:
        found[metric] = (*_DIMS, *_ATTENTION.get(metric, ())), np.stack([part[metric] for part in parts])
    found["loss"].attrs["units"] = "nats"
    return found


def _value(metrics: StrategyMetrics, name: str) -> Tensor:
    values: Tensor = getattr(metrics if name in METRICS else metrics.attention, name)
    return values
