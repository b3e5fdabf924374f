"""What the runs of a figure are called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from icl_fast.data.input_files import printable
from icl_fast.errors import InputError
from icl_fast.models.foreign import is_foreign


def run_name(path: Path) -> str:
    """What a run is called: as its folder, or the link that leads to it, is called by whoever gave the path."""
    return printable(Path(path.name if path.name not in ("", "..") else path.resolve().name))


def run_names(runs: Sequence[str | Path]) -> dict[str, Path]:
    """Run folders by unique names: `run_name`, or the whole path where two of them are the same.

    Raises:
        InputError: a run listed twice, or a file.
    """
    paths = [Path(run) for run in runs]
    places = [path.resolve() for path in paths]
    for place, path in zip(places, paths, strict=True):
        if places.count(place) > 1:
            raise InputError(f"runs: {path} is given twice")
        if os.path.isfile(path) and not is_foreign(path):
            raise InputError(f"runs: {path} is a file; give run folders, and --snapshots for some of their snapshots")
    short = [run_name(path) for path in paths]
    return {name if short.count(name) == 1 else printable(path): path for name, path in zip(short, paths, strict=True)}
