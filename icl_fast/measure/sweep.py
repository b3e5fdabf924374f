"""The ablation sweep over a run's snapshots: resumable at any moment, into one zarr store.

A sweep works in parts, one for each snapshot and chunk of examples. Parts are written whole or not at all beside the
result, under `<out>.partial/`; at the end they are put together in a fixed order, so that a sweep that was killed and
run again gives the same bits as one that ran through.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.data import load_text
from icl_fast.errors import InputError
from icl_fast.files import atomic_write, sha256
from icl_fast.measure.ablation import Replacement
from icl_fast.measure.parts import Engine, EvaluationTokens, Part, SweepPlan, assemble, make_plan, snapshot_parts, total
from icl_fast.measure.plan import DTYPES
from icl_fast.models import TransformerConfig
from icl_fast.training import RunFolder, resolve_device


@dataclass(frozen=True)
class SweepProgress:
    """Where a sweep is, in parts (a chunk of examples of one snapshot, all its ablations)."""

    done: int
    parts: int
    step: int


def find_snapshots(ckpt: str | Path, which: str = "all") -> tuple[RunFolder, list[int]]:
    """The run and the steps that a `--ckpt` and a `--snapshots` value mean.

    Args:
        ckpt: a run folder, or one snapshot file in a run folder's `snapshots/`.
        which: `all`, `last`, or steps such as `0,50,100`; for a run folder.

    Raises:
        InputError: no run there, no such snapshot, or a snapshot outside a run folder (whose tokenizer it needs).
    """
    path = Path(ckpt)
    if path.is_file():
        folder = RunFolder(path.resolve().parent.parent)
        steps = [step for step in folder.snapshot_steps() if folder.snapshot_path(step).name == path.name]
        if not folder.exists or not steps:
            raise InputError(
                f"ckpt: {path} is not in RUN/snapshots/ of a run folder, whose corpus and tokenizer it needs"
            )
        return folder, steps
    if not path.is_dir():
        raise InputError(f"ckpt: {path} does not exist")
    folder = RunFolder(path)
    folder.config()
    there = folder.snapshot_steps()
    if not there:
        raise InputError(f"ckpt: {path} has no snapshots yet")
    if which == "all":
        return folder, there
    if which == "last":
        return folder, there[-1:]
    items = [item.strip() for item in which.split(",")]
    if not all(item.isdecimal() for item in items):
        raise InputError(f"snapshots: {which!r} is neither all, last nor steps such as 0,50,100")
    steps = sorted({int(item) for item in items})
    if missing := [step for step in steps if step not in there]:
        raise InputError(f"snapshots: none at step {missing[0]}; there are {', '.join(map(str, there))}")
    return folder, steps


@dataclass(frozen=True)
class PlannedSweep:
    """All that a sweep will do, before it does anything."""

    folder: RunFolder
    steps: list[int]
    config: TransformerConfig
    evaluation: EvaluationTokens
    plan: SweepPlan


def plan_sweep(
    ckpt: str | Path, *, snapshots: str = "all", examples: int | None = None, **options: Any
) -> PlannedSweep:
    """What `sweep` would do with these arguments.

    Args:
        ckpt, snapshots, examples: as in `sweep`.
        options: the arguments of `make_plan`.

    Raises:
        InputError: as `sweep`.
    """
    folder, steps = find_snapshots(ckpt, snapshots)
    evaluation = _evaluation(folder, examples)
    config = folder.load_snapshot(steps[0]).model.config
    return PlannedSweep(folder, steps, config, evaluation, make_plan(config, evaluation, **options))


def sweep(
    ckpt: str | Path,
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
        ckpt: a run folder or one of its snapshots.
        out: the zarr store; default `RUN/results/ablation_<mode>.zarr`. What is there from an equal sweep is kept.
        snapshots: see `find_snapshots`.
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
    folder, steps, plan, evaluation = planned.folder, planned.steps, planned.plan, planned.evaluation
    target = Path(out) if out is not None else folder.path / "results" / f"ablation_{mode}.zarr"
    identity = plan.as_json() | {"snapshots": {str(step): sha256(folder.snapshot_path(step)) for step in steps}}
    work = _Workspace(target, identity)
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
    with ThreadPoolExecutor(1) as loader:  # the next snapshot is read while one is computed
        upcoming = [loader.submit(folder.load_snapshot, steps[0])]
        for number, step in enumerate(steps):
            snapshot = upcoming.pop().result()
            if number + 1 < len(steps):
                upcoming.append(loader.submit(folder.load_snapshot, steps[number + 1]))
            tokens.append(snapshot.tokens)
            model = snapshot.model.to(on, DTYPES[plan.dtype])
            for index, part in snapshot_parts(model, evaluation, plan, missing[step]):
                work.write(step, index, part)
                done += 1
                report(step)
            work.close(step, len(indices))
    dataset = assemble([work.read(step) for step in steps], plan, steps, tokens)
    dataset.attrs["sweep"] = json.dumps(identity)
    work.finish(dataset)
    return target


def open_results(path: str | Path) -> xr.Dataset:
    """Load a Dataset that `sweep` wrote.

    Raises:
        InputError: nothing there, or not such a store.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"results {path}: do not exist")
    try:
        with xr.open_zarr(path) as store:
            dataset: xr.Dataset = store.load()
            return dataset
    except Exception as error:  # zarr, numcodecs and xarray each raise their own kind for a damaged store
        raise InputError(f"results {path}: cannot be read ({str(error).splitlines()[0]})") from None


