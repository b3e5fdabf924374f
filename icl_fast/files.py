"""Writing files so that a reader never sees half of one: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from icl_fast.errors import InputError

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` if the body succeeds, remove it if not.

    Works for files and for folders (a folder that already stands at `path` is replaced).

    Raises:
        InputError: the disk is full or the folder is not writable; `path` is then as it was before.
    """
    path = Path(path)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        if temporary.is_dir() and path.is_dir():
            # rename() cannot replace a folder that has something in it, so the old one steps aside first
            old = path.parent / f"{temporary.name}-old"
            _remove(old)
            os.rename(path, old)
            try:
                os.rename(temporary, path)
            except OSError:
                os.rename(old, path)
                raise
            _remove(old)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        _remove(temporary)


def disk_error(path: str | Path, error: OSError) -> InputError:
    """The message for a failed write: what could not be written, why, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{path}: the disk is full; free some space or write elsewhere, then run it again")
    return InputError(f"{path}: cannot be written ({error.strerror or error}); choose another place")


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    with suppress(OSError):  # it cleans up after a failure, whose message must not be lost to another
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    # a rename can reach the disk before the data does; without this a power cut leaves an empty file
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
