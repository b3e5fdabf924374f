"""Ablation by definition: run the model, run it again with heads removed and chosen activations as in the first run.

The definition is written with interventions alone; the fast engine is tested against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import Ablation, HasHeads
from icl_fast.measure.whole_pass import run_losses
from icl_fast.models import Intervention, Transformer, site


def preserved_sites(mode: AblationMode, config: HasHeads) -> list[str]:
    """The sites that the first run records."""
    layers = range(config.layers) if mode.heads is None else sorted({layer for layer, _ in mode.heads})
    return [site(name, layer) for layer in layers for name in mode.preserve]


def preserving(mode: AblationMode, recorded: dict[str, Tensor]) -> list[Intervention]:
    """Interventions that force the preserved sites to what the first run recorded."""
    forced = []
    for name, value in recorded.items():
        layer, _, local = name.partition(".")
        if local not in mode.preserve:
            continue
        heads = None if mode.heads is None else [head for at, head in mode.heads if at == int(layer)]
        forced.append(Intervention.set(name, value, heads=heads))
    return forced


def removing(ablation: Ablation, means: dict[str, Tensor] | None, shape: tuple[int, int]) -> list[Intervention]:
    """Interventions that set the results of the ablation's heads (and the embedding) to zero, or to their mean.

    Args:
        ablation: what is removed.
        means: of `mean_activations`; None: zero.
        shape: (B, T) of the pass.
    """
    batch, length = shape
    removed = []
    for layer in sorted({layer for layer, _ in ablation.heads}):
        name, heads = site("z", layer), ablation.heads_of(layer)
        if means is None:
            removed.append(Intervention.zero(name, heads=heads))
        else:
            removed.append(
                Intervention.set(name, means[name][None, :, None].expand(batch, -1, length, -1), heads=heads)
            )
    if ablation.embed:
        value = None if means is None else means["embed"].expand(batch, length, -1)
        removed.append(Intervention.zero("embed") if value is None else Intervention.set("embed", value))
    return removed


def ablated_losses(
    model: Transformer,
    inputs: Tensor,
    targets: Tensor,
    rows: Tensor,
    ablations: Sequence[Ablation],
    mode: AblationMode,
    means: dict[str, Tensor] | None = None,
) -> Iterator[Tensor]:
    """Per-token losses of the whole model, then of each ablation.

    Args:
        model: the model.
        inputs: [n,T] token ids.
        targets: [n,T] the tokens to predict.
        rows: [n,R] 0-based positions whose losses are wanted.
        ablations: what to remove, one after the other.
        mode: what the second run takes from the first.
        means: for mean ablation, of `mean_activations`; None: zero ablation.

    Yields:
        [n,R] losses in nats, float32 (float64 for a float64 model): first the whole model's, then each ablation's.
    """
    targets = targets.gather(1, rows)
    losses, recorded = run_losses(model, inputs, targets, rows, record=preserved_sites(mode, model.config))
    yield losses
    preserved = preserving(mode, recorded)
    shape = (inputs.shape[0], inputs.shape[1])
    for ablation in ablations:
        forced = [*preserved, *removing(ablation, means, shape)]
        yield run_losses(model, inputs, targets, rows, interventions=forced)[0]
