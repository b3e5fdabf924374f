"""The files of a zarr store: that they are as they were written, and safe to read, before zarr sees them.

The SHA-256 of each stands in `.zmetadata`, zarr's copy of all metadata, which is sealed with one of its own: zarr and
xarray pass over entries that they do not know, while of another file they would warn. The store's attribute `checksums`
says that it has them, so that one that lost them is known from one of an earlier version.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from icl_fast.errors import InputError
from icl_fast.files import read_json, sha256
from icl_fast.memory import available, in_units

CHECKSUMS, _MARK = "checksums", "SHA-256 of every file, in .zmetadata"
_METADATA, _ATTRIBUTES = ".zmetadata", ".zattrs"
_OURS = re.compile(r"\.zgroup|\.zattrs|\.zmetadata|[^/]+/(\.zarray|\.zattrs|\d+(\.\d+)*)")  # what zarr writes
_IGNORED = re.compile(r"(.+/)?(\.DS_Store|\._[^/]*|\.nfs[^/]*)")  # of file managers and file systems
_MOST_METADATA = 2**27  # bytes of a file; ours have some MB at the most
_MOST_CHUNKS = 100_000  # of an array; ours have a few hundred at the most
# what xarray and zarr write of plain numbers and text; no codec that runs code, whatever the environment says
_NUMBERS, _TEXT = re.compile(r"[<>|][biufcSU]\d{1,6}"), "|O"
_COMPRESSORS = ("blosc", "zstd")
_CLAIM = f'"{CHECKSUMS}": "{_MARK}"'
_SEAL = "sha256 of this file"
_CHANGED = "has other bytes than were written"


class DamagedResults(InputError):
    """Results that are not as they were written, or that nothing of ours wrote.

    Attributes:
        where: the store.
        files: file in it (empty: the whole) -> what is wrong with it.
    """

    def __init__(self, where: Path, files: Mapping[str, str], advice: str = "--repair measures it again") -> None:
        shown = [f"{file} {wrong}".strip() for file, wrong in list(files.items())[:3]]
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        super().__init__(f"results {where}: damaged: {', '.join(shown)}{more}; {advice}")
        self.where, self.files = where, dict(files)


def sealed(body: Mapping[str, Any]) -> str:
    """JSON with a checksum of itself."""
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({**body, _SEAL: digest})


def unsealed(path: Path, argument: str) -> tuple[dict[str, Any], bool]:
    """What a JSON file holds that `sealed` gave, and whether it has a checksum: those of earlier versions have none.

    Raises:
        InputError: as `read_json`; it holds something else than was written.
    """
    body = read_json(path, argument)
    if not isinstance(body, dict):
        raise InputError(f"{argument}: {path} must be a JSON object")
    has_seal = body.pop(_SEAL, None) is not None
    if has_seal and sealed(body).encode() != path.read_bytes():
        raise InputError(f"{argument}: {path} {_CHANGED}")
    return body, has_seal


def claim() -> dict[str, str]:
    """The attribute of a store that will have checksums."""
    return {CHECKSUMS: _MARK}


def add_checksums(store: Path) -> None:
    """Note the SHA-256 of every file of a store that was just written, with `claim` among its attributes."""
    path = store / _METADATA
    hashes = {name: sha256(store / name) for name in _files(store) if name != _METADATA}
    path.write_text(sealed(read_json(path, "results") | {CHECKSUMS: hashes}), encoding="utf-8")


def check_files(store: Path) -> bool:
    """Whether a store has checksums: one of an earlier version has none.

    Raises:
        DamagedResults: files that have other bytes, are missing or were added; what is no store of ours: links, pipes,
            other codecs, sizes that cannot be.
        InputError: a file may not be read, or the arrays do not fit into memory.
    """
    files = _files(store)
    if "zarr.json" in files:
        raise DamagedResults(store, {"zarr.json": "is of zarr format 3"}, "icl_fast writes format 2")
    if not any(map(_OURS.fullmatch, files)):
        raise InputError(f"results {store}: cannot be read, it is no zarr store; move it away")
    if _METADATA not in files:
        raise DamagedResults(store, {_METADATA: "is missing"})
    try:
        metadata, has_seal = unsealed(store / _METADATA, "results")
    except InputError:
        raise DamagedResults(store, {_METADATA: _CHANGED}) from None
    hashes = metadata.get(CHECKSUMS)
    if has_seal or hashes is not None or has_claim(store):
        if not has_seal or not isinstance(hashes, dict):
            raise DamagedResults(store, {_METADATA: "has lost its checksums"})
        if wrong := _differences(store, files, hashes):
            raise DamagedResults(store, wrong)
    _check_arrays(store, metadata.get("metadata"), checked=has_seal)
    return has_seal


def is_store(folder: Path) -> bool:
    """Whether a folder is a zarr store, or was one."""
    files = (".zgroup", _ATTRIBUTES, _METADATA)
    return folder.is_dir() and (folder.suffix == ".zarr" or any((folder / name).exists() for name in files))


def has_claim(store: Path) -> bool:
    """Whether a store says that it has checksums, which only ours do."""
    return _says(store, _CLAIM)


def is_ours(store: Path, kind: str, variables: Collection[str]) -> bool:
    """Whether a store, however damaged, can only be one of ours, so that it may be replaced.

    Args:
        kind: the attribute with its identity.
        variables: that it has, or had.
    """
    try:
        files = [name for name in _files(store, links=True) if not _IGNORED.fullmatch(name)]
    except DamagedResults:
        return False
    if not all(map(_OURS.fullmatch, files)):
        return False
    has_most = 2 * sum((store / name).is_dir() for name in variables) > len(variables)
    says_nothing = {_METADATA, _ATTRIBUTES}.isdisjoint(files)
    return has_claim(store) or (has_most and (says_nothing or _says(store, f'"{kind}"')))


def _files(store: Path, *, links: bool = False) -> list[str]:
    """Names of all files in a store, in order.

    Raises:
        DamagedResults: it holds folders in folders or, without `links`, something else than files and folders, or files
            too large to be read.
        InputError: it may not be read.
    """
    found, free = [], available()
    limits = dict.fromkeys((".zgroup", ".zarray", _ATTRIBUTES, _METADATA), _MOST_METADATA)

    def look(folder: Path, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if prefix:
                        raise DamagedResults(store, {name: "is a folder"}, "remove it")
                    look(folder / entry.name, f"{name}/")
                elif links:
                    found.append(name)
                elif entry.is_file(follow_symlinks=False):
                    if (size := entry.stat(follow_symlinks=False).st_size) > (limits.get(entry.name) or free):
                        raise DamagedResults(store, {name: f"has {in_units(size)}"})
                    found.append(name)
                else:
                    what = "is a link" if entry.is_symlink() else "is a pipe or a device"
                    raise DamagedResults(store, {name: what})

    try:
        look(store, "")
    except OSError as error:
        raise InputError(f"results {store}: cannot be read ({error.strerror or error})") from None
    return sorted(found)


def _says(store: Path, text: str) -> bool:
    """Whether a text stands in what is left of a store's attributes."""
    return any(
        path.is_file()
        and not path.is_symlink()
        and path.stat().st_size <= _MOST_METADATA
        and text.encode() in path.read_bytes()
        for path in (store / _METADATA, store / _ATTRIBUTES)
    )


