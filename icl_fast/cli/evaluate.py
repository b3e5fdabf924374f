"""`icl-fast evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from icl_fast.cli.progress import advice_on_interrupt, snapshot_progress


@click.command()
@click.option("--ckpt", required=True, type=click.Path(path_type=Path), help="A run folder, or one of its snapshots.")
@click.option("--snapshots", default="all", show_default=True, help="all, last, or steps such as 0,50,100.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random tokens, and which text is read.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--skip-damaged", is_flag=True, help="Leave out snapshots that cannot be used, and say which.")
@click.option("--out", type=click.Path(path_type=Path), help="Zarr store; default RUN/results/heads.zarr.")
def evaluate(ckpt: Path, snapshots: str, seed: int, device: str, skip_damaged: bool, out: Path | None) -> None:
    """Score every head of a run: prefix matching, copying, previous token, QK trace, OV copying, composition.

    An evaluation that was stopped goes on when the same command is given again, to the same bits.
    """
    from icl_fast.cli.tables import print_head_scores
    from icl_fast.measure import evaluate as run
    from icl_fast.measure import open_results

    with advice_on_interrupt("the same command goes on from there"), snapshot_progress(ckpt.name) as update:
        target = run(
            ckpt,
            out=out,
            snapshots=snapshots,
            seed=seed,
            device=device,
            skip_damaged=skip_damaged,
            on_snapshot=update,
        )
    print_head_scores(open_results(target))
    click.echo(f"results in {target}")
