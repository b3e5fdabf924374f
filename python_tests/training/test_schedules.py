"""Learning rate, weight decay and snapshot steps against their definitions."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_fast import InputError
from icl_fast.runs import parse_config
from icl_fast.runs.snapshot_schedule import SnapshotSchedule, snapshot_steps
from icl_fast.runs.text_config import OptimizerConfig
from icl_fast.training.schedules import learning_rate, weight_decay


def test_warmup_rises_linearly_and_reaches_the_rate() -> None:
    config = OptimizerConfig(lr=1.0, warmup=4, steps=10)
    assert [learning_rate(step, config) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(0, OptimizerConfig(lr=1.0, warmup=0)) == 1.0


def test_decays() -> None:
    root = OptimizerConfig(lr=1.0, warmup=4, steps=100, decay="inverse_sqrt")
    assert learning_rate(3, root) == 1.0
    assert learning_rate(15, root) == pytest.approx(0.5)
    cosine = OptimizerConfig(lr=1.0, warmup=0, steps=100, decay="cosine")
    assert learning_rate(50, cosine) == pytest.approx(0.5)
    assert learning_rate(99, cosine) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


def test_weight_decay_changes_once() -> None:
    config = OptimizerConfig(weight_decay=0.1, weight_decay_change_step=3, weight_decay_after=0.02)
    assert [weight_decay(step, config) for step in range(5)] == [0.1, 0.1, 0.1, 0.02, 0.02]
    assert weight_decay(10**6, OptimizerConfig(weight_decay=0.1)) == 0.1


def test_snapshot_steps_by_hand() -> None:
    assert snapshot_steps(10, SnapshotSchedule(every=4)) == [0, 4, 8, 10]
    assert snapshot_steps(8, SnapshotSchedule(every=4)) == [0, 4, 8]
    assert snapshot_steps(100, SnapshotSchedule(schedule="exponential", every=2)) == [0, 2, 4, 8, 16, 32, 64, 100]


@given(
    st.integers(1, 3000),
    st.sampled_from(["linear", "exponential"]),
    st.integers(1, 4000),
    st.floats(1.01, 10.0),
)
def test_snapshots_reach_from_first_to_last(steps: int, schedule: str, every: int, factor: float) -> None:
    chosen = snapshot_steps(steps, SnapshotSchedule(schedule=schedule, every=every, factor=factor))  # type: ignore[arg-type]
    assert chosen[0] == 0
    assert chosen[-1] == steps
    assert chosen == sorted(set(chosen))


@pytest.mark.parametrize(
    ("steps", "schedule", "expected"),
    [
        (99_999_999, {"every": 1}, "1e+08"),
        (10**6 + 10, {"every": 10}, "1e+05"),
        (99_999_999, {"schedule": "exponential", "every": 1, "factor": 1 + 2**-52}, "8.3e+16"),
        (12, {"schedule": "exponential", "every": 2, "factor": 1.0000001}, "1.79e+07"),
    ],
)
def test_snapshots_without_end(steps: int, schedule: dict[str, Any], expected: str) -> None:
    said = (
        rf"^snapshots.every .*: {re.escape(expected)} snapshots in training.steps {steps}, and at most 100,000 can be"
    )
    with pytest.raises(ValueError, match=said):
        snapshot_steps(steps, SnapshotSchedule(**schedule))
    for task in ({}, {"sequences": {}}):
        with pytest.raises(InputError, match=r"^config: snapshots\.every .*; take fewer$"):
            parse_config({**task, "training": {"steps": steps}, "snapshots": schedule})


def test_few_snapshots_of_any_run() -> None:
    assert snapshot_steps(99_999_999, SnapshotSchedule(schedule="exponential", factor=1e308)) == [0, 50, 99_999_999]
    assert snapshot_steps(12, SnapshotSchedule(every=2**31 - 1)) == [0, 12]
    assert len(snapshot_steps(10**6, SnapshotSchedule(every=10))) == 100_001
