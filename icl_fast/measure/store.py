"""Results that survive a kill: parts on disk beside the result, put together at the end, to the same bits.

Parts are written whole or not at all under `<out>.partial/`, with what decides the result in its `plan.json`. The
result is a zarr store that says the same in its attributes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.files import atomic_write, locked, regular_file, remove, sweep
from icl_fast.measure.store_files import (
    CHECKSUMS,
    DamagedResults,
    add_checksums,
    check_files,
    claim,
    is_ours,
    sealed,
    unsealed,
)

Arrays = dict[str, np.ndarray]
Variables = Mapping[str, Sequence[str]]  # name -> dims

_JSON = ("sweep", "measurement", "plan", "left_out", "sweeps")  # attributes
_PART = "sha256 of this part"
_OF_SNAPSHOTS = ("snapshots", "left_out")  # of an identity: which snapshots there are; a part depends on its own alone
PARTIAL = ".partial"  # what the name of the folder of parts ends in
_PLAN, _LOCK = "plan.json", ".lock"  # in it


class OtherResults(InputError):
    """The results at a path have other settings, or are of other snapshots, than those asked for.

    Attributes:
        where: a store, or the parts of one.
        what: what they belong to, such as "a sweep with other positions".
    """

    def __init__(self, where: Path, what: str) -> None:
        super().__init__(f"out: {where} belongs to {what}; --force measures again in its place, another --out keeps it")
        self.where, self.what = where, what


def open_results(path: str | Path) -> xr.Dataset:
    """Load the Dataset that `sweep`, `evaluate` or another measurement wrote, once its checksums are compared.

    Raises:
        DamagedResults: not a store, or one that is not as it was written.
        InputError: no such folder, or it may not be read.
    """
    path = Path(path)
    if not path.is_dir():
        sweep(path.parent)  # a killed process may have left it under another name
    if not path.is_dir():
        raise InputError(f"results {path}: {'is a file, not a store' if path.exists() else 'do not exist'}")
    check_files(path)
    import zarr  # noqa: F401  # where it is missing xarray calls the store damaged

    try:
        with xr.open_zarr(path, consolidated=True) as store:
            dataset: xr.Dataset = store.load().drop_encoding()  # with it, text cannot be saved again
    except Exception as error:  # zarr, numcodecs and xarray each raise their own kind for a damaged store
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedResults(path, {"": f"cannot be read ({reason})"}) from None
    dataset.attrs.pop(CHECKSUMS, None)  # those of the store, not of the Dataset
    for name in _JSON:
        try:
            json_attribute(dataset, name)
        except InputError as error:
            raise DamagedResults(path, {".zattrs": str(error)}) from None
    return dataset


def json_attribute(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """An attribute of a Dataset that holds a JSON object; empty if it has none.

    Raises:
        InputError: it holds something else.
    """
    try:
        found = json.loads(dataset.attrs.get(name, "{}"))
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"attribute {name} is not a JSON object")
    return found


def save_results(dataset: xr.Dataset, path: Path) -> None:
    """Write a zarr store with checksums, whole or not at all; a folder at `path` is replaced.

    Raises:
        InputError: the disk is full, or the folder is not writable.
    """
    files: dict[str, Any] = {}
    # zarr's threads write on after an error, into a folder that is being removed; so they write into memory
    dataset.assign_attrs(claim()).to_zarr(files, mode="w", zarr_format=2, consolidated=True)
    with atomic_write(path) as temporary:
        for name, content in files.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.to_bytes())
        add_checksums(temporary)


def held(out: Path) -> AbstractContextManager[None]:
    """Keeps other processes from a study's store, and from what is written beside it, while it is made.

    Raises:
        InputError: another process is writing it, or nothing can be written there.
    """
    return locked(out.with_name(f".lock-{out.name}"), f"out: {out}")


def check_replaceable(out: Path, mark: str, *, what: str, beside: str, repair: bool = False) -> None:
    """Whether a study may write its store at `out`: nothing is there, or an earlier one, which has the variable `mark`.

    Args:
        what: what messages call the store, after "holds something else".
        beside: what messages say is written beside it.
        repair: whether the earlier one may be damaged.

    Raises:
        InputError: it may not; the message says why.
    """
    if out.suffix != ".zarr":
        raise InputError(f"out: {out} must be NAME.zarr; {beside} are written beside it")
    sweep(out.parent)
    if not out.exists():
        return
    try:
        if out.is_dir() and mark in open_results(out):
            return
    except DamagedResults as damage:
        check_repair(damage, repair, mark, (mark,))
        return
    raise InputError(f"out: {out} holds something else{what}; choose another --out or remove it")


def check_repair(damage: DamagedResults, repair: bool, kind: str, variables: Sequence[str]) -> None:
    """Whether damaged results may be replaced: it was asked for, and they are ours (see `is_ours`).

    Raises:
        DamagedResults: they may not.
    """
    if not is_ours(damage.where, kind, variables):
        advice = "nothing says that it is icl_fast's alone, so --repair would not replace it; move it away"
        raise DamagedResults(damage.where, damage.files, advice) from None
    if not repair:
        raise damage


class Workspace:
    """The parts of one result on disk, beside it: named arrays for each step, or for each step and part.

    Args:
        out: the zarr store to write.
        identity: all that decides its values, as JSON data. Work with an equal identity is continued, or kept.
        kind: its name in messages, such as `sweep`, and the attribute that holds the identity.
        variables: of the result, name -> dims, by which it is known to be whole.
        repair: whether what is damaged is made again, rather than refused.
        force: whether this is made in the place of results with another identity, rather than refused. They stay until
            it is complete; parts of theirs are dropped when it begins.
    """

    def __init__(
        self,
        out: Path,
        identity: Mapping[str, Any],
        kind: str,
        *,
        variables: Variables | None = None,
        repair: bool = False,
        force: bool = False,
    ) -> None:
        self.out, self.kind, self.variables = out, kind, variables or {}
        self.repair, self.force = repair, force
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))  # as it will be read back
        self.partial = _partial(out)
        self._to_join: dict[Path, Mapping[str, np.ndarray]] = {}  # parts that were written here

    def finished(self) -> bool:
        """Whether the result is complete; what a killed process left beside it is then swept.

        Raises:
            OtherResults: there is one with another identity, or with none, and `force` is not asked for.
            DamagedResults: there is one that is not as it was written, and `repair` is not asked for.
            InputError: there is something else at its path.
        """
        sweep(self.out.parent)
        if not self.out.exists():
            return False
        try:
            results = open_results(self.out)
            if not (found := json_attribute(results, self.kind)):
                raise OtherResults(
                    self.out, f"results of another kind, or of a version that did not note its {self.kind}"
                )
            self._check_same(found, self.out)
            self._check_whole(results)
        except OtherResults:
            if not self.force:
                raise
            return False
        except DamagedResults as damage:
            check_repair(damage, self.repair, self.kind, list(self.variables))
            return False
        if self.partial.is_dir():
            # its process was killed before it removed them, or is about to
            with suppress(InputError), locked(self.partial / _LOCK, ""):
                if self._check_plan():
                    remove(self.partial)
        return True

    @staticmethod
    def identity_at(out: Path, kind: str) -> dict[str, Any]:
        """The identity of the result at a path, or of the parts of one; empty if there is none that can be read."""
        plan = _partial(out) / _PLAN
        with suppress(InputError):
            if out.is_dir():
                return json_attribute(open_results(out), kind)
            if plan.exists():
                return unsealed(plan, "out")[0]
        return {}

    @classmethod
    def parts(cls, partial: Path) -> dict[Path, bool]:
        """The parts in a folder of them, and whether each is as it was written.

        Raises:
            InputError: the plan beside them is damaged.
        """
        out = partial.with_name(partial.name.removesuffix(PARTIAL))
        work = cls(out, unsealed(partial / _PLAN, "out")[0], "measurement")
        return {path: work._readable(path) for path in sorted(partial.glob("*.npz"))}

    @contextmanager
    def begin(self) -> Iterator[None]:
        """Continue with the parts of the same identity, or start; no other process does meanwhile.

        Other snapshots may be wanted than before, such as those without one that turned out to be damaged: the parts
        of the others are kept.

        Raises:
            OtherResults: the parts have another identity, and `force` is not asked for.
            InputError: another process is at it, or nothing can be written here.
        """
        with locked(self.partial / _LOCK, f"out: {self.out}"):
            if not self._check_plan():
                for path in self.partial.glob(
                    "*.npz"
                ):  # of snapshots that are not wanted any more, or of other results
                    if not self._readable(path):
                        path.unlink()
                with atomic_write(self.partial / _PLAN) as temporary:
                    temporary.write_text(sealed(self.identity), encoding="utf-8")
            yield

    def has(self, step: int, part: int | None = None) -> bool:
        """Whether a part, or the whole of a step, is on disk; a part may be contained in its step's file."""
        return self._readable(self._path(step)) or (part is not None and self._readable(self._path(step, part)))

    def read(self, step: int, part: int | None = None) -> Arrays:
        """A part, or the whole of a step."""
        return self._load(self._path(step, part))

    def write(self, step: int, part: int | None, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a part, or the whole of a step.

        Raises:
            InputError: the disk is full.
        """
        path = self._path(step, part)
        named: dict[str, Any] = {**arrays, _PART: np.array(self._seal(path, arrays))}
        packed = BytesIO()  # not the file itself, which zipfile would flush and seek in for each array
        np.savez(packed, **named)
        with atomic_write(path) as temporary:
            temporary.write_bytes(packed.getbuffer())
        if part is not None:
            self._to_join[path] = arrays

    def close(self, step: int, parts: int, join: Callable[[list[Arrays]], Mapping[str, np.ndarray]]) -> None:
        """Put the parts of a step together, in their order."""
        paths = [self._path(step, part) for part in range(parts)]
        if not self._readable(self._path(step)):
            self.write(step, None, join([dict(self._to_join.get(path) or self._load(path)) for path in paths]))
        for path in paths:
            self._to_join.pop(path, None)
            path.unlink(missing_ok=True)

    def finish(self, dataset: xr.Dataset) -> None:
        """Write the result and remove the parts.

        Raises:
            InputError: the disk is full.
        """
        save_results(dataset.assign_attrs({self.kind: json.dumps(self.identity)}), self.out)
        remove(self.partial)

    def _load(self, path: Path) -> Arrays:
        with np.load(regular_file(path, "out"), allow_pickle=False) as file:
            arrays = dict(file)
        if str(arrays.pop(_PART, "")) != self._seal(path, arrays):
            raise InputError(f"out: {path} is not as it was written")
        return arrays

    def _readable(self, path: Path) -> bool:
        try:
            self._load(path)
        except Exception:  # numpy and zipfile have many for a damaged file
            return False  # missing, cut off by a power cut, of another result: to be redone
        return True

    def _seal(self, path: Path, arrays: Mapping[str, np.ndarray]) -> str:
        """SHA-256 (hex) of what a part is of, and of its arrays."""
        shared = {name: value for name, value in self.identity.items() if name not in _OF_SNAPSHOTS}
        of_step = self.identity["snapshots"].get(str(int(path.name.partition(".")[0].partition("_")[0])))
        digest = hashlib.sha256(f"{path.name} {of_step} {json.dumps(shared, sort_keys=True)}".encode())
        for name, values in sorted(arrays.items()):
            digest.update(f"{name} {values.dtype.str} {values.shape}".encode() + values.tobytes())
        return digest.hexdigest()

    def _check_whole(self, results: xr.Dataset) -> None:
        """Results of an earlier version, without checksums, may lack something and still open."""
        wrong = {}
        for name, dims in self.variables.items():
            if name not in results.variables:
                wrong[name] = "is missing"
            elif results[name].dims != tuple(dims):
                wrong[name] = f"is {list(results[name].dims)}"
            elif name in results.data_vars and results[name].dtype.kind not in "biuf":
                wrong[name] = "holds no numbers"
        steps = [*map(int, self.identity["snapshots"])]
        if "snapshot" in results.coords and results["snapshot"].values.tolist() != steps:
            wrong["snapshot"] = "holds other steps"
        if wrong:
            raise DamagedResults(self.out, wrong)

    def _path(self, step: int, part: int | None = None) -> Path:
        return self.partial / (f"{step:08d}.npz" if part is None else f"{step:08d}_{part:05d}.npz")

    def _check_plan(self) -> bool:
        """Whether parts were begun, of this identity; other snapshots' may be among them."""
        path = self.partial / _PLAN
        if not path.exists():
            return False
        try:
            found, _ = unsealed(path, "out")
        except InputError as error:
            if not self.repair:
                raise InputError(f"{error}; --repair goes on with the parts beside it that are whole") from None
            return False
        if not self.force:
            self._check_same(found, self.partial, but=_OF_SNAPSHOTS)
        return found == self.identity

    def _check_same(self, found: dict[str, Any], where: Path, but: Collection[str] = ()) -> None:
        names = (self.identity.keys() | found.keys()) - set(but)
        if differing := sorted(name for name in names if self.identity.get(name) != found.get(name)):
            raise OtherResults(where, f"a {self.kind} with other {', '.join(differing)}")


def _partial(out: Path) -> Path:
    return out.with_name(out.name + PARTIAL)
