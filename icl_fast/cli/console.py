"""The one way to a line, and to a table, in the terminal; or, with `--json`, into one document of all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_ENDLESS = 10_000  # characters
_LABEL = 12  # characters before the value of a fact


@dataclass
class _Output:
    """Where lines and tables go."""

    as_json: bool = False
    quiet: bool = False
    document: dict[str, Any] = field(default_factory=dict)


_output = _Output()


@contextmanager
def output(command: str, *, as_json: bool, quiet: bool) -> Iterator[None]:
    """What is said meanwhile goes to standard output; or is one JSON document there, once the command is done.

    Args:
        command: its name, which the document begins with.
        quiet: nothing is shown but errors, warnings and the document.
    """
    global _output
    around = _output
    _output = _Output(as_json, quiet, {"command": command, "facts": {}, "tables": [], "lines": [], "files": []})
    try:
        yield
        finish_output()
    finally:
        _output = around


def finish_output() -> None:
    """Print the document, if one was asked for and is not printed yet."""
    if _output.as_json and _output.document:
        print_document(_output.document)


def print_document(facts: Mapping[str, Any]) -> None:
    """Print this as the JSON document of a command, in the place of what else it says."""
    from icl_fast.files import to_json

    click.echo(to_json(_plain(facts), indent=1), file=sys.stdout)
    _output.document = {}


def wants_json() -> bool:
    """Whether standard output is for one JSON document alone."""
    return _output.as_json


def is_quiet() -> bool:
    """Whether progress and tables are not wanted."""
    return _output.quiet


class Cell(str):
    """What a table shows of a value; `--json` has the value.

    Attributes:
        value: a number or anything else that JSON can hold.
        error: its standard error, None where it has none.
        bold: whether it stands out.
    """

    value: Any
    error: float | None
    bold: bool

    def __new__(cls, text: str, value: Any, error: float | None = None, *, bold: bool = False) -> Cell:
        cell = super().__new__(cls, text)
        cell.value, cell.error, cell.bold = value, error, bold
        return cell

    def __rich__(self) -> str | Text:
        from rich.text import Text

        return Text(str(self), "bold") if self.bold else str(self)  # the latter is plain text


def number(value: Any, form: str, error: Any = None, *, bold: bool = False) -> Cell:
    """A number in some format, `-` where there is none; with its standard error behind ±, where it has one."""
    value, error = float(value), None if error is None else float(error)
    if value != value:
        return Cell("-", value, error)
    shown = "" if error is None or error != error else f"±{error:{form.lstrip('+')}}"
    return Cell(f"{value:{form}}{shown}", value, error, bold=bold)


def echo(line: str, *, err: bool = False, facts: Mapping[str, Any] | None = None, files: Sequence[Path] = ()) -> None:
    """Print a line to standard output, or to standard error.

    The stream is named because click takes one that is ASCII for a mistake, and writes UTF-8 into it.

    Args:
        facts: the values in it by name, for `--json`.
        files: those or the folders that it says were written, for the same.
    """
    if err:
        click.echo(line, file=sys.stderr)
    elif _output.as_json:
        _add("facts", facts or {})
        _add("lines", [line])
        _add("files", [str(file) for file in files])
    elif not _output.quiet:
        click.echo(line, file=sys.stdout)


def echo_files(what: str, *paths: Path) -> None:
    """Print a line that says which files or folders were written."""
    echo(f"{what} {', '.join(map(str, paths))}", files=paths)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print a line for each thing that is known: its name and the value; of several lines, below each other."""
    if _output.as_json:
        _add("facts", facts)
        return
    for name, value in facts.items():
        echo(f"{name:<{_LABEL}}" + value.replace("\n", "\n" + _LABEL * " "))


def print_table(table: Table) -> None:
    """Print a table whole: where the terminal is too narrow for it, its lines run on, rather than lose digits.

    Text in it is taken as it is, since names of runs may hold brackets and colons; what is to be bold is a `Cell`.
    """
    if _output.as_json:
        _add("tables", [_data(table)])
        return
    if _output.quiet:
        return
    from rich.console import Console  # here: `icl-fast --help` reads this module
    from rich.measure import Measurement

    console = Console(markup=False, emoji=False)
    needed = Measurement.get(console, console.options.update(max_width=_ENDLESS), table)
    console.width = max(console.width, needed.maximum)
    console.print(table)


def _add(name: str, more: Any) -> None:
    """To what the document has under a name, if there is to be one."""
    if not _output.document:
        return
    if isinstance(more, list):
        _output.document[name] += more
    else:
        _output.document[name].update(more)


def _data(table: Table) -> dict[str, Any]:
    """A table's values, in full: those with a standard error have a column of errors behind theirs."""
    names: list[str] = []
    columns: list[list[Any]] = []
    for column in table.columns:
        cells = list(column.cells)
        name = " ".join(str(column.header).split())
        names.append(name)
        columns.append([cell.value if isinstance(cell, Cell) else str(cell) for cell in cells])
        errors = [cell.error if isinstance(cell, Cell) else None for cell in cells]
        if any(error is not None for error in errors):
            names.append(f"{name} standard error")
            columns.append(errors)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {"title": None if table.title is None else str(table.title), "columns": names, "rows": rows}


def _plain(value: Any) -> Any:
    if isinstance(value, Cell):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
