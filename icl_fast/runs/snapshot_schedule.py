"""When snapshots are taken."""

from __future__ import annotations

import math
from typing import Literal

from icl_fast.schema import Config, Field

MOST_STEPS = 99_999_999  # of a run: names of snapshots have eight digits
MOST = 2**31 - 1  # of what is counted otherwise; a period may be longer than the run
_MOST_SNAPSHOTS = 100_000


class SnapshotSchedule(Config):
    """When snapshots are taken: at step 0, at the last step, and in between at equal or growing intervals."""

    schedule: Literal["linear", "exponential"] = "linear"
    every: int = Field(
        50, ge=1, le=MOST, description="linear: steps between snapshots; exponential: the first one after step 0"
    )
    factor: float = Field(2.0, gt=1.0, description="exponential: each snapshot's step over the one's before")


def snapshot_steps(steps: int, schedule: SnapshotSchedule) -> list[int]:
    """The steps after which a snapshot is taken, in order; always with 0 (the initial weights) and `steps`.

    Raises:
        ValueError: too many of them.
    """
    if steps <= schedule.every:
        return [0, steps]
    expected = steps / schedule.every
    if schedule.schedule == "exponential":
        expected = math.log(expected) / math.log(schedule.factor)
    if expected > _MOST_SNAPSHOTS:
        raise ValueError(
            f"snapshots.every {schedule.every}, schedule {schedule.schedule}, factor {schedule.factor}: "
            f"{expected:.3g} snapshots in training.steps {steps}, and at most {_MOST_SNAPSHOTS:,} can be; take fewer"
        )
    chosen = {0, steps}
    if schedule.schedule == "linear":
        chosen.update(range(schedule.every, steps, schedule.every))
    else:
        at = float(schedule.every)
        while at < steps and round(at) < steps:  # at first: it may be infinite
            chosen.add(round(at))
            at *= schedule.factor
    return sorted(chosen)
