"""What a training costs in arithmetic, where its minutes were not measured."""

from __future__ import annotations

from icl_fast.runs import ExemplarRunConfig, RunConfig
from icl_fast.training.plan import plan_training

FLOPS = 1e14  # a second, in which hours are counted: a large GPU at a part of its peak


def gpu_hours(configs: list[RunConfig]) -> float:
    """Hours of a GPU that makes `FLOPS` floating-point operations a second: products of training, encoders left out."""
    return sum(map(_operations, configs)) / FLOPS / 3600


def _operations(config: RunConfig) -> float:
    if not isinstance(config, ExemplarRunConfig):
        return plan_training(config).flops
    # 3 forward passes a step, 2 operations a weight and token, attention to half of the context on average
    shape, training = config.model, config.training
    context = 2 * config.sequences.pairs + 1
    tokens = context * training.batch * config.member_count
    outputs = config.sequences.classes or config.exemplars.classes
    inner, hidden = shape.heads * shape.d_head, shape.mlp_ratio * shape.width * shape.mlp
    weights = shape.layers * (4 * shape.width * inner + 2 * shape.width * hidden) + shape.width * outputs
    return 3.0 * training.steps * tokens * (2 * weights + 2 * shape.layers * context * inner)