def _differences(store: Path, files: Collection[str], hashes: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with each file that is not as noted."""
    wrong = {name: "is missing" for name in sorted(hashes.keys() - set(files))}
    for name in files:
        if name not in hashes:
            if name != _METADATA and not _IGNORED.fullmatch(name):
                wrong[name] = "was added"
            continue
        try:
            if sha256(store / name) != hashes[name]:
                wrong[name] = _CHANGED
        except OSError as error:
            raise InputError(f"results {store}: {name} cannot be read ({error.strerror or error})") from None
    return wrong


def _check_arrays(store: Path, metadata: Any, *, checked: bool) -> None:
    """Refuse arrays that zarr would need other codecs, or more memory than there is, to read."""
    if not isinstance(metadata, dict):
        raise DamagedResults(store, {_METADATA: "holds no metadata"})
    need = 0
    for name, entry in metadata.items():
        if not _OURS.fullmatch(name) or name == _METADATA or not isinstance(entry, dict):
            raise DamagedResults(store, {name: "is no metadata of ours"})
        if name.endswith("/.zarray"):
            try:
                need += _array_bytes(entry)
            except (KeyError, TypeError, ValueError) as error:
                raise DamagedResults(store, {name: f"cannot be read ({error})"}) from None
    if need > (free := available()):
        what = f"holds {in_units(need)}, and {in_units(free)} of memory are free"
        raise InputError(f"results {store}: {what}") if checked else DamagedResults(store, {"": what})


def _array_bytes(array: Mapping[str, Any]) -> int:
    """The bytes of an array, or of one chunk of it if that is more.

    Raises:
        KeyError, TypeError, ValueError: it is none that xarray writes for us; the error says why.
    """
    shape, chunks = array["shape"], array["chunks"]
    if not all(isinstance(sizes, list) and all(type(size) is int for size in sizes) for sizes in (shape, chunks)):
        raise ValueError("shape or chunks are not whole numbers")
    pairs = list(zip(shape, chunks, strict=False))
    if len(shape) != len(chunks) or not all(0 <= min(size, 1) <= chunk for size, chunk in pairs):
        raise ValueError(f"shape {shape} in chunks {chunks}")
    count = math.prod(-(-size // max(chunk, 1)) for size, chunk in pairs)
    if count > _MOST_CHUNKS:
        raise ValueError(f"{count} chunks")
    dtype, filters, compressor = array["dtype"], array["filters"] or [], array["compressor"]
    if not isinstance(dtype, str) or (dtype != _TEXT and not _NUMBERS.fullmatch(dtype)):
        raise ValueError(f"dtype {dtype}")
    if filters != ([{"id": "vlen-utf8"}] if dtype == _TEXT else []):
        raise ValueError(f"filters {filters}")
    if compressor is not None and (not isinstance(compressor, dict) or compressor.get("id") not in _COMPRESSORS):
        raise ValueError(f"compressor {compressor}")
    if array["zarr_format"] != 2 or array.get("dimension_separator", ".") != ".":
        raise ValueError("another form of zarr")
    elements: int = max(math.prod(shape), math.prod(chunks))
    return elements * np.dtype(dtype).itemsize
