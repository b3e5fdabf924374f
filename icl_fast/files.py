"""Files: read only if they are files, written so that a reader never sees half of one, by one process at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import stat
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from icl_fast.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
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


def read_json(path: str | Path, argument: str) -> Any:
    """What a JSON file holds.

    Args:
        argument: see `regular_file`.

    Raises:
        InputError: as `regular_file` and `parse_json`.
    """
    return parse_json(regular_file(path, argument).read_bytes(), f"{argument}: {path}")


def parse_json(text: str | bytes, source: str) -> Any:
    """Plain data from JSON in UTF-8, with NaN and infinities as Python writes them.

    Args:
        source: what messages call it, such as the file and the line.

    Raises:
        InputError: not JSON; a key twice, nested too deeply, a number of thousands of digits.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise InputError(f"{source}: is not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise InputError(f"{source}: is not JSON that can be read ({str(error).partition(';')[0]})") from None


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Plain data as JSON, which has no NaN and no infinity: they become null. What else it lacks is written as text."""
    return json.dumps(_without_nan(value), indent=indent, default=str, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, (list, tuple)) else value


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

    Works for files and for folders (a folder that already stands at `path` is replaced). What killed processes left
    half-written in the folder is swept first.

    Raises:
        InputError: the disk is full or the folder is not writable; `path` is then as it was before.
    """
    path = Path(path)
    temporary = _beside(path, TEMPORARY_PREFIX)
    old = temporary.with_name(temporary.name.replace(TEMPORARY_PREFIX, _REPLACED_PREFIX, 1))
    try:
        with _folder(path.parent):
            try:
                sweep(path.parent)
                yield temporary
                _sync(temporary)
                if temporary.is_dir() and path.is_dir():
                    # rename() cannot replace a folder that has something in it, so the old one steps aside first
                    try:
                        os.rename(path, old)
                        os.rename(temporary, path)
                    finally:
                        if not path.exists():
                            os.rename(old, path)
                else:
                    os.replace(temporary, path)
            finally:
                _remove(temporary)
                if path.exists():
                    _remove(old)
    except OSError as error:
        raise disk_error(path, error) from error


def remove(path: str | Path) -> None:
    """Remove a file or folder, so that a killed process leaves all of it or none under its name."""
    path = Path(path)
    temporary = _beside(path, TEMPORARY_PREFIX)
    with suppress(OSError):  # another process removed it, or it may not be removed
        os.rename(path, temporary)
    _remove(temporary)


def sweep(folder: str | Path) -> None:
    """Remove what killed processes left half-written in a folder; put back a folder that one was about to replace.

    What a living process is writing stays, and whatever has not a name that `atomic_write` gives.
    """
    folder = Path(folder)
    with suppress(OSError):  # a folder that cannot be read or written is for the command to find
        # what was replaced comes before what replaces it
        for leftover in sorted(map(folder.joinpath, filter(is_temporary, os.listdir(folder)))):
            match = _dead(leftover)
            if match is None:
                continue
            if match["kind"] == "old" and not (target := folder / match["name"]).exists():
                # its process died between two renames, when the new one was whole
                new = folder / leftover.name.replace(_REPLACED_PREFIX, TEMPORARY_PREFIX, 1)
                os.rename(new if new.exists() else leftover, target)
            _remove(leftover)


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `atomic_write` gives to what is not whole yet."""
    return _LEFTOVER.fullmatch(name) is not None


def is_abandoned(path: Path) -> bool:
    """Whether a killed process left it half-written: what `sweep` removes or puts back."""
    return _dead(path) is not None


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
    with ExitStack() as stack:
        try:
            stack.enter_context(_folder(lock.parent))
            release = _lock(lock, what, wait) if fcntl is not None else _lock_without_fcntl(lock, what, wait)
        except OSError as error:
            raise disk_error(what, error) from error
        stack.callback(release)
        yield


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space or write elsewhere, then run it again"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "close some or raise the limit (ulimit -n), then run it again"),
    errno.EFBIG: "raise the limit (ulimit -f) or choose another place, then run it again",
}
EXHAUSTED = tuple(_ADVICE)  # numbers of errors that any write may meet


def disk_error(path: str | Path, error: OSError) -> InputError:
    """The message for a failed write: what could not be written, why, and what to do."""
    advice = _ADVICE.get(error.errno or 0, "choose another place")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{path}: the disk is full; {advice}")
    return InputError(f"{path}: cannot be written ({error.strerror or error}); {advice}")


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


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder; whatever of it was made and is empty at the end goes again."""
    made = [*takewhile(lambda folder: not folder.exists(), (path, *path.parents))]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _beside(path: Path, prefix: str) -> Path:
    return path.parent / f"{prefix}{_owner()}-{uuid.uuid4().hex[:8]}-{path.name}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name!r} is there twice")
        values[name] = value
    return values


def _owner() -> str:
    return f"{_host()}.{os.getpid()}.{_began(os.getpid())}"


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _began(pid: int) -> int:
    """When a process began, in the kernel's ticks, which tells it from an earlier one with its number; 0: not known."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if state == "Z" else int(fields[18])  # a zombie is dead, though nobody has asked after it
    except (OSError, IndexError, ValueError):
        return 0


def _dead(path: Path) -> re.Match[str] | None:
    """The parts of the name of something half-written whose process is gone."""
    match = _LEFTOVER.fullmatch(path.name)
    return None if match is None or _alive(path, match) else match


def _alive(leftover: Path, match: re.Match[str]) -> bool:
    if match["host"] != _host() or os.name == "nt":  # there os.kill has no signal that only asks
        return time.time() - leftover.lstat().st_mtime < _FORGOTTEN
    pid = int(match["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    return _began(pid) == int(match["began"])


def _lock(lock: Path, what: str, wait: bool) -> Callable[[], None]:
    descriptor = _locked_file(lock, what, 0 if wait else fcntl.LOCK_NB)
    return lambda: _unlock(lock, descriptor)


def _lock_without_fcntl(lock: Path, what: str, wait: bool) -> Callable[[], None]:
    from filelock import FileLock, Timeout  # torch brings it

    held = FileLock(lock)
    try:
        held.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise _taken(what) from None
    return held.release


def _locked_file(lock: Path, what: str, flags: int) -> int:
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)  # its last holder may have removed it
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            raise _taken(what, f" ({holder})") from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                return descriptor  # a file system without locks
            os.close(descriptor)
            raise
        try:
            if _is_at(lock, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except OSError:
            _unlock(lock, descriptor)
            raise
        os.close(descriptor)


def _taken(what: str, holder: str = "") -> InputError:
    return InputError(f"{what} is being written by another process{holder}; wait for it, or write elsewhere")


def _unlock(lock: Path, descriptor: int) -> None:
    with suppress(OSError):
        if _is_at(lock, descriptor):
            lock.unlink()  # before it is unlocked: who waits for it must not find a file that is about to go
    os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one that has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    try:
        with suppress(OSError):  # it cleans up after a failure, whose message must not be lost to another
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    except KeyboardInterrupt:
        _remove(path)
        raise


def _sync(path: Path) -> None:
    # a rename can reach the disk before the data does; without this a power cut leaves an empty file
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # which Windows does not sync
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
