"""`icl-fast idealise`."""

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
@click.option("--examples", type=INTEGER, help="Evaluate on the first so many examples; default 128.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@repair_option
@force_option
@click.option("--skip-damaged", is_flag=True, help="Skip snapshots that cannot be used, and say which.")
@click.option("--out", type=FOLDER_TO_WRITE, help="Zarr store; default RUN/results/idealised.zarr.")
@foreign_options
def idealise(
    foreign: ForeignOptions | None,
    ckpt: Path,
    snapshots: str | None,
    examples: int | None,
    device: str,
    repair: bool,
    force: bool,
    skip_damaged: bool,
    out: Path | None,
) -> None:
    """How much of what each head does for the loss an idealised attention pattern gives back.

    The pattern of one head at a time is replaced: by that of the token before; by what followed earlier copies of the
    token, and the first token where there are none; by the same with copies of the last two tokens first. 1: as good as
    the head's own; 0: as bad as no head (Olsson et al. 2022, Comments & Replications).

    If it is stopped, the same command continues it, to the same bits.
    """
    from icl_fast.cli.left_out import say_left_out
    from icl_fast.cli.tables import print_idealised
    from icl_fast.measure import measure_idealised, open_results
    from icl_fast.report.draw.figures import idealised_figure, save_figure
    from icl_fast.runs import open_series

    require("text", ckpt, "idealise", "`icl-fast evaluate RUN --clamp match` has its idealised patterns")
    check_out(ckpt, out)
    series = open_series(ckpt, chosen_snapshots(ckpt, snapshots, "all"), foreign)
    series = say_left_out(series, skip_damaged=skip_damaged)
    say_notes(series)
    with snapshot_progress(series.name) as update:
        target = measure_idealised(
            series, out=out, examples=examples, device=device, repair=repair, force=force, on_snapshot=update
        )
    results = open_results(target)
    print_idealised(results)
    echo_files("results in", target)
    if results.sizes["snapshot"] > 1:
        figure = idealised_figure(results, f"{series.name}: heads with idealised patterns")
        echo_files("figure in", save_figure(figure, target.with_suffix(""))[0])
