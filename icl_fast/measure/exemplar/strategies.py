"""How well models answer the evaluators' sequences, and where they attend: which strategy they follow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.measure.exemplar.answers import StrategyMetrics
from icl_fast.measure.exemplar.measured_model import MeasuredModel
from icl_fast.models import Clamps, ExemplarModel, Intervention


def evaluate_strategies(
    model: ExemplarModel,
    features: Tensor,
    evaluators: Sequence[EvaluationSequences],
    clamps: Clamps | None = None,
    *,
    interventions: Sequence[Intervention] = (),
    attention: bool = False,
    chunk: int | None = None,
) -> dict[str, StrategyMetrics]:
    """Metrics of every evaluator, by its name; a forward pass a chunk gives all (Singh 2025, 2.2.3, 4.3, 5.2.3).

    Args:
        features: `[K,E,F]`.
        evaluators: with fields `[P,N,...]`, or `[N,...]` for all members.
        clamps: what is forced in each member.
        interventions, attention: as in `MeasuredModel.means`.
        chunk: sequences a pass; by default as many as stay in cache.

    Raises:
        InputError: features, members, pairs or clamps that do not fit the model, or a chunk below 1.
    """
    on_each = MeasuredModel.on_each(model, features, evaluators, clamps, chunk=chunk)
    return {one.evaluator.name: one.means(attention=attention, interventions=interventions) for one in on_each}
