"""Whether heads of the last layer share work sequence by sequence: deltas and temperatures (Singh 2025, 5.5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icl_fast.arguments import finite_numbers
from icl_fast.measure.exemplar.answers import StrategyMetrics
from icl_fast.measure.exemplar.embedded import EmbeddedChunk
from icl_fast.measure.exemplar.measured_model import MeasuredModel, SecondPass, only_head
from icl_fast.models.clamps import TEMPERATURES
from icl_fast.models.exemplar_inference import Activations


@torch.inference_mode()
def attention_deltas(measured: MeasuredModel) -> Tensor:
    """Attention of the query to right labels minus that to wrong ones, by sequence (Fig 5.4a): `[P,H,N]`.

    NaN for sequences with no right label in context.
    """
    parts = []
    for part, whole in measured.first_passes():
        query = whole.layers[-1].pattern[:, :, -1]  # [P,H,T,B]
        right = part.right.mT[:, None]  # [P,1,n,B]
        delta = torch.where(right, query[:, :, 1::2], -query[:, :, 1::2]).sum(2)
        parts.append(delta.masked_fill(~right.any(2), torch.nan))
    return torch.cat(parts, dim=-1)


def delta_correlations(deltas: Tensor) -> Tensor:
    """Pearson correlation of every two heads over the sequences, `[P,H,H]` float64, of `attention_deltas`."""
    return torch.stack([torch.corrcoef(of_one[:, ~of_one.isnan().any(0)].double()) for of_one in deltas])


@dataclass(frozen=True)
class TemperatureCurves:
    """Each last-layer head with its scores divided by a temperature, its query attending to labels only.

    Attributes:
        alone: `[W,H,P]`: all other heads of the layer removed (Fig 5.4b).
        among_all: `[W,H,P]`: all heads active, the others as they are (Fig 5.4c).
    """

    alone: StrategyMetrics
    among_all: StrategyMetrics


def temperature_curves(measured: MeasuredModel, temperatures: Sequence[float]) -> TemperatureCurves:
    """What sharper or flatter attention of each head would do; temperatures come on top of the clamps'.

    Raises:
        InputError: no temperature, or one that is not positive.
    """
    temperatures = finite_numbers("temperatures", temperatures, *TEMPERATURES)
    config = measured.model.config
    heads = range(config.heads)
    settings = [(_LabelsOnly(head, temperature), head) for temperature in temperatures for head in heads]
    passes = [
        *(SecondPass(only_head(config, -1, head), query_pattern=pattern) for pattern, head in settings),
        *(SecondPass(query_pattern=pattern) for pattern, _ in settings),
    ]
    means = measured.second_pass_means(passes)
    both = means.mapped(lambda values: values.view(2, len(temperatures), len(heads), -1))
    return TemperatureCurves(both.mapped(lambda values: values[0]), both.mapped(lambda values: values[1]))


@dataclass(frozen=True)
class _LabelsOnly:
    head: int
    temperature: float

    def __call__(self, base: Activations, part: EmbeddedChunk) -> Tensor:
        last = base.layers[-1]
        pattern = last.pattern[:, :, -1].clone()  # [P,H,T,B]
        pattern[:, self.head] = 0
        scores = last.scores[:, self.head, -1, 1::2]  # [P,n,B]
        pattern[:, self.head, 1::2] = (scores / self.temperature).softmax(1)
        return pattern
