"""A snapshot that the manifest lists and that is gone is said by every command that goes without it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from icl_fast.cli.main import cli
from icl_fast.runs import Run, parse_config
from icl_fast.training import train

EXEMPLARS = {
    "exemplars": {"kind": "gaussian", "classes": 20, "exemplars": 2, "width": 6, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 12, "label_pool": 3, "held_out_classes": 4},
    "model": {"width": 8, "heads": 2},
    "training": {"steps": 12, "batch": 2, "lr": 1e-2},
    "evaluation": {"sequences": 10},
    "snapshots": {"every": 6},
}


@pytest.fixture(params=["text", "exemplars"])
def run(request: pytest.FixtureRequest, tiny_run: Path, tmp_path: Path) -> Run:
    if request.param == "text":
        return Run(shutil.copytree(tiny_run, tmp_path / "run"))
    return train(parse_config(EXEMPLARS), tmp_path / "run")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], env={"COLUMNS": "140"})


def test_a_snapshot_that_is_gone(run: Run, tmp_path: Path) -> None:
    whole = shutil.copytree(run.path, tmp_path / "whole")
    run.snapshot_path(6).unlink()
    commands = [["ablate", "--heads", "0.0", "--ckpt", run.path], ["evaluate", "--ckpt", run.path]]
    config = run.path / "config.yaml"
    commands.append(["train", config, "--out", run.path, "--resume"])
    if run.config.task == "text":
        commands.append(["pca", run.path, whole, "--out", tmp_path / "pca.zarr"])
    for command in commands:
        result = call(*command)
        assert result.exit_code == 0, result.output
        assert "6" in (line := next(line for line in result.output.splitlines() if "missing" in line)), line


def test_the_last_one_is_not_another(run: Run) -> None:
    run.snapshot_path(12).unlink()
    for command in (["ablate", "--snapshots", "last", "--ckpt", run.path], ["wiring", "--ckpt", run.path]):
        result = call(*command)
        assert result.exit_code == 2
        of_text = command[0] == "wiring" and run.config.task == "text"
        option = "--snapshot" if command[0] == "wiring" else "--snapshots"
        last = f"{option}: last is that of step 12, which manifest.json"
        said = "wiring: is for runs on exemplars" if of_text else last
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
