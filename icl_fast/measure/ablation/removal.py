"""What an ablation removes, in numbers: the results of heads (or their distance from a mean) and the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from icl_fast.measure.base_pass import BaseLayer, merged
from icl_fast.models import site


def of_these(values: Tensor, heads: Sequence[int]) -> Tensor:
    """values [H,...] of these heads: a view where they are neighbours, as a GPU waits for indices from the host."""
    if heads and list(heads) == list(range(heads[0], heads[-1] + 1)):
        return values[heads[0] : heads[-1] + 1]
    return values[list(heads)]


@dataclass(frozen=True)
class Removal:
    """Zero ablation, or with `means` (see `mean_activations`) mean ablation."""

    means: dict[str, Tensor] | None

    def replacement(self, layer: int, heads: tuple[int, ...]) -> Tensor | float:
        """What the results of these heads become: 0, or [h,1,D]."""
        return 0.0 if self.means is None else of_these(self.means[site("z", layer)], heads)[:, None]

    def of_heads(self, base: BaseLayer, heads: tuple[int, ...]) -> Tensor:
        """What is taken from the results of these heads, [n,h,R,D]."""
        z = of_these(base.z.transpose(0, 1), heads).transpose(0, 1)
        return z if self.means is None else z - self.replacement(base.layer, heads)

    def of_stream(self, base: BaseLayer, heads: tuple[int, ...]) -> Tensor:
        """What is taken from the residual stream when these heads' results are removed, [n,R,C]."""
        return merged(self.of_heads(base, heads)) @ of_these(base.attention.w_o, heads).flatten(0, 1)

    def embedding(self) -> Tensor | float:
        """What the stream becomes at the site `embed`: 0, or [C]."""
        return 0.0 if self.means is None else self.means["embed"]