class _Workspace:
    """The parts of one sweep on disk, beside its result."""

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.out, self.identity = out, identity
        self.partial = out.with_name(out.name + ".partial")

    def finished(self) -> bool:
        """Whether the result is there.

        Raises:
            InputError: something else is there.
        """
        if not self.out.exists():
            return False
        theirs = json.loads(open_results(self.out).attrs.get("sweep", "{}"))
        self._check_same(theirs, self.out)
        return True

    def begin(self) -> None:
        """Go on with the parts of an equal sweep, or begin.

        Raises:
            InputError: the parts are of another sweep, or nothing can be written here.
        """
        path = self.partial / "plan.json"
        if path.is_file():
            self._check_same(json.loads(path.read_text(encoding="utf-8")), self.partial)
            return
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.identity), encoding="utf-8")

    def has(self, step: int, index: int) -> bool:
        """Whether a part is there, alone or in its snapshot's."""
        return self._readable(step) or self._readable(step, index)

    def read(self, step: int, index: int | None = None) -> Part:
        """A part, or the whole of a snapshot."""
        with np.load(self._path(step, index), allow_pickle=False) as arrays:
            return Part(**{field.name: arrays[field.name] for field in fields(Part)})

    def write(self, step: int, index: int | None, part: Part) -> None:
        with atomic_write(self._path(step, index)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **vars(part))

    def close(self, step: int, parts: int) -> None:
        """Put the parts of a snapshot together."""
        if not self._readable(step):
            self.write(step, None, total([self.read(step, index) for index in range(parts)]))
        for index in range(parts):
            self._path(step, index).unlink(missing_ok=True)

    def finish(self, dataset: xr.Dataset) -> None:
        with atomic_write(self.out) as temporary:
            dataset.to_zarr(temporary, mode="w", zarr_format=2, consolidated=True)
        shutil.rmtree(self.partial)

    def _readable(self, step: int, index: int | None = None) -> bool:
        try:
            self.read(step, index)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False  # not there, or cut off by a power cut: do it again
        return True

    def _path(self, step: int, index: int | None) -> Path:
        return self.partial / (f"{step:08d}.npz" if index is None else f"{step:08d}_{index:05d}.npz")

    def _check_same(self, theirs: dict[str, Any], where: Path) -> None:
        if differing := sorted(
            k for k in self.identity.keys() | theirs.keys() if self.identity.get(k) != theirs.get(k)
        ):
            raise InputError(
                f"out: {where} belongs to a sweep with other {', '.join(differing)}; choose another --out or remove it"
            )


def _evaluation(folder: RunFolder, examples: int | None) -> EvaluationTokens:
    text = load_text(folder.config().data)
    if text.tokenizer.to_str() != folder.tokenizer_path.read_text(encoding="utf-8"):
        raise InputError(
            f"ckpt: the corpus {folder.config().data.corpus} on this machine is not the one of {folder.path}"
        )
    whole = text.evaluation()
    count = len(whole.inputs)
    if examples is not None and not 1 <= examples <= count:
        raise InputError(f"examples: must be from 1 to {count}, what the evaluation set holds; got {examples}")
    chosen = slice(0, count if examples is None else examples)
    return EvaluationTokens(whole.inputs[chosen], whole.targets[chosen], whole.random_position[chosen], whole.digest)
