"""The ablation sweep over a series on exemplars: every head of every snapshot, in every mode, on every evaluator.

Which heads a strategy rests on, and from when to when (Singh 2025, 5.9.2: "ablating these heads in checkpoints from
around the peak performance of ICL"). Resumable at any snapshot, into one zarr store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from icl_fast.arguments import different_names
from icl_fast.errors import InputError
from icl_fast.measure.ablation import MODES, UNABLATED, Ablation, AblationMode, parse_ablations
from icl_fast.measure.ablation.dataset import ablation_coords
from icl_fast.measure.exemplar.answers import METRICS
from icl_fast.measure.exemplar.measured_model import MeasuredModel, SecondPass, without_heads
from icl_fast.measure.exemplar.measured_run import MeasuredRun
from icl_fast.measure.over_snapshots import SnapshotProgress, measure_snapshots
from icl_fast.measure.store import Arrays
from icl_fast.models import ExemplarModel, ExemplarShape, Preservable, Snapshot
from icl_fast.notebook import table
from icl_fast.scale import HERE, Runner

_DIMS = ("snapshot", "mode", "evaluator", "ablation", "member")
_WHOLE = Ablation(UNABLATED, ())
_Asked = tuple[Ablation, tuple[Preservable, ...]]


@dataclass(frozen=True)
class AblationPlan:
    """What a sweep over models of one shape removes and preserves, and the passes that give all of it.

    Attributes:
        modes: by their names.
        ablations: the first one removes nothing.
    """

    shape: ExemplarShape
    modes: dict[str, AblationMode]
    ablations: list[Ablation]

    @cached_property
    def passes(self) -> list[SecondPass]:
        """The different second passes; those that share what comes before the last layer's heads are neighbours."""
        return [
            SecondPass(without_heads(self.shape, one.heads), 0.0 if one.embed else 1.0, preserve)
            for one, preserve in self._different
        ]

    @cached_property
    def pass_of(self) -> np.ndarray:
        """Which of them each ablation takes, `[mode, ablation]`."""
        numbers = {asked: number for number, asked in enumerate(self._different)}
        return np.array([[numbers[self._asked(one, mode)] for one in self.ablations] for mode in self.modes.values()])

    @cached_property
    def _different(self) -> list[_Asked]:
        asked = dict.fromkeys(self._asked(one, mode) for mode in self.modes.values() for one in self.ablations)
        return sorted(asked, key=lambda one: not self._late(one[0]))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        facts = {
            "model": f"{self.shape.layers} layers of {self.shape.heads} heads",
            "modes": ", ".join(self.modes),
            "ablations": f"{len(self.ablations) - 1:,}",
            "second passes": f"{len(self.passes):,}",
        }
        return table("Sweep on exemplars, planned", facts)

    def _asked(self, ablation: Ablation, mode: AblationMode) -> _Asked:
        # nothing that a mode could preserve comes after the last layer's heads: one pass serves all modes
        return ablation, () if self._late(ablation) else mode.preserve

    def _late(self, ablation: Ablation) -> bool:
        return not ablation.embed and all(layer == self.shape.layers - 1 for layer, _ in ablation.heads)

    def arrays(self, on_each: Sequence[MeasuredModel]) -> Arrays:
        """The metrics of one model, each `[mode, evaluator, ablation, member]`."""
        means = [model.second_pass_means(self.passes) for model in on_each]
        return {
            name: np.stack([getattr(one, name).cpu().numpy()[self.pass_of] for one in means], axis=1)
            for name in METRICS
        }


def plan_ablations(
    shape: ExemplarShape, *, modes: Sequence[str] = tuple(MODES), heads: str | Sequence[str] = "all"
) -> AblationPlan:
    """What is removed and preserved.

    Args:
        shape: of the models.
        modes: names of ablation modes, or subsets such as `pattern+k` (see `AblationMode`).
        heads: which ablations (see `parse_ablations`).

    Raises:
        InputError: no mode, one not understood or given twice, a head that the models do not have, models without
            attention.
    """
    shape.check_attention("ablations")
    named = {name: AblationMode.parse(name) for name in different_names("modes", modes)}
    if not named:
        raise InputError("modes: name one or more")
    return AblationPlan(shape, named, [_WHOLE, *parse_ablations(heads, shape)])


