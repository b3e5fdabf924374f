"""`icl-fast pca`."""

from __future__ import annotations

from pathlib import Path

import click

from icl_fast.cli.progress import advice_on_interrupt, sweep_progress
from icl_fast.cli.tasks import require


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--examples", type=int, help="Use the first so many evaluation examples; default all.")
@click.option("--snapshots", default="all", show_default=True, help="all, last, or steps such as 0,50,100.")
@click.option("--components", type=click.IntRange(2), default=2, show_default=True)
@click.option("--memory", default="2GiB", show_default=True, help="Memory for activations; the weights come on top.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Zarr store, NAME.zarr; NAME.png and NAME.svg beside."
)
def pca(
    runs: tuple[Path, ...],
    examples: int | None,
    snapshots: str,
    components: int,
    memory: str,
    device: str,
    out: Path,
) -> None:
    """Project the losses of all snapshots of all runs together onto their first principal components.

    Losses are kept in RUN/results/losses.zarr and not measured twice; if it is stopped, the same command continues.
    """
    from icl_fast.cli.left_out import say_missing
    from icl_fast.cli.tables import print_pca
    from icl_fast.runs import open_series
    from icl_fast.studies.pca import pca_of_runs

    for run in runs:
        say_missing(open_series(run, snapshots))
    for run in runs:
        require("text", run, "pca", "`icl-fast evaluate --ckpt RUN` follows it over its snapshots, by evaluator")
    with advice_on_interrupt("the same command goes on from there"):
        found, figure = pca_of_runs(
            runs,
            out,
            lambda name: sweep_progress(name, "losses of"),
            components=components,
            snapshots=snapshots,
            examples=examples,
            memory=memory,
            device=device,
        )
    print_pca(found)
    click.echo(f"results in {out}")
    click.echo(f"figure: {figure[0]}")
