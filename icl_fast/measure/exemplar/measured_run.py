"""Measurements of a run folder of the exemplar world: its snapshots, exemplars, evaluators and clamps put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.progress import Transplant, measure_over_snapshots
from icl_fast.measure.exemplar.strategies import evaluate_strategies
from icl_fast.measure.exemplar.wiring import previous_token_heads, remove_sets, wiring_map
from icl_fast.measure.store import save_results
from icl_fast.models import ClampName, Clamps, ExemplarSnapshot, stack_clamps
from icl_fast.runs.devices import resolve_device
from icl_fast.runs.exemplar_run import ExemplarRun
from icl_fast.runs.snapshots import chosen_steps

AS_TRAINED = "as trained"
PREVIOUS_TOKEN, REST = "previous token", "rest"


@dataclass(frozen=True)
class MeasuredRun:
    """A run and what its snapshots are measured on, on one device.

    Attributes:
        features: `[K, E, F]`.
        evaluators: with fields `[P, N, ...]`.
        clamps: what its members were trained with.
    """

    run: ExemplarRun
    steps: list[int]
    features: Tensor
    evaluators: list[EvaluationSequences]
    clamps: Clamps
    device: torch.device

    def snapshots(self) -> Iterator[ExemplarSnapshot]:
        """The chosen ones, in order, read one at a time."""
        return (self.snapshot(step) for step in self.steps)

    def snapshot(self, step: int) -> ExemplarSnapshot:
        """The one at a step.

        Raises:
            InputError: as `ExemplarRun.load_snapshot`.
        """
        snapshot = self.run.load_snapshot(step)
        return replace(snapshot, model=snapshot.model.to(self.device))


def open_run(
    path: str | Path,
    *,
    snapshots: str = "all",
    evaluators: Sequence[str] = (),
    sequences: int = 1000,
    device: str = "auto",
    on_exemplars: Callable[[int, int, str], None] | None = None,
) -> MeasuredRun:
    """A run folder, ready to be measured.

    Args:
        snapshots: `all`, `last`, or steps such as `0,50,100`.
        evaluators: by name; by default all that are defined for every member.
        sequences: of each evaluator.
        on_exemplars: called while glyphs are rendered.

    Raises:
        InputError: no run of the exemplar world there, no such snapshot or evaluator, exemplars that cannot be had.
    """
    if sequences < 1:
        raise InputError(f"sequences: must be 1 or more, got {sequences}")
    run, where = ExemplarRun(path), resolve_device(device)
    there = run.snapshot_steps() if run.config else []
    if not there:
        raise InputError(f"run folder {run.path}: has no snapshots yet")
    steps = chosen_steps(there, snapshots)
    exemplars = run.exemplars(on_exemplars)
    sets = run.population.evaluators(exemplars, list(evaluators), sequences, where)
    clamps = run.population.clamps().to(where)
    return MeasuredRun(run, steps, exemplars.features.to(where), sets, clamps, where)


def measure_strategies(
    measured: MeasuredRun,
    *,
    clamps: Sequence[str] = (),
    graft: str | None = None,
    out: str | Path | None = None,
    on_snapshot: Callable[[int, int, str], None] | None = None,
) -> Path:
    """`measure_over_snapshots` of a run, saved as a zarr store (`icl_fast.measure.open_results` reads it).

    Args:
        clamps: names of clamps; each is forced alone in every snapshot, besides what the run was trained with: progress
            measures (Singh 2025, Fig 4.8). The heads are those that the run's config names.
        graft: `STEP:PARTS`, such as `last:layer-2+unembed` (Fig 5.6b): given to every snapshot first.
        out: the store; by default in `results/` of the run folder.
        on_snapshot: told how many are done, of how many, and the step of the last.

    Raises:
        InputError: an unknown clamp or part, a graft that is not understood, a disk that is full.
    """
    held: dict[str, Clamps | None] = {AS_TRAINED: measured.clamps}
    held |= {name: _with_clamp(measured, name) for name in clamps}
    done = 0

    def count(step: int) -> None:
        nonlocal done
        done += 1
        if on_snapshot is not None:
            on_snapshot(done, len(measured.steps), f"snapshot {step}")

    found = measure_over_snapshots(
        measured.snapshots(),
        measured.features,
        measured.evaluators,
        held,
        transplant=None if graft is None else _transplant(measured, graft),
        on_snapshot=count,
    ).assign_coords(member=measured.run.members)
    found.attrs |= {"graft": graft or "", "evaluated": len(measured.evaluators[0].answered[0])}
    name = "strategies" if graft is None else f"strategies_{graft.replace(':', '_')}"
    target = Path(out) if out is not None else measured.run.path / "results" / f"{name}.zarr"
    save_results(found, target)
    return target


def measure_wiring(measured: MeasuredRun) -> xr.Dataset:
    """`wiring_map` of the last chosen snapshot on the first chosen evaluator, and table C.3 of each member.

    Returns:
        Of `wiring_map`, with the members' names; besides the metrics of `remove_sets` as `<metric>_without`
        `[set, preserve, member]`, for the sets "previous token" (`previous_token_heads`) and "rest"; which those heads
        are and what they rest on as `is_previous_token` and `previous_token` `[writer, member]`; the last layer's
        induction strengths as `induction` `[reader, member]`.

    Raises:
        InputError: a model of one layer.
    """
    evaluator, snapshot = measured.evaluators[0], measured.snapshot(measured.steps[-1])
    given = (snapshot.model, measured.features, evaluator)
    found = wiring_map(*given, measured.clamps).assign_coords(member=measured.run.members)
    metrics = evaluate_strategies(snapshot.model, measured.features, [evaluator], measured.clamps, attention=True)
    attention = metrics[evaluator.name].attention
    assert attention is not None
    heads = range(snapshot.model.config.heads)
    tables, is_previous = [], np.zeros((len(heads), snapshot.model.members), dtype=bool)
    for member in range(snapshot.model.members):
        previous = previous_token_heads(attention.previous_token[member])
        is_previous[[head for _, head in previous], member] = True
        sets = {PREVIOUS_TOKEN: previous, REST: [(0, head) for head in heads if (0, head) not in previous]}
        tables.append(remove_sets(*given, sets, measured.clamps).isel(member=member))
    both = xr.concat(tables, dim="member").transpose("set", "preserve", "member")
    found = found.merge(both.rename({name: f"{name}_without" for name in both}).assign_coords(member=found["member"]))
    found["previous_token"] = ("writer", "member"), attention.previous_token[:, 0].T.cpu().numpy()
    found["is_previous_token"] = ("writer", "member"), is_previous
    found["induction"] = ("reader", "member"), attention.induction[:, -1].T.cpu().numpy()
    found.attrs |= {"step": snapshot.step, "sequences": snapshot.sequences, "evaluated": len(evaluator.answered[0])}
    return found


def _with_clamp(measured: MeasuredRun, name: str) -> Clamps:
    if name not in get_args(ClampName):
        raise InputError(f"clamp {name}: must be one of {', '.join(get_args(ClampName))}")
    shape = measured.run.config.model
    made = []
    for member in measured.run.population.all:
        config = member.config.interventions
        made.append(config.model_copy(update={"clamps": [*config.clamps, name]}).make(shape))
    return stack_clamps(made).to(measured.device)


def _transplant(measured: MeasuredRun, graft: str) -> Transplant:
    step, _, parts = graft.partition(":")
    if not parts:
        raise InputError(f"graft {graft!r}: must be STEP:PARTS, such as last:layer-2+unembed")
    steps = chosen_steps(measured.run.snapshot_steps(), step)
    if len(steps) != 1:
        raise InputError(f"graft {graft!r}: name one step, or last")
    return Transplant(measured.snapshot(steps[0]).model, tuple(parts.split("+")))
