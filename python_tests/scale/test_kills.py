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


@pytest.mark.slow
def test_fifty_kills(run: Path, tmp_path: Path, commands: Callable[..., Command]) -> None:
    whole = contents(sweep(run, out=tmp_path / "whole.zarr", **LONG))
    random, out = Random(0), tmp_path / "there.zarr"
    kills = {"worker": 0, "command": 0}
    ended = 0
    while sum(kills.values()) < KILLS or not ended:
        command = commands(run, out, "--ray", "--workers", "2")
        while command.process.poll() is None:
            time.sleep(random.uniform(0.0, 0.5))
            if sum(kills.values()) == KILLS or not command.parts():
                continue
            if random.random() < 0.9:
                kills["worker"] += kill_worker(random, command.process.pid)
            else:
                command.started = below(command.process.pid)
                command.process.send_signal(signal.SIGKILL)
                kills["command"] += 1
        code, said = command.end()
        assert code in (0, -signal.SIGKILL), said
        if code == 0:
            assert contents(out) == whole
            shutil.rmtree(out)
            ended += 1
        wait_for(lambda: not command.left())  # noqa: B023  # which is called at once
    assert kills["worker"] > 25
    assert kills["command"] > 0
