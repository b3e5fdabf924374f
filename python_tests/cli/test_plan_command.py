"""`icl-fast plan`: what it prints, as text and as JSON; bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from icl_fast.cli.main import cli
from icl_fast.cli.plan import plan
from icl_fast.training.plan import GPUS

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = str(CONFIGS / "paper" / "two_layer.yaml")


def test_what_it_prints() -> None:
    done = CliRunner().invoke(cli, ["plan", CONFIG, "--gpus", "8", "--set", "training.parallel=fsdp"])
    assert done.exit_code == 0
    said = done.output
    assert said.startswith("two_layer.yaml: 111,677,952 parameters, 4,718,592 of them in the layers' matrices\n")
    assert "10,485,760,000 tokens, 10,000 steps of 128 x 8192: 4.26e+18 FLOP" in said
    assert "40% of its 989 TFLOP/s in bfloat16 (that share is assumed, not measured: --share), 0.373 hours on 8" in said
    assert "201 snapshots of 426 MiB" in said
    rows = [
        line.strip().partition("  ")[0] for line in said.splitlines() if line.count(" GiB") + line.count(" MiB") == 5
    ]
    assert rows == ["ddp", "ddp, checkpointed", "fsdp, as configured", "fsdp, checkpointed"]
    assert "24 heads removed, 201 snapshots, 10,000 examples: 4,824 ablations" in said


def test_hours_follow_the_share_the_gpu_and_the_precision() -> None:
    def hours(*options: str) -> float:
        done = CliRunner().invoke(cli, ["plan", CONFIG, "--json", *options])
        facts = json.loads(done.output)
        assert facts["gpu_hours"] == facts["flops"] / facts["peak_flops"] / facts["assumed_share"] / 3600
        return float(facts["gpu_hours"])

    assert hours("--share", "0.2") == pytest.approx(2 * hours())
    assert hours("--gpu", "a100") == pytest.approx(hours() * 989 / 312)
    assert hours("--set", "training.precision=float32") == pytest.approx(hours() * 989 / 67)


def test_every_gpu_can_be_named() -> None:
    (choices,) = (option.type.choices for option in plan.params if option.name == "gpu")
    assert set(choices) == set(GPUS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(CONFIGS / "exemplars" / "chapter4.yaml")], "chapter4.yaml: trains on exemplars; plan is of trainings on"),
        ([CONFIG, "--gpus", "0"], "--gpus: must be 1 or more, got 0"),
        (
            [CONFIG, "--gpus", "3"],
            "--gpus: 3 x training.accumulate 4 = 12 parts, and training.batch 128 is no multiple",
        ),
        ([CONFIG, "--share", "1.5"], "--share: must be at most 1, got 1.5"),
        ([CONFIG, "--gpu", "tpu"], "--gpu: 'tpu' is not one of 'a100', 'h100', 'h200'"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["plan", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
