"""`icl-fast train`."""

from __future__ import annotations

from pathlib import Path

import click

from icl_fast.cli.progress import advice_on_interrupt, training_progress


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change a config key; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/<name of the config file>.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out from its last saved state.")
def train(config: Path, overrides: tuple[str, ...], out: Path | None, resume: bool) -> None:
    """Train a Transformer as CONFIG (a YAML file) says and keep snapshots of it.

    Ctrl-C saves the state and stops; the same command with --resume goes on, on CPU to the same bits.
    """
    from icl_fast.training import load_config
    from icl_fast.training import train as run

    parsed = load_config(config, overrides)
    folder = out if out is not None else Path("runs") / config.stem
    with advice_on_interrupt("go on with --resume"), training_progress(folder.name, parsed.training.steps) as update:
        done = run(parsed, folder, resume=resume, on_step=update)
    click.echo(f"{len(done.snapshot_steps())} snapshots in {done.path}/snapshots")
