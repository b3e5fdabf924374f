"""What heads, connections and the embedding contribute in exemplar models (Singh 2025, 4.3, 5.4, 5.5.3).

All functions take a model of P members, features `[K, E, F]`, an evaluator's sequences and clamps that hold in every
pass, and return `StrategyMetrics`; `InputError` as in `answers_again`.
"""

from __future__ import annotations

from operator import itemgetter

import torch
from torch import Tensor

from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.measure.exemplar.passes import SecondPass, means_again, only_head, without_heads
from icl_fast.measure.exemplar.strategies import StrategyMetrics
from icl_fast.models import Clamps, ExemplarTransformer
from icl_fast.models.exemplar_inference import Preservable

_DIRECT: tuple[Preservable, ...] = ("pattern", "v")


def knock_out_each_head(
    model: ExemplarTransformer, features: Tensor, evaluator: EvaluationSequences, clamps: Clamps | None = None
) -> StrategyMetrics:
    """Every head removed alone, the rest recomputed (Fig 4.5a, triangles): `[L, H, P]`."""
    layers, heads = model.config.layers, model.config.heads
    passes = [SecondPass(without_heads(model, [(layer, head)])) for layer in range(layers) for head in range(heads)]
    return _reshaped(means_again(model, features, evaluator, passes, clamps), (layers, heads))


def keep_one_head(
    model: ExemplarTransformer,
    features: Tensor,
    evaluator: EvaluationSequences,
    clamps: Clamps | None = None,
    *,
    layer: int = -1,
) -> StrategyMetrics:
    """All heads of a layer, by default the last, removed but one (Fig 4.5a, circles): `[H, P]`."""
    passes = [SecondPass(only_head(model, layer, head)) for head in range(model.config.heads)]
    return means_again(model, features, evaluator, passes, clamps)


def cut_output_connections(
    model: ExemplarTransformer, features: Tensor, evaluator: EvaluationSequences, clamps: Clamps | None = None
) -> StrategyMetrics:
    """Each layer's heads removed from what the output reads, patterns and values preserved (Fig 4.4): `[L, P]`."""
    heads = range(model.config.heads)
    passes = [
        SecondPass(without_heads(model, [(layer, head) for head in heads]), preserve=_DIRECT)
        for layer in range(model.config.layers)
    ]
    return means_again(model, features, evaluator, passes, clamps)


def composition(
    model: ExemplarTransformer, features: Tensor, evaluator: EvaluationSequences, clamps: Clamps | None = None
) -> dict[str, StrategyMetrics]:
    """All heads before the last layer removed, its queries, keys and values preserved but for one kind (5.5.3).

    Returns:
        "whole" (nothing removed), "all preserved", "all but q", "all but k", "all but v", "none preserved": `[P]` each.
    """
    kept = torch.ones(model.config.layers, model.config.heads)
    kept[:-1] = 0
    preserved: dict[str, tuple[Preservable, ...]] = {
        "all preserved": ("q", "k", "v"),
        "all but q": ("k", "v"),
        "all but k": ("q", "v"),
        "all but v": ("q", "k"),
        "none preserved": (),
    }
    passes = [SecondPass(), *(SecondPass(kept, preserve=preserve) for preserve in preserved.values())]
    return _named(["whole", *preserved], means_again(model, features, evaluator, passes, clamps))


def embedding_path(
    model: ExemplarTransformer, features: Tensor, evaluator: EvaluationSequences, clamps: Clamps | None = None
) -> dict[str, StrategyMetrics]:
    """The path from the embedding to the unembedding, which heads take no part in (5.4).

    Returns:
        "whole"; "alone": all heads removed; "removed": the embedding zeroed, patterns and values preserved: `[P]` each.
    """
    alone = SecondPass(torch.zeros(model.config.layers, model.config.heads))
    passes = [SecondPass(), alone, SecondPass(embedding=0.0, preserve=_DIRECT)]
    return _named(["whole", "alone", "removed"], means_again(model, features, evaluator, passes, clamps))


def _named(names: list[str], metrics: StrategyMetrics) -> dict[str, StrategyMetrics]:
    return {name: metrics.mapped(itemgetter(number)) for number, name in enumerate(names)}


def _reshaped(metrics: StrategyMetrics, shape: tuple[int, ...]) -> StrategyMetrics:
    return metrics.mapped(lambda values: values.view(*shape, *values.shape[1:]))
