"""Results that survive a kill: parts on disk beside the result, put together at the end, to the same bits.

Parts are written whole or not at all under `<out>.partial/`, with what decides the result in its `plan.json`. The
result is a zarr store that says the same in its attributes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.files import atomic_write, locked, remove, sweep

Arrays = dict[str, np.ndarray]

_PLAN, _LOCK = "plan.json", ".lock"  # among the parts


class OtherResults(InputError):
    """The results at a path have other settings, or are of other snapshots, than those asked for.

    Attributes:
        where: a store, or the parts of one.
        what: what they belong to, such as "a sweep with other positions".
    """

    def __init__(self, where: Path, what: str) -> None:
        super().__init__(f"out: {where} belongs to {what}; choose another --out or remove it")
        self.where, self.what = where, what


def open_results(path: str | Path) -> xr.Dataset:
    """Load the Dataset that `sweep`, `evaluate` or another measurement wrote.

    Raises:
        InputError: no such folder, or not a store that can be read.
    """
    path = Path(path)
    if not path.is_dir():
        sweep(path.parent)  # a killed process may have left it under another name
    if not path.is_dir():
        raise InputError(f"results {path}: do not exist")
    try:
        with xr.open_zarr(path) as store:
            dataset: xr.Dataset = store.load()
            return dataset
    except Exception as error:  # zarr, numcodecs and xarray each raise their own kind for a damaged store
        raise InputError(f"results {path}: cannot be read ({str(error).splitlines()[0]})") from None


def save_results(dataset: xr.Dataset, path: Path) -> None:
    """Write a zarr store, whole or not at all; a folder at `path` is replaced.

    Raises:
        InputError: the disk is full, or the folder is not writable.
    """
    files: dict[str, Any] = {}
    # zarr's own threads write on after an error, into a folder that is being removed; so they write into memory
    dataset.to_zarr(files, mode="w", zarr_format=2, consolidated=True)
    with atomic_write(path) as temporary:
        for name, content in files.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.to_bytes())


@contextmanager
def replacing(out: Path, mark: str, *, what: str, beside: str) -> Iterator[None]:
    """Keep a study's store, and what is written beside it, from other processes while it is made.

    Args:
        out: where nothing is, or an earlier store, which has the variable `mark`.
        what: what messages call the store, after "holds something else".
        beside: what messages say is written beside it.

    Raises:
        InputError: something else is there, or another process is writing it.
    """
    if out.suffix != ".zarr":
        raise InputError(f"out: {out} must be NAME.zarr; {beside} are written beside it")
    with locked(out.with_name(f".lock-{out.name}"), f"out: {out}"):
        sweep(out.parent)
        if out.exists() and not (out.is_dir() and mark in open_results(out)):
            raise InputError(f"out: {out} holds something else{what}; choose another --out or remove it")
        yield


def discard_results(out: Path) -> None:
    """Remove a result and its parts, to measure it again.

    Raises:
        InputError: another process is writing it.
    """
    partial = _partial(out)
    with locked(partial / _LOCK, f"out: {out}"):
        remove(out)
        remove(partial)


class Workspace:
    """The parts of one result on disk, beside it: named arrays for each step, or for each step and part.

    Args:
        out: the zarr store to write.
        identity: all that decides its values, as JSON data. Work with an equal identity is continued, or kept.
        kind: its name in messages, such as `sweep`, and the attribute that holds the identity.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], kind: str) -> None:
        self.out, self.kind = out, kind
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))  # as it will be read back
        self.partial = _partial(out)

    def finished(self) -> bool:
        """Whether the result is complete; what a killed process left beside it is then swept.

        Raises:
            OtherResults: there is one with another identity, or with none.
            InputError: there is something else at its path.
        """
        sweep(self.out.parent)
        if not self.out.exists():
            return False
        found = json.loads(open_results(self.out).attrs.get(self.kind, "{}"))
        if not found:
            raise OtherResults(self.out, f"results of another kind, or of a version that did not note its {self.kind}")
        self._check_same(found, self.out)
        if self.partial.is_dir():
            # its process was killed before it removed them, or is about to
            with suppress(InputError), locked(self.partial / _LOCK, ""):
                if self._check_plan():
                    remove(self.partial)
        return True

    @contextmanager
    def begin(self) -> Iterator[None]:
        """Continue with the parts of the same identity, or start; nobody else does meanwhile.

        Raises:
            OtherResults: the parts have another identity.
            InputError: another process is at it, or nothing can be written here.
        """
        with locked(self.partial / _LOCK, f"out: {self.out}"):
            if not self._check_plan():
                with atomic_write(self.partial / _PLAN) as temporary:
                    temporary.write_text(json.dumps(self.identity), encoding="utf-8")
            yield

    def has(self, step: int, part: int | None = None) -> bool:
        """Whether a part, or the whole of a step, is on disk; a part may be contained in its step's file."""
        return self._readable(step) or (part is not None and self._readable(step, part))

    def read(self, step: int, part: int | None = None) -> Arrays:
        """A part, or the whole of a step."""
        with np.load(self._path(step, part), allow_pickle=False) as arrays:
            return dict(arrays)

    def write(self, step: int, part: int | None, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a part, or the whole of a step.

        Raises:
            InputError: the disk is full.
        """
        named: dict[str, Any] = dict(arrays)
        with atomic_write(self._path(step, part)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **named)

    def close(self, step: int, parts: int, join: Callable[[list[Arrays]], Mapping[str, np.ndarray]]) -> None:
        """Put the parts of a step together, in their order."""
        if not self._readable(step):
            self.write(step, None, join([self.read(step, part) for part in range(parts)]))
        for part in range(parts):
            self._path(step, part).unlink(missing_ok=True)

    def finish(self, dataset: xr.Dataset) -> None:
        """Write the result and remove the parts.

        Raises:
            InputError: the disk is full.
        """
        save_results(dataset.assign_attrs({self.kind: json.dumps(self.identity)}), self.out)
        remove(self.partial)

    def _readable(self, step: int, part: int | None = None) -> bool:
        try:
            self.read(step, part)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False  # missing, or cut off by a power cut: to be redone
        return True

    def _path(self, step: int, part: int | None) -> Path:
        return self.partial / (f"{step:08d}.npz" if part is None else f"{step:08d}_{part:05d}.npz")

    def _check_plan(self) -> bool:
        """Whether parts were begun, and then of this identity."""
        path = self.partial / _PLAN
        if path.is_file():
            self._check_same(json.loads(path.read_text(encoding="utf-8")), self.partial)
        return path.is_file()

    def _check_same(self, found: dict[str, Any], where: Path) -> None:
        if differing := sorted(k for k in self.identity.keys() | found.keys() if self.identity.get(k) != found.get(k)):
            raise OtherResults(where, f"a {self.kind} with other {', '.join(differing)}")


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")
