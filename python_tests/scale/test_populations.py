"""The members of a population on several workers: the run folder of one process, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from icl_fast import InputError
from icl_fast.ops import _backend
from icl_fast.runs import RunConfig, parse_config
from icl_fast.scale import Runner
from icl_fast.training import train

from .conftest import Scrambled, contents

MEMBERS = [
    {"name": "free"},
    {"name": "fewer labels", "set": {"sequences.classes": 10}},
    {"name": "fast", "set": {"training.lr": 2e-2, "training.l2": 1e-3}},
    {"name": "one head", "set": {"interventions.only_heads": ["1.1"]}},
    {"name": "clamped", "set": {"interventions.clamps": ["match"]}},
]
fused = pytest.mark.skipif(not _backend.compiled(), reason="the fused engine is not built here")


def config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
        "sequences": {"classes": 20},
        "model": {"width": 16, "heads": 4},
        "training": {"steps": 12, "batch": 8, "lr": 1e-2, "log_every": 4, "checkpoint_every": 5},
        "evaluation": {"every": 6, "sequences": 40},
        "snapshots": {"every": 6},
        "members": MEMBERS,
    }
    values["training"] |= changes.pop("training", {})
    return parse_config(values | changes)


@fused
def test_members_are_what_they_are_in_one_process(tmp_path: Path) -> None:
    here = train(config(), tmp_path / "here")
    runner = Scrambled(Random(0))
    there = train(config(), tmp_path / "there", runner=runner)
    assert runner.lost
    assert contents(there.path) == contents(here.path)
    losses = [json.loads(line)["loss"] for line in (here.path / "log.jsonl").read_text().splitlines() if "lr" in line]
    assert len({*losses[-1]}) == 5  # all differ


@fused
def test_gone_on_with_elsewhere(tmp_path: Path, on_ray: Runner) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    whole = contents(train(config(), here).path)

    def stop(at: Any) -> None:
        if at.step >= 10:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(config(), there, runner=on_ray, on_progress=stop)
    middle = train(config(), there, runner=Scrambled(Random(1)), resume=True)
    assert contents(middle.path) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 1}, "ray: shares out the members of a population, and this config has one; leave it out"),
        ({"training": {"engine": "plain"}}, "ray: members are shared out with the fused engine, and this config takes"),
    ],
)
def test_what_cannot_be_shared_out(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        train(config(**changes), tmp_path / "run", runner=Scrambled(Random(0)))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_text_is_not_shared_out(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^ray: shares out the members of a population on exemplars; this config"):
        train(parse_config(tiny_values), tmp_path / "run", runner=Scrambled(Random(0)))
    assert not (tmp_path / "run").exists()
