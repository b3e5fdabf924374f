"""Commands for runs on text and on exemplars: options that belong to the other kind are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from icl_fast.errors import InputError


def refuse(ckpt: Path, task: str, options: Mapping[str, object]) -> None:
    """Refuse options that mean nothing for a run of this task.

    Args:
        options: by name, their values; None where one was not used.

    Raises:
        InputError: one was used.
    """
    other = {"text": "exemplars", "exemplars": "text"}[task]
    if foreign := [name for name, value in options.items() if value is not None]:
        raise InputError(f"{', '.join(foreign)}: for runs on {other}; {ckpt} was trained on {task}, leave it out")
