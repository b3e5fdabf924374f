"""Results in a folder of a study's own: kept, gone on with, or measured again where others lie there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import xarray as xr

from icl_fast.measure import OtherResults, open_results

Progress = Callable[[int, int, str], None]  # done, of how many, at what
Show = Callable[[str], AbstractContextManager[Progress]]


def kept(measure: Callable[[], Path], out: Path) -> xr.Dataset:
    """What `measure` finds and writes to `out`; what lies there of other snapshots or options is measured again.

    Raises:
        InputError: as `measure`, or results that cannot be read.
    """
    try:
        return open_results(measure())
    except OtherResults:
        for stale in (out, out.with_name(out.name + ".partial")):
            shutil.rmtree(stale, ignore_errors=True)
        return open_results(measure())
