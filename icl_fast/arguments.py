"""What arguments must be, whoever takes them: whole numbers, finite numbers, different names. One message for each."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from math import inf, isfinite
from typing import Any

from icl_fast.errors import InputError

_LONGEST = 80  # characters of a value in a message
MOST_SEED = 2**63 - 1  # what torch's generators take


def whole_number(argument: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An integer, as Python, numpy or torch have them; neither a truth value nor a float that happens to be whole.

    Raises:
        InputError: something else, or one outside the bounds.
    """
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):  # torch's count as 1
            raise TypeError
        number = operator.index(value)
    except (TypeError, RuntimeError, ValueError):  # torch: an array; a tensor of several numbers
        raise InputError(f"{argument}: must be a whole number, got {shown(value)}") from None
    _check_within(argument, number, least, most)
    return number


def finite_number(argument: str, value: Any, least: float = -inf, most: float = inf) -> float:
    """A number that is neither NaN nor infinite.

    Raises:
        InputError: something else, or one outside the bounds.
    """
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{argument}: must be a number, got {shown(value)}") from None
    if not isfinite(number):
        raise InputError(f"{argument}: must be a finite number, got {number}")
    _check_within(argument, number, least, most)
    return number


def whole_numbers(argument: str, values: Any, least: int | None = None, most: int | None = None) -> list[int]:
    """Several of `whole_number`.

    Raises:
        InputError: no list, or one with something else.
    """
    return [whole_number(argument, value, least, most) for value in listed(argument, values)]


def finite_numbers(argument: str, values: Any, least: float = -inf, most: float = inf) -> list[float]:
    """Several of `finite_number`, one or more.

    Raises:
        InputError: no list, an empty one, or one with something else.
    """
    numbers = [finite_number(argument, value, least, most) for value in listed(argument, values)]
    if not numbers:
        raise InputError(f"{argument}: name one or more")
    return numbers


def listed(argument: str, values: Any) -> list[Any]:
    """The items of a list, or of anything else that has items.

    Raises:
        InputError: it has none.
    """
    try:
        return list(values)
    except TypeError:
        raise InputError(f"{argument}: must be a list, got {shown(values)}") from None


def different_names(argument: str, values: str | Iterable[str]) -> list[str]:
    """The items of a comma-separated text, or of a list, which may have none: not empty, none twice.

    Raises:
        InputError: anything else.
    """
    items = values.split(",") if isinstance(values, str) else values
    try:
        names = [item.strip() for item in items]
    except (AttributeError, TypeError):
        raise InputError(f"{argument}: must be text, or a list of text, got {shown(values)}") from None
    if "" in names:
        raise InputError(f"{argument}: '' is not understood, an empty item of {shown(values)}; name something there")
    check_different(argument, names)
    return names


def check_different(argument: str, names: Sequence[str]) -> None:
    """Raises InputError if one of these is there twice."""
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise InputError(f"{argument}: {twice} asked for more than once; once is enough")


def shown(value: Any) -> str:
    """A value as messages have it: in one line, cut off."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _check_within(argument: str, number: float, least: float | None, most: float | None) -> None:
    if least is not None and number < least:
        raise InputError(f"{argument}: must be {least} or more, got {shown(number)}")
    if most is not None and number > most:
        raise InputError(f"{argument}: must be at most {most}, got {shown(number)}")
