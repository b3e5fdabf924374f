"""The context positions that the in-context-learning score compares."""

from __future__ import annotations

from collections.abc import Sequence

from icl_fast.arguments import shown, whole_number, whole_numbers
from icl_fast.errors import InputError

PAPER_CONTEXT, PAPER_EARLY, PAPER_LATE = 512, 50, 500


def icl_positions(
    context: int, window: int = 1, pair: str | Sequence[int] | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The 1-based positions (early, late) whose mean losses the ICL score compares: late minus early.

    By default position 50 and position 500, scaled where the context is under 512 (Olsson et al. 2022, Analyses: "the
    average loss of the 500th token minus the average loss of the 50th token (for a length-512 context)"). The paper
    averages 10,000 examples; with fewer, a `window` of positions around each of the two keeps the noise down.

    Args:
        context: positions that there are.
        window: how many positions around each.
        pair: other positions, such as `50,500`.

    Raises:
        InputError: a window that is not odd and positive, or so wide that the two would meet; a pair that is none of
            two positions of the context, the earlier one first.
    """
    window = whole_number("icl_window", window)
    if pair is None:
        scale = min(1.0, context / PAPER_CONTEXT)
        early, late = (max(1, round(position * scale)) for position in (PAPER_EARLY, PAPER_LATE))
    else:
        early, late = _parse_pair(pair, context)
    reach = window // 2
    if window < 1 or window % 2 == 0 or (window > 1 and early + reach >= late - reach):
        raise InputError(f"icl_window: must be odd and leave room between positions {early} and {late}, got {window}")
    around = [range(max(1, at - reach), min(context, at + reach) + 1) for at in (early, late)]
    return tuple(around[0]), tuple(around[1])


def _parse_pair(pair: str | Sequence[int], context: int) -> tuple[int, int]:
    if isinstance(pair, str):
        items = [item.strip() for item in pair.split(",")]
        numbers = [int(item) for item in items] if all(item.isdecimal() and len(item) < 19 for item in items) else []
    else:
        numbers = whole_numbers("icl_positions", pair)
    if len(numbers) != 2 or not 1 <= numbers[0] < numbers[1] <= context:
        raise InputError(
            f"icl_positions: {shown(pair)} must be two of the context's positions, 1 to {context}, the earlier one "
            "first, such as 50,500"
        )
    return numbers[0], numbers[1]
