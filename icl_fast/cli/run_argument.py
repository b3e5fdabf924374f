"""How commands are told what to look at: RUN, or RUN... of several; what is no run is called what it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from icl_fast.cli.parameters import PathType

RUN_HELP = """

    RUN is a run folder, or one of its snapshots; or a model of other people's: a folder with config.json, a GGUF file,
    a folder with one for each snapshot (step1000, checkpoint-500, ...), or hf:ORG/NAME.
    """
_CONFIG, _PAGE = "config.yaml", "index.html"
_STORE = (".zgroup", ".zattrs", ".zmetadata")  # files of a zarr store
_PARTS = ("results", "snapshots")  # folders of a run
_MOST_NAMED = 3


class RunType(PathType):
    """A run, a snapshot, or a model of other people's."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = super().convert(value, param, ctx)
        if (what := _no_run(path)) is not None:
            self.fail(f"{path} is {what}", param, ctx)
        return path


RUN = RunType()


def run_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command RUN, as the argument `ckpt`; `--ckpt RUN`, as it was called before, goes on working."""

    @wraps(command)
    def called(run: Path | None, ckpt: Path | None, **arguments: Any) -> None:
        if run is not None and ckpt is not None:
            raise click.UsageError(f"RUN: {run} and --ckpt {ckpt} are two runs, and one is needed")
        if run is None and ckpt is None:
            raise click.UsageError("RUN: is needed")
        command(ckpt=run if ckpt is None else ckpt, **arguments)

    called.__doc__ = (command.__doc__ or "") + RUN_HELP
    option = click.option("--ckpt", type=RUN, hidden=True, help="RUN, as it was given before.")
    return click.argument("run", type=RUN, required=False, metavar="RUN")(option(called))


def _no_run(path: Path) -> str | None:
    """What a path is, and which command is for it, where it can be no run."""
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return f"a config, not a run; `icl-fast train {path}` trains it"
    if not path.is_dir() or (path / _CONFIG).exists():
        return None
    if path.suffix == ".zarr" or any((path / name).exists() for name in _STORE):
        return f"a store of results, not a run; `icl-fast results {path}` says what is in it"
    if (path / _PAGE).exists():
        return f"a report, not a run; open {path / _PAGE} in a browser, `icl-fast verify {path}` checks its files"
    if path.name in _PARTS and (path.parent / _CONFIG).exists():
        return f"part of the run {path.parent}; give that"
    if names := sorted(inside.parent.name for inside in path.glob(f"*/{_CONFIG}")):
        some = ", ".join(names[:_MOST_NAMED]) + ", ..." * (len(names) > _MOST_NAMED)
        return f"a folder of runs ({some}), not a run; give one of them, or all to `icl-fast report {path}/*`"
    return None
