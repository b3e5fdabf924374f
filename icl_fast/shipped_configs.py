"""The configs that come with icl_fast, by name, such as `demo/two_layer`."""

from __future__ import annotations

import os
from pathlib import Path

from icl_fast.errors import InputError


def folder() -> Path:
    """Where they are: in the package as installed, beside it in a checkout.

    Raises:
        InputError: nowhere.
    """
    package = Path(__file__).resolve().parent
    for place in (package / "configs", package.parent / "configs"):
        if place.is_dir():
            return place
    raise InputError("configs: not found in the package or beside it; install icl_fast again")


def names() -> list[str]:
    """All of them, but for the lists of trainings that `icl-fast reproduce` reads."""
    root = folder()
    found = {*root.rglob("*.yaml")} - {*root.glob("reproduction/*.yaml")}
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in found)


def find(path: str | Path) -> Path:
    """The path of a config: a file as it is, else the one that comes with icl_fast under that name.

    `demo/two_layer`, `demo/two_layer.yaml` and `configs/demo/two_layer.yaml` are the same one, from any folder.

    Raises:
        InputError: neither is there.
    """
    path = Path(path)
    if path.is_absolute() or os.path.isfile(path):
        return path
    name = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    if name in names():
        return folder() / f"{name}.yaml"
    try:
        path.lstat()
    except FileNotFoundError:
        advice = "`icl-fast train --list` names those that come with icl_fast"
        raise InputError(f"config: {path} does not exist; {advice}") from None
    except (OSError, ValueError):
        pass  # which reading it will say
    return path
