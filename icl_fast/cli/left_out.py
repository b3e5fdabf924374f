"""What a command could not look at is said, not left out in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_fast.cli.console import echo

if TYPE_CHECKING:
    from icl_fast.runs import Series


def say_missing(series: Series) -> None:
    """One line on stderr for each snapshot of a series that its run took and that is gone."""
    for step, why in series.missing().items():
        echo(f"{series.name}: snapshot {step} is left out: {why}", err=True)
