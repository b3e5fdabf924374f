"""Results that survive a kill: parts on disk beside the result, put together at the end, to the same bits.

Parts are written whole or not at all under `<out>.partial/`, with what decides the result in its `plan.json`. The
result is a zarr store that says the same in its attributes.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.files import atomic_write

Arrays = dict[str, np.ndarray]


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
    with atomic_write(path) as temporary:
        dataset.to_zarr(temporary, mode="w", zarr_format=2, consolidated=True)


def check_replaceable(out: Path, mark: str, *, what: str, beside: str) -> None:
    """Whether a study may write its store at `out`: nothing is there, or an earlier one, which has the variable `mark`.

    Args:
        what: what messages call the store, after "holds something else".
        beside: what messages say is written beside it.

    Raises:
        InputError: it may not; the message says why.
    """
    if out.suffix != ".zarr":
        raise InputError(f"out: {out} must be NAME.zarr; {beside} are written beside it")
    if out.exists() and not (out.is_dir() and mark in open_results(out)):
        raise InputError(f"out: {out} holds something else{what}; choose another --out or remove it")


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
        self.partial = out.with_name(out.name + ".partial")

    def finished(self) -> bool:
        """Whether the result is complete.

        Raises:
            OtherResults: there is one with another identity, or with none.
            InputError: there is something else at its path.
        """
        if not self.out.exists():
            return False
        found = json.loads(open_results(self.out).attrs.get(self.kind, "{}"))
        if not found:
            raise OtherResults(self.out, f"results of another kind, or of a version that did not note its {self.kind}")
        self._check_same(found, self.out)
        return True

    def begin(self) -> None:
        """Continue with the parts of the same identity, or start.

        Raises:
            OtherResults: the parts have another identity.
            InputError: nothing can be written here.
        """
        path = self.partial / "plan.json"
        if path.is_file():
            self._check_same(json.loads(path.read_text(encoding="utf-8")), self.partial)
            return
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.identity), encoding="utf-8")

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
        shutil.rmtree(self.partial)

    def _readable(self, step: int, part: int | None = None) -> bool:
        try:
            self.read(step, part)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False  # missing, or cut off by a power cut: to be redone
        return True

    def _path(self, step: int, part: int | None) -> Path:
        return self.partial / (f"{step:08d}.npz" if part is None else f"{step:08d}_{part:05d}.npz")

    def _check_same(self, found: dict[str, Any], where: Path) -> None:
        if differing := sorted(k for k in self.identity.keys() | found.keys() if self.identity.get(k) != found.get(k)):
            raise OtherResults(where, f"a {self.kind} with other {', '.join(differing)}")
