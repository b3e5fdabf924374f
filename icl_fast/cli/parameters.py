"""What options take: paths, numbers, lists. What cannot be right in any run is refused before a command begins."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from icl_fast.errors import InputError
from icl_fast.files import check_place, kind

_MOST = 2**63 - 1  # of a whole number: what numpy and torch can count with

T = TypeVar("T")


class PathType(click.ParamType):  # type: ignore[type-arg]  # has none before click 8.4
    """A path in which `~` means the home folder.

    Args:
        writes: what will be written there, `file` or `folder`: it must be possible.
        suffix: which its name must have.
    """

    name = "path"

    def __init__(self, writes: str | None = None, suffix: str = "") -> None:
        self.writes, self.suffix = writes, suffix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value) or "\0" in str(value):
            self.fail(f"{value!r} is no path; give one", param, ctx)
        path = Path(os.path.expanduser(value))
        if str(value).startswith("~") and str(path).startswith("~"):
            self.fail(f"{value}: there is no such user, or it has no home folder; write the path in full", param, ctx)
        try:
            if stat.S_IFMT(mode := path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                self.fail(f"{path} is a {kind(mode)}; give a file or a folder", param, ctx)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, UnicodeEncodeError) as error:
            self.fail(f"{path}: {getattr(error, 'strerror', None) or error}; give another path", param, ctx)
        if path.name in ("", ".."):
            path = path.resolve()  # . and .. have names of their own, which results are called by
        if self.writes is not None and not path.name:
            self.fail(f"{path} is no place for results; choose another", param, ctx)
        if self.suffix and path.suffix.lower() != self.suffix:
            self.fail(f"{path} must be NAME{self.suffix}", param, ctx)
        if self.writes is not None:
            try:
                check_place(path, folder=self.writes == "folder")
            except InputError as error:
                self.fail(str(error), param, ctx)
        return path

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="dir" if self.writes == "folder" else "file")]


class WholeNumber(click.ParamType):  # type: ignore[type-arg]  # has none before click 8.4
    """An integer from `least` to `most`, by default all that fit 64 bits."""

    name = "integer"

    def __init__(self, least: int = -_MOST, most: int = _MOST) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        if not self.least <= number <= self.most:
            bound = f"{self.least} or more" if number < self.least else f"at most {self.most}"
            self.fail(f"must be {bound}, got {value}", param, ctx)
        return number


class CountOrAll(WholeNumber):
    """A whole number from 1 on, or `all`."""

    name = "integer|all"

    def __init__(self) -> None:
        super().__init__(1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "all" else super().convert(value, param, ctx)


class Number(click.ParamType):  # type: ignore[type-arg]  # has none before click 8.4
    """A finite number from `least` to `most`."""

    name = "float"

    def __init__(self, least: float = -inf, most: float = inf) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not isfinite(number):
            self.fail(f"must be a finite number, got {value}", param, ctx)
        if not self.least <= number <= self.most:
            bound = f"{self.least:g} or more" if number < self.least else f"at most {self.most:g}"
            self.fail(f"must be {bound}, got {value}", param, ctx)
        return number


PATH, FOLDER_TO_WRITE = PathType(), PathType("folder")
COUNT, STEP, INTEGER, NUMBER = WholeNumber(1), WholeNumber(0), WholeNumber(), Number()
COUNT_OR_ALL = CountOrAll()


def distinct(option: str, values: Sequence[T]) -> Sequence[T]:
    """The values of an option that may be repeated.

    Raises:
        InputError: an empty one, or one that is given twice.
    """
    for at, value in enumerate(values):
        if value == "":
            raise InputError(f"{option}: an empty value; leave it out, or name something")
        if value in values[:at]:
            raise InputError(f"{option}: {value} is given twice; once is enough")
    return values


def parse_list(option: str, text: str) -> list[str]:
    """The items of a comma-separated list.

    Raises:
        InputError: an empty item, or one that is given twice.
    """
    return list(distinct(option, [item.strip() for item in text.split(",")]))


def parse_numbers(option: str, text: str) -> list[float]:
    """Different finite numbers, comma-separated.

    Raises:
        InputError: anything else.
    """
    try:
        numbers = [float(item) for item in text.split(",")]
    except ValueError:
        raise InputError(f"{option}: {text!r} must be numbers, comma-separated") from None
    if not all(map(isfinite, numbers)):
        raise InputError(f"{option}: {text!r} must be finite numbers")
    return list(distinct(option, numbers))


def parse_sizes(option: str, text: str) -> list[int]:
    """Whole numbers from 1 on, comma-separated.

    Raises:
        InputError: anything else.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(item.isdecimal() and len(item) < 19 and int(item) for item in items):
        raise InputError(f"{option}: {text!r} must be whole numbers from 1 on, comma-separated")
    return [int(item) for item in items]


def parse_letters(option: str, text: str) -> str:
    """Different letters in their order; "none" for none.

    Raises:
        InputError: no letter, or one that is given twice.
    """
    return "" if text == "none" else "".join(sorted(distinct(option, list(text) or [""])))
