"""What a training costs in arithmetic, where its minutes were not measured."""

from __future__ import annotations

from icl_fast.runs import ExemplarRunConfig, RunConfig

FLOPS = 1e14  # a second, in which hours are counted: a large GPU at a part of its peak


def gpu_hours(configs: list[RunConfig]) -> float:
    """Hours of a GPU that makes `FLOPS` floating-point operations a second: products of training, encoders left out."""
    return sum(map(_operations, configs)) / FLOPS / 3600


def _operations(config: RunConfig) -> float:
    """3 forward passes a step, 2 operations a weight and token, attention to half of the context on average."""
    shape, training = config.model, config.training
    if isinstance(config, ExemplarRunConfig):
        context, members = 2 * config.sequences.pairs + 1, config.member_count
        outputs, tokens = config.sequences.classes or config.exemplars.classes, context * training.batch * members
    else:
        context, outputs = config.data.context, config.data.vocab
        tokens = context * training.batch
    inner, hidden = shape.heads * shape.d_head, shape.mlp_ratio * shape.width * shape.mlp
    weights = shape.layers * (4 * shape.width * inner + 2 * shape.width * hidden) + shape.width * outputs
    return 3.0 * training.steps * tokens * (2 * weights + 2 * shape.layers * context * inner)
