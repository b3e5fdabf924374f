"""Files from outside: what a folder holds, links followed, and the bytes of one file."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from icl_fast.errors import InputError
from icl_fast.files import regular_file
from icl_fast.memory import check_fits

_SMALL = 2**24  # bytes that fit anywhere; asking what memory is free takes longer than reading a small file


def read_file(path: str | Path, argument: str) -> bytes:
    """The bytes of a regular file, as many as it has when it is opened: one that grows is not followed.

    Args:
        argument: what messages call it, such as `text`.

    Raises:
        InputError: as `regular_file`, or it is larger than memory.
    """
    path = regular_file(path, argument)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _SMALL:
                check_fits(size, f"{argument}: {path}")
            return file.read(size)
    except OSError as error:
        raise InputError(f"{argument}: {path} cannot be read ({error.strerror or error})") from None


def check_folder(folder: str | Path, argument: str) -> None:
    """Refuse what is no folder.

    Raises:
        InputError: it does not exist, or is something else.
    """
    # os.path's have no error for a name that no file system takes, unlike Path's
    if not os.path.isdir(folder):
        reason = "is no folder; give one" if os.path.exists(folder) else "does not exist; give a folder"
        raise InputError(f"{argument}: {folder} {reason}")


def printable(path: Path) -> str:
    """A path as text that can be written in any file; bytes of it that are not UTF-8 are written as `\\xff`."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def files_below(
    folder: Path, suffixes: tuple[str, ...], argument: str, *, skip: Collection[str] = (), links: bool = True
) -> dict[str, Path]:
    """Files below a folder with one of the suffixes in either case, by their names relative to it, in order of these.

    What is hidden is left out. A folder that is reached in several ways, links among them, is read once: under its own
    name if that is below `folder`, else under a link to it. A link to a folder that it lies in itself is left out.

    Args:
        suffixes: in lower case.
        argument: what messages call the folder, such as `fonts`.
        skip: names of folders to leave out.
        links: follow links to folders, and refuse links to nowhere and what has a suffix and is no file; False: pass
            over all of these, as in what the machine's packages install.

    Raises:
        InputError: a folder or file that cannot be read, or what `links` says.
    """
    found: dict[str, Path] = {}
    read: set[tuple[int, int]] = set()
    waiting, linked = [folder], list[Path]()
    while waiting or linked:
        parent = waiting.pop() if waiting else linked.pop(0)
        try:
            place, names = parent.stat(), sorted(os.listdir(parent))
        except OSError as error:
            raise InputError(f"{argument}: {parent} cannot be read ({error.strerror}); allow it") from error
        if (place.st_dev, place.st_ino) in read:
            continue
        read.add((place.st_dev, place.st_ino))
        for path in (parent / name for name in names if not name.startswith(".")):
            if os.path.isdir(path):  # unlike Path.is_dir, no error for a link that leads to itself
                if path.name in skip:
                    continue
                if not path.is_symlink():
                    waiting.append(path)
                elif links and not parent.resolve().is_relative_to(path.resolve()):
                    linked.append(path)
            elif path.name.lower().endswith(suffixes) and (links or os.path.isfile(path)):
                found[path.relative_to(folder).as_posix()] = regular_file(path, argument)
            elif links and path.is_symlink() and not os.path.exists(path):
                regular_file(path, argument)  # it may have been a folder: it says what is wrong with the link
    return dict(sorted(found.items()))
