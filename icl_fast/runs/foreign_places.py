"""Where the snapshots of other people's trainings lie, and which step each is of."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from icl_fast.errors import InputError
from icl_fast.models.foreign import is_foreign

# step1000, checkpoint-500, stage1-step1000-tokens3B, global_step40, iter_0000100, or the number alone
_STEP = re.compile(
    r"(?:^|[-_./])(?:global[-_]?)?(?:step|checkpoint|ckpt|iter(?:ation)?)[-_]?(\d{1,15})(?!\d)|^(\d{1,15})$"
)
_TOKENS = re.compile(r"tokens[-_]?(\d{1,9}(?:\.\d{1,6})?)([KMBT]?)(?![\w.])")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_PYTHIA_TOKENS = 2_097_152  # a step, in all sizes (Biderman et al. 2023)


@dataclass(frozen=True)
class Place:
    """A snapshot that is not loaded yet.

    Attributes:
        name: of its folder, file or revision.
        path: its folder or file; None: on the hub.
        step: optimizer steps, 0 where nothing says how many.
        tokens: seen by then; None: not known.
        noted: what its own trainer state says otherwise.
    """

    name: str
    path: Path | None
    step: int
    tokens: int | None = None
    noted: str | None = None


def local_places(path: Path, revisions: str | None = None) -> list[Place]:
    """The snapshots in a folder, in training order: those in its subfolders, or else the model that it holds itself.

    A folder of the Hugging Face hub's cache (`refs/`, `snapshots/`) has one for each revision that was downloaded.

    Args:
        revisions: names or patterns, such as `step0,step512` or `step*000`, of those that are wanted.

    Raises:
        InputError: no model there, two of one step, or a name or pattern that none has.
    """
    refs, found, single = path / "refs", dict[str, Path](), False
    if path.is_dir():
        of_one = (path / "config.json").exists()  # then files beside it are parts of that model
        children = [child for child in sorted(path.iterdir()) if child.is_dir() or not of_one]
        found = {child.name: child for child in children if is_foreign(child)}
    if refs.is_dir() and (path / "snapshots").is_dir():
        files = sorted(file for file in refs.rglob("*") if file.is_file())
        commits = {file.relative_to(refs).as_posix(): file.read_text(encoding="utf-8").strip() for file in files}
        found = {name: path / "snapshots" / Path(commit).name for name, commit in commits.items()}
        found = {name: folder for name, folder in found.items() if is_foreign(folder)}
    if not found and is_foreign(path):
        found, single = {path.name: path}, True
    if not found:
        raise InputError(f"ckpt: {path} holds neither a run nor a model with a config.json, nor folders that do")
    places = [
        _completed(place(name, folder, of_pythia="pythia" in str(path).lower())) for name, folder in found.items()
    ]
    return in_order(places, revisions, str(path), single=single)


def holds_models(path: Path) -> bool:
    """Whether `local_places` would find something."""
    if not os.path.isdir(path):  # unlike Path's, it has no error for a name that no file system takes
        return os.path.isfile(path) and is_foreign(path)
    return is_foreign(path) or any(map(is_foreign, (*path.iterdir(), *path.glob("snapshots/*"))))


def place(name: str, path: Path | None, *, of_pythia: bool = False) -> Place:
    """What a name says of a snapshot; step -1 where it says nothing."""
    match, tokens = _STEP.search(Path(name).stem if name.endswith(".gguf") else name), _TOKENS.search(name)
    step = int(match[1] or match[2]) if match else -1
    seen = None
    if tokens is not None:
        seen = round(float(tokens[1]) * _UNITS[tokens[2]])
    elif of_pythia and step >= 0:
        seen = step * _PYTHIA_TOKENS
    return Place(name, path, step, seen)


def in_order(places: Sequence[Place], revisions: str | None, where: str, *, single: bool = False) -> list[Place]:
    """Those that are wanted, by their steps.

    Args:
        single: whether this is one model, whose name need not say its step.

    Raises:
        InputError: see `local_places`.
    """
    chosen = list(places)
    if revisions is not None:
        chosen = []
        for pattern in (item.strip() for item in revisions.split(",")):
            matching = [place for place in places if fnmatchcase(place.name, pattern)]
            if not matching:
                names = ", ".join(place.name for place in places[:8]) + (", ..." if len(places) > 8 else "")
                raise InputError(f"revisions: {where} has no {pattern!r}; it has {names}")
            chosen += [place for place in matching if place not in chosen]
    known = [place for place in chosen if place.step >= 0]
    if not known and len(chosen) == 1 and (single or revisions is not None or len(places) == 1):
        known = [replace(chosen[0], step=0)]  # nothing says how many steps it had
    if not known:
        names = ", ".join(place.name for place in chosen[:8])
        raise InputError(f"ckpt: no name in {where} says a step, such as step1000 or checkpoint-500 ({names})")
    known.sort(key=lambda place: place.step)
    for earlier, later in pairwise(known):
        if earlier.step == later.step:
            raise InputError(
                f"ckpt: {earlier.name} and {later.name} of {where} are both of step {later.step}; choose some with "
                "--revisions"
            )
    return known


def order_notes(places: Sequence[Place]) -> list[str]:
    """What in the order of these cannot be, by step."""
    notes = [f"snapshot {place.step}: {place.noted}" for place in places if place.noted is not None]
    told = [place for place in places if place.tokens is not None]
    for earlier, later in pairwise(told):
        if earlier.tokens is not None and later.tokens is not None and later.tokens <= earlier.tokens:
            notes.append(
                f"snapshot {later.step} ({later.name}) had seen {later.tokens:,} tokens, no more than snapshot "
                f"{earlier.step} before it ({earlier.name}: {earlier.tokens:,}); their order cannot be right"
            )
    return notes


def _completed(place: Place) -> Place:
    """With what the training's own state beside the weights says (`trainer_state.json` of transformers)."""
    try:
        assert place.path is not None
        state = json.loads((place.path / "trainer_state.json").read_bytes())
        step, tokens = state["global_step"], state.get("num_input_tokens_seen")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return place  # it is no part of the model
    if type(step) is not int or step < 0:
        return place
    noted = None
    if place.step not in (-1, step):
        noted = f"its name is {place.name}, its trainer_state.json says step {step}"
    told = tokens if place.tokens is None and type(tokens) is int and tokens > 0 else place.tokens
    return replace(place, step=step if place.step == -1 else place.step, tokens=told, noted=noted)
