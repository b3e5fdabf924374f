"""Rules that decide claims: conditions on measured quantities, written down before anything is measured."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from icl_fast.errors import InputError

_CONDITION = re.compile(r"(mean )?([a-z][a-z0-9_]*) (<=|>=|<|>) (-?[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)")
_COMPARE = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Curve:
    """One curve of a chart, of one training or of several seeds of it.

    Attributes:
        label: in the legend.
        x: `[n]`.
        y: `[n]`, or `[seed,n]`: their mean is drawn, with one standard deviation as its band.
        kind: a line, or points.
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    kind: Literal["line", "points"] = "line"

    def __post_init__(self) -> None:
        for name in ("x", "y"):  # as lists, so that what is written as JSON and read again is the same
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=float).tolist())


@dataclass(frozen=True)
class Chart:
    """The figure behind a claim. Labels of axes have units."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Measurement:
    """What was measured for a claim.

    Attributes:
        quantities: by name, a value for each seed, or one alone of all.
        chart: what they were read from.
    """

    quantities: Mapping[str, Sequence[float]]
    chart: Chart

    def __post_init__(self) -> None:
        numbers = {name: np.atleast_1d(np.asarray(of, dtype=float)).tolist() for name, of in self.quantities.items()}
        object.__setattr__(self, "quantities", numbers)


@dataclass(frozen=True)
class Condition:
    """One comparison of a rule."""

    quantity: str
    relation: str
    bound: float
    of_mean: bool

    def holds(self, values: Sequence[float]) -> bool:
        """Whether the mean of the values, or each of them, is as demanded; NaN never is."""
        compared = [float(np.mean(values))] if self.of_mean and len(values) else values
        return len(compared) > 0 and all(bool(_COMPARE[self.relation](value, self.bound)) for value in compared)


@dataclass(frozen=True)
class Rule:
    """Conditions that must all hold.

    `drop >= 0.2 and mean strength > 0.5`: a condition holds if every value of its quantity (each seed's) is as it says,
    or, after `mean`, the mean over them.

    Raises:
        InputError: the text is not of that form.
    """

    text: str
    conditions: tuple[Condition, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = [_CONDITION.fullmatch(part) for part in self.text.split(" and ")]
        if not all(found):
            raise InputError(
                f"rule: {self.text!r} is not understood; write it as `drop >= 0.2 and mean strength > 0.5`"
            )
        conditions = [Condition(m[2], m[3], float(m[4]), m[1] is not None) for m in found if m is not None]
        object.__setattr__(self, "conditions", tuple(conditions))

    @property
    def quantities(self) -> list[str]:
        """The names that the rule speaks of, each once."""
        return list(dict.fromkeys(condition.quantity for condition in self.conditions))

    def holds(self, quantities: Mapping[str, Sequence[float]]) -> bool:
        """Whether all conditions hold.

        Raises:
            InputError: a quantity was not measured.
        """
        if missing := [name for name in self.quantities if name not in quantities]:
            raise InputError(f"rule: {missing[0]} was not measured; there are {', '.join(quantities)}")
        return all(condition.holds(quantities[condition.quantity]) for condition in self.conditions)
