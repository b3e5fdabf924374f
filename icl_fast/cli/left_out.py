"""What a command could not look at is said, not left out in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_fast.cli.console import echo
from icl_fast.errors import InputError

if TYPE_CHECKING:
    from icl_fast.runs import Series


def say_left_out(series: Series) -> Series:
    """The snapshots of a series that can be used; one line on stderr for each of the others.

    Raises:
        InputError: there is none.
    """
    usable, left_out = series.readable()
    for step, why in left_out.items():
        echo(f"{series.name}: snapshot {step} is left out: {why}", err=True)
    if not usable.steps:
        raise InputError(f"ckpt: {series.path} has no snapshot that can be used")
    return usable


def say_missing(series: Series) -> None:
    """One line on stderr for each snapshot of a series that its run took and that is gone."""
    for step, why in series.missing().items():
        echo(f"{series.name}: snapshot {step} is left out: {why}", err=True)
