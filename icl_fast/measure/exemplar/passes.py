"""Exemplar models run again with heads removed, values preserved, attention forced: what all their ablations share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.strategies import (
    Answers,
    EmbeddedChunk,
    EmbeddedEvaluators,
    RunningMeans,
    StrategyMetrics,
    join_answers,
    score_answers,
)
from icl_fast.models import Clamps, ExemplarTransformer
from icl_fast.models.clamps import Head, check_heads
from icl_fast.models.exemplar_inference import Activations, ExemplarInference, Preservable


@dataclass(frozen=True)
class SecondPass:
    """What differs from the first pass; nothing by default (Singh 2025, Fig 4.2: pattern-preserving ablation).

    Attributes:
        heads: `[L, H]`, or `[P, L, H]`: what the heads' outputs are multiplied by, on top of what the clamps say.
        embedding: what the stream before the first layer is multiplied by.
        preserve: what attention takes from the first pass, in every layer and head.
        query_pattern: from the first pass and its sequences, `[P, H, T, B]`: where the query attends in the last layer.
    """

    heads: Tensor | None = None
    embedding: float = 1.0
    preserve: tuple[Preservable, ...] = ()
    query_pattern: Callable[[Activations, EmbeddedChunk], Tensor] | None = None


def without_heads(model: ExemplarTransformer, heads: Sequence[Head]) -> Tensor:
    """`[L, H]`, 0 at these heads, 1 elsewhere.

    Raises:
        InputError: a head that the model does not have.
    """
    check_heads(model.config, heads)
    kept = torch.ones(model.config.layers, model.config.heads)
    for layer, head in heads:
        kept[layer, head] = 0
    return kept


def only_head(model: ExemplarTransformer, layer: int, head: int) -> Tensor:
    """`[L, H]`, 0 at all other heads of this head's layer, 1 elsewhere; a negative layer counts from the last."""
    layer %= model.config.layers
    return without_heads(model, [(layer, other) for other in range(model.config.heads) if other != head])


def answers_again(
    model: ExemplarTransformer,
    features: Tensor,
    evaluator: EvaluationSequences,
    passes: Sequence[SecondPass],
    clamps: Clamps | None = None,
    *,
    chunk: int | None = None,
) -> Answers:
    """How A second passes answer an evaluator's sequences; a first pass a chunk serves them all.

    Args:
        features: `[K, E, F]`.
        evaluator: with fields `[P, N, ...]`, or `[N, ...]` for all members.
        clamps: what is forced in both passes.
        chunk: sequences at a time; by default as many as stay in cache.

    Returns:
        `[A, P, N]` each; `answered` is `[P, N]`.

    Raises:
        InputError: no pass; features, members or pairs that do not fit the model.
    """
    return join_answers(list(_answers(model, features, evaluator, passes, clamps, chunk)))


def means_again(
    model: ExemplarTransformer,
    features: Tensor,
    evaluator: EvaluationSequences,
    passes: Sequence[SecondPass],
    clamps: Clamps | None = None,
    *,
    chunk: int | None = None,
) -> StrategyMetrics:
    """The means of `answers_again` over the sequences, `[A, P]` each, in the memory of a chunk."""
    means = RunningMeans()
    for answers in _answers(model, features, evaluator, passes, clamps, chunk):
        means.add_answers(answers)
    return means.metrics


@torch.inference_mode()
def _answers(
    model: ExemplarTransformer,
    features: Tensor,
    evaluator: EvaluationSequences,
    passes: Sequence[SecondPass],
    clamps: Clamps | None,
    chunk: int | None,
) -> Iterator[Answers]:
    if not passes:
        raise InputError("passes: none given")
    embedded = EmbeddedEvaluators(model, features, [evaluator], chunk)
    run = ExemplarInference(model, clamps)
    for part in embedded.chunks(evaluator):
        base = run.first(part.exemplars, part.labels, part.target)
        scored, shared, ending = [], None, None
        for again in passes:
            heads = run.clamps.heads if again.heads is None else run.clamps.heads * again.heads.to(run.clamps.heads)
            key = heads[:, :-1].cpu().numpy().tobytes(), again.embedding, again.preserve, again.query_pattern
            if ending is None or key != shared:  # neighbours that differ in the last layer's heads alone share the rest
                pattern = None if again.query_pattern is None else again.query_pattern(base, part)
                shared, ending = key, run.ending(base, heads, again.embedding, again.preserve, pattern)
            scored.append(score_answers(run.output(base, ending, heads), part))
        yield _stacked(scored)


def _stacked(passes: Sequence[Answers]) -> Answers:
    values = {field.name: torch.stack([getattr(one, field.name) for one in passes]) for field in fields(Answers)}
    return Answers(**{**values, "answered": passes[0].answered})
