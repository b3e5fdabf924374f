"""Whether runs, results and reports are as they were written: every file that says so, or can be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icl_fast.errors import InputError
from icl_fast.files import is_abandoned, read_json, regular_file, sha256
from icl_fast.measure.store import PARTIAL, Workspace, open_results
from icl_fast.measure.store_files import DamagedResults, check_files, has_claim, is_store
from icl_fast.models import load_snapshot
from icl_fast.models.shards import SUFFIX, Shards
from icl_fast.report.write import CHECKSUMS
from icl_fast.runs import Run
from icl_fast.runs.run_series import RunSeries, run_of

_LEFT = "was left by a killed process; the next command there removes it"


@dataclass(frozen=True)
class Finding:
    """What was found of a file or folder.

    Attributes:
        path: of it.
        what: in a few words.
        ok: whether it is as it should be.
    """

    path: Path
    what: str
    ok: bool = True


def verify(paths: Sequence[str | Path]) -> list[Finding]:
    """Look at every file of run folders, stores, report folders, folders of those, and snapshots.

    Of a run: what its manifest lists, snapshots, optimizer state, log, tokenizer; stores in it and beside it. Of
    stores, of parts of unfinished ones and of report pages: their checksums. Of all: what killed processes left.

    Raises:
        InputError: there is nothing at a path, or nothing of icl_fast's.
    """
    found = []
    for path in map(Path, paths):
        here = list(_snapshot(path) if path.is_file() else _folder(path))
        if not here:
            raise InputError(f"path: {path} {'holds nothing of icl_fast' if path.exists() else 'does not exist'}")
        found += [*here, *_beside(path)]
    return list(dict.fromkeys(found))  # what lies beside one path may be in another


def _folder(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        return
    if is_store(folder):
        yield from _store(folder)
        return
    if folder.name.endswith(PARTIAL):
        yield from _parts(folder)
        return
    if (folder / "config.yaml").exists() or (folder / "snapshots").is_dir():
        yield from _run(Run(folder))
    if (folder / "index.html").is_file():
        yield from _report(folder)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield Finding(folder, f"cannot be read ({error.strerror})", ok=False)
        return
    for entry in entries:
        if is_abandoned(entry):
            yield Finding(entry, _LEFT, ok=False)
        elif entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            yield from _folder(entry)


def _beside(path: Path) -> Iterator[Finding]:
    """What was to become a path, the parts of a store, and stores beside a run, such as those of `pca`."""
    name = path.resolve().name
    parent = (path / "..").resolve() if path.name in ("", "..") else path.parent
    for entry in sorted(parent.iterdir()) if os.access(parent, os.R_OK) else ():
        if is_abandoned(entry) and entry.name.endswith(f"-{name}"):
            yield Finding(entry, _LEFT, ok=False)
        elif entry.name == name + PARTIAL and is_store(path):
            yield from _parts(entry)
        elif is_store(entry) and has_claim(entry) and Run(path).exists:
            yield from _store(entry)


def _run(run: Run) -> Iterator[Finding]:
    manifest, noted = run.path / "manifest.json", {}
    try:
        noted = run.manifest()
    except InputError as error:
        yield Finding(manifest, f"{_reason(error, manifest)}; nothing else of the run was looked at", ok=False)
        return
    if not noted:
        yield Finding(manifest, "is missing", ok=False)
    snapshots = {str(run.snapshot_path(step).relative_to(run.path)) for step in run.snapshot_steps()}
    yield from _listed(run.path, {name: noted[name] for name in noted if name not in snapshots}, manifest.name)
    for name in sorted({"config.yaml", run.tokenizer_path.name, *snapshots} - noted.keys()):
        if noted and (run.path / name).exists():
            yield Finding(run.path / name, f"is not in {manifest.name}", ok=False)
    config = next(_tried(run.path / "config.yaml", lambda: f"of a run on {run.config.task}"))
    yield config
    if not config.ok:
        return
    series = RunSeries(run)
    reasons = {step: series.why_not(step) for step in series.steps}
    for step, why in reasons.items():
        if why is not None:
            yield Finding(run.snapshot_path(step), why, ok=False)
    whole = sum(why is None for why in reasons.values())
    yield Finding(run.path / "snapshots", f"{whole} can be read", ok=bool(whole))
    yield from _tried(run.path / "log.jsonl", lambda: f"{len(run.read_log())} lines")
    yield from _tried(run.state_path, lambda: _state(run))
    if run.config.task == "text":
        yield from _tried(run.tokenizer_path, lambda: f"{series.tokenizer().get_vocab_size()} tokens")


def _state(run: Run) -> str:
    state = run.load_state()
    if isinstance(state, Shards):
        state.check()
    return "can be read" if state is not None else "is not there yet"


def _snapshot(path: Path) -> Iterator[Finding]:
    if not path.name.endswith((".safetensors", SUFFIX)):
        raise InputError(f"path: {path} is no snapshot; give a run folder, a store, a report folder or a snapshot")
    run = run_of(path)
    if run.exists and run.snapshot_path(0).parent == path.resolve().parent:
        noted = {name: digest for name, digest in run.manifest().items() if name == f"snapshots/{path.name}"}
        yield from _listed(run.path, noted, "manifest.json")
    yield from _tried(path, lambda: f"of step {load_snapshot(path).step}")


def _store(store: Path) -> Iterator[Finding]:
    try:
        whole = check_files(store)
        open_results(store)
    except DamagedResults as damage:
        for name, wrong in damage.files.items():
            yield Finding(store / name, wrong, ok=False)
    except InputError as error:
        yield Finding(store, _reason(error, store), ok=False)
    else:
        what = "is as written" if whole else "can be read; it has no checksums, an earlier version wrote it"
        yield Finding(store, what)


def _parts(folder: Path) -> Iterator[Finding]:
    try:
        parts = Workspace.parts(folder)
    except InputError as error:
        yield Finding(folder / "plan.json", _reason(error, folder / "plan.json"), ok=False)
    else:
        for path, whole in parts.items():
            if not whole:
                yield Finding(path, "is not as it was written; the same command measures it again", ok=False)
        yield Finding(folder, f"{sum(parts.values())} parts of unfinished results; the same command goes on")
    for entry in sorted(folder.iterdir()):
        if is_abandoned(entry):
            yield Finding(entry, _LEFT, ok=False)


def _report(folder: Path) -> Iterator[Finding]:
    noted = folder / CHECKSUMS
    if not noted.exists():
        yield Finding(folder / "index.html", "has no checksums beside it, an earlier version wrote it")
        return
    try:
        hashes = read_json(noted, "report")
    except InputError as error:
        yield Finding(noted, _reason(error, noted), ok=False)
        return
    yield from _listed(folder, hashes if isinstance(hashes, dict) else {}, CHECKSUMS)


def _listed(folder: Path, hashes: Mapping[str, Any], where: str) -> Iterator[Finding]:
    """Files that a list has, with their SHA-256."""
    for name, digest in sorted(hashes.items()):
        path = folder / name
        try:
            same = sha256(regular_file(path, "path")) == digest
        except InputError as error:
            yield Finding(path, f"{_reason(error, path)}; {where} lists it", ok=False)
        else:
            yield Finding(path, f"{'is' if same else 'is not'} as {where} has it", ok=same)


def _tried(path: Path, read: Callable[[], str]) -> Iterator[Finding]:
    try:
        if path.exists() and not path.is_dir():
            regular_file(path, "path")
        yield Finding(path, read())
    except Exception as error:  # torch, tokenizers and parsers each raise their own kinds for damaged files
        yield Finding(path, _reason(error, path), ok=False)


def _reason(error: Exception, path: Path) -> str:
    """A message without the path that stands beside it."""
    message = (str(error).splitlines() or [type(error).__name__])[0]
    return message.partition(f"{path}")[2].lstrip(": ") or message
