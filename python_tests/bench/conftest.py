"""bench/ is no package: its modules are found as `python bench/run.py` finds them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
if str(BENCH) not in sys.path:
    sys.path.append(str(BENCH))


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Any]:
    """A stage's job in this folder, on a GPU that is not there; given a capability and environment variables."""

    def make(capability: tuple[int, int] = (8, 0), **environment: str) -> Any:
        from stages import Job

        (tmp_path / "scratch").mkdir(exist_ok=True)
        path = os.pathsep.join([str(BENCH.parent), str(BENCH)])
        report = {"device": {"capability": list(capability)}}
        everything = {**os.environ, "PYTHONPATH": path, **environment}
        end = time.monotonic() + 100
        return Job(tmp_path, tmp_path / "stage.log", end, tmp_path / "scratch", report, everything)

    return make
