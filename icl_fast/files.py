"""Files: read only if they are files, written so that a reader never sees half of one, by one process at a time."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from icl_fast.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows, where nothing keeps two processes from one output
    fcntl = None  # type: ignore[assignment]

TEMPORARY_PREFIX, _REPLACED_PREFIX = ".tmp-", ".old-"
_LEFTOVER = re.compile(
    r"\.(?P<kind>tmp|old)-(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.(?P<began>\d+)-[0-9a-f]{8}-(?P<name>.+)", re.DOTALL
)
_FORGOTTEN = 24 * 3600.0  # seconds after which a writer that cannot be asked, on another machine, counts as dead


def regular_file(path: str | Path, argument: str) -> Path:
    """The path of a file that can be read: not a folder, and not a pipe or a device, which may never end.

    Args:
        argument: what messages call it, such as `config`.

    Raises:
        InputError: there is none, it is something else, it may not be read.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            open(path, "rb").close()
    except FileNotFoundError:
        broken = " is a link to a file that is gone" if path.is_symlink() else " does not exist"
        raise InputError(f"{argument}: {path}{broken}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{argument}: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{argument}: {path} is a {kind(mode)}; give a file")
    return path


def check_place(path: str | Path, *, folder: bool = False) -> None:
    """Refuse a place where nothing can be written, before the work whose result would go there.

    Args:
        folder: a folder is to be written, or files in it; else a file.

    Raises:
        InputError: something else is there, or above it; or it may not be written.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() if folder else path.is_file()):
        raise InputError(f"{path} is a {kind(path.stat().st_mode)}; give a {'folder' if folder else 'file'}")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{path} is below {above}, which is a {kind(above.stat().st_mode)}; choose another place")
    written = path if path.is_dir() else above
    if not os.access(written, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written, {written} does not allow it; choose another place")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` if the body succeeds, remove it if not.

    Works for files and for folders (a folder that already stands at `path` is replaced). What a killed process leaves,
    `sweep` removes.

    Raises:
        InputError: the disk is full or the folder is not writable; `path` is then as it was before.
    """
    path = Path(path)
    suffix = f"{_owner()}-{uuid.uuid4().hex[:8]}-{path.name}"
    temporary = path.parent / f"{TEMPORARY_PREFIX}{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        if temporary.is_dir() and path.is_dir():
            # rename() cannot replace a folder that has something in it, so the old one steps aside first
            old = path.parent / f"{_REPLACED_PREFIX}{suffix}"
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


def sweep(folder: str | Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written in a folder; put back a folder that one was about to replace.

    What a living process is writing stays, and whatever has not a name that `atomic_write` gives.

    Args:
        name: of the one file or folder that was being written; None: of all.
    """
    folder = Path(folder)
    with suppress(OSError):  # a folder that cannot be read or written is for the command to find
        # what was replaced comes before what replaces it
        for leftover in sorted(folder.iterdir()):
            match = _LEFTOVER.fullmatch(leftover.name)
            if match is None or name not in (None, match["name"]) or _alive(leftover, match):
                continue
            if match["kind"] == "old" and not (target := folder / match["name"]).exists():
                # its process died between two renames, when the new one was whole
                new = folder / leftover.name.replace(_REPLACED_PREFIX, TEMPORARY_PREFIX, 1)
                os.rename(new if new.exists() else leftover, target)
            _remove(leftover)


@contextmanager
def locked(lock: str | Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from the same output until the body ends; a killed process keeps nobody away.

    Args:
        lock: a file that exists meanwhile.
        what: what messages call the output, such as `out: runs/two_layer`.
        wait: for another process that has it, rather than refuse.

    Raises:
        InputError: another process has it, or the file cannot be written.
    """
    lock = Path(lock)
    if fcntl is None:
        yield
        return
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked_file(lock, what, 0 if wait else fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"{what}: {disk_error(lock.parent, error)}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # before it is unlocked: who waits for it must not find a file that is about to go
        os.close(descriptor)


def disk_error(path: str | Path, error: OSError) -> InputError:
    """The message for a failed write: what could not be written, why, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{path}: the disk is full; free some space or write elsewhere, then run it again")
    return InputError(f"{path}: cannot be written ({error.strerror or error}); choose another place")


def kind(mode: int) -> str:
    """What a file's mode says it is: a file, folder, pipe, socket or device."""
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _owner() -> str:
    return f"{_host()}.{os.getpid()}.{_began(os.getpid())}"


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _began(pid: int) -> int:
    """When a process began, in the kernel's ticks, which tells it from an earlier one with its number; 0: not known."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def _alive(leftover: Path, match: re.Match[str]) -> bool:
    if match["host"] != _host():
        return time.time() - leftover.lstat().st_mtime < _FORGOTTEN
    pid = int(match["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    return _began(pid) == int(match["began"])


def _locked_file(lock: Path, what: str, flags: int) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
            with suppress(FileNotFoundError):  # its last holder removed it
                if os.path.samestat(os.fstat(descriptor), lock.stat()):
                    os.truncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                    return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            raise InputError(
                f"{what} is being written by another process ({holder}); wait for it, or write elsewhere"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                return descriptor  # a file system without locks
            os.close(descriptor)
            raise
        os.close(descriptor)


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
