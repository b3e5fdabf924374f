"""What commands share: runs of the wrong kind, text or exemplars, are refused; `--repair`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from icl_fast.errors import InputError

_OTHER = {"text": "exemplars", "exemplars": "text"}

repair_option = click.option(
    "--repair", is_flag=True, help="Measure again what is damaged of earlier results; what is whole is kept."
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


def require(task: str, ckpt: Path, command: str, instead: str) -> None:
    """Refuse a run on the other task, and say which command serves it; other paths are left to the command.

    Args:
        task: what the command is for.
        ckpt: a run folder, or one of its snapshots.
        command: its name.
        instead: what to say of runs on the other task, such as "`icl-fast evaluate --ckpt RUN` measures them".

    Raises:
        InputError: the run is on the other task.
    """
    from icl_fast.runs.run_series import run_of

    run = run_of(ckpt)
    if run.exists and run.config.task != task:
        raise InputError(f"{command}: is for runs on {task}; {ckpt} was trained on {run.config.task}: {instead}")
