"""Learning rate and weight decay as functions of the step."""

from __future__ import annotations

import math
from typing import Protocol

from icl_fast.runs.text_config import OptimizerConfig


class RateSchedule(Protocol):
    """What of a config says how the learning rate goes."""

    @property
    def lr(self) -> float:
        """The rate after warm-up."""

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""

    @property
    def decay(self) -> str:
        """none, cosine or inverse_sqrt."""

    @property
    def steps(self) -> int:
        """Steps in all."""


def learning_rate(step: int, config: RateSchedule) -> float:
    """The rate of the update that leads from `step` to `step + 1` (0-based)."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "inverse_sqrt":
        return config.lr * math.sqrt(max(config.warmup, 1) / (step + 1))
    if config.decay == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))
    return config.lr


def weight_decay(step: int, config: OptimizerConfig) -> float:
    """The decay of the same update; it may change once (Olsson et al. 2022, Model Details: reduced at step 4,750)."""
    change = config.weight_decay_change_step
    return config.weight_decay if change is None or step < change else config.weight_decay_after
