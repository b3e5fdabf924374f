"""What is forced in exemplar models while they train, by name; as tensors, so that members of a population may differ.

What a clamp does is defined by the interventions that `clamp_interventions` makes of it; the passes of
`icl_fast.models.exemplar_inference` and the fused training step are fast paths, tested against them.

The five steps of an induction circuit (Singh 2025, 4.4.1): 1 a first-layer head attends to the previous token; 2 it
copies it; 3 the second layer routes q, k, v; 4 it matches q to k; 5 it copies the value to the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from icl_fast.arguments import different_names, finite_number, listed, shown, whole_number, whole_numbers
from icl_fast.errors import InputError
from icl_fast.models.blocks import Block, Blocks
from icl_fast.models.exemplar_config import ExemplarShape
from icl_fast.models.interventions import Intervention, site
from icl_fast.models.positions import Positions, causal_mask, softmax_or_zeros

TEMPERATURES = 1e-20, 1e20  # beyond them scores of float32 overflow, or all are 0
NO_LABEL = -1e9  # the logit of a label that is not in context, where the outputs are attention logits
ClampName = Literal["pt-attend", "layer-1", "match", "copy", "layer-1+copy", "no-previous-token"]
Head = tuple[int, int]  # layer, head; 0-based
_NOTHING = {"copy": -1, "heads": 1, "temperature": 1}  # what the tensors hold where nothing is forced; others False


@dataclass(frozen=True)
class Clamps:
    """What is forced in each of P members. Gradients flow where values do: what is replaced gets none.

    Tensors of clamps that were used must not be changed: which of them force anything is looked up once.

    "First" and "last" are layers; in the thesis' two-layer models they are Layer 1 and Layer 2.

    Attributes:
        previous_token: `[P,H]` bool: first-layer heads whose pattern is that of a perfect previous-token head (step
            1, pt-attend; position 1 attends to itself).
        first_layer: `[P]` bool: steps 1 and 2 (layer-1). The second layer's queries and keys read the embedded
            sequence moved on by one position (the first position and the query stay), its values and everything
            later read the embedded sequence; the first layer is not used.
        match: `[P,H]` bool: last-layer heads whose pattern, from the query, is even over the positions of labels
            that equal the target (steps 1, 2, 3qk, 4; nothing is attended to where there is none).
        copy: `[P]` int64: the last-layer head whose attention logits at the labels are the outputs of the model, those
            of a repeated label by log-sum-exp, all others -1e9 (steps 3v, 5); -1: no head.
        no_previous_token: `[P]` bool: in the first layer no label attends to its exemplar.
        heads: `[P,L,H]` float: what every head's output is multiplied by; 0 removes it.
        temperature: `[P,L,H]` float: what every head's scaled scores are divided by.
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

    @cached_property
    def forced(self) -> frozenset[str]:
        """The names of the tensors that force anything in any member."""
        names = (field.name for field in fields(self))
        return frozenset(name for name in names if bool((getattr(self, name) != _NOTHING.get(name, False)).any()))

    def to(self, device: torch.device | str) -> Clamps:
        """The same on another device."""
        return Clamps(*(getattr(self, field.name).to(device) for field in fields(self)))

    def __getitem__(self, members: slice) -> Clamps:
        """The clamps of some members."""
        return Clamps(*(getattr(self, field.name)[members] for field in fields(self)))


