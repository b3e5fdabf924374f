"""`icl-fast pca`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo_files
from icl_fast.cli.foreign import foreign_options, say_notes
from icl_fast.cli.parameters import INTEGER, PathType, WholeNumber
from icl_fast.cli.progress import sweep_progress
from icl_fast.cli.run_argument import RUN
from icl_fast.cli.tasks import check_out, force_option, repair_option, require

if TYPE_CHECKING:
    from icl_fast.runs import ForeignOptions


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN...")
@click.option("--examples", type=INTEGER, help="Use the first so many evaluation examples; default all.")
@click.option("--snapshots", default="all", show_default=True, help="all, last, or steps such as 0,50,100.")
@click.option("--components", type=WholeNumber(2), default=2, show_default=True, help="How many, 2 or more.")
@click.option("--memory", default="2GiB", show_default=True, help="Memory for activations; the weights come on top.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@repair_option
@force_option
@click.option(
    "--out",
    required=True,
    type=PathType("folder", ".zarr"),
    help="Zarr store, NAME.zarr; NAME.png and NAME.svg beside.",
)
@foreign_options
def pca(
    foreign: ForeignOptions | None,
    runs: tuple[Path, ...],
    examples: int | None,
    snapshots: str,
    components: int,
    memory: str,
    device: str,
    repair: bool,
    force: bool,
    out: Path,
) -> None:
    """Project the losses of all snapshots of all runs together onto their first principal components.

    Losses are kept in RUN/results/losses.zarr (of other people's models in results/NAME) and not measured
    twice; if it is stopped, the same command continues.
    """
    from icl_fast.cli.left_out import say_left_out
    from icl_fast.cli.tables import print_pca
    from icl_fast.runs import open_all
    from icl_fast.studies.pca import pca_of_runs

    for run in runs:
        check_out(run, out)
        require("text", run, "pca", "`icl-fast evaluate RUN` follows it over its snapshots, by evaluator")
    opened = open_all(runs, snapshots, foreign)
    for series in opened.values():
        say_left_out(series)
        say_notes(series)
    found, figure = pca_of_runs(
        opened,
        out,
        lambda name: sweep_progress(name, "losses of"),
        components=components,
        examples=examples,
        memory=memory,
        device=device,
        repair=repair,
        force=force,
    )
    print_pca(found)
    echo_files("results in", out)
    echo_files("figure:", figure[0])
