"""`icl-fast templates`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo_files
from icl_fast.cli.foreign import foreign_options, say_notes
from icl_fast.cli.parameters import FOLDER_TO_WRITE, INTEGER
from icl_fast.cli.progress import snapshot_progress
from icl_fast.cli.run_argument import run_argument
from icl_fast.cli.tasks import check_out, chosen_snapshots, force_option, repair_option, require

if TYPE_CHECKING:
    from icl_fast.runs import ForeignOptions


@click.command(cls=Command)
@run_argument
@click.option("--snapshots", help="all, last, or steps such as 0,50,100; default all.")
@click.option("--tables", type=INTEGER, default=100, show_default=True, help="How many random tables.")
@click.option("--lines", type=INTEGER, default=30, show_default=True, help="Of each table, as far as the context goes.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@repair_option
@force_option
@click.option("--skip-damaged", is_flag=True, help="Skip snapshots that cannot be used, and say which.")
@click.option("--out", type=FOLDER_TO_WRITE, help="Zarr store; default RUN/results/templates.zarr.")
@foreign_options
def templates(
    foreign: ForeignOptions | None,
    ckpt: Path,
    snapshots: str | None,
    tables: int,
    lines: int,
    device: str,
    repair: bool,
    force: bool,
    skip_damaged: bool,
    out: Path | None,
) -> None:
    """Lines such as `April fish: 0`, labelled by their kinds of words, in many random tables.

    How often the right label is the likeliest of a table's, and how far heads attend to the labels of lines of the same
    kinds, with standard errors over tables (Olsson et al. 2022, Argument 4, behavior 3: about 65% of a head's
    attention).

    If it is stopped, the same command continues it, to the same bits.
    """
    from icl_fast.cli.left_out import say_left_out
    from icl_fast.cli.tables import print_templates
    from icl_fast.measure import measure_templates, open_results
    from icl_fast.runs import open_series

    require("text", ckpt, "templates", "`icl-fast evaluate RUN` measures what it does")
    check_out(ckpt, out)
    series = open_series(ckpt, chosen_snapshots(ckpt, snapshots, "all"), foreign)
    series = say_left_out(series, skip_damaged=skip_damaged)
    say_notes(series)
    with snapshot_progress(series.name) as update:
        target = measure_templates(
            series,
            out=out,
            tables=tables,
            lines=lines,
            device=device,
            repair=repair,
            force=force,
            on_snapshot=update,
        )
    print_templates(open_results(target))
    echo_files("results in", target)
