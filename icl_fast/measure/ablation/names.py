"""Ablations and their names: what is removed is a head, a set of heads, all heads but a set, or the embedding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from icl_fast.errors import InputError

UNABLATED = "none"  # the name of the whole model, beside those of ablations
_HEAD = re.compile(r"^(\d+)\.(\d+|\*)$")


class HasHeads(Protocol):
    """What of a model's config says which heads it has."""

    @property
    def layers(self) -> int:
        """Number of layers."""

    @property
    def heads(self) -> int:
        """Heads of each layer."""


@dataclass(frozen=True)
class Ablation:
    """What is removed from the model in one run.

    Attributes:
        name: as it was asked for, such as `0.3+1.2`.
        heads: 0-based (layer, head) pairs, sorted.
        embed: whether the embedding (the stream before the first layer) is removed as well.
    """

    name: str
    heads: tuple[tuple[int, int], ...]
    embed: bool = False

    @property
    def first_layer(self) -> int:
        """The first layer at which something is removed; -1: the embedding."""
        return -1 if self.embed else self.heads[0][0]

    def heads_of(self, layer: int) -> tuple[int, ...]:
        """The removed heads of one layer."""
        return tuple(head for at, head in self.heads if at == layer)


def parse_ablations(text: str, config: HasHeads) -> list[Ablation]:
    """The ablations that a `--heads` value asks for, in order.

    Comma-separated; each is one ablation: `all` is every head alone, one after the other; `0.3` one head; `1.*` all
    heads of a layer together; `*` all heads together; `0.3+1.2` a set; `~0.3+1.2` all heads but these; `embed` the
    embedding, also within a set. `none` alone asks for no ablation: the whole model only.

    Raises:
        InputError: a head that the model does not have, an empty or repeated item, anything not of that form.
    """
    ablations: list[Ablation] = []
    if text.strip() == UNABLATED:
        return ablations
    for item in (part.strip() for part in text.split(",")):
        if item == "all":
            ablations.extend(Ablation(f"{layer}.{head}", ((layer, head),)) for layer, head in _every(config))
        else:
            ablations.append(_parse_set(item, config))
    names = [ablation.name for ablation in ablations]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"heads: {', '.join(repeated)} asked for more than once")
    return ablations


def _parse_set(item: str, config: HasHeads) -> Ablation:
    complement = item.startswith("~")
    heads: set[tuple[int, int]] = set()
    embed = False
    for part in item.removeprefix("~").split("+"):
        if part == "embed" and not complement:
            embed = True
        elif part == "*":
            heads.update(_every(config))
        elif match := _HEAD.match(part):
            layer = int(match[1])
            chosen = range(config.heads) if match[2] == "*" else [int(match[2])]
            if layer >= config.layers or chosen[0] >= config.heads:
                raise InputError(
                    f"heads: {part!r} is not in this model; it has layers 0 to {config.layers - 1} "
                    f"and heads 0 to {config.heads - 1}"
                )
            heads.update((layer, head) for head in chosen)
        else:
            raise InputError(
                f"heads: {item!r} is not understood; write all, layer.head such as 0.3, 1.* for a layer, * for all "
                "heads together, 0.3+1.2 for a set, ~0.3 for all but it, or embed; several with commas"
            )
    if complement:
        heads = set(_every(config)) - heads
        if not heads:
            raise InputError(f"heads: {item!r} leaves nothing to remove")
    return Ablation(item, tuple(sorted(heads)), embed)


def _every(config: HasHeads) -> list[tuple[int, int]]:
    return [(layer, head) for layer in range(config.layers) for head in range(config.heads)]
