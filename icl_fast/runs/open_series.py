"""What `--ckpt` and `--snapshots` mean: a series from a path or a name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from icl_fast.errors import InputError
from icl_fast.files import regular_file
from icl_fast.runs.foreign_places import holds_models
from icl_fast.runs.foreign_series import ForeignOptions, ForeignSeries
from icl_fast.runs.hub import PREFIX, hub_name
from icl_fast.runs.names import run_names
from icl_fast.runs.run_series import RunSeries, place_in_run, run_of
from icl_fast.runs.series import Series, Snapshots


def open_series(
    ckpt: str | Path | Series, snapshots: Snapshots = "all", foreign: ForeignOptions | None = None
) -> Series:
    """The snapshots of a run or of other people's training, or some of them, as a series.

    Args:
        ckpt: a run folder; one snapshot file in a run folder's `snapshots/`; a folder with a model of other people's,
            or with one for each snapshot (see `ForeignSeries`); `hf:ORG/NAME`; or a series already.
        snapshots: `all`, `last`, or steps, as text such as `0,50,100` or as whole numbers; not for a snapshot file.
        foreign: of other people's models; those of icl_fast are evaluated on what they were trained on.

    Raises:
        InputError: nothing of that kind there, no such snapshot, a snapshot outside a run folder (whose corpus it
            needs), options that are not for it.
    """
    if isinstance(ckpt, Series):
        if not ckpt.steps:
            raise InputError(f"ckpt: {ckpt.path} has no snapshot that can be used")
        return ckpt.chosen(snapshots)
    path = Path(ckpt)
    if is_foreign_series(path):
        return ForeignSeries(ckpt, foreign).chosen(snapshots)
    _refuse(foreign, path)
    run = run_of(path)
    if os.path.isfile(path):
        if not isinstance(snapshots, str) or snapshots not in ("all", "last"):
            raise InputError(f"snapshots: {snapshots} of {path}, which is one snapshot; give its run folder")
        place = place_in_run(path)
        steps = [step for step in run.snapshot_steps() if place == run.snapshot_path(step)]
        if not steps:
            raise InputError(
                f"ckpt: {path} is not in RUN/snapshots/ of a run folder, whose corpus and tokenizer it needs"
            )
        return RunSeries(run, steps)
    if not os.path.isdir(path):
        try:
            regular_file(path, "ckpt")  # which says what it is, or that there is nothing
        except InputError as error:
            hub = f"{PREFIX}{path}" if hub_name(f"{PREFIX}{path}") else None
            raise InputError(f"{error}; one on the hub would be {hub}" if hub else str(error)) from None
    series = RunSeries(run)
    if not series.steps:
        raise InputError(
            f"ckpt: {path} has {'none of its snapshots any more' if series.missing() else 'no snapshots yet'}"
        )
    return series.chosen(snapshots)


def open_all(
    ckpts: Sequence[str | Path], snapshots: Snapshots = "all", foreign: ForeignOptions | None = None
) -> dict[str, Series]:
    """Several series by unique names (see `run_names`); the options go to those that are other people's.

    Raises:
        InputError: as `open_series` and `run_names`, or options and none of other people's.
    """
    named = run_names(ckpts)
    theirs = [name for name, path in named.items() if is_foreign_series(path)]
    local = foreign
    if foreign is not None and any(hub_name(path) for path in named.values()):
        local = replace(foreign, keep_downloads=None)  # it is said of those on the hub

    def options(name: str) -> ForeignOptions | None:
        if theirs and name not in theirs:
            return None
        return local if hub_name(named[name]) is None else foreign

    return {name: open_series(path, snapshots, options(name)) for name, path in named.items()}


def is_foreign_series(ckpt: str | Path) -> bool:
    """Whether what a path or name means is other people's."""
    path = Path(ckpt)
    return hub_name(ckpt) is not None or (not run_of(path).exists and holds_models(path))


def _refuse(foreign: ForeignOptions | None, path: Path) -> None:
    """Refuse options that mean nothing for a run."""
    if foreign is None:
        return
    plain = ForeignOptions()
    if used := [field.name for field in fields(foreign) if getattr(foreign, field.name) != getattr(plain, field.name)]:
        raise InputError(
            f"{used[0]}: is for other people's models; {path} is evaluated on the corpus that it was trained on; leave "
            "it out"
        )
