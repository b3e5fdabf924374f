"""The one way to a line, and to a table, in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

_ENDLESS = 10_000  # characters


def echo(line: str, *, err: bool = False) -> None:
    """Print a line to standard output, or to standard error.

    The stream is named because click takes one that is ASCII for a mistake, and writes UTF-8 into it.
    """
    click.echo(line, file=sys.stderr if err else sys.stdout)


def print_table(table: Table) -> None:
    """Print a table whole: where the terminal is too narrow for it, its lines run on, rather than lose digits.

    Text in it is taken as it is, since names of runs may hold brackets and colons; what is to be bold is a `Text`.
    """
    from rich.console import Console  # here: `icl-fast --help` reads this module
    from rich.measure import Measurement

    console = Console(markup=False, emoji=False)
    needed = Measurement.get(console, console.options.update(max_width=_ENDLESS), table)
    console.width = max(console.width, needed.maximum)
    console.print(table)
