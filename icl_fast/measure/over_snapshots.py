"""A measurement of every snapshot of a series, into one zarr store, resumable at any moment.

A part of the work is one snapshot (see `icl_fast.measure.store`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.measure.store import Arrays, Variables, Workspace
from icl_fast.models import Snapshot
from icl_fast.runs import Series
from icl_fast.scale import HERE, Needs, Runner, by_workers

_SEEN = "tokens seen"  # kept beside a snapshot's arrays


@dataclass(frozen=True)
class SnapshotProgress:
    """Where a measurement is: how many snapshots are done, of how many, and the step of the last one looked at."""

    done: int
    snapshots: int
    step: int
    workers: int | None = None

    @property
    def text(self) -> str:
        """What is said beside the count."""
        return at_snapshot(self.step, self.workers)


def at_snapshot(step: int, workers: int | None) -> str:
    """A snapshot, and by how many workers, if there are any."""
    return f"snapshot {step}{by_workers(workers)}"


def measure_snapshots(
    series: Series,
    store: Path,
    identity: Mapping[str, Any],
    measure: Callable[[Snapshot[Any]], Arrays],
    assemble: Callable[[list[Arrays], list[int], list[int]], xr.Dataset],
    on_snapshot: Callable[[SnapshotProgress], None] | None = None,
    *,
    variables: Variables | None = None,
    repair: bool = False,
    force: bool = False,
    runner: Runner = HERE,
    device: str = "cpu",
) -> Path:
    """Measure snapshots and put the results into one zarr store; the same call again resumes.

    Args:
        series: one snapshot or more.
        store: the zarr store. Finished or partial results with an equal identity are kept.
        identity: all that decides what `measure` and `assemble` give, as JSON data; the SHA-256 of the snapshots is
            added to it as `snapshots`, and the Dataset gets it as its attribute `measurement`.
        measure: named arrays of one snapshot, whose model is on the CPU; the same bits each time.
        assemble: from the arrays of all snapshots, the steps, and the training tokens or sequences seen by
            then, the Dataset.
        on_snapshot: called when a snapshot is done (and once at the start).
        variables: of the Dataset, name -> dims, by which it is known to be whole.
        repair: whether damaged results are measured again, rather than refused.
        force: whether they are measured again where `store` holds others, which stay until these are complete.
        runner: what measures them; a task is a snapshot.
        device: type of the device that `measure` computes on.

    Returns:
        `store`.

    Raises:
        OtherResults: `store` has another identity.
        DamagedResults: `store` is not as it was written.
        InputError: a snapshot damaged or not finite, `store` holds something else, the disk full. What was done so
            far is kept.
    """
    identity = {**identity, "snapshots": series.hashes()}
    work = Workspace(store, identity, "measurement", variables=variables, repair=repair, force=force)
    if work.finished():
        return store
    steps = series.steps
    with work.begin():
        missing = [step for step in steps if not work.has(step)]
        done = len(steps) - len(missing)

        def report(step: int) -> None:
            if on_snapshot is not None:
                on_snapshot(SnapshotProgress(done, len(steps), step, runner.workers))

        def of(snapshot: Snapshot[Any], step: int) -> Arrays:
            return {**measure(snapshot), _SEEN: np.array(snapshot.seen)}

        report(steps[0])
        snapshots = ((snapshot, [snapshot.step]) for snapshot in series.at(missing))
        for step, arrays in runner.run(of, snapshots, Needs(device=device)):
            work.write(step, None, arrays)
            done += 1
            report(step)
        parts = [work.read(step) for step in steps]
        seen = [int(part.pop(_SEEN)) for part in parts]
        work.finish(assemble(parts, list(steps), seen))
    return store
