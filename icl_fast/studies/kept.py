"""Results in a folder of a study's own: kept, gone on with, or measured again where others lie there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import xarray as xr

from icl_fast.measure import OtherResults, open_results
from icl_fast.measure.store import discard_results

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
        discard_results(out)
        return open_results(measure())
