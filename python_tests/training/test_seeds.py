"""One training with several seeds: each run as it is alone; resumed; what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from icl_fast.cli.main import cli
from icl_fast.errors import InputError
from icl_fast.runs import Run, parse_config
from icl_fast.training import TrainingProgress, train, train_seeds


@pytest.fixture
def values(tiny_values: dict[str, Any]) -> dict[str, Any]:
    values = copy.deepcopy(tiny_values)
    values["training"] |= {"steps": 4, "log_every": 2, "checkpoint_every": 2, "seed": 7}
    values["snapshots"] = {"every": 4}
    return values


def with_seed(values: dict[str, Any], seed: int) -> dict[str, Any]:
    return values | {"training": values["training"] | {"seed": seed}}


def same_weights(one: Run, other: Run) -> bool:
    states = (run.load_snapshot(4).model.state_dict() for run in (one, other))
    return all(torch.equal(*pair) for pair in zip(*(state.values() for state in states), strict=True))


def test_each_as_alone(values: dict[str, Any], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    runs = train_seeds(
        parse_config(values), tmp_path / "many", np.int64(3), on_progress=lambda seed, at: seen.append((seed, at.step))
    )
    assert [run.path for run in runs] == [tmp_path / "many" / f"seed-{seed}" for seed in range(3)]
    for seed, run in enumerate(runs):
        alone = train(parse_config(with_seed(values, seed)), tmp_path / f"alone{seed}")
        assert run.config == alone.config
        assert same_weights(run, alone)
    assert not same_weights(runs[0], runs[1])
    assert seen == [(seed, step) for seed in range(3) for step in (0, 2, 4) if step]


def test_stopped_and_resumed(values: dict[str, Any], tmp_path: Path) -> None:
    config, out = parse_config(values), tmp_path / "many"

    def stop(seed: int, at: TrainingProgress) -> None:
        if (seed, at.step) == (1, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_seeds(config, out, 3, on_progress=stop)
    assert not (out / "seed-2").exists()
    with pytest.raises(InputError, match=r"seed-0: exists and is not empty; use --resume"):
        train_seeds(config, out, 3)
    first = Run(out / "seed-0").snapshot_path(4).stat().st_mtime_ns
    runs = train_seeds(config, out, 3, resume=True)
    assert Run(out / "seed-0").snapshot_path(4).stat().st_mtime_ns == first
    for run, whole in zip(runs, train_seeds(config, tmp_path / "whole", 3), strict=True):
        assert same_weights(run, whole)
    other = parse_config(values | {"training": values["training"] | {"lr": 0.5}})
    with pytest.raises(InputError, match=r"^--resume: .*seed-0 was begun with other values of training.lr"):
        train_seeds(other, out, 4, resume=True)
    assert not (out / "seed-3").exists()


@pytest.mark.parametrize("seeds", [0, -1, True, 2.0, "2", 1001])
def test_no_number_of_seeds(values: dict[str, Any], tmp_path: Path, seeds: Any) -> None:
    with pytest.raises(InputError, match=r"^seeds: must be "):
        train_seeds(parse_config(values), tmp_path / "many", seeds)
    assert not (tmp_path / "many").exists()


def test_command(values: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "many"

    def run(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["train", str(config), "--out", str(out), *map(str, arguments)])
        return result.exit_code, result.output

    code, said = run("--seeds", 2, "--set", "training.seed=3")
    assert (code, said) == (2, "error: --seeds: is 0, 1, ... for training.seed; leave --set training.seed out\n")
    assert not out.exists()
    code, said = run("--seeds", 2)
    assert code == 0
    assert said.endswith("".join(f"2 snapshots in {out}/seed-{seed}/snapshots\n" for seed in (0, 1)))
    assert run("--seeds", 2)[0] == 2
    code, said = run("--seeds", 3, "--resume")
    assert code == 0
    assert Run(out / "seed-2").snapshot_steps() == [0, 4]
    exemplars = tmp_path / "exemplars.yaml"
    exemplars.write_text(yaml.safe_dump({"exemplars": {"kind": "gaussian"}}))
    result = CliRunner().invoke(cli, ["train", str(exemplars), "--seeds", "2"])
    assert result.exit_code == 2
    assert result.output.endswith("trains on exemplars, whose seeds train side by side: --set members=2\n")
