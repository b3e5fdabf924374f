"""Mean activations: what mean ablation puts in the place of what it removes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from icl_fast.measure.ablation.names import Ablation
from icl_fast.measure.of_model import as_stated
from icl_fast.measure.whole_pass import run_model
from icl_fast.models import Transformer, site


def replacement_sites(ablations: Sequence[Ablation]) -> list[str]:
    """The sites whose mean a mean ablation needs."""
    layers = sorted({layer for ablation in ablations for layer, _ in ablation.heads})
    return [site("z", layer) for layer in layers] + (["embed"] if any(ablation.embed for ablation in ablations) else [])


@as_stated()
def mean_activations(model: Transformer, chunks: Iterator[Tensor], sites: Sequence[str]) -> dict[str, Tensor]:
    """Mean over examples and positions of `<layer>.z` -> [H,D] and `embed` -> [C], summed in float64.

    Args:
        chunks: inputs [n,T], n > 0 in all.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for inputs in chunks:
        values = run_model(model, inputs, record=sites)
        for name, value in values.items():
            total = value.double().sum(dim=(0, 2) if name != "embed" else (0, 1))
            sums[name] = sums[name] + total if name in sums else total
        count += inputs.numel()
    return {name: (total / count).to(model.dtype) for name, total in sums.items()}