def no_clamps(shape: ExemplarShape, members: int = 1) -> Clamps:
    """Nothing forced."""
    per_head = (members, shape.layers, shape.heads)

    def no(*sizes: int) -> Tensor:
        return torch.zeros(sizes, dtype=torch.bool, device="cpu")

    return Clamps(
        previous_token=no(members, shape.heads),
        first_layer=no(members),
        match=no(members, shape.heads),
        copy=torch.full((members,), -1, device="cpu"),
        no_previous_token=no(members),
        heads=torch.ones(per_head, dtype=torch.float32, device="cpu"),
        temperature=torch.ones(per_head, dtype=torch.float32, device="cpu"),
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
        InputError: an unknown name or head, one that is named twice, a temperature that is not
            positive, layer-1 without a second layer.
    """
    clamps, asked = no_clamps(shape), different_names("clamps", names)
    for name in asked:
        if name not in get_args(ClampName):
            raise InputError(
                f"clamp {name}: must be pt-attend, layer-1, match, copy, layer-1+copy or no-previous-token"
            )
        if name.startswith("layer-1") and shape.layers < 2:
            raise InputError(f"clamp {name}: replaces the layer before another one, but the model has only one")
    chosen = {part for name in asked for part in name.split("+")}
    if "pt-attend" in chosen:
        check_heads(shape, [(0, head) for head in listed("previous_token_heads", previous_token_heads)])
        clamps.previous_token[0, whole_numbers("previous_token_heads", previous_token_heads)] = True
    if chosen & {"match", "copy"}:
        check_heads(shape, [(shape.layers - 1, head) for head in listed("induction_heads", induction_heads)])
        induction_heads = whole_numbers("induction_heads", induction_heads)
    if "match" in chosen:
        clamps.match[0, induction_heads] = True
    if "copy" in chosen:
        if len(induction_heads) != 1:
            raise InputError(f"induction_heads {induction_heads}: copy takes the outputs from one head; name one")
        clamps.copy[0] = induction_heads[0]
    clamps.first_layer[0] = "layer-1" in chosen
    clamps.no_previous_token[0] = "no-previous-token" in chosen
    for pair in listed("temperature", temperature):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InputError(f"temperature: must be a list of ((layer, head), value), got {shown(pair)} in it")
    for heads in (only_heads or (), without_heads, [where for where, _ in temperature]):
        check_heads(shape, heads)
    for layer in {layer for layer, _ in only_heads or ()}:
        clamps.heads[0, layer] = 0
    for layer, head in only_heads or ():
        clamps.heads[0, layer, head] = 1
    for layer, head in without_heads:
        clamps.heads[0, layer, head] = 0
    for (layer, head), value in temperature:
        clamps.temperature[0, layer, head] = finite_number(f"temperature of {layer}.{head}", value, *TEMPERATURES)
    if clamps.forced:
        shape.check_attention("interventions")
    return clamps


def stack_clamps(members: Sequence[Clamps]) -> Clamps:
    """The clamps of several members as one."""
    return Clamps(*(torch.cat([getattr(one, field.name) for one in members]) for field in fields(Clamps)))


def check_heads(shape: ExemplarShape, heads: Iterable[Head]) -> None:
    """Raise InputError unless these are (layer, head), different ones, and a model of such a shape has them."""
    named = set()
    for where in listed("heads", heads):
        if np.shape(where) != (2,):
            raise InputError(f"head {shown(where)}: must be (layer, head)")
        layer, head = (whole_number(f"head {shown(where)}", number) for number in where)
        if (layer, head) in named:
            raise InputError(f"head {layer}.{head}: is named more than once; once is enough")
        named.add((layer, head))
        if not (0 <= layer < shape.layers and 0 <= head < shape.heads):
            raise InputError(
                f"head {layer}.{head}: the model has layers 0 to {shape.layers - 1}, heads 0 to {shape.heads - 1}"
            )


def clamp_interventions(
    clamps: Clamps, blocks: Blocks, positions: Positions, labels: Tensor, target: Tensor | None
) -> list[Intervention]:
    """The definition of clamps: what is forced in one pass over sequences, members folded into the examples.

    Args:
        blocks: the model's, whose second layer's weights layer-1 uses.
        positions: what its attention is told of them.
        labels: `[P,B,n]` int64.
        target: `[P,B]` int64; only `match` needs it.

    Raises:
        InputError: `match` without a target.
    """
    batch, length, names = labels.shape[1], 2 * labels.shape[2] + 1, clamps.forced
    last, forced = len(blocks) - 1, []

    def folded(of_members: Tensor) -> Tensor:
        """`[P,...]` to `[P*B,...]`."""
        return of_members[:, None].expand(-1, batch, *of_members.shape[1:]).flatten(0, 1)

    for layer in range(len(blocks)):
        if "temperature" in names:
            divisor = folded(clamps.temperature[:, layer])[..., None, None]
            forced.append(Intervention.apply(site("scores", layer), lambda scores, by=divisor: scores / by.to(scores)))
        if "heads" in names:
            factor = folded(clamps.heads[:, layer])[..., None, None]
            forced.append(Intervention.apply(site("z", layer), lambda z, by=factor: z * by.to(z)))
    if "no_previous_token" in names:
        allowed = causal_mask(length, device=labels.device) & ~own_exemplars(length, labels.device)
        forced.append(
            Intervention.apply(
                "0.pattern",
                lambda _, scores: softmax_or_zeros(scores.masked_fill(~allowed, -torch.inf)),
                reads=["0.scores"],
                mask=folded(clamps.no_previous_token),
            )
        )
    if "previous_token" in names:
        perfect, mask = previous_token_pattern(length, labels.device), folded(clamps.previous_token)
        forced.append(Intervention.set("0.pattern", perfect.expand(*mask.shape, -1, -1), mask=mask))
    if "first_layer" in names:
        forced += _first_layer(blocks[1], positions, folded(clamps.first_layer))
    if "match" in names:
        if target is None:
            raise InputError("target: the clamp match attends to its position, so it must be given")
        is_query = torch.arange(length, device=labels.device) == length - 1
        mask = folded(clamps.match)[..., None] & is_query  # [P*B,H,T]
        row = matching_rows(labels, target).flatten(0, 1)[:, None, None]
        forced.append(Intervention.set(site("pattern", last), row.expand(*mask.shape, -1), mask=mask))
    if "copy" in names:
        head = folded(clamps.copy)
        forced.append(
            Intervention.apply(
                "logits",
                lambda logits, scores: copied_logits(scores[:, :, -1], labels.flatten(0, 1), head, logits.shape[-1]),
                reads=[site("scores", last)],
                mask=head >= 0,
            )
        )
    return forced


def _first_layer(second: Block, positions: Positions, mask: Tensor) -> list[Intervention]:
    def read(embedded: Tensor) -> Tensor:
        normed: Tensor = second.norm1(moved_on(embedded))
        return normed

    attention = second.attention
    return [
        Intervention.apply("1.resid_pre", lambda _, embedded: embedded, reads=["embed"], mask=mask),
        Intervention.apply(
            "1.q", lambda _, embedded: attention.queries(read(embedded), positions), reads=["embed"], mask=mask
        ),
        Intervention.apply(
            "1.k", lambda _, embedded: attention.keys(read(embedded), positions), reads=["embed"], mask=mask
        ),
    ]


def own_exemplars(length: int, device: torch.device) -> Tensor:
    """`[T,T]` bool: True where the query (row) is a label and the key the exemplar before it."""
    index = torch.arange(length, device=device)
    return (index[:, None] % 2 == 1) & (index[None] == index[:, None] - 1)


def previous_token_pattern(length: int, device: torch.device) -> Tensor:
    """`[T,T]`: all attention on the position before, that of the first position on itself."""
    index = torch.arange(length, device=device)
    return (index[None] == (index[:, None] - 1).clamp_min(0)).float()


def matching_rows(labels: Tensor, target: Tensor) -> Tensor:
    """Attention `[...,T]` even over the labels `[...,n]` that equal the target `[...]`, 0 if none does; float64."""
    right = (labels == target[..., None]).double()
    row = right.new_zeros(*right.shape[:-1], 2 * right.shape[-1] + 1)
    row[..., 1::2] = right / right.sum(-1, keepdim=True).clamp_min(1)
    return row


def copied_logits(scores: Tensor, labels: Tensor, head: Tensor, outputs: int) -> Tensor:
    """A head's attention logits from the query to the labels as outputs, those of a repeated one by log-sum-exp.

    Args:
        scores: of the query, `[N,H,T]`.
        labels: `[N,n]`.
        head: `[N]`; below 0 counts as 0.
        outputs: V.

    Returns:
        `[N,V]`, -1e9 at labels that are not in context.
    """
    at_labels = scores[..., 1::2]
    chosen = head.clamp_min(0)[:, None, None].expand(-1, 1, at_labels.shape[-1])
    attention = at_labels.gather(1, chosen)  # [N,1,n]
    same = labels[:, :, None] == labels[:, None, :]
    # a label that the head cannot attend to, by scores of -inf, is as if it were not there
    total = attention.masked_fill(~same, -torch.inf).logsumexp(-1).clamp_min(NO_LABEL)
    # a repeated label is written once, by its first position; the others write where nothing is read
    where = labels.masked_fill(same.tril(-1).any(-1), outputs)
    blank = scores.new_full((len(labels), outputs + 1), NO_LABEL)
    return blank.scatter(-1, where, total)[:, :-1]


def moved_on(embedded: Tensor, dim: int = 1) -> Tensor:
    """Along `dim` every position holds the one before; the first and the query stay (Singh 2025, C.5.2)."""
    length = embedded.shape[dim]
    parts = ((0, 1), (0, length - 2), (length - 1, 1))  # start, length
    return torch.cat([embedded.narrow(dim, *part) for part in parts], dim=dim)
