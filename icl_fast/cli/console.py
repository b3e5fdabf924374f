"""The one way to a table in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_ENDLESS = 10_000  # characters


def print_table(table: Table) -> None:
    """Print a table whole: where the terminal is too narrow for it, its lines run on, rather than lose digits.

    Text in it is taken as it is, since names of runs may hold brackets and colons; what is to be bold is a `Text`.
    """
    console = Console(markup=False, emoji=False)
    needed = Measurement.get(console, console.options.update(max_width=_ENDLESS), table)
    console.width = max(console.width, needed.maximum)
    console.print(table)
