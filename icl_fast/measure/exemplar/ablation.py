"""What heads, connections and the embedding contribute in exemplar models (Singh 2025, 4.3, 5.4, 5.5.3).

All functions take a `MeasuredModel` of P members and return the `StrategyMetrics` of second passes over its sequences.
"""

from __future__ import annotations

from operator import itemgetter

from icl_fast.measure.ablation.modes import MODES
from icl_fast.measure.exemplar.answers import StrategyMetrics
from icl_fast.measure.exemplar.measured_model import MeasuredModel, SecondPass, only_head, without_heads
from icl_fast.models import Preservable


def knock_out_each_head(measured: MeasuredModel) -> StrategyMetrics:
    """Every head removed alone, the rest recomputed (Fig 4.5a, triangles): `[L,H,P]`."""
    config = measured.model.config
    heads = [(layer, head) for layer in range(config.layers) for head in range(config.heads)]
    passes = [SecondPass(without_heads(config, [head])) for head in heads]
    return _reshaped(measured.second_pass_means(passes), (config.layers, config.heads))


def keep_one_head(measured: MeasuredModel, *, layer: int = -1) -> StrategyMetrics:
    """All heads of a layer, by default the last, removed but one (Fig 4.5a, circles): `[H,P]`."""
    config = measured.model.config
    passes = [SecondPass(only_head(config, layer, head)) for head in range(config.heads)]
    return measured.second_pass_means(passes)


def cut_output_connections(measured: MeasuredModel) -> StrategyMetrics:
    """Each layer's heads removed from what the output reads, patterns and values preserved (Fig 4.4): `[L,P]`."""
    config = measured.model.config
    passes = [
        SecondPass(without_heads(config, [(layer, head) for head in range(config.heads)]), preserve=MODES["direct"])
        for layer in range(config.layers)
    ]
    return measured.second_pass_means(passes)


def composition(measured: MeasuredModel) -> dict[str, StrategyMetrics]:
    """All heads before the last layer removed, its queries, keys and values preserved but for one kind (5.5.3).

    Returns:
        "whole" (nothing removed), "all preserved", "all but q", "all but k", "all but v", "none preserved": `[P]` each.
    """
    config = measured.model.config
    earlier = [(layer, head) for layer in range(config.layers - 1) for head in range(config.heads)]
    kept = without_heads(config, earlier)
    preserved: dict[str, tuple[Preservable, ...]] = {
        "all preserved": ("q", "k", "v"),
        "all but q": ("k", "v"),
        "all but k": ("q", "v"),
        "all but v": ("q", "k"),
        "none preserved": (),
    }
    passes = [SecondPass(), *(SecondPass(kept, preserve=preserve) for preserve in preserved.values())]
    return _named(["whole", *preserved], measured.second_pass_means(passes))


def embedding_path(measured: MeasuredModel) -> dict[str, StrategyMetrics]:
    """The path from the embedding to the unembedding, which heads take no part in (5.4).

    Returns:
        "whole"; "alone": all heads removed; "removed": the embedding zeroed, patterns and values preserved: `[P]` each.
    """
    config = measured.model.config
    every = [(layer, head) for layer in range(config.layers) for head in range(config.heads)]
    alone = SecondPass(without_heads(config, every))
    passes = [SecondPass(), alone, SecondPass(embedding=0.0, preserve=MODES["direct"])]
    return _named(["whole", "alone", "removed"], measured.second_pass_means(passes))


def _named(names: list[str], metrics: StrategyMetrics) -> dict[str, StrategyMetrics]:
    return {name: metrics.mapped(itemgetter(number)) for number, name in enumerate(names)}


def _reshaped(metrics: StrategyMetrics, shape: tuple[int, ...]) -> StrategyMetrics:
    return metrics.mapped(lambda values: values.view(*shape, *values.shape[1:]))
