"""`icl-fast train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from icl_fast.cli.commands import stopped
from icl_fast.cli.console import echo
from icl_fast.cli.environment import flush
from icl_fast.cli.left_out import say_left_out
from icl_fast.cli.parameters import FOLDER_TO_WRITE, PATH, distinct
from icl_fast.cli.progress import counting, population_progress, training_progress
from icl_fast.cli.scale import ray_options

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from icl_fast.runs import ExemplarRunConfig, TextRunConfig
    from icl_fast.scale import Runner


def _list(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from icl_fast.shipped_configs import names

        echo("\n".join(names()))
        ctx.exit()


@click.command()
@click.argument("config", type=PATH)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="List the configs that come with icl_fast, and exit.",
)
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change a config key; may be repeated.")
@click.option(
    "--clamp",
    "clamps",
    multiple=True,
    metavar="NAME",
    help="On exemplars: clamp this throughout training (pt-attend, layer-1, match, copy, layer-1+copy, "
    "no-previous-token); may be repeated.",
)
@click.option("--out", type=FOLDER_TO_WRITE, help="Run folder; default runs/<name of the config file>.")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last saved state.")
@ray_options
def train(
    on: AbstractContextManager[Runner],
    config: Path,
    overrides: tuple[str, ...],
    clamps: tuple[str, ...],
    out: Path | None,
    resume: bool,
) -> None:
    """Train what CONFIG (a YAML file, or a name that --list gives) describes and keep snapshots: a Transformer on text,
    or one run or a population of runs on exemplars, whose curves are drawn as well.

    Ctrl-C saves the state and stops; the same command with --resume continues, on CPU to the same bits.

    On several GPUs or machines, of text: torchrun --nproc-per-node N -m icl_fast train CONFIG. The batch is shared out;
    --resume may go on with another N.
    """
    from icl_fast import ranks

    folder = out if out is not None else Path("runs") / config.stem
    with ranks.joined():
        try:
            _train(config, overrides, clamps, folder, resume, on)
        except ranks.RefusedElsewhere:
            raise SystemExit(2) from None  # the rank that refused says why
        except KeyboardInterrupt as error:
            if ranks.rank() > 0:
                raise SystemExit(130) from None
            begun = (folder / "config.yaml").exists()
            raise stopped(error, "go on with --resume" if begun else "the same command begins again") from error
        several = ranks.count() > 1
    if several:
        # where DTensor's caches hold the group its threads outlive it, and can abort a program that ends beside them
        flush()
        os._exit(0)


def _train(
    config: Path,
    overrides: tuple[str, ...],
    clamps: tuple[str, ...],
    folder: Path,
    resume: bool,
    on: AbstractContextManager[Runner],
) -> None:
    from icl_fast import ranks
    from icl_fast.errors import InputError
    from icl_fast.runs import ExemplarRunConfig, load_config

    with ranks.together():
        parsed = load_config(config, overrides)
        if distinct("--clamp", clamps):
            if not isinstance(parsed, ExemplarRunConfig):
                raise InputError(
                    f"--clamp: {config} trains on text; clamps are for configs with sequences of exemplars"
                )
            parsed = load_config(config, (*overrides, f"interventions.clamps={json.dumps(clamps)}"))
    with on as runner:
        if isinstance(parsed, ExemplarRunConfig):
            _train_on_exemplars(parsed, folder, resume, runner)
        else:
            _train_on_text(parsed, folder, resume, runner)


def _train_on_text(config: TextRunConfig, folder: Path, resume: bool, runner: Runner) -> None:
    from icl_fast import ranks
    from icl_fast.runs import RunSeries
    from icl_fast.training import train as run

    if ranks.rank() > 0:
        run(config, folder, resume=resume)
        return
    with training_progress(folder.name, config.training.steps) as update:
        done = run(config, folder, resume=resume, on_progress=update, runner=runner)
    say_left_out(RunSeries(done))
    echo(f"{len(done.snapshot_steps())} snapshots in {done.path}/snapshots")


def _train_on_exemplars(config: ExemplarRunConfig, folder: Path, resume: bool, runner: Runner) -> None:
    from icl_fast.cli.measure_tables import print_end
    from icl_fast.measure.exemplar.curves import training_curves
    from icl_fast.report.draw.exemplar_curves import draw_curves
    from icl_fast.runs import RunSeries
    from icl_fast.training import train as run

    with (
        counting("rendering glyphs") as rendering,
        population_progress(folder.name, config.training.steps) as update,
    ):
        done = run(config, folder, resume=resume, on_progress=update, on_exemplars=rendering, runner=runner)
    say_left_out(RunSeries(done))
    curves = training_curves(done)
    print_end(curves)
    drawn = draw_curves(curves, done.path.name, config.sequences.pairs, done.path / "curves")
    echo(f"{len(done.snapshot_steps())} snapshots in {done.path}/snapshots, curves in {drawn}")
