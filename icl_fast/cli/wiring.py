"""`icl-fast wiring`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo_files
from icl_fast.cli.parameters import COUNT_OR_ALL, FOLDER_TO_WRITE, PathType
from icl_fast.cli.progress import counting
from icl_fast.cli.run_argument import RUN, run_argument
from icl_fast.cli.tasks import check_out, chosen_snapshots, require
from icl_fast.errors import InputError


@click.command(cls=Command)
@run_argument
@click.option("--snapshot", help="A step, or last; default last.")
@click.option("--evaluator", default="train", show_default=True, help="Whose sequences: train, icl, ciwl, flip, ...")
@click.option(
    "--sequences", type=COUNT_OR_ALL, default=1000, show_default=True, help="How many of them; all: each that there is."
)
@click.option("--member", help="Of a population: whose tables to print; by default the first.")
@click.option(
    "--alone",
    type=RUN,
    metavar="RUN",
    help="A population in which each head of the last layer is alone from the start: are strong heads those that "
    "learn fast? Default none, and that is not asked.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--out", type=PathType("file", ".npz"), help="Write all arrays, of all members, to this .npz file; default none."
)
@click.option(
    "--figures",
    type=FOLDER_TO_WRITE,
    metavar="FOLDER",
    help="Draw the map, and what each head of the last layer does, as PNG and SVG; default not drawn.",
)
def wiring(
    ckpt: Path,
    snapshot: str | None,
    evaluator: str,
    sequences: int | Literal["all"],
    member: str | None,
    alone: Path | None,
    device: str,
    out: Path | None,
    figures: Path | None,
) -> None:
    """Which heads of the first layer which heads of the last one read, and what each of those does alone.

    Whether for patterns or for values: accuracy with one head of each layer, or without one of the first layer,
    patterns or values as in the whole model; beside it composition scores, and what removing all previous-token heads
    does (Singh 2025, Fig C.3, table C.3). Then each head of the last layer removed, alone, and on what the best one
    gets wrong (Fig 4.5a, tables C.1, C.2): of a run of one layer that alone. With --alone how strengths and learning
    times go together (Fig C.6).
    """
    from icl_fast.cli.measure_tables import check_member, print_heads, print_race, print_wiring
    from icl_fast.measure.exemplar.measured_run import measure_wiring, open_measured
    from icl_fast.measure.exemplar.wiring import save_wiring
    from icl_fast.report.draw.exemplar_heads import draw_heads, draw_race, draw_wiring
    from icl_fast.runs import Run, open_series
    from icl_fast.studies.exemplar_heads import measure_heads
    from icl_fast.studies.head_race import measure_race

    require("exemplars", ckpt, "wiring", "`icl-fast evaluate RUN` has the composition of its heads")
    if alone is not None:
        require("exemplars", alone, "wiring", "give --alone a population on exemplars")
    check_out(ckpt, out)
    check_out(ckpt, figures, "--figures")
    step = chosen_snapshots(ckpt, snapshot, "last", "--snapshot")
    if step != "last" and not step.isdecimal():
        raise InputError(f"--snapshot: {step} is not one snapshot; give a step, or last")
    series = open_series(ckpt, step)
    check_member(series.population.names, member)
    reads = series.population.config.model.layers > 1
    if out is not None and not reads:
        raise InputError(f"--out: {ckpt} has one layer, so that no head reads another; leave it out")
    with counting("drawing characters") as rendering:
        measured = open_measured(
            series,
            evaluators=[evaluator],
            sequences=sequences,
            device=device,
            on_exemplars=rendering,
        )
    number = 0 if member is None else series.population.names.index(member)
    found = measure_wiring(measured) if reads else None
    heads = measure_heads(measured)
    if found is not None:
        print_wiring(found, member)
    print_heads(heads, member)
    race = None if alone is None else measure_race(measured, Run(alone))
    if race is not None:
        print_race(race)
    if found is not None and out is not None:
        echo_files("arrays in", save_wiring(found, out))
    if figures is not None:
        drawn = [] if found is None else draw_wiring(found, number, figures / "wiring")
        drawn += draw_heads(heads, number, figures / "heads")
        drawn += [] if race is None else draw_race(race, figures / "race")
        echo_files("figures in", *(path for path in drawn if path.suffix == ".png"))