def measure_ablations(
    measured: MeasuredRun,
    *,
    modes: Sequence[str] = tuple(MODES),
    heads: str | Sequence[str] = "all",
    out: str | Path | None = None,
    repair: bool = False,
    force: bool = False,
    runner: Runner = HERE,
    on_snapshot: Callable[[SnapshotProgress], None] | None = None,
) -> Path:
    """Remove heads from every snapshot and measure how it answers every evaluator; the same call again resumes.

    What the run was trained with is forced in both passes.

    Args:
        modes, heads: as in `plan_ablations`.
        out: the store; default `RUN/results/ablation.zarr`, of a single mode `ablation_<mode>.zarr`. What is there from
            an equal call is kept.
        repair: whether damaged results there are measured again, rather than refused.
        force: whether they are measured again where `out` holds others, which stay until these are complete.
        runner: what measures the snapshots.
        on_snapshot: called when a snapshot is done (and once at the start).

    Returns:
        Where the Dataset lies: the metrics of `StrategyMetrics`, each `[snapshot, mode, evaluator, ablation, member]`.
        `ablation` begins with "none", the whole model; of a single head `layer` and `head` say which, else -1.
        `snapshot` holds steps, `sequences` how many were seen.

    Raises:
        OtherResults: `out` holds what was measured in other modes, of other heads, snapshots, ...
        DamagedResults: `out` is not as it was written.
        InputError: as `plan_ablations`, or a disk that is full.
    """
    plan = plan_ablations(measured.series.population.config.model, modes=modes, heads=heads)
    evaluators, count = [one.name for one in measured.evaluators], measured.count
    identity = {
        "measured": "ablations, 1",  # raise the number when what is measured changes
        "modes": [[name, mode.preserve] for name, mode in plan.modes.items()],
        "ablations": [asdict(one) for one in plan.ablations],
        "evaluators": measured.definitions,
        "sequences": measured.asked,
        "features": measured.features_hash,
        "device": measured.device.type,
    }

    def measure(snapshot: Snapshot[ExemplarModel]) -> Arrays:
        return plan.arrays(measured.on_each(snapshot.model.to(measured.device)))

    def assemble(parts: list[Arrays], steps: list[int], seen: list[int]) -> xr.Dataset:
        found = xr.Dataset(
            coords={
                "snapshot": steps,
                "mode": list(plan.modes),
                "evaluator": evaluators,
                **ablation_coords(plan.ablations[1:]),
                "member": measured.series.population.names,
            },
            attrs={"evaluated": count, "source": "Singh 2025, 5.9.2"},
        )
        found["sequences"] = "snapshot", np.array(seen, np.int64)
        for metric in METRICS:
            values = np.stack([part[metric] for part in parts])
            found[metric] = _DIMS, values
        found["loss"].attrs["units"] = "nats"
        return found

    name = "ablation" if len(plan.modes) > 1 else f"ablation_{next(iter(plan.modes))}"
    target = Path(out) if out is not None else measured.series.path / "results" / f"{name}.zarr"
    names = {name: (name,) for name in _DIMS} | {metric: _DIMS for metric in METRICS} | {"sequences": _DIMS[:1]}
    return measure_snapshots(
        measured.series,
        target,
        identity,
        measure,
        assemble,
        on_snapshot,
        variables=names,
        repair=repair,
        force=force,
        runner=runner,
        device=measured.device.type,
    )


def seconds_per_snapshot(measured: MeasuredRun, plan: AblationPlan) -> float:
    """How long one snapshot takes, from one chunk of sequences of the first one on this machine.

    Raises:
        InputError: a snapshot that cannot be read.
    """
    model = measured.on_each(measured.snapshot(measured.series.steps[0]).model)[0]
    for _ in range(2):  # the first time is slower
        if measured.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        answers = next(model.second_passes(plan.passes))
        float(answers.loss.sum())  # waits for the device
        seconds = time.perf_counter() - started
    return seconds * len(measured.evaluators) * measured.count / answers.loss.shape[-1]
