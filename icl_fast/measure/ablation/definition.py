"""Ablation by definition: run the model, run it again with heads removed and chosen activations as in the first run.

This is the slow, obviously right way, written with interventions alone; every fast path must agree with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.measure.ablation.names import Target
from icl_fast.models import Intervention, Transformer, TransformerConfig, site
from icl_fast.ops import linear_cross_entropy

Replacement = Literal["zero", "mean"]

PRESERVABLE = ("pattern", "q", "k", "v")
MODES: dict[str, tuple[str, ...]] = {
    "full": (),
    "pattern-preserving": ("pattern",),
    "value-preserving": ("v",),
    "key-preserving": ("k",),
    "query-preserving": ("q",),
    "direct": ("pattern", "v"),
}


@dataclass(frozen=True)
class AblationMode:
    """What the second run takes from the first: which sites, and of which heads (None: of all).

    "full" preserves nothing; "pattern-preserving" the attention patterns, so that only downstream values feel the
    ablation (Olsson et al. 2022, Data Collection (2)); "direct" patterns and values, which leaves the direct paths to
    the output. Any other subset is written like `pattern+k`.
    """

    preserve: tuple[str, ...]
    heads: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def parse(cls, text: str, heads: tuple[tuple[int, int], ...] | None = None) -> AblationMode:
        """From a mode's name or a `+`-joined subset of pattern, q, k, v.

        Raises:
            InputError: neither of these.
        """
        if text in MODES:
            return cls(MODES[text], heads)
        parts = tuple(text.split("+"))
        if not set(parts) <= set(PRESERVABLE) or len(set(parts)) < len(parts):
            raise InputError(
                f"mode: {text!r} is neither one of {', '.join(MODES)} "
                f"nor a subset of {', '.join(PRESERVABLE)} joined with +"
            )
        return cls(tuple(name for name in PRESERVABLE if name in parts), heads)

    def sites(self, config: TransformerConfig) -> list[str]:
        """The sites that the first run records."""
        layers = range(config.layers) if self.heads is None else sorted({layer for layer, _ in self.heads})
        return [site(name, layer) for layer in layers for name in self.preserve]

    def interventions(self, base: dict[str, Tensor]) -> list[Intervention]:
        """Force what the first run recorded."""
        forced = []
        for name, value in base.items():
            layer, _, local = name.partition(".")
            if local not in self.preserve:
                continue
            heads = None if self.heads is None else [head for at, head in self.heads if at == int(layer)]
            forced.append(Intervention.set(name, value, heads=heads))
        return forced


def removal(target: Target, means: dict[str, Tensor] | None, shape: tuple[int, int]) -> list[Intervention]:
    """Interventions that remove a target: zero its results, or set them to their mean.

    Args:
        target: what is removed.
        means: None for zero; else the mean of `<layer>.z` [H,D] and of `embed` [C] for the layers that it touches.
        shape: (B, T) of the pass.
    """
    batch, length = shape
    removed = []
    for layer in sorted({layer for layer, _ in target.heads}):
        name, heads = site("z", layer), target.heads_of(layer)
        if means is None:
            removed.append(Intervention.zero(name, heads=heads))
        else:
            removed.append(
                Intervention.set(name, means[name][None, :, None].expand(batch, -1, length, -1), heads=heads)
            )
    if target.embed:
        value = None if means is None else means["embed"].expand(batch, length, -1)
        removed.append(Intervention.zero("embed") if value is None else Intervention.set("embed", value))
    return removed


def replacement_sites(targets: Sequence[Target]) -> list[str]:
    """The sites whose mean a mean ablation of these targets needs."""
    layers = sorted({layer for target in targets for layer, _ in target.heads})
    return [site("z", layer) for layer in layers] + (["embed"] if any(target.embed for target in targets) else [])


def mean_activations(model: Transformer, chunks: Iterator[Tensor], sites: Sequence[str]) -> dict[str, Tensor]:
    """Mean over examples and positions of `<layer>.z` -> [H,D] and `embed` -> [C], summed in float64.

    Args:
        chunks: inputs [n,T], n > 0 in all.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for inputs in chunks:
        _, values = model.hidden(inputs, record=sites)
        for name, value in values.items():
            total = value.double().sum(dim=(0, 2) if name != "embed" else (0, 1))
            sums[name] = sums[name] + total if name in sums else total
        count += inputs.numel()
    dtype = model.embed.weight.dtype
    return {name: (total / count).to(dtype) for name, total in sums.items()}


def ablated_losses(
    model: Transformer,
    inputs: Tensor,
    targets: Tensor,
    rows: Tensor,
    ablations: Sequence[Target],
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
        mode: what the second pass takes from the first.
        means: for mean ablation, of `mean_activations`; None: zero ablation.

    Yields:
        [n,R] losses in nats, float32 (float64 for a float64 model): first un-ablated, then one for each ablation.
    """
    wanted = targets.gather(1, rows)

    def losses(hidden: Tensor) -> Tensor:
        chosen = hidden.gather(1, rows[:, :, None].expand(-1, -1, hidden.shape[-1]))  # [n,R,C]
        return linear_cross_entropy(chosen, model.unembed.weight, wanted, bias=model.unembed.bias, reduction="none")

    with torch.no_grad():
        hidden, base = model.hidden(inputs, record=mode.sites(model.config))
        yield losses(hidden)
        preserved = mode.interventions(base)
        shape = (inputs.shape[0], inputs.shape[1])
        for ablation in ablations:
            hidden, _ = model.hidden(inputs, interventions=[*preserved, *removal(ablation, means, shape)])
            yield losses(hidden)
