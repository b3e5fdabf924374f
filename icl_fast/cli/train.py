"""`icl-fast train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from icl_fast.cli.commands import Command, stopped
from icl_fast.cli.console import echo, finish_output
from icl_fast.cli.environment import flush
from icl_fast.cli.left_out import say_left_out, say_taken
from icl_fast.cli.parameters import COUNT, FOLDER_TO_WRITE, PATH, distinct
from icl_fast.cli.progress import counting, population_progress, seeds_progress, training_progress
from icl_fast.cli.scale import ray_options
from icl_fast.cli.tasks import overrides_option

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from icl_fast.runs import ExemplarRunConfig, TextRunConfig
    from icl_fast.scale import Runner
    from icl_fast.training import Callback

_BESIDE = "beside the run"  # where TensorBoard's files go by default


def _list(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from icl_fast.shipped_configs import names

        echo("\n".join(names()))
        ctx.exit()


@click.command(cls=Command)
@click.argument("config", type=PATH)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="List the configs that come with icl_fast, and exit.",
)
@overrides_option
@click.option(
    "--clamp",
    "clamps",
    multiple=True,
    metavar="NAME",
    help="On exemplars: clamp this throughout training (pt-attend, layer-1, match, copy, layer-1+copy, "
    "no-previous-token); may be repeated; default as in CONFIG.",
)
@click.option("--out", type=FOLDER_TO_WRITE, help="Run folder; default runs/<name of the config file>.")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last saved state.")
@click.option(
    "--seeds",
    type=COUNT,
    help="On text: train it with the seeds 0, 1, ..., so many, into OUT/seed-0, OUT/seed-1, ...; --resume continues; "
    "default the seed of CONFIG alone.",
)
@click.option(
    "--tensorboard",
    is_flag=False,
    flag_value=_BESIDE,
    metavar="[FOLDER]",
    help="Log for TensorBoard too, in FOLDER/<name of the run>; without FOLDER in tensorboard/ beside the run folder; "
    "default not at all.",
)
@click.option("--wandb", metavar="PROJECT", help="Log to this project of Weights & Biases too; default not at all.")
@ray_options
def train(
    on: AbstractContextManager[Runner],
    config: Path,
    overrides: tuple[str, ...],
    clamps: tuple[str, ...],
    out: Path | None,
    resume: bool,
    seeds: int | None,
    tensorboard: str | None,
    wandb: str | None,
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
            _train(config, overrides, clamps, folder, resume, seeds, _callbacks(tensorboard, wandb, folder, seeds), on)
        except ranks.RefusedElsewhere:
            raise SystemExit(2) from None  # the rank that refused says why
        except KeyboardInterrupt as error:
            if ranks.rank() > 0:
                raise SystemExit(130) from None
            begun = (folder / "config.yaml").exists() or (seeds is not None and folder.exists())
            raise stopped(error, "go on with --resume" if begun else "the same command begins again") from error
        several, first = ranks.count() > 1, ranks.rank() == 0
    if several:
        if first:
            finish_output()
        # where DTensor's caches hold the group its threads outlive it, and can abort a program that ends beside them
        flush()
        os._exit(0)


def _train(
    config: Path,
    overrides: tuple[str, ...],
    clamps: tuple[str, ...],
    folder: Path,
    resume: bool,
    seeds: int | None,
    callbacks: list[Callback],
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
        if seeds is not None:
            if isinstance(parsed, ExemplarRunConfig):
                raise InputError(
                    f"--seeds: {config} trains on exemplars, whose seeds train side by side: --set members={seeds}"
                )
            if any(one.partition("=")[0].strip() == "training.seed" for one in overrides):
                raise InputError("--seeds: is 0, 1, ... for training.seed; leave --set training.seed out")
    with on as runner:
        if isinstance(parsed, ExemplarRunConfig):
            _train_on_exemplars(parsed, folder, resume, callbacks, runner)
        elif seeds is not None:
            _train_seeds(parsed, folder, resume, seeds, callbacks)
        else:
            _train_on_text(parsed, folder, resume, callbacks, runner)


def _callbacks(tensorboard: str | None, wandb: str | None, folder: Path, seeds: int | None) -> list[Callback]:
    """Those asked for; only the first rank has any."""
    from icl_fast import ranks
    from icl_fast.training import TensorBoardCallback, WandbCallback

    found: list[Callback] = []
    with ranks.together():
        if ranks.rank() == 0 and tensorboard is not None:
            board = folder.parent / "tensorboard" if tensorboard == _BESIDE else Path(tensorboard)
            found.append(TensorBoardCallback(board if seeds is None else board / folder.name))
        if ranks.rank() == 0 and wandb is not None:
            found.append(WandbCallback(wandb))
    return found


def _train_on_text(
    config: TextRunConfig, folder: Path, resume: bool, callbacks: list[Callback], runner: Runner
) -> None:
    from icl_fast import ranks
    from icl_fast.runs import RunSeries
    from icl_fast.training import train as run

    if ranks.rank() > 0:
        run(config, folder, resume=resume)
        return
    with training_progress(folder.name, config.training.steps) as update:
        done = run(config, folder, resume=resume, on_progress=update, runner=runner, callbacks=callbacks)
    say_left_out(RunSeries(done))
    echo(f"{len(done.snapshot_steps())} snapshots in {done.path}/snapshots", files=[done.path])


def _train_seeds(config: TextRunConfig, folder: Path, resume: bool, seeds: int, callbacks: list[Callback]) -> None:
    from icl_fast import ranks
    from icl_fast.runs import RunSeries
    from icl_fast.training import train_seeds

    if ranks.rank() > 0:
        train_seeds(config, folder, seeds, resume=resume)
        return
    with seeds_progress(folder.name, config.training.steps, seeds) as update:
        done = train_seeds(config, folder, seeds, resume=resume, on_progress=update, callbacks=callbacks)
    for run in done:
        say_left_out(RunSeries(run))
        echo(f"{len(run.snapshot_steps())} snapshots in {run.path}/snapshots", files=[run.path])


def _train_on_exemplars(
    config: ExemplarRunConfig, folder: Path, resume: bool, callbacks: list[Callback], runner: Runner
) -> None:
    from icl_fast.cli.measure_tables import print_end
    from icl_fast.measure.exemplar.curves import training_curves
    from icl_fast.report.draw.exemplar_curves import draw_curves
    from icl_fast.runs import ExemplarRunConfig, Run, RunSeries
    from icl_fast.training import train as run

    with (
        counting("drawing characters") as rendering,
        population_progress(folder.name, config.training.steps) as update,
    ):
        settled = Run(folder).settled(config, resume=resume, progress=rendering)
        if isinstance(settled, ExemplarRunConfig) and settled.exemplars.kind != config.exemplars.kind:
            say_taken(folder.name, settled.exemplars.kind)
        done = run(
            settled,
            folder,
            resume=resume,
            on_progress=update,
            on_exemplars=rendering,
            runner=runner,
            callbacks=callbacks,
        )
    say_left_out(RunSeries(done))
    curves = training_curves(done)
    print_end(curves)
    drawn = draw_curves(curves, done.path.name, config.sequences.pairs, done.path / "curves")
    snapshots = f"{len(done.snapshot_steps())} snapshots in {done.path}/snapshots"
    echo(f"{snapshots}, curves in {drawn}", files=[done.path, drawn])
