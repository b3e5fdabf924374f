"""Fifty kills of workers and of the command itself, at random moments: the same bits in the end."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from icl_fast.measure import sweep

from .conftest import LONG, Command, below, contents, kill_worker, wait_for

KILLS = 50
MANY = {"memory": "250KiB"}  # parts


@pytest.mark.slow
def test_fifty_kills(run: Path, tmp_path: Path, commands: Callable[..., Command]) -> None:
    whole = contents(sweep(run, out=tmp_path / "whole.zarr", **LONG | MANY))
    random, out = Random(0), tmp_path / "there.zarr"
    kills = {"worker": 0, "command": 0}
    whole_sweeps = 0
    while sum(kills.values()) < KILLS or not whole_sweeps:
        command = commands(run, out, "--ray", "--workers", "2", "--memory", MANY["memory"])
        pid, ended = command.process.pid, command.process.poll
        while ended() is None and sum(kills.values()) < KILLS:
            before = command.parts()
            time.sleep(random.uniform(0.0, 0.5))
            if random.random() < 0.9:
                kills["worker"] += kill_worker(random, pid)
            elif before:
                command.started = below(pid)
                command.process.send_signal(signal.SIGKILL)
                kills["command"] += 1
            # something is done between two kills, or a task would be lost too often
            wait_for(lambda: ended() is not None or command.parts() != before)  # noqa: B023  # called at once
        code, said = command.end()
        assert code in (0, -signal.SIGKILL), said
        if code == 0:
            assert contents(out) == whole
            shutil.rmtree(out)
            whole_sweeps += 1
        wait_for(lambda: not command.left())  # noqa: B023  # called at once
    assert kills["worker"] > 25
    assert kills["command"] > 0
