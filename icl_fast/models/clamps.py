"""What is forced in exemplar models while they train, by name; as tensors, so that members of a population may differ.

The five steps of an induction circuit (Singh 2025, 4.4.1): 1 a first-layer head attends to the previous token; 2 it
copies it; 3 the second layer routes q, k, v; 4 it matches q to k; 5 it copies the value to the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models.exemplar_config import ExemplarShape

ClampName = Literal["pt-attend", "layer-1", "match", "copy", "layer-1+copy", "no-previous-token"]
Head = tuple[int, int]  # layer, head; 0-based


@dataclass(frozen=True)
class Clamps:
    """What is forced in each of P members. Gradients flow where values do: what is replaced gets none.

    "First" and "last" are layers; in the thesis' two-layer models they are Layer 1 and Layer 2.

    Attributes:
        previous_token: `[P, H]` bool: first-layer heads whose pattern is that of a perfect previous-token head (step
            1, pt-attend; position 1 attends to itself).
        first_layer: `[P]` bool: steps 1 and 2 (layer-1). The second layer's queries and keys read the embedded
            sequence moved on by one position (the first position and the query stay), its values and everything
            later read the embedded sequence; the first layer is not used.
        match: `[P, H]` bool: last-layer heads whose pattern, from the query, is even over the positions of labels
            that equal the target (steps 1, 2, 3qk, 4; nothing is attended to where there is none).
        copy: `[P]` int64: the last-layer head whose attention logits at the labels are the outputs of the model, those
            of a repeated label by log-sum-exp, all others -1e9 (steps 3v, 5); -1: no head.
        no_previous_token: `[P]` bool: in the first layer no label attends to its exemplar.
        heads: `[P, L, H]` float: what every head's output is multiplied by; 0 removes it.
        temperature: `[P, L, H]` float: what every head's scaled scores are divided by.
    """

    previous_token: Tensor
    first_layer: Tensor
    match: Tensor
    copy: Tensor
    no_previous_token: Tensor
    heads: Tensor
    temperature: Tensor

    @property
    def members(self) -> int:
        """P."""
        return len(self.copy)

    def to(self, device: torch.device | str) -> Clamps:
        """The same on another device."""
        return Clamps(*(getattr(self, field.name).to(device) for field in fields(self)))

    def __getitem__(self, members: slice) -> Clamps:
        """The clamps of some members."""
        return Clamps(*(getattr(self, field.name)[members] for field in fields(self)))


def no_clamps(shape: ExemplarShape, members: int = 1) -> Clamps:
    """Nothing forced."""
    per_head = (members, shape.layers, shape.heads)
    return Clamps(
        previous_token=torch.zeros(members, shape.heads, dtype=torch.bool),
        first_layer=torch.zeros(members, dtype=torch.bool),
        match=torch.zeros(members, shape.heads, dtype=torch.bool),
        copy=torch.full((members,), -1),
        no_previous_token=torch.zeros(members, dtype=torch.bool),
        heads=torch.ones(per_head),
        temperature=torch.ones(per_head),
    )


def make_clamps(
    shape: ExemplarShape,
    names: Iterable[ClampName] = (),
    *,
    previous_token_heads: Sequence[int] = (2,),
    induction_heads: Sequence[int] = (3,),
    only_heads: Sequence[Head] | None = None,
    without_heads: Sequence[Head] = (),
    temperature: Sequence[tuple[Head, float]] = (),
) -> Clamps:
    """The clamps of one member (P = 1).

    Args:
        names: `pt-attend`, `layer-1`, `match`, `copy`, `layer-1+copy`, `no-previous-token`; several hold together.
        previous_token_heads: first-layer heads that pt-attend acts on (the thesis': Layer 1 Head 2).
        induction_heads: last-layer heads that match acts on; copy takes the first (the thesis': Layer 2 Head 3).
        only_heads: of every layer named here, only these heads write; other layers keep all of theirs.
        without_heads: heads that do not write.
        temperature: what the scores of some heads are divided by.

    Raises:
        InputError: an unknown name or head, a temperature that is not positive, layer-1 without a second layer.
    """
    clamps = no_clamps(shape)
    for name in names:
        if name not in get_args(ClampName):
            raise InputError(
                f"clamp {name}: must be pt-attend, layer-1, match, copy, layer-1+copy or no-previous-token"
            )
        if name.startswith("layer-1") and shape.layers < 2:
            raise InputError(f"clamp {name}: replaces the layer before another one, but the model has only one")
    chosen = {part for name in names for part in name.split("+")}
    if "pt-attend" in chosen:
        check_heads(shape, [(0, head) for head in previous_token_heads])
        clamps.previous_token[0, list(previous_token_heads)] = True
    if chosen & {"match", "copy"}:
        check_heads(shape, [(shape.layers - 1, head) for head in induction_heads])
    if "match" in chosen:
        clamps.match[0, list(induction_heads)] = True
    if "copy" in chosen:
        if len(induction_heads) != 1:
            raise InputError(f"induction_heads {list(induction_heads)}: copy takes the outputs from one head; name one")
        clamps.copy[0] = induction_heads[0]
    clamps.first_layer[0] = "layer-1" in chosen
    clamps.no_previous_token[0] = "no-previous-token" in chosen
    check_heads(shape, [*(only_heads or ()), *without_heads, *(where for where, _ in temperature)])
    for layer in {layer for layer, _ in only_heads or ()}:
        clamps.heads[0, layer] = 0
    for layer, head in only_heads or ():
        clamps.heads[0, layer, head] = 1
    for layer, head in without_heads:
        clamps.heads[0, layer, head] = 0
    for (layer, head), value in temperature:
        if not 0 < value < float("inf"):
            raise InputError(f"temperature of {layer}.{head}: must be positive and finite, got {value}")
        clamps.temperature[0, layer, head] = value
    return clamps


def stack_clamps(members: Sequence[Clamps]) -> Clamps:
    """The clamps of several members as one."""
    return Clamps(*(torch.cat([getattr(one, field.name) for one in members]) for field in fields(Clamps)))


def check_heads(shape: ExemplarShape, heads: Iterable[Head]) -> None:
    """Raise InputError unless a model of such a shape has all of these heads."""
    for layer, head in heads:
        if not (0 <= layer < shape.layers and 0 <= head < shape.heads):
            raise InputError(
                f"head {layer}.{head}: the model has layers 0 to {shape.layers - 1}, heads 0 to {shape.heads - 1}"
            )
