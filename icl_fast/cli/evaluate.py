"""`icl-fast evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from icl_fast.cli.progress import advice_on_interrupt, counting, snapshot_progress
from icl_fast.errors import InputError


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path), help="A run folder, or one of its snapshots.")
@click.option(
    "--strategies",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A run folder of the exemplar world, instead of --ckpt: how every snapshot answers every evaluator.",
)
@click.option("--snapshots", default="all", show_default=True, help="all, last, or steps such as 0,50,100.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random tokens, and which text is read.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--skip-damaged", is_flag=True, help="Leave out snapshots that cannot be used, and say which.")
@click.option("--sequences", type=int, default=1000, show_default=True, help="With --strategies: of each evaluator.")
@click.option(
    "--clamp",
    "clamps",
    multiple=True,
    metavar="NAME",
    help="With --strategies: also with this forced in every snapshot (a progress measure), such as match.",
)
@click.option(
    "--graft",
    metavar="STEP:PARTS",
    help="With --strategies: give every snapshot these parts of one of them first, such as last:layer-2+unembed.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Zarr store; default RUN/results/heads.zarr, or strategies."
)
def evaluate(
    ckpt: Path | None,
    strategies: Path | None,
    snapshots: str,
    seed: int,
    device: str,
    skip_damaged: bool,
    sequences: int,
    clamps: tuple[str, ...],
    graft: str | None,
    out: Path | None,
) -> None:
    """Score every head of a run: prefix matching, copying, previous token, QK trace, OV copying, composition.

    An evaluation that was stopped goes on when the same command is given again, to the same bits.

    With --strategies, of a run on exemplars: accuracy, probability and loss by evaluator (ICL, IWL, CIWL, Flip, held
    out), and where heads attend.
    """
    if (ckpt is None) == (strategies is None):
        raise InputError("--ckpt, --strategies: name a run with one of them")
    if strategies is not None:
        _evaluate_strategies(strategies, snapshots, device, sequences, clamps, graft, out)
        return
    if clamps or graft:
        raise InputError("--clamp, --graft: go with --strategies")
    assert ckpt is not None
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


def _evaluate_strategies(
    path: Path,
    snapshots: str,
    device: str,
    sequences: int,
    clamps: tuple[str, ...],
    graft: str | None,
    out: Path | None,
) -> None:
    from icl_fast.cli.measure_tables import print_strategies
    from icl_fast.measure import open_results
    from icl_fast.measure.exemplar.measured_run import measure_strategies, open_run
    from icl_fast.report.draw.exemplar_curves import strategies_figure
    from icl_fast.report.draw.figures import save_figure

    with counting("rendering glyphs") as rendering:
        measured = open_run(path, snapshots=snapshots, sequences=sequences, device=device, on_exemplars=rendering)
    with advice_on_interrupt("nothing is saved; the same command begins again"), counting("measuring") as update:
        target = measure_strategies(measured, clamps=clamps, graft=graft, out=out, on_snapshot=update)
    results = open_results(target)
    print_strategies(results)
    click.echo(f"results in {target}")
    if results.sizes["snapshot"] > 1 and results.sizes["member"] == 1:
        title = f"{path.name}, every snapshot given {graft}" if graft else path.name
        figure = strategies_figure(results.isel(member=0), title, measured.run.config.sequences.pairs)
        click.echo(f"figure in {save_figure(figure, target.with_suffix(''))[0]}")
