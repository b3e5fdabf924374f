"""Where tokenised text is kept between runs, and how an entry is known to be whole.

An entry is a folder, renamed into place once complete, with its name and the sha256 of each of its files. A reader
takes no lock: it uses an entry whose hashes agree and otherwise builds it. Builders of one entry wait for each other
(flock, which the kernel drops when a process dies, however it dies).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_fast.data.input_files import read_file
from icl_fast.errors import InputError
from icl_fast.files import atomic_write, locked, regular_file, sha256

_MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """`$ICL_FAST_CACHE`, else `$XDG_CACHE_HOME/icl_fast`, else `~/.cache/icl_fast`.

    Raises:
        InputError: nobody knows where this user's home folder is.
    """
    try:
        if folder := os.environ.get("ICL_FAST_CACHE"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "icl_fast"
    except RuntimeError:
        raise InputError("cache: this user has no home folder to keep it in; set ICL_FAST_CACHE to a folder") from None


def cached(entry: Path, build: Callable[[Path], None]) -> Path:
    """The folder `entry`, built by `build(empty folder)` unless it exists and is whole. A damaged one is replaced.

    Raises:
        InputError: the disk is full or the cache cannot be written; nothing of the entry is then left behind.
    """
    lock, what = entry.with_name(f".lock-{entry.name}"), "cache (ICL_FAST_CACHE says where)"
    if _is_whole(entry):
        if lock.exists():
            with suppress(InputError), locked(lock, what):
                pass  # a killed builder's goes; a living one's stays
        return entry
    with locked(lock, what, wait=True):
        if not _is_whole(entry):
            if not entry.is_dir():
                entry.unlink(missing_ok=True)  # a file in its place, or a link to nowhere
            with atomic_write(entry) as temporary:
                temporary.mkdir()
                build(temporary)
                hashes = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
                (temporary / _MANIFEST).write_text(json.dumps({entry.name: hashes}, indent=1), encoding="utf-8")
    return entry


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an .npy file.

    Raises:
        OSError: with its errno, where numpy's own writing reports a full disk without, and no one can tell the user.
    """
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    path.write_bytes(buffer.getbuffer())


def _is_whole(entry: Path) -> bool:
    try:
        # by the entry's name: the files of another one would be whole too
        hashes = json.loads(read_file(entry / _MANIFEST, "cache"))[entry.name]
        return {path.name for path in entry.iterdir()} == {_MANIFEST, *hashes} and all(
            sha256(regular_file(entry / name, "cache")) == digest for name, digest in hashes.items()
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False  # an InputError is a ValueError
