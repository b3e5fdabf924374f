"""What the runs of a figure are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icl_fast.errors import InputError


def run_names(runs: Sequence[str | Path]) -> dict[str, Path]:
    """Run folders by unique names: the folder's own, or the whole path where two folders have the same name.

    Raises:
        InputError: a run listed twice, or a file.
    """
    paths = [Path(run) for run in runs]
    places = [path.resolve() for path in paths]
    for place, path in zip(places, paths, strict=True):
        if places.count(place) > 1:
            raise InputError(f"runs: {path} is given twice")
        if path.is_file():
            raise InputError(f"runs: {path} is a file; give run folders, and --snapshots for some of their snapshots")
    short = [place.name for place in places]
    return {name if short.count(name) == 1 else str(path): path for name, path in zip(short, paths, strict=True)}
