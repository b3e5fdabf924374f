"""The ablation sweep over a series: resumable at any moment, into one zarr store.

A sweep works in parts, one for each snapshot and chunk of examples (see `icl_fast.measure.store`); at the end they
are put together in a fixed order, so that a sweep that was killed and run again gives the same bits as one that ran
through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from icl_fast.data import EvaluationSet
from icl_fast.measure.ablation.dataset import sweep_dataset, sweep_variables
from icl_fast.measure.ablation.exactness import ATTRIBUTE, Exactness, chosen_dtype, measure_exactness
from icl_fast.measure.ablation.options import AUTO, CANDIDATES, DTYPES, AblationKeywords, AblationOptions
from icl_fast.measure.ablation.plan import SweepPlan, make_plan
from icl_fast.measure.ablation.sums import LossSums, PartSums
from icl_fast.measure.over_snapshots import at_snapshot
from icl_fast.measure.store import Arrays, Workspace, open_results, save_results
from icl_fast.memory import in_units
from icl_fast.models import Snapshot, Transformer, TransformerConfig
from icl_fast.models.plain import why_not_plain
from icl_fast.notebook import some, table
from icl_fast.runs import Series, Snapshots, open_series, resolve_device
from icl_fast.scale import HERE, Needs, Runner

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class SweepProgress:
    """Where a sweep is, in parts (a chunk of examples of one snapshot, all its ablations)."""

    done: int
    parts: int
    step: int
    workers: int | None = None

    @property
    def text(self) -> str:
        """What is said beside the count."""
        return at_snapshot(self.step, self.workers)


@dataclass(frozen=True)
class PlannedSweep:
    """All that a sweep will do, before it does anything.

    Attributes:
        streamed: bytes of the weights of a snapshot that are read layer by layer; 0: all are in memory.
        exactness: what was measured to decide dtype `auto`, or because it was asked; None: nothing was.
    """

    series: Series
    config: TransformerConfig
    evaluation: EvaluationSet
    plan: SweepPlan
    streamed: int = 0
    exactness: Exactness | None = None

    @property
    def bytes(self) -> int:
        """What the activations of a part take at their peak."""
        if self.plan.engine == "definition":
            return self.plan.memory
        return self.plan.schedule(self.config, self.evaluation.inputs.shape[1]).bytes

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        plan = self.plan
        facts = {
            "of": self.series.path,
            "ablations": f"{len(plan.ablations):,}, {plan.mode}, by {plan.replacement}",
            "snapshots": some(self.series.steps),
            "examples": f"{plan.examples:,} of {self.evaluation.inputs.shape[1]} tokens, {plan.chunk:,} at a time",
            "positions": f"{plan.positions.rows_per_example} of each",
            "computed": f"{plan.engine}, in {plan.dtype}, on {plan.device}",
            "activations": in_units(self.bytes),
        }
        return table("Sweep, planned", facts)


def plan_sweep(
    ckpt: str | Path | Series,
    options: AblationOptions | None = None,
    *,
    snapshots: Snapshots = "all",
    examples: int | None = None,
    device: str = "auto",
    check: bool = False,
    **keywords: Unpack[AblationKeywords],
) -> PlannedSweep:
    """What `sweep` would do with these arguments, where it has not begun. With dtype `auto`, or `check`, it measures on
    a sample.

    Raises:
        InputError: as `sweep`.
    """
    chosen, on = AblationOptions.of(options, keywords), resolve_device(device)
    return _planned(open_series(ckpt, snapshots), chosen, examples, on, check)


def _planned(
    series: Series, chosen: AblationOptions, examples: int | None, on: torch.device, check: bool = False
) -> PlannedSweep:
    evaluation, exactness = series.evaluation_set(examples), None
    model = series.load(series.steps[0]).model
    if chosen.dtype == AUTO or check:
        last = series.load(series.steps[-1])
        chosen, exactness = chosen_dtype(
            last.model.to(on), evaluation, chosen, device=on.type, step=last.step, measure=check
        )
    changed = why_not_plain(model) is not None
    plan = make_plan(model.config, evaluation, chosen, device=on.type, whole_logits=changed)
    streamed = 0
    if model.blocks.stream is not None:
        itemsize = DTYPES[plan.dtype].itemsize
        streamed = sum(weight.numel() for weight in model.blocks.parameters()) * itemsize
    return PlannedSweep(series, model.config, evaluation, plan, streamed, exactness)


def _as_begun(
    found: dict[str, Any], series: Series, chosen: AblationOptions, examples: int | None, on: torch.device
) -> PlannedSweep | None:
    """The sweep that these results were begun by, if dtype `auto` is all that it has to decide."""
    if found.get("dtype") not in CANDIDATES[on.type]:
        return None
    planned = _planned(series, replace(chosen, dtype=found["dtype"]), examples, on)
    same = planned.plan.as_json() | {"snapshots": found.get("snapshots")} == found
    return planned if same else None


def sweep(
    ckpt: str | Path | Series,
    options: AblationOptions | None = None,
    *,
    out: str | Path | None = None,
    snapshots: Snapshots = "all",
    examples: int | None = None,
    device: str = "auto",
    repair: bool = False,
    force: bool = False,
    check: bool = False,
    runner: Runner = HERE,
    on_part: Callable[[SweepProgress], None] | None = None,
    **keywords: Unpack[AblationKeywords],
) -> Path:
    """Ablate heads of a run's snapshots on its corpus' fixed evaluation set; the same call again resumes.

    Args:
        ckpt: a series, a run folder or one of its snapshots.
        options: what is removed, where losses are wanted, what computes them.
        out: the zarr store; default `RUN/results/ablation_<mode>.zarr`. What is there from an equal sweep is kept.
        snapshots: see `icl_fast.runs.open_series`.
        examples: use only the first so many of the evaluation set; default all of it.
        device: `auto`, `cpu` or `cuda`.
        repair: whether damaged results at `out` are measured again, rather than refused.
        force: whether they are measured again where `out` holds others, which stay until these are complete.
        check: whether the errors of the last snapshot's mean effects are measured on a sample, against float64, and
            kept in the store's attribute `exactness`; with dtype `auto` they always are, where it rounds.
        runner: what computes the parts; which and how many they are does not depend on it.
        on_part: called when a part is done (and once at the start).
        keywords: fields of `AblationOptions`, in the place of those of `options`.

    Returns:
        Where the Dataset lies: that of `ablate` with a leading `snapshot` dim (optimizer steps) and a `tokens` coord.

    Raises:
        OtherResults: `out` holds another sweep.
        DamagedResults: `out` is not as it was written.
        InputError: an argument or option not understood, a snapshot damaged or not finite, an `out` that holds
            something else, the disk full. What was done so far is kept.
    """
    chosen, on = AblationOptions.of(options, keywords), resolve_device(device)
    series = open_series(ckpt, snapshots)
    store = Path(out) if out is not None else series.results / f"ablation_{chosen.mode}.zarr"
    begun = None
    if chosen.dtype == AUTO and not force and (found := Workspace.identity_at(store, "sweep")):
        begun = _as_begun(found, series, chosen, examples, on)
    planned = begun or _planned(series, chosen, examples, on, check)
    plan, evaluation, exactness, steps = planned.plan, planned.evaluation, planned.exactness, series.steps
    identity = plan.as_json() | {"snapshots": series.hashes()}
    work = Workspace(store, identity, "sweep", variables=sweep_variables(plan), repair=repair, force=force)
    finished = work.finished()
    if exactness is None and (check or (begun and not finished and plan.dtype != "float32")):
        exactness = measure_exactness(series.load(steps[-1]).model.to(on), evaluation, plan, steps[-1])
    if finished:
        if exactness is not None and check:
            save_results(open_results(store).assign_attrs({ATTRIBUTE: exactness.as_json()}), store)
        return store
    indices = range(len(plan.parts))
    with work.begin():
        missing = {step: [index for index in indices if not work.has(step, index)] for step in steps}
        done, seen = len(steps) * len(indices) - sum(map(len, missing.values())), []

        def report(step: int) -> None:
            if on_part is not None:
                on_part(SweepProgress(done, len(steps) * len(indices), step, runner.workers))

        def tasks() -> Iterator[tuple[Snapshot[Transformer], Sequence[tuple[int, int]]]]:
            for snapshot in series:
                seen.append(snapshot.seen)
                close(snapshot.step)  # killed before that was done, perhaps
                yield snapshot, [(snapshot.step, index) for index in missing[snapshot.step]]

        def close(step: int) -> None:
            if not missing[step]:
                work.close(step, len(indices), _joined)

        report(steps[0])
        needs = Needs(planned.bytes, on.type)
        for (step, index), part in runner.run(_Sums(evaluation, plan, on), tasks(), needs):
            work.write(step, index, part)
            done += 1
            report(step)
            missing[step].remove(index)
            close(step)
        dataset = sweep_dataset([LossSums(**work.read(step)) for step in steps], plan, steps, seen)
        if exactness is not None:
            dataset.attrs[ATTRIBUTE] = exactness.as_json()
        work.finish(dataset)
    return store


class _Sums:
    """A task of a sweep: the sums of a part of a snapshot. What its parts have in common is computed once."""

    def __init__(self, evaluation: EvaluationSet, plan: SweepPlan, on: torch.device) -> None:
        self._evaluation, self._plan, self._on = evaluation, plan, on
        self._last: tuple[Snapshot[Transformer], PartSums] | None = None

    def __call__(self, snapshot: Snapshot[Transformer], key: tuple[int, int]) -> Arrays:
        if self._last is None or self._last[0] is not snapshot:
            self._last = None  # before the next one takes memory
            model = snapshot.model.to(self._on, DTYPES[self._plan.dtype])
            self._last = snapshot, PartSums(model, self._evaluation, self._plan)
        return vars(self._last[1].of(key[1]))


def _joined(parts: list[Arrays]) -> Arrays:
    return vars(LossSums.total([LossSums(**part) for part in parts]))
