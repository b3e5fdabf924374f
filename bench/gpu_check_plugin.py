"""A plugin of pytest, for gpu_check_tests.py: runs the GPU tests alone and keeps a journal that survives a crash.

    GPU_CHECK_JOURNAL=FILE python -m pytest -p gpu_check_plugin ...

Environment:
    GPU_CHECK_JOURNAL    where a JSON line is written when a test begins and when one ends. Tests that have ended
                         according to it do not run again.
    GPU_CHECK_ARCH       80: on Hopper too the kernels for every GPU, instead of Hopper's own
    GPU_CHECK_IMPL       instead of "cuda": the tests of these kernels
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

IMPL = os.environ.get("GPU_CHECK_IMPL", "cuda")


def pytest_configure(config: pytest.Config) -> None:
    if (arch := int(os.environ.get("GPU_CHECK_ARCH") or 0)) and IMPL == "cuda":
        from icl_fast.ops import _backend

        _backend._arch = lambda place, device: arch


def _write(**line: Any) -> None:
    with open(os.environ["GPU_CHECK_JOURNAL"], "a") as file:
        file.write(json.dumps(line) + "\n")


def _journal() -> list[dict[str, Any]]:
    path = Path(os.environ["GPU_CHECK_JOURNAL"])
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the GPU tests that have not ended yet; last, those of a function that has taken the GPU away before."""

    def function(name: str) -> str:
        return name.partition("[")[0]

    lines = _journal()
    own = [item for item in items if item_impl(item) == IMPL]
    if not lines:
        _write(event="collected", ids=[item.nodeid for item in own])
    ended = {line["id"] for line in lines if line["event"] == "end"}
    fatal = {function(line["id"]) for line in lines if line["event"] == "lost"}
    config.hook.pytest_deselected(items=[item for item in items if item not in own or item.nodeid in ended])
    items[:] = sorted((item for item in own if item.nodeid not in ended), key=lambda x: function(x.nodeid) in fatal)


def item_impl(item: pytest.Item) -> str | None:
    """The implementation a test is about; its name says nothing: test_no_cuda_needed is about none."""
    return getattr(item, "callspec", None) and item.callspec.params.get("impl")  # type: ignore[attr-defined]


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(event="begin", id=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        message = str(crash.message if crash else report.longrepr or "")[:600]
        _write(event="end", id=report.nodeid, outcome=report.outcome, message=message, seconds=report.duration)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """After an illegal access nothing on the GPU works any more in this process: leave the other tests to the next."""
    torch = sys.modules.get("torch")  # where nothing has imported it, no test can have used the GPU
    if torch is not None and torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            _write(event="lost", id=item.nodeid, message=str(error)[:600])
            item.session.shouldstop = "the GPU is lost to this process"
