"""What an ablation sweep will do, as plain data: ablations, positions, and how many examples fit the memory budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icl_fast.data.positions import icl_positions
from icl_fast.errors import InputError
from icl_fast.models import TransformerConfig
from icl_fast.ops.linear_cross_entropy import LOGITS_AT_A_TIME

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Positions:
    """Which losses are kept, in 1-based context positions.

    Attributes:
        listed: positions whose mean loss over examples is kept.
        example: whether the loss at one random position per example is kept as well.
        early, late: the positions whose mean losses the ICL score compares (see `icl_positions`).
    """

    listed: tuple[int, ...]
    example: bool
    early: tuple[int, ...]
    late: tuple[int, ...]

    @property
    def of_score(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ICL score's positions (early, late)."""
        return self.early, self.late

    @property
    def rows_per_example(self) -> int:
        """How many positions `rows` gives for an example."""
        return len(self.listed) + self.example

    @property
    def has_score(self) -> bool:
        """Whether the ICL score's positions are among the listed ones."""
        return {*self.early, *self.late} <= set(self.listed)

    def scores(self, losses: Tensor) -> Tensor:
        """Each example's ICL score [n] from its losses at the listed positions [n,P]; zeros where there is none."""
        if not self.has_score:
            return losses.new_zeros(len(losses))
        early, late = ([self.listed.index(position) for position in at] for at in self.of_score)
        return losses[:, late].mean(1) - losses[:, early].mean(1)

    def rows(self, random_position: Tensor) -> Tensor:
        """0-based positions [n,R] to compute for examples with these random positions [n]: the listed ones, then it."""
        listed = torch.tensor(self.listed, dtype=torch.int64, device=random_position.device) - 1
        rows = listed.expand(len(random_position), -1)
        return torch.cat((rows, random_position[:, None] - 1), dim=1) if self.example else rows


def parse_positions(text: str | Sequence[int], context: int, icl_window: int = 1) -> Positions:
    """From `all`, `paper` (one random position per example and those of the ICL score) or a list such as `50,500`.

    Raises:
        InputError: a position outside 1..context, repeated, or not a number; a window that does not fit.
    """
    early, late = icl_positions(context, icl_window)
    if text == "all":
        return Positions(tuple(range(1, context + 1)), True, early, late)
    if text == "paper":
        return Positions(tuple(sorted({*early, *late})), True, early, late)
    items = text.split(",") if isinstance(text, str) else [str(item) for item in text]
    if not items or not all(item.strip().isdecimal() for item in items):
        raise InputError(f"positions: {text!r} is neither all, paper nor a list of positions such as 50,500")
    listed = tuple(int(item) for item in items)
    if outside := [p for p in listed if not 1 <= p <= context]:
        raise InputError(f"positions: {outside[0]} is outside the context, which has positions 1 to {context}")
    if len(set(listed)) < len(listed):
        raise InputError(f"positions: {text!r} names a position twice")
    return Positions(tuple(sorted(listed)), False, early, late)


def parse_memory(text: str | int) -> int:
    """Bytes, from a number or text such as `2GiB` or `500MB`.

    Raises:
        InputError: not of that form, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(text).strip().lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise InputError(f"memory: {text!r} is not an amount of memory such as 2GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2]])


def examples_at_a_time(
    config: TransformerConfig, context: int, rows: int, recorded: Sequence[str], budget: int, itemsize: int = 4
) -> int:
    """How many examples one pass of the definition may hold, to keep activations and recorded sites in `budget` bytes.

    The weights and the tokens themselves are not counted.

    Raises:
        InputError: not even one example fits; the message says how much it needs.
    """
    stream = context * config.width
    head = config.heads * context * config.d_head
    square = config.heads * context * context
    sizes = {"pattern": square}
    floats = sum(sizes.get(name.partition(".")[2], head) for name in recorded)
    # one layer at work: scores, masked scores, pattern and the forced pattern; q, k, v, z and their split copies
    floats += 4 * square if any(name.endswith("pattern") for name in recorded) else square
    floats += 8 * head + 6 * stream
    if config.mlp:
        floats += 3 * config.mlp_ratio * stream
    floats += rows * (config.width + 4)
    each = itemsize * floats
    # the loss op works on blocks of logits, so that many examples share one bounded workspace
    logits, most_logits = 12 * rows * config.vocab, 12 * LOGITS_AT_A_TIME
    fitting = max(budget // (each + logits), (budget - most_logits) // each)
    if fitting < 1:
        needed = each + min(logits, most_logits)
        raise InputError(
            f"memory: one example of {context} tokens needs about {needed / 2**20:.0f} MiB, "
            f"the budget is {budget / 2**20:.0f} MiB"
        )
    return fitting
