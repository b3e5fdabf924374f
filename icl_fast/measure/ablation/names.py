"""Ablations and their names: what is removed is a head, a set of heads, all heads but a set, or the embedding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from icl_fast.arguments import check_different, different_names, shown
from icl_fast.errors import InputError

UNABLATED = "none"  # the name of the whole model, beside those of ablations
_NUMBER = "0|[1-9][0-9]{0,8}"
_HEAD = re.compile(rf"({_NUMBER})\.({_NUMBER}|\*)")


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


def parse_ablations(text: str | Sequence[str], config: HasHeads, argument: str = "heads") -> list[Ablation]:
    """The ablations that a `--heads` value asks for, in order.

    Comma-separated, or a list; each is one ablation: `all` is every head alone, one after the other; `0.3` one head;
    `1.*` all heads of a layer together; `*` all heads together; `0.3+1.2` a set; `~0.3+1.2` all heads but these;
    `embed` the embedding, also within a set. `none` alone asks for no ablation: the whole model only.

    Args:
        argument: what messages call it.

    Raises:
        InputError: a head that the model does not have, an empty or repeated item, anything not of that form.
    """
    items = different_names(argument, text)
    if items == [UNABLATED]:
        return []
    if not items:
        raise InputError(f"{argument}: names none; write {UNABLATED} for no ablation, all for each head alone")
    ablations: list[Ablation] = []
    for item in items:
        if item == "all":
            ablations.extend(Ablation(f"{layer}.{head}", ((layer, head),)) for layer, head in _every(config))
        else:
            ablations.append(_parse_set(item, config, argument))
    check_different(argument, [_in_order(ablation.name) for ablation in ablations])
    return ablations


def _in_order(name: str) -> str:
    """The name that ablations of the same parts share."""
    parts = "+".join(sorted(name.removeprefix("~").split("+")))
    return f"~{parts}" if name.startswith("~") else parts


def parse_heads(text: str | Sequence[str], config: HasHeads, argument: str) -> tuple[tuple[int, int], ...]:
    """All heads of what `parse_ablations` takes, such as `1.0+1.2` or `1.*,0.3`, sorted.

    Raises:
        InputError: as `parse_ablations`, or something without heads.
    """
    named = parse_ablations(text, config, argument)
    if not named or any(ablation.embed for ablation in named):
        raise InputError(f"{argument}: {shown(text)} is no set of heads; name heads such as 1.0+1.2, or leave it out")
    return tuple(sorted({head for ablation in named for head in ablation.heads}))


def _parse_set(item: str, config: HasHeads, argument: str) -> Ablation:
    complement = item.startswith("~")
    heads: set[tuple[int, int]] = set()
    embed = False
    parts = item.removeprefix("~").split("+")
    check_different(f"{argument}: {item!r}", parts)
    for part in parts:
        if part == "embed" and not complement:
            embed = True
        elif part == "*":
            heads.update(_every(config))
        elif match := _HEAD.fullmatch(part):
            layer = int(match[1])
            chosen = range(config.heads) if match[2] == "*" else [int(match[2])]
            if layer >= config.layers or chosen[0] >= config.heads:
                raise InputError(
                    f"{argument}: {part!r} is not in this model; it has layers 0 to {config.layers - 1} "
                    f"and heads 0 to {config.heads - 1}"
                )
            heads.update((layer, head) for head in chosen)
        else:
            raise InputError(
                f"{argument}: {item!r} is not understood; write all, layer.head such as 0.3, 1.* for a layer, * for "
                "all heads together, 0.3+1.2 for a set, ~0.3 for all but it, or embed; several with commas"
            )
    if complement:
        heads = set(_every(config)) - heads
        if not heads:
            raise InputError(f"{argument}: {item!r} leaves nothing to remove")
    return Ablation(item, tuple(sorted(heads)), embed)


def _every(config: HasHeads) -> list[tuple[int, int]]:
    return [(layer, head) for layer in range(config.layers) for head in range(config.heads)]
