"""What commands share: options that mean nothing for the run at hand, or beside another, are refused; `--repair`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from icl_fast.errors import InputError

_OTHER = {"text": "exemplars", "exemplars": "text"}

overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=C",
    help="Change a config key; may be repeated; default as in CONFIG.",
)
repair_option = click.option(
    "--repair", is_flag=True, help="Measure again what is damaged of earlier results; what is whole is kept."
)
force_option = click.option(
    "--force",
    is_flag=True,
    help="Measure again where results with other settings are, in their place; they stay until the new ones are done.",
)


def refuse(ckpt: Path, task: str, options: Mapping[str, object]) -> None:
    """Refuse options that mean nothing for a run of this task.

    Args:
        options: by name, their values; None where one was not used.

    Raises:
        InputError: one was used.
    """
    if foreign := [name for name, value in options.items() if value is not None]:
        raise InputError(
            f"{', '.join(foreign)}: for runs on {_OTHER[task]}; {ckpt} was trained on {task}, leave it out"
        )


def refuse_with(other: str, options: Mapping[str, object]) -> None:
    """Refuse options that mean nothing beside another.

    Args:
        other: that one, such as `--plan`.
        options: by name, their values; None where one was not used.

    Raises:
        InputError: one was used.
    """
    if idle := [name for name, value in options.items() if value is not None]:
        raise InputError(f"{', '.join(idle)}: changes nothing with {other}; leave one of them out")


def chosen_snapshots(ckpt: Path, snapshots: str | None, default: str, option: str = "--snapshots") -> str:
    """What was chosen of a run's snapshots, or the default.

    Raises:
        InputError: something was chosen of one snapshot.
    """
    if ckpt.is_file():
        refuse_with(f"{ckpt}, which is one snapshot", {option: snapshots})
    return default if snapshots is None else snapshots


def check_out(ckpt: Path, out: Path | None, option: str = "--out") -> None:
    """Refuse to write results over a run, or among its snapshots.

    Raises:
        InputError: `out` is such a place.
    """
    from icl_fast.runs.open_series import is_foreign_series
    from icl_fast.runs.run_series import run_of

    if out is None:
        return
    home, place = run_of(ckpt).path.resolve(), out.resolve()
    if is_foreign_series(ckpt):
        if place.is_relative_to(home) or home.is_relative_to(place):
            raise InputError(f"{option}: {out} is a place of other people's models; choose another one")
    elif place == home or place.is_relative_to(home / "snapshots"):
        raise InputError(f"{option}: {out} holds the run itself; choose another place")


def require(task: str, ckpt: Path, command: str, instead: str) -> None:
    """Refuse a run on the other task, and say which command serves it; other paths are left to the command.

    Args:
        task: what the command is for.
        ckpt: a run folder, or one of its snapshots.
        command: its name.
        instead: what to say of runs on the other task, such as "`icl-fast evaluate RUN` measures them".

    Raises:
        InputError: the run is on the other task.
    """
    from icl_fast.runs.run_series import run_of

    run = run_of(ckpt)
    if run.exists and run.config.task != task:
        raise InputError(f"{command}: is for runs on {task}; {ckpt} was trained on {run.config.task}: {instead}")
