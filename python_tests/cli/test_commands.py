"""The command line as a user sees it: what it prints, where results go, and one line and exit code 2 for bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from icl_fast.cli.main import cli
from icl_fast.measure import open_results
from icl_fast.runs import Run

Values = dict[str, dict[str, Any]]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def config(tiny_values: Values, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values))
    return path


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_train_then_ablate(config: Path, tmp_path: Path) -> None:
    trained = call("train", config, "--out", tmp_path / "run", "--set", "training.steps=6")
    assert trained.exit_code == 0, trained.output
    assert f"2 snapshots in {tmp_path / 'run'}/snapshots" in trained.output
    ablated = call("ablate", "--ckpt", tmp_path / "run", "--examples", 5)
    assert ablated.exit_code == 0, ablated.output
    assert "step 6, nats per token" in ablated.output
    results = open_results(tmp_path / "run" / "results" / "ablation_pattern-preserving.zarr")
    assert results.sizes == {"snapshot": 2, "ablation": 5, "position": 2, "example": 5}
    loss = float(results["loss"].isel(snapshot=-1).sel(ablation="1.0").mean())
    assert f"{loss:.4f}" in ablated.output


def test_ablate_every_option(run: Path, tmp_path: Path) -> None:
    options = (
        "--mode full --heads 0.0+1.1,~1.0,embed,* --positions 2,20 --snapshots 6 --replacement mean --memory 100MB "
        "--icl-positions 2,20"
    )
    result = call(
        "ablate", "--ckpt", run, *options.split(), "--examples", 6, "--device", "cpu", "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    data = open_results(tmp_path / "out")
    assert data["ablation"].values.tolist() == ["none", "0.0+1.1", "~1.0", "embed", "*"]
    assert data["position"].values.tolist() == [2, 20]
    score = data["position_loss"].sel(position=20) - data["position_loss"].sel(position=2)
    np.testing.assert_allclose(data["icl_score"], score)
    assert "ICL score: mean loss of token 20 minus token 2\n" in result.output


def test_ablate_says_which_dtype_auto_is_and_how_exact(run: Path, tmp_path: Path) -> None:
    options = ("--dtype", "auto", "--check", "--positions", "all", "--examples", 6, "--snapshots", "last")
    planned = call("ablate", run, *options, "--plan")
    assert planned.exit_code == 0, planned.output
    measured = call("ablate", run, *options, "--out", tmp_path / "out", "--json")
    assert measured.exit_code == 0, measured.output
    found, said = open_results(tmp_path / "out"), json.loads(measured.stdout)
    dtype = json.loads(found.attrs["plan"])["dtype"]
    assert said["facts"]["dtype"] == dtype
    assert f"dtype auto: {dtype}" in planned.output
    table = next(table for table in said["tables"] if table["title"].endswith("against float64, nats per token"))
    names, _, _, errors, *_ = zip(*table["rows"], strict=True)
    assert names == ("0.0", "0.1", "1.0", "1.1")
    assert list(errors) == list(json.loads(found.attrs["exactness"])["error"].values())
    assert said["facts"]["error of standard errors"] < 0.05


def bad_inputs() -> list[tuple[str, str]]:
    return [
        ("train {config} --set model.heads=3", "tiny.yaml: model: heads=3 does not divide width=16"),
        ("train {config} --set training.learning_rate=1", "training.learning_rate: unknown key"),
        ("train {config} --set training.lr=fast", "training.lr: input should be a valid number, got 'fast'"),
        ("train {config} --set training.steps", "write it as section.key=value"),
        ("train {config} --set training.steps=100000", "training tokens at vocab 280"),
        ("train {config} --set data.corpus=/nowhere", "/nowhere"),
        ("train {config} --out {run}", "exists and is not empty; use --resume or another --out"),
        ("train {config} --out {empty} --resume", "holds no run to resume"),
        ("train {nothing}.yaml", "config: {nothing}.yaml does not exist"),
        ("ablate --ckpt {nothing}", "does not exist"),
        ("ablate --ckpt {run} --heads 0.-1", "'0.-1' is not understood"),
        ("ablate --ckpt {run} --heads 2.0", "'2.0' is not in this model; it has layers 0 to 1 and heads 0 to 1"),
        ("ablate --ckpt {run} --mode frozen", "mode: 'frozen' is neither one of"),
        ("ablate --ckpt {run} --positions 25", "positions: 25 is outside the context, which has positions 1 to 24"),
        ("ablate --ckpt {run} --snapshots 7", "snapshots: none at step 7; there are 0, 6, 12"),
        ("ablate --ckpt {run} --memory 1KiB", "memory: one example of 24 tokens needs about"),
        ("ablate --ckpt {run} --examples 100000", "examples: must be from 1 to"),
        ("ablate --ckpt {run} --icl-window 4", "--icl-window: must be odd"),
        ("ablate --ckpt {run} --device tpu", "device"),
        ("ablate --ckpt {run} --device cuda:99999999999999999999", "device cuda:99999999999999999999: must be"),
        ("ablate --ckpt {run} --plan --out {nothing}", "--out: changes nothing with --plan; leave one of them out"),
        ("ablate --ckpt {run} --heads none --replacement mean", "--replacement: changes nothing with --heads none"),
        ("ablate --ckpt {run} --mode full --preserve-heads 0.0", "--preserve-heads: changes nothing with --mode full"),
        (
            "ablate --ckpt {run} --icl-positions 5,1",
            "--icl-positions: '5,1' must be two of the context's positions, 1 to 24",
        ),
        ("ablate --ckpt {run} --positions 5 --icl-window 3", "--icl-window: changes nothing at positions 5"),
        ("ablate --ckpt {run} --positions " + "9" * 5000, "--positions: '999"),
        ("ablate --ckpt {run} --memory " + "9" * 5000, "--memory: '999"),
        ("ablate --ckpt {run} --snapshots 6,6", "--snapshots: 6 is given twice"),
        ("ablate --ckpt {run} --snapshots 6,", "--snapshots: '6,' is neither all"),
        ("ablate --ckpt {run} --snapshots " + "9" * 5000, "--snapshots: '999"),
        (
            "ablate --ckpt {snapshot} --snapshots all",
            "--snapshots: changes nothing with {snapshot}, which is one snapshot",
        ),
        ("evaluate --ckpt {snapshot} --snapshots last", "--snapshots: changes nothing with"),
        ("evaluate --ckpt {run} --out {run}", "--out: {run} holds the run itself; choose another place"),
        ("evaluate --ckpt {snapshot} --out {run}", "--out: {run} holds the run itself"),
        ("evaluate --ckpt {run} --out {run}/snapshots/x", "holds the run itself"),
        ("evaluate --ckpt {run} --out {config}", "--out: {config} is a file; give a folder"),
        ("evaluate --ckpt {run} --out {config}/x", "--out: {config}/x is below {config}, which is a file"),
        ("pca {run} --out {run}/snapshots/x.zarr", "holds the run itself"),
        ("pca {run} --out x.zarr --components 3", "--components: 3 need more snapshots than that, there are 3"),
        ("report {run} --out {run}", "--out: {run} holds the run itself"),
        ("report {run} --out {nothing} --prefix-matching nan", "--prefix-matching: must be a finite number, got nan"),
        ("report {run} --out {nothing} --previous-token 2", "--previous-token: must be from 0 to 1"),
        ("report {run} --out {nothing} --copying -1.1", "--copying: must be from -1 to 1"),
        ("report {run} --out {nothing} --modes full,full,pattern-preserving", "--modes: full is given twice"),
        ("report {run} --out {nothing} --modes pattern-preserving,", "--modes: an empty value"),
        ("report {run} --out {nothing} --passage {config} --passage {config}", "--passage: {config} is given twice"),
        ("report {run} --out {nothing} --interval run=0:6 --interval run=6:12", "--interval: run is given twice"),
        ("report {run} --out {nothing} --interval run=0:" + "9" * 5000, "is not RUN=START:END"),
        ("report {run} --out {config}", "--out: {config} is a file; give a folder"),
        ("train {config} --clamp match", "--clamp: {config} trains on text"),
        ("demo --configs {empty}", "one_layer.yaml does not exist"),
        ("corpus /nowhere", "/nowhere"),
    ]


@pytest.mark.parametrize(("command", "message"), bad_inputs(), ids=[command[:60] for command, _ in bad_inputs()])
def test_bad_input(command: str, message: str, config: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    places = {"config": config, "run": run, "nothing": tmp_path / "nothing", "empty": tmp_path / "empty"}
    places["snapshot"] = Run(run).snapshot_path(6)
    before = sorted(tmp_path.rglob("*"))
    result = call(*command.format(**places).split())
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1
    assert result.output.startswith("error: ")
    assert message.format(**places) in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_ctrl_c_and_resume(config: Path, tiny_run: Path, tmp_path: Path) -> None:
    """A real Ctrl-C to a real process: exit code 130, the advice, and the same weights after --resume."""
    arguments = [sys.executable, "-m", "icl_fast", "train", str(config), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    if process.returncode != 0:  # else it was faster than the signal, and there is nothing to resume
        assert process.returncode == 130, output
        assert "go on with --resume" in output
        assert "Traceback" not in output
    resumed = call("train", config, "--out", tmp_path / "run", "--resume")
    assert resumed.exit_code == 0, resumed.output
    for step in Run(tiny_run).snapshot_steps():
        assert Run(tmp_path / "run").snapshot_path(step).read_bytes() == Run(tiny_run).snapshot_path(step).read_bytes()
