"""A sweep's Dataset from losses that a test makes up, put together by the same code as a real one's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import xarray as xr

from icl_fast.data import EvaluationSet
from icl_fast.measure import AblationOptions
from icl_fast.measure.ablation.dataset import sweep_dataset
from icl_fast.measure.ablation.plan import make_plan
from icl_fast.measure.ablation.sums import LossSums
from icl_fast.models import TransformerConfig

LAYERS, HEADS = 2, 2
MadeSweep = Callable[..., xr.Dataset]


@pytest.fixture(scope="session")
def made_sweep() -> MadeSweep:
    def make(
        losses: np.ndarray,  # [snapshot, 1 + ablation, example, position] nats, the whole model first
        steps: Sequence[int],
        *,
        mode: str = "pattern-preserving",
        text: str = "text",
        preserve_heads: str | None = None,
    ) -> xr.Dataset:
        _, _, count, context = losses.shape
        tokens = torch.zeros(count, context, dtype=torch.int64)
        random_position = torch.arange(count) % context + 1
        config = TransformerConfig(vocab=50, layers=LAYERS, width=8, heads=HEADS, context=context)
        evaluation = EvaluationSet(tokens, tokens, random_position, text)
        options = AblationOptions(mode=mode, positions="all", preserve_heads=preserve_heads)
        plan = make_plan(config, evaluation, options)
        (early,), (late,) = plan.positions.of_score
        parts = []
        for of_snapshot in losses.astype(np.float64):
            effects, scores = of_snapshot - of_snapshot[:1], of_snapshot[..., late - 1] - of_snapshot[..., early - 1]
            parts.append(
                LossSums(
                    sums=of_snapshot.sum(1),
                    squares=(of_snapshot**2).sum(1),
                    effect_squares=(effects**2).sum(1),
                    score_squares=(scores**2).sum(1),
                    score_effect_squares=((scores - scores[:1]) ** 2).sum(1),
                    example_loss=of_snapshot[:, np.arange(count), random_position.numpy() - 1].astype(np.float32),
                )
            )
        return sweep_dataset(parts, plan, steps, [step * 100 for step in steps])

    return make


@pytest.fixture(scope="session")
def token_losses() -> np.ndarray:
    """[3 snapshots, 1 + 4 heads, 12 examples, 32 positions] nats."""
    return np.random.default_rng(0).gamma(4.0, 0.8, (3, 1 + LAYERS * HEADS, 12, 32))
