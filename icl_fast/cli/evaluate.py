"""`icl-fast evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo_files
from icl_fast.cli.foreign import foreign_options, say_notes
from icl_fast.cli.parameters import FOLDER_TO_WRITE, INTEGER, distinct
from icl_fast.cli.progress import counting, snapshot_progress
from icl_fast.cli.run_argument import run_argument
from icl_fast.cli.scale import ray_options
from icl_fast.cli.tasks import check_out, chosen_snapshots, force_option, refuse, repair_option
from icl_fast.errors import InputError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from icl_fast.runs import ForeignOptions, Series
    from icl_fast.scale import Runner


@click.command(cls=Command)
@run_argument
@click.option("--snapshots", help="all, last, or steps such as 0,50,100; default all.")
@click.option("--seed", type=INTEGER, help="On text: seed of the random tokens and of which text is read; default 0.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@repair_option
@force_option
@click.option("--skip-damaged", is_flag=True, help="Skip snapshots that cannot be used, and say which.")
@click.option("--sequences", type=INTEGER, help="On exemplars: sequences of each evaluator; default 1000.")
@click.option(
    "--clamp",
    "clamps",
    multiple=True,
    metavar="NAME",
    help="On exemplars: also with this clamped in every snapshot (a progress measure), such as match; default none.",
)
@click.option(
    "--induction-heads",
    metavar="HEADS",
    help="With --clamp: heads of the last layer for match and copy, such as 1.3; default as in training.",
)
@click.option(
    "--previous-token-heads",
    metavar="HEADS",
    help="With --clamp: heads of the first layer for pt-attend: 0.1,0.2; default as in training.",
)
@click.option(
    "--graft",
    metavar="STEP:PARTS",
    help="On exemplars: give every snapshot these parts of one of them first, such as last:layer-2+unembed; default "
    "none.",
)
@click.option(
    "--out",
    type=FOLDER_TO_WRITE,
    help="Zarr store; default RUN/results/heads.zarr, or strategies.zarr on exemplars.",
)
@ray_options
@foreign_options
def evaluate(
    foreign: ForeignOptions | None,
    on: AbstractContextManager[Runner],
    ckpt: Path,
    snapshots: str | None,
    seed: int | None,
    device: str,
    repair: bool,
    force: bool,
    skip_damaged: bool,
    sequences: int | None,
    clamps: tuple[str, ...],
    induction_heads: str | None,
    previous_token_heads: str | None,
    graft: str | None,
    out: Path | None,
) -> None:
    """Measure every snapshot of a run, or of other people's training.

    Of a model on text, the scores of every head: prefix matching, copying, previous token, QK trace, OV copying,
    composition. Of a run on exemplars: accuracy, probability and loss by evaluator (ICL, IWL, CIWL, Flip, held out),
    and where heads attend.

    If it is stopped, the same command continues it, to the same bits.
    """
    from icl_fast.cli.left_out import say_left_out
    from icl_fast.runs import open_series

    check_out(ckpt, out)
    series = open_series(ckpt, chosen_snapshots(ckpt, snapshots, "all"), foreign)
    if series.task == "exemplars":
        refuse(ckpt, "exemplars", {"--seed": seed})
        distinct("--clamp", clamps)
        heads = {"--induction-heads": induction_heads, "--previous-token-heads": previous_token_heads}
        if not clamps and (idle := [name for name, value in heads.items() if value is not None]):
            raise InputError(f"{', '.join(idle)}: without --clamp nothing acts on them; name a clamp, or leave it out")
        last = series.population.config.model.layers - 1
        acted_on = _heads_of(series, heads, {"--induction-heads": last, "--previous-token-heads": 0})
        series = say_left_out(series, skip_damaged=skip_damaged)
        count = 1000 if sequences is None else sequences
        _evaluate_strategies(series, device, count, clamps, acted_on, graft, repair, force, out, on)
        return
    on_exemplars = {"--sequences": sequences, "--clamp": clamps or None, "--induction-heads": induction_heads}
    refuse(ckpt, "text", {**on_exemplars, "--previous-token-heads": previous_token_heads, "--graft": graft})
    from icl_fast.cli.tables import print_head_scores
    from icl_fast.measure import evaluate as run
    from icl_fast.measure import open_results

    say_notes(series)
    with snapshot_progress(series.name) as update, on as runner:
        target = run(
            series,
            out=out,
            seed=0 if seed is None else seed,
            device=device,
            skip_damaged=skip_damaged,
            repair=repair,
            force=force,
            runner=runner,
            on_snapshot=update,
        )
    print_head_scores(open_results(target), series.shape.width)
    echo_files("results in", target)


def _heads_of(series: Series, options: dict[str, str | None], layers: dict[str, int]) -> dict[str, list[int]]:
    """The heads that each option names, in the layer that it is about, by the name of the argument.

    Raises:
        InputError: a head that the models do not have, or one of another layer.
    """
    from icl_fast.measure.ablation.names import parse_heads

    found = {}
    for option, text in options.items():
        if text is None:
            continue
        heads = parse_heads(text, series.population.config.model, option)
        if any(layer != layers[option] for layer, _ in heads):
            raise InputError(f"{option}: {text} must be heads of layer {layers[option]}, such as {layers[option]}.0")
        found[option.removeprefix("--").replace("-", "_")] = [head for _, head in heads]
    return found


def _evaluate_strategies(
    series: Series,
    device: str,
    sequences: int,
    clamps: tuple[str, ...],
    heads: dict[str, list[int]],
    graft: str | None,
    repair: bool,
    force: bool,
    out: Path | None,
    on: AbstractContextManager[Runner],
) -> None:
    from icl_fast.cli.measure_tables import print_strategies, print_transience
    from icl_fast.measure import open_results
    from icl_fast.measure.exemplar.measured_run import measure_strategies, open_measured
    from icl_fast.report.draw.exemplar_curves import strategies_figure
    from icl_fast.report.draw.figures import save_figure

    with counting("drawing characters") as rendering:
        measured = open_measured(series, sequences=sequences, device=device, on_exemplars=rendering)
    with snapshot_progress(series.name) as update, on as runner:
        target = measure_strategies(
            measured,
            clamps=clamps,
            **heads,
            graft=graft,
            out=out,
            repair=repair,
            force=force,
            runner=runner,
            on_snapshot=update,
        )
    results = open_results(target)
    print_strategies(results)
    print_transience(results.isel(clamp=0))
    echo_files("results in", target)
    if results.sizes["snapshot"] > 1 and results.sizes["member"] == 1:
        title = f"{series.name}, every snapshot given {graft}" if graft else series.name
        figure = strategies_figure(results.isel(member=0), title, series.population.config.sequences.pairs)
        echo_files("figure in", save_figure(figure, target.with_suffix(""))[0])
