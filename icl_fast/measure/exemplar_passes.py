"""Exemplar models run again with heads removed, values preserved, attention forced: what all their ablations share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.errors import InputError
from icl_fast.models import Clamps, ExemplarTransformer
from icl_fast.models.clamps import Head
from icl_fast.models.exemplar_inference import Activations, ExemplarInference, Preservable
from icl_fast.training.strategies import Answers, EmbeddedChunk, EmbeddedEvaluators, join_answers, score_answers


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
    kept = torch.ones(model.config.layers, model.config.heads)
    for layer, head in heads:
        if not (0 <= layer < model.config.layers and 0 <= head < model.config.heads):
            raise InputError(
                f"head {layer}.{head}: the model has layers 0 to {model.config.layers - 1}, heads 0 to "
                f"{model.config.heads - 1}"
            )
        kept[layer, head] = 0
    return kept


def only_head(model: ExemplarTransformer, layer: int, head: int) -> Tensor:
    """`[L, H]`, 0 at all other heads of this head's layer, 1 elsewhere; a negative layer counts from the last."""
    layer %= model.config.layers
    return without_heads(model, [(layer, other) for other in range(model.config.heads) if other != head])


@torch.inference_mode()
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
    if not passes:
        raise InputError("passes: none given")
    embedded = EmbeddedEvaluators(model, features, [evaluator], chunk)
    run = ExemplarInference(model, clamps)
    parts = []
    for part in embedded.chunks(evaluator):
        base = run.first(part.exemplars, part.labels, part.target)
        scored = []
        for again in passes:
            heads = None if again.heads is None else run.clamps.heads * again.heads.to(run.clamps.heads)
            pattern = None if again.query_pattern is None else again.query_pattern(base, part)
            logits = run.again(
                base, heads=heads, embedding=again.embedding, preserve=again.preserve, query_pattern=pattern
            )
            scored.append(score_answers(logits, part))
        parts.append(_stacked(scored))
    return join_answers(parts)


def _stacked(passes: Sequence[Answers]) -> Answers:
    values = {field.name: torch.stack([getattr(one, field.name) for one in passes]) for field in fields(Answers)}
    return Answers(**{**values, "answered": passes[0].answered})
