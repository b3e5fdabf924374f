"""What the base install lacks: packages that only some commands need, and which extra of icl_fast brings each."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

_EXTRAS = {"xarray": "measure", "zarr": "measure", "PIL": "exemplars", "fontTools": "exemplars"}
_EXTRAS |= dict.fromkeys(("matplotlib", "scipy", "sklearn"), "report")
# rooms and commands that need a package of a smaller extra too, so that one install is enough
_ROOMS = {
    **dict.fromkeys(("icl_fast.data.", "icl_fast.cli.train"), "exemplars"),
    **dict.fromkeys((f"icl_fast.{room}." for room in ("analysis", "report", "studies", "toy")), "report"),
    **dict.fromkeys(
        (f"icl_fast.cli.{name}" for name in ("demo", "pca", "report", "reproduce", "toy", "wiring")), "report"
    ),
}


def advice(error: ModuleNotFoundError) -> str | None:
    """One line for a package that an extra brings: what is missing, and what to install. None: it is of no extra."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    importing = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    rooms = (extra for room, extra in _ROOMS.items() if any(name.startswith(room) for name in importing))
    return f"{package} is not installed; pip install 'icl_fast[{next(rooms, _EXTRAS[package])}]'"


def on_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package whose names load on first use, so that others do without what these need.

    Args:
        homes: each name to the module below `package` that has it, in which no module is called the same.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next look-up does not come here
        return value

    return load
