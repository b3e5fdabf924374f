"""What is measured of a run: which of its snapshots, which of them can be used, and the text they are measured on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from icl_fast.data import EvaluationSet, load_text
from icl_fast.errors import InputError
from icl_fast.files import sha256
from icl_fast.models import Snapshot, load_snapshot
from icl_fast.runs.text_run import RunFolder

_LISTED = re.compile(r"^snapshots/step_(\d{8})\.safetensors$")
_LONGEST_HEADER = 100_000_000  # of safetensors; a file that claims a longer one is none


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
    return folder, chosen_steps(there, which)


def chosen_steps(there: Sequence[int], which: str) -> list[int]:
    """The steps that a `--snapshots` value means, of those that are there.

    Args:
        which: `all`, `last`, or steps such as `0,50,100`.

    Raises:
        InputError: neither of these, or a step that is not there.
    """
    if which == "all":
        return list(there)
    if which == "last":
        return list(there[-1:])
    items = [item.strip() for item in which.split(",")]
    if not all(item.isdecimal() for item in items):
        raise InputError(f"snapshots: {which!r} is neither all, last nor steps such as 0,50,100")
    steps = sorted({int(item) for item in items})
    if missing := [step for step in steps if step not in there]:
        raise InputError(f"snapshots: none at step {missing[0]}; there are {', '.join(map(str, there))}")
    return steps


def missing_snapshots(folder: RunFolder) -> dict[int, str]:
    """Snapshots that manifest.json names and that are not there: step -> "missing".

    Raises:
        InputError: manifest.json is damaged.
    """
    listed = {int(match[1]) for name in folder.manifest() if (match := _LISTED.match(name))}
    return {step: "missing" for step in sorted(listed.difference(folder.snapshot_steps()))}


def readable_snapshots(folder: RunFolder, steps: Sequence[int]) -> tuple[list[int], dict[int, str]]:
    """Which snapshots can be used, and why each other cannot; every file is loaded, one at a time.

    Args:
        steps: which to look at.

    Returns:
        Those of `steps` that can be used, in order; and for the others, and for those of the run that
        `missing_snapshots` finds, step -> reason, a few words without paths such as "missing", "truncated",
        "damaged: its SHA-256 is not the one in manifest.json".

    Raises:
        InputError: manifest.json is damaged.
    """
    noted = folder.manifest()
    reasons = {step: _why_not(folder, step, noted) for step in steps}
    why = missing_snapshots(folder) | {step: reason for step, reason in reasons.items() if reason is not None}
    return [step for step in sorted(steps) if reasons[step] is None], dict(sorted(why.items()))


def load_ahead(folder: RunFolder, steps: Sequence[int]) -> Iterator[Snapshot]:
    """The snapshots at these steps, in order; the next is read while the present one is worked on.

    Raises:
        InputError: as `RunFolder.load_snapshot`, when it is that snapshot's turn.
    """
    with ThreadPoolExecutor(1) as loader:
        upcoming = [loader.submit(folder.load_snapshot, step) for step in steps[:1]]
        for number in range(len(steps)):
            snapshot = upcoming.pop().result()
            upcoming += [loader.submit(folder.load_snapshot, step) for step in steps[number + 1 : number + 2]]
            yield snapshot


def evaluation_tokens(folder: RunFolder, examples: int | None = None) -> EvaluationSet:
    """The fixed evaluation set of a run's corpus: all of it, or the first so many examples.

    Raises:
        InputError: the corpus on this machine is not the run's, or it has fewer examples.
    """
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
    return EvaluationSet(whole.inputs[chosen], whole.targets[chosen], whole.random_position[chosen], whole.digest)


def _why_not(folder: RunFolder, step: int, noted: dict[str, str]) -> str | None:
    """Why a snapshot cannot be used; None: it can."""
    path = folder.snapshot_path(step)
    if not path.is_file():
        return "missing"
    if _cut_off(path):
        return "truncated"
    if noted.get(str(path.relative_to(folder.path)), digest := sha256(path)) != digest:
        return "damaged: its SHA-256 is not the one in manifest.json"
    try:
        load_snapshot(path)
    except InputError as error:
        reason = str(error).removeprefix(f"snapshot {path}: ").partition(";")[0]
        return f"weights not finite: {reason}" if "holds NaN or infinity" in reason else reason
    return None


def _cut_off(path: Path) -> bool:
    """Whether a safetensors file is shorter than it says: 8 bytes (little-endian) with the length of the header, the
    header (JSON), which says where each tensor ends, the tensors."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _LONGEST_HEADER))
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        return bool(size < 8 + length + max(ends, default=0))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):  # cut off in the header, or another format
        return size < 8 + length <= 8 + _LONGEST_HEADER
