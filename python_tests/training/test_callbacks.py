"""Callbacks: what they are told and when, on text and on exemplars; what one raises; TensorBoard and wandb offline."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import icl_fast
from icl_fast.cli.main import cli
from icl_fast.errors import InputError
from icl_fast.runs import Run, parse_config
from icl_fast.training import Callback, TensorBoardCallback, WandbCallback, train
from icl_fast.training.callbacks import scalars

EXEMPLARS = {
    "exemplars": {"kind": "gaussian", "classes": 12, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 8, "label_pool": 5, "held_out_classes": 3, "held_out_label_pairs": 0.2},
    "model": {"width": 16, "heads": 4},
    "training": {"steps": 6, "batch": 4, "log_every": 3},
    "evaluation": {"every": 6, "sequences": 8},
    "snapshots": {"every": 3},
    "members": 2,
}


class Noting(Callback):
    """Notes all that it is told, once it is on disk."""

    def __init__(self, run: Path, *, fails_at: int = -1) -> None:
        self.run, self.fails_at = Run(run), fails_at
        self.told: list[tuple[Any, ...]] = []

    def on_start(self, run: Run) -> None:
        assert run.exists
        self.told.append(("start",))

    def on_log(self, step: int, values: dict[str, Any]) -> None:
        assert json.loads(json.dumps(self.run.read_log()[-1])) == json.loads(json.dumps({"step": step, **values}))
        self.told.append(("log", step))
        if step == self.fails_at:
            raise ZeroDivisionError("of a callback")

    def on_snapshot(self, step: int, path: Path) -> None:
        assert path == self.run.snapshot_path(step)
        self.run.load_snapshot(step)
        self.told.append(("snapshot", step))

    def on_end(self, run: Run) -> None:
        self.told.append(("end",))


@pytest.fixture
def values(tiny_values: dict[str, Any]) -> dict[str, Any]:
    values = copy.deepcopy(tiny_values)
    values["training"] |= {"steps": 6, "log_every": 2, "checkpoint_every": 3}
    values["snapshots"] = {"every": 3}
    return values


def test_on_text(values: dict[str, Any], tmp_path: Path) -> None:
    noting = Noting(tmp_path / "run")
    train(parse_config(values), tmp_path / "run", callbacks=[noting])
    logs, snapshots = [("log", step) for step in (2, 4, 6)], [("snapshot", step) for step in (0, 3, 6)]
    expected = [("start",), snapshots[0], logs[0], snapshots[1], logs[1], logs[2], snapshots[2], ("end",)]
    assert noting.told == expected


def test_on_exemplars(tmp_path: Path) -> None:
    noting = Noting(tmp_path / "run")
    train(parse_config(EXEMPLARS), tmp_path / "run", callbacks=[noting])
    assert noting.told == [
        ("start",), ("log", 0), ("snapshot", 0), ("log", 3), ("snapshot", 3), ("log", 6), ("log", 6), ("snapshot", 6),
        ("end",),
    ]  # fmt: skip


def test_one_that_raises_ends_the_training_which_goes_on_from_the_last_save(
    values: dict[str, Any], tmp_path: Path
) -> None:
    config = parse_config(values)
    failing, second = Noting(tmp_path / "run", fails_at=4), Noting(tmp_path / "run")
    with pytest.raises(ZeroDivisionError, match="of a callback"):
        train(config, tmp_path / "run", callbacks=[failing, second])
    assert ("log", 4) in failing.told
    assert ("log", 4) not in second.told
    assert ("end",) not in (*failing.told, *second.told)
    again = Noting(tmp_path / "run")
    resumed = train(config, tmp_path / "run", resume=True, callbacks=[again])
    assert again.told == [("start",), ("log", 4), ("log", 6), ("snapshot", 6), ("end",)]
    whole = train(config, tmp_path / "whole")
    for one, other in zip(resumed.read_log(), whole.read_log(), strict=True):
        assert one | {"tokens_per_second": 0} == other | {"tokens_per_second": 0}
    weights = (run.load_snapshot(6).model.state_dict() for run in (resumed, whole))
    assert all(torch.equal(*pair) for pair in zip(*(one.values() for one in weights), strict=True))


@pytest.mark.parametrize("callbacks", [5, [5], [Callback], Callback()])
def test_no_callbacks(values: dict[str, Any], tmp_path: Path, callbacks: Any) -> None:
    with pytest.raises(InputError, match=r"^callbacks: must be "):
        train(parse_config(values), tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()


def test_numbers_of_a_line() -> None:
    line = {"loss": [0.5], "lr": [1, 2], "evaluators": {"icl": {"accuracy": [0.1], "induction": [[[0.2], [0.3]]]}}}
    assert dict(scalars(line)) == {
        "loss": 0.5, "lr/0": 1, "lr/1": 2, "evaluators/icl/accuracy": 0.1,
        "evaluators/icl/induction/0": 0.2, "evaluators/icl/induction/1": 0.3,
    }  # fmt: skip


def test_tensorboard(values: dict[str, Any], tmp_path: Path) -> None:
    """What its own reader finds; of a run that was stopped and went on, each step once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, folder = parse_config(values), tmp_path / "board"
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "run", callbacks=[TensorBoardCallback(folder), Noting(tmp_path / "run", fails_at=4)])
    run = train(config, tmp_path / "run", resume=True, callbacks=[TensorBoardCallback(folder)])
    events = EventAccumulator(str(folder / "run")).Reload()
    logged = {line["step"]: line["loss"] for line in run.read_log()}
    assert [(event.step, pytest.approx(event.value)) for event in events.Scalars("loss")] == list(logged.items())
    assert {"icl_score", "lr", "tokens", "tokens_per_second"} <= set(events.Tags()["scalars"])


