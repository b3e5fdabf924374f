"""The training step in JAX is ours: losses and weights after steps that change them, alone and in a population."""

from __future__ import annotations

from dataclasses import replace

import bench_exemplar_training as bench
import harness
import pytest
import torch
from harness import Maker, Options

QUICK = Options(threads=1, quick=True, compile=False, memory=False)


@pytest.mark.parametrize(
    ("setting", "members", "scan"), [("chapter4", 1, False), ("chapter4", 2, True), ("chapter5", 1, True)]
)
def test_the_same_steps(setting: str, members: int, scan: bool) -> None:
    pytest.importorskip("jax")
    x = bench.make(Maker("cpu", torch.float32, 0), bench.configured(setting, members, QUICK))
    mine, theirs = bench.Torch(x, 5, "plain"), bench.Jax(x, 5, scan=scan)
    start = {name: weight.detach().clone() for name, weight in mine.engine.model.named_parameters()}
    for _ in range(2):  # the second call goes on
        with torch.enable_grad():
            losses = mine()
        torch.testing.assert_close(theirs(), losses, rtol=1e-5, atol=1e-5)
    found = theirs.run.weights()
    for name, weight in mine.engine.model.named_parameters():
        moved = weight.detach() - start[name]
        assert moved.abs().max() > 2e-3, name
        torch.testing.assert_close(torch.from_numpy(found[name]) - start[name], moved, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("setting", ["chapter4", "chapter5"])
def test_a_candidate_that_learns_otherwise_is_told(setting: str) -> None:
    """The losses that are compared change with the updates by more than is allowed."""
    x = bench.make(Maker("cpu", torch.float32, 0), bench.configured(setting, 1, QUICK))
    mine, slower = bench.Torch(x, 3, "plain"), bench.Torch(x, 3, "plain")
    training = slower.engine.task.training
    slower.engine.task = replace(slower.engine.task, training=training.model_copy(update={"lr": 0.9 * training.lr}))
    with torch.enable_grad():
        right, wrong = mine(), slower()
    with pytest.raises(harness.WrongResult):
        harness.check(wrong, [right], torch.float32)
