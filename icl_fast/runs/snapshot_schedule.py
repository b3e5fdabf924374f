"""When snapshots are taken."""

from __future__ import annotations

from typing import Literal

from icl_fast.schema import Config, Field


class SnapshotSchedule(Config):
    """When snapshots are taken: at step 0, at the last step, and in between at equal or growing intervals."""

    schedule: Literal["linear", "exponential"] = "linear"
    every: int = Field(50, ge=1, description="linear: steps between snapshots; exponential: the first one after step 0")
    factor: float = Field(2.0, gt=1.0, description="exponential: each snapshot's step over the one's before")


def snapshot_steps(steps: int, schedule: SnapshotSchedule) -> list[int]:
    """The steps after which a snapshot is taken, in order; always with 0 (the initial weights) and `steps`."""
    chosen = {0, steps}
    if schedule.schedule == "linear":
        chosen.update(range(schedule.every, steps, schedule.every))
    else:
        at = float(schedule.every)
        while round(at) < steps:
            chosen.add(round(at))
            at *= schedule.factor
    return sorted(chosen)
