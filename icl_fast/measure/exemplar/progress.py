"""Exemplar models over snapshots: strategies, progress measures, grafts (Singh 2025, 4.4.3, 5.6.1)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.strategies import METRICS, StrategyMetrics, evaluate_strategies
from icl_fast.models import Clamps, ExemplarSnapshot, ExemplarTransformer
from icl_fast.models.grafts import graft


@dataclass(frozen=True)
class Transplant:
    """Parts of a donor that every snapshot is given before it is measured.

    "layer-2" and "unembed" of the last snapshot: Fig 5.6b. "embed" and "layer-1" of one on the way: Fig 5.6c.

    Attributes:
        donor: of the snapshots' members, or of one member for all.
        parts: as in `icl_fast.models.grafts`.
    """

    donor: ExemplarTransformer
    parts: tuple[str, ...]

    def __call__(self, model: ExemplarTransformer) -> ExemplarTransformer:
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


def measure_over_snapshots(
    snapshots: Iterable[ExemplarSnapshot],
    features: Tensor,
    evaluators: Sequence[EvaluationSequences],
    clamps: Mapping[str, Clamps | None] | None = None,
    *,
    transplant: Transplant | None = None,
    on_snapshot: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Metrics of every snapshot, under each of some clamps: strategies over training, and progress measures (Fig 4.8).

    Args:
        snapshots: in order of training; read one after the other.
        features: `[K, E, F]`.
        clamps: by name, what is forced in the snapshots, whatever they were trained with; by default nothing, "none".
        transplant: what every snapshot is given first.
        on_snapshot: told the step of every snapshot that is done.

    Returns:
        The metrics of `StrategyMetrics`, each `[snapshot, clamp, evaluator, member]`; `induction`, `previous_token` and
        `own` of `AttentionMetrics`, `[snapshot, clamp, evaluator, member, layer, head]`, and `query`, with `place` of
        the right label and `position` after those. `snapshot` holds steps, `sequences` how many were seen.

    Raises:
        InputError: no snapshot, or as `evaluate_strategies`.
    """
    clamps = {"none": None} if clamps is None else clamps
    steps, sequences, rows = [], [], []
    for snapshot in snapshots:
        model = snapshot.model if transplant is None else transplant(snapshot.model)
        measured = {
            name: evaluate_strategies(model, features, evaluators, held, attention=True)
            for name, held in clamps.items()
        }
        rows.append(measured)
        steps.append(snapshot.step)
        sequences.append(snapshot.sequences)
        if on_snapshot is not None:
            on_snapshot(snapshot.step)
    if not rows:
        raise InputError("snapshots: none given")
    names = [one.name for one in evaluators]

    def gathered(metric: str) -> np.ndarray:
        per_row = [[[_value(of_clamp[name], metric) for name in names] for of_clamp in row.values()] for row in rows]
        return np.stack([torch.stack([torch.stack(part) for part in row]).cpu().numpy() for row in per_row])

    outer = ("snapshot", "clamp", "evaluator", "member")
    inner: dict[str, tuple[str, ...]] = {
        "induction": ("layer", "head"),
        "previous_token": ("layer", "head"),
        "own": ("layer", "head"),
    }
    inner["query"] = ("layer", "head", "place", "position")
    found = xr.Dataset(coords={"snapshot": steps, "clamp": list(clamps), "evaluator": names})
    found["sequences"] = "snapshot", np.array(sequences, np.int64)
    for metric in (*METRICS, *inner):
        found[metric] = (*outer, *inner.get(metric, ())), gathered(metric)
    found["loss"].attrs["unit"] = "nats"
    return found


def _value(metrics: StrategyMetrics, name: str) -> Tensor:
    values: Tensor = getattr(metrics if name in METRICS else metrics.attention, name)
    return values
