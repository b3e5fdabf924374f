"""`--ray` at the command line: stopped and gone on with, with nothing left running, and in one line what is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from icl_fast.cli.main import cli
from icl_fast.measure import sweep

from .conftest import LONG, Command, contents, wait_for

RAY = ["--ray", "--workers", "2"]


def test_stopped_and_gone_on_with(run: Path, tmp_path: Path, commands: Callable[..., Command]) -> None:
    whole = contents(sweep(run, out=tmp_path / "whole.zarr", **LONG))
    out, copy = tmp_path / "there.zarr", tmp_path / "copy.zarr"
    killed = commands(run, out, *RAY)
    assert killed.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    assert any("raylet" in line for line in killed.started.values())
    wait_for(lambda: not killed.left())
    shutil.copytree(killed.partial, copy.with_name("copy.zarr.partial"))

    interrupted = commands(run, out, *RAY)
    code, said = interrupted.stop(signal.SIGINT)
    assert code == 130
    assert said.splitlines()[-1] == "error: stopped; the same command goes on from there"
    wait_for(lambda: not interrupted.left())

    assert commands(run, out).end()[0] == 0
    code, said = commands(run, copy, *RAY).end()
    assert code == 0
    assert all(line.startswith("ablating run: ") for line in said.splitlines())  # Ray says nothing
    assert ", 2 workers" in said.splitlines()[-1]
    assert contents(out) == contents(copy) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "--workers: changes nothing with no --ray; leave one of them out"),
        (["--ray", "auto", "--workers", "2"], "--workers: changes nothing with a Ray that is running; leave one of"),
        (["--ray", "runs/two"], "--ray: runs/two is neither HOST:PORT nor auto; without an address put --ray last"),
        (["--ray", "--device", "cuda:1"], "--device cuda:1: changes nothing with --ray, which chooses the GPU of each"),
        (["--ray", "--workers", "0"], "--workers: must be 1 or more, got 0"),
        (["--ray", "127.0.0.1:1"], "--ray: at 127.0.0.1:1: no connection ([Errno 111] Connection refused)"),
    ],
)
def test_what_is_wrong(run: Path, tmp_path: Path, options: list[str], message: str) -> None:
    if "127.0.0.1:1" in options:
        pytest.importorskip("ray")
        options = [*options, "--out", str(tmp_path / "out.zarr")]
        # not in this process, which may be connected
        command = [sys.executable, "-m", "icl_fast", "ablate", "--ckpt", str(run), *options]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        code, said = done.returncode, done.stderr
    else:
        result = CliRunner().invoke(cli, ["ablate", "--ckpt", str(run), *options])
        code, said = result.exit_code, result.output
    assert code == 2
    assert said.startswith(f"error: {message}")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out.zarr.partial").exists()
