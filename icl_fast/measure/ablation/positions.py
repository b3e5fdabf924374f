"""Context positions whose losses a sweep keeps: the listed ones, and a random one per example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icl_fast.arguments import whole_number
from icl_fast.data.positions import icl_positions
from icl_fast.errors import InputError


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


def parse_positions(
    text: str | Sequence[int],
    context: int,
    icl_window: int = 1,
    icl_pair: str | Sequence[int] | None = None,
) -> Positions:
    """From `all`, `paper` (one random position per example and those of the ICL score) or a list such as `50,500`.

    Raises:
        InputError: a position outside 1..context, repeated, or not a number; a window or a pair of the ICL score
            (see `icl_positions`) that does not fit, or that is of a score which these positions do not give.
    """
    early, late = icl_positions(context, icl_window, icl_pair)
    if not isinstance(text, str):
        text = ",".join(str(whole_number("positions", item)) for item in np.ravel(np.array(text, dtype=object)))
    if text == "all":
        return Positions(tuple(range(1, context + 1)), True, early, late)
    if text == "paper":
        return Positions(tuple(sorted({*early, *late})), True, early, late)
    items = text.split(",")
    if not items or not all(item.strip().isdecimal() and len(item) < 19 for item in items):
        raise InputError(f"positions: {text!r} is neither all, paper nor a list of positions such as 50,500")
    listed = tuple(int(item) for item in items)
    if outside := [p for p in listed if not 1 <= p <= context]:
        raise InputError(f"positions: {outside[0]} is outside the context, which has positions 1 to {context}")
    if len(set(listed)) < len(listed):
        raise InputError(f"positions: {text!r} names a position twice")
    chosen = Positions(tuple(sorted(listed)), False, early, late)
    for name, changed in {"icl_window": icl_window != 1, "icl_positions": icl_pair is not None}.items():
        if changed and not chosen.has_score:
            raise InputError(f"{name}: changes nothing at positions {text}, which lack the ICL score's; leave it out")
    return chosen
