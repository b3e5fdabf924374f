"""The sequences of steps: the same whatever calls they are asked for in, and however many are drawn at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_fast.data import gaussian_classes, training_sequences
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.training.exemplar_draws import Drawer, Draws

BATCH, STEPS, FEATURES = 3, 12, 5
CONFIGS = [SequenceConfig(seed=seed, classes=30, exemplars=2, noise=0.1, held_out_classes=0) for seed in (0, 7)]


class Noting:
    """A sampler that plays one on a device, and notes how many sequences it draws."""

    def __init__(self, device: str) -> None:
        exemplars = gaussian_classes(30, 2, FEATURES)
        self._sampler = training_sequences(CONFIGS, exemplars)
        self.device, self.counts = torch.device(device), list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def draw(self, start: int, count: int) -> Any:
        self.counts.append(count)
        return self._sampler.draw(start, count)


def equal(some: Draws, others: Draws) -> bool:
    """Draws and, where there is any, noise."""
    names = ("classes", "exemplars", "labels", "target")
    same = all(torch.equal(getattr(some, name), getattr(others, name)) for name in names)
    if some.noise is None or others.noise is None:
        return same and some.noise is others.noise
    return same and all(torch.equal(some.noise(i), others.noise(i)) for i in range(len(some)))


@settings(max_examples=20)
@given(calls=st.lists(st.tuples(st.integers(0, STEPS - 1), st.integers(1, STEPS)), min_size=1, max_size=6))
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("noise", [0, FEATURES])
def test_steps_do_not_depend_on_the_calls(device: str, noise: int, calls: list[tuple[int, int]]) -> None:
    drawer = Drawer(Noting(device), BATCH, STEPS, noise)  # type: ignore[arg-type]
    for step, count in calls:
        fresh = Drawer(Noting("cpu"), BATCH, STEPS, noise)(step, count)  # type: ignore[arg-type]
        drawn = drawer(step, count)
        assert len(drawn) == count
        assert drawn.classes.shape[:3] == (count, len(CONFIGS), BATCH)
        assert equal(drawn, fresh)


def test_a_gpu_draws_ahead_and_a_cpu_does_not() -> None:
    sampler = Noting("cuda")
    drawer = Drawer(sampler, BATCH, STEPS)  # type: ignore[arg-type]
    for step in range(0, STEPS, 4):
        drawer(step, 4)
    assert sampler.counts == [STEPS * BATCH]
    drawer(2, 3)  # steps that are gone by are still there
    drawer(STEPS - 1, 3)
    assert sampler.counts == [STEPS * BATCH, 3 * BATCH]
    drawer.most = 5
    drawer(0, 2), drawer(2, 3), drawer(5, 4)
    assert sampler.counts[2:] == [5 * BATCH, 5 * BATCH]
    sampler = Noting("cpu")
    drawer = Drawer(sampler, BATCH, STEPS)  # type: ignore[arg-type]
    drawer(0, 4), drawer(4, 2)
    assert sampler.counts == [4 * BATCH, 2 * BATCH]