_WANDB = """
import sys
from icl_fast.runs import load_config
from icl_fast.training import WandbCallback, train

mode = sys.argv[1] if sys.argv[1:] else None
train(load_config("config.yaml"), "run", callbacks=[WandbCallback("lab", mode=mode, dir=".")])
"""


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_wandb_offline(values: dict[str, Any], tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wrote to be synced holds every loss, as JSON, and the project and the run's name."""
    pytest.importorskip("wandb")
    (tmp_path / "config.yaml").write_text(parse_config(values).to_yaml())
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "offline")
    command = [sys.executable, "-c", _WANDB, *(["offline"] if how == "argument" else [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = written.read_bytes()
    losses = [json.dumps(line["loss"]) for line in Run(tmp_path / "run").read_log()]
    assert len(losses) == 3
    for text in ("icl_score", "lab", "checkpoint_every", *losses):
        assert text.encode() in content


@pytest.mark.parametrize(("module", "make"), [
    ("tensorboard", lambda: TensorBoardCallback("board")), ("wandb", lambda: WandbCallback("lab")),
])  # fmt: skip
def test_not_installed(module: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(InputError, match=rf"^{module}: cannot be imported \(.*\); pip install 'icl_fast\[{module}\]'$"):
        make()


def test_nothing_of_it_is_imported_unasked() -> None:
    code = "import sys, icl_fast.training; print({'tensorboard', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_command(values: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "config.yaml").write_text(parse_config(values).to_yaml())

    def run(*arguments: str) -> None:
        result = CliRunner().invoke(cli, ["train", str(tmp_path / "config.yaml"), *arguments])
        assert result.exit_code == 0, result.output

    run("--out", str(tmp_path / "one"), "--tensorboard")
    run("--out", str(tmp_path / "two"), f"--tensorboard={tmp_path / 'board'}")
    run("--out", str(tmp_path / "many"), "--seeds", "2", "--tensorboard")
    for folder in ("tensorboard/one", "board/two", "tensorboard/many/seed-0", "tensorboard/many/seed-1"):
        assert len(list((tmp_path / folder).glob("events.out.tfevents.*"))) == 1


def test_command_without_the_package(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text(parse_config(values).to_yaml())
    monkeypatch.setitem(sys.modules, "wandb", None)
    command = ["train", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run"), "--wandb", "lab"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2
    assert result.output.startswith("error: --wandb: cannot be imported (")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wandb_that_is_not_logged_in(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; and the same command begins once it is."""
    pytest.importorskip("wandb")
    (tmp_path / "config.yaml").write_text(parse_config(values).to_yaml())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-m", "icl_fast", "train", "config.yaml", "--out", "run", "--wandb", "lab"]
    root = Path(icl_fast.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), *sys.path]))

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
        )

    refused = run()
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: --wandb: ")
    assert "Traceback" not in refused.stderr
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run().returncode == 0
