"""`icl-fast report`."""

from __future__ import annotations

import re
import time
from pathlib import Path

import click

from icl_fast.cli.progress import advice_on_interrupt, counting
from icl_fast.cli.tasks import require
from icl_fast.errors import InputError


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for index.html and figures/.")
@click.option("--text", "texts", multiple=True, type=click.Path(path_type=Path), help="Text for the models to read.")
@click.option("--examples", type=int, default=512, show_default=True, help="Evaluate on at most so many examples.")
@click.option("--snapshots", default="all", show_default=True, help="all, or steps such as 0,50,100.")
@click.option("--icl-window", type=int, default=1, show_default=True, help="Positions averaged around the score's two.")
@click.option(
    "--modes",
    default="pattern-preserving,full",
    show_default=True,
    help="Ablations to measure; without full it is faster.",
)
@click.option("--interval", "intervals", multiple=True, metavar="RUN=START:END", help="Phase change by hand, in steps.")
@click.option("--prefix-matching", type=float, default=0.2, show_default=True, help="Induction heads score more, …")
@click.option("--copying", type=float, default=-0.6, show_default=True, help="… and more than this on copying.")
@click.option("--previous-token", type=float, default=0.5, show_default=True, help="Previous-token heads score more.")
@click.option("--claims", type=click.Path(path_type=Path), help="JSON list of claim, source, verdict, evidence.")
@click.option("--title", default="In-context learning over training", show_default=True)
@click.option("--static/--no-static", default=True, show_default=True, help="Draw every figure as PNG and SVG too.")
@click.option("--memory", default="2GiB", show_default=True, help="Memory for activations; the weights come on top.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
def report(
    runs: tuple[Path, ...],
    out: Path,
    texts: tuple[Path, ...],
    examples: int,
    snapshots: str,
    icl_window: int,
    modes: str,
    intervals: tuple[str, ...],
    prefix_matching: float,
    copying: float,
    previous_token: float,
    claims: Path | None,
    title: str,
    static: bool,
    memory: str,
    device: str,
) -> None:
    """Measure RUNS where that is not yet done, and write one HTML page with the Model Analysis Table and all figures.

    The table has a column a model and the paper's rows, from the PCA of token losses to the ablation of every head
    (Olsson et al. 2022). The page is one file that needs no network. If it is stopped, the same command continues;
    snapshots that are missing or damaged are left out, and the page says so.
    """
    from icl_fast.analysis import Thresholds
    from icl_fast.cli.tables import print_study
    from icl_fast.data import default_texts, read_texts
    from icl_fast.report.write import write_report
    from icl_fast.studies.collect import Options, collect, read_claims

    for run in runs:
        require("text", run, "report", "`icl-fast evaluate --ckpt RUN` measures it and draws what it finds")
    started = time.monotonic()
    options = Options(
        snapshots=snapshots,
        examples=examples,
        icl_window=icl_window,
        modes=tuple(modes.split(",")),
        intervals=dict(_interval(text) for text in intervals),
        thresholds=Thresholds(previous_token, prefix_matching, copying),
        memory=memory,
        device=device,
    )
    with advice_on_interrupt("the same command goes on from there"):
        found = read_claims(claims) if claims is not None else []
        reading = [*read_texts(texts), *default_texts()]
        study = collect(runs, reading, options, counting, title=title, claims=found)
        measured = time.monotonic()
        with counting("drawing") as show:
            page = write_report(study, out, static=static, on_figure=lambda done, of: show(done, of, "figures"))
    print_study(study)
    click.echo(
        f"{page}: {page.stat().st_size / 1e6:.1f} MB; measured in {measured - started:.0f} s, "
        f"drawn in {time.monotonic() - measured:.0f} s"
    )


def _interval(text: str) -> tuple[str, tuple[int, int]]:
    match = re.fullmatch(r"(.+)=(\d+):(\d+)", text)
    if match is None or int(match[2]) >= int(match[3]):
        raise InputError(f"interval: {text!r} is not RUN=START:END with steps START < END, such as two_layer=600:1200")
    return match[1], (int(match[2]), int(match[3]))
