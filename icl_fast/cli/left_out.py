"""What a command could not look at is said, not left out in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_fast.cli.console import echo
from icl_fast.errors import InputError

if TYPE_CHECKING:
    from icl_fast.runs import Series


def say_taken(name: str, kind: str) -> None:
    """One line on stderr where `exemplars.kind=auto` came to be strokes, and what would give glyphs."""
    from icl_fast.data import install_advice

    if kind == "strokes":
        echo(
            f"{name}: exemplars are characters of strokes, as this machine's fonts give too few, and the run's config "
            f"says so; for glyphs: {install_advice()}",
            err=True,
        )


def say_left_out(series: Series, *, skip_damaged: bool = False) -> Series:
    """The snapshots to measure; one line on stderr for each that its run took and that is gone.

    Args:
        skip_damaged: leave out those that cannot be used, and say so of each, rather than meet them on the way.

    Raises:
        InputError: with `skip_damaged`, none is left.
    """
    usable, left_out = series.readable() if skip_damaged else (series, series.missing())
    for step, why in left_out.items():
        echo(f"{series.name}: snapshot {step} is left out: {why}", err=True)
    if skip_damaged and not usable.steps:
        raise InputError(f"ckpt: {series.path} has no snapshot that can be used")
    return usable
