"""The ablation sweep over a series: resumable at any moment, into one zarr store.

A sweep works in parts, one for each snapshot and chunk of examples (see `icl_fast.measure.store`); at the end they
are put together in a fixed order, so that a sweep that was killed and run again gives the same bits as one that ran
through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icl_fast.data import EvaluationSet
from icl_fast.measure.ablation.definition import Replacement
from icl_fast.measure.ablation.parts import (
    Engine,
    Part,
    SweepPlan,
    assemble,
    make_plan,
    snapshot_parts,
    total,
)
from icl_fast.measure.ablation.plan import DTYPES
from icl_fast.measure.store import Workspace
from icl_fast.models import TransformerConfig
from icl_fast.runs import Series, open_series, resolve_device


@dataclass(frozen=True)
class SweepProgress:
    """Where a sweep is, in parts (a chunk of examples of one snapshot, all its ablations)."""

    done: int
    parts: int
    step: int


@dataclass(frozen=True)
class PlannedSweep:
    """All that a sweep will do, before it does anything."""

    series: Series
    config: TransformerConfig
    evaluation: EvaluationSet
    plan: SweepPlan


def plan_sweep(
    ckpt: str | Path | Series, *, snapshots: str = "all", examples: int | None = None, **options: Any
) -> PlannedSweep:
    """What `sweep` would do with these arguments.

    Args:
        ckpt, snapshots, examples: as in `sweep`.
        options: the arguments of `make_plan`.

    Raises:
        InputError: as `sweep`.
    """
    series = open_series(ckpt, snapshots)
    evaluation = series.evaluation_set(examples)
    config = series.load(series.steps[0]).model.config
    return PlannedSweep(series, config, evaluation, make_plan(config, evaluation, **options))


def sweep(
    ckpt: str | Path | Series,
    *,
    out: str | Path | None = None,
    snapshots: str = "all",
    mode: str = "pattern-preserving",
    heads: str = "all",
    positions: str | Sequence[int] = "paper",
    replacement: Replacement = "zero",
    preserve_heads: str | None = None,
    icl_window: int = 1,
    examples: int | None = None,
    memory: str | int = "2GiB",
    engine: Engine = "fast",
    dtype: str = "float32",
    device: str = "auto",
    on_part: Callable[[SweepProgress], None] | None = None,
) -> Path:
    """Ablate heads of a run's snapshots on its corpus' fixed evaluation set; the same call again resumes.

    Args:
        ckpt: a series, a run folder or one of its snapshots.
        out: the zarr store; default `RUN/results/ablation_<mode>.zarr`. What is there from an equal sweep is kept.
        snapshots: see `icl_fast.runs.open_series`.
        mode, heads, positions, replacement, preserve_heads, icl_window, memory, engine, dtype: see `ablate`.
        examples: use only the first so many of the evaluation set; default all of it.
        device: `auto`, `cpu` or `cuda`.
        on_part: called when a part is done (and once at the start).

    Returns:
        Where the Dataset lies: that of `ablate` with a leading `snapshot` dim (optimizer steps) and a `tokens` coord.

    Raises:
        InputError: an argument not understood, a snapshot damaged or not finite, an `out` that holds something else,
            the disk full. What was done so far is kept.
    """
    on = resolve_device(device)
    planned = plan_sweep(
        ckpt,
        snapshots=snapshots,
        examples=examples,
        mode=mode,
        heads=heads,
        positions=positions,
        replacement=replacement,
        preserve_heads=preserve_heads,
        icl_window=icl_window,
        memory=memory,
        engine=engine,
        dtype=dtype,
        device=on.type,
    )
    series, plan, evaluation = planned.series, planned.plan, planned.evaluation
    steps = series.steps
    target = Path(out) if out is not None else series.path / "results" / f"ablation_{mode}.zarr"
    identity = plan.as_json() | {"snapshots": series.hashes()}
    work = Workspace(target, identity, "sweep")
    if work.finished():
        return target
    work.begin()
    indices = range(len(plan.parts))
    missing = {step: [index for index in indices if not work.has(step, index)] for step in steps}
    done, tokens = len(steps) * len(indices) - sum(map(len, missing.values())), []

    def report(step: int) -> None:
        if on_part is not None:
            on_part(SweepProgress(done, len(steps) * len(indices), step))

    report(steps[0])
    for step, snapshot in zip(steps, series, strict=True):
        tokens.append(snapshot.seen)
        model = snapshot.model.to(on, DTYPES[plan.dtype])
        for index, part in snapshot_parts(model, evaluation, plan, missing[step]):
            work.write(step, index, vars(part))
            done += 1
            report(step)
        work.close(step, len(indices), lambda parts: vars(total([Part(**part) for part in parts])))
    work.finish(assemble([Part(**work.read(step)) for step in steps], plan, steps, tokens))
    return target
