"""Rules that decide claims."""

from __future__ import annotations

import json
import operator
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.analysis.claims import Chart, Curve, Measurement, Rule
from icl_fast.errors import InputError
from icl_fast.files import to_json

COMPARE = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
numbers = st.floats(-100, 100).map(lambda value: round(value, 2))


@given(st.lists(numbers, min_size=1, max_size=5), st.sampled_from(list(COMPARE)), numbers, st.booleans())
def test_a_condition_speaks_of_every_seed_or_of_their_mean(
    values: list[float], relation: str, bound: float, mean: bool
) -> None:
    rule = Rule(f"{'mean ' if mean else ''}drop {relation} {bound}")
    expected = [float(np.mean(values))] if mean else values
    assert rule.holds({"drop": values}) == all(COMPARE[relation](value, bound) for value in expected)


def test_all_conditions_must_hold() -> None:
    rule = Rule("drop >= 0.2 and mean late_2 < -1e-3")
    assert rule.quantities == ["drop", "late_2"]
    assert rule.holds({"drop": [0.2, 0.3], "late_2": [-1, 0.5]})
    assert not rule.holds({"drop": [0.2, 0.19], "late_2": [-1, 0.5]})
    assert not rule.holds({"drop": [0.2, 0.3], "late_2": [-1, 1.5]})


@pytest.mark.parametrize("text", ["drop < 1", "drop > 0", "mean drop <= 1"])
@pytest.mark.parametrize("values", [[0.5, float("nan")], []])
def test_what_is_not_a_number_or_not_there_never_holds(text: str, values: list[float]) -> None:
    assert not Rule(text).holds({"drop": values})


@pytest.mark.parametrize("text", ["", "drop", "drop = 1", "drop > x", "drop > 1 or rise > 1", "max drop > 1", "drop>1"])
def test_a_rule_that_is_not_understood(text: str) -> None:
    with pytest.raises(InputError, match=r"^rule: .* is not understood; write it as"):
        Rule(text)


def test_a_quantity_that_was_not_measured() -> None:
    with pytest.raises(InputError, match=r"^rule: rise was not measured; there are drop$"):
        Rule("drop > 1 and rise > 1").holds({"drop": [2]})


def test_a_measurement_is_plain_numbers() -> None:
    chart = Chart(
        "Losses", "sequences", "nats", [Curve("a", np.arange(3), np.array([[1, 2, 3], [3, 4, 5]], np.float32))]
    )
    measured = Measurement({"drop": np.array([0.5, 0.25], np.float32), "one": 3}, chart)  # type: ignore[dict-item]
    read = json.loads(to_json(asdict(measured)))
    assert read["quantities"] == {"drop": [0.5, 0.25], "one": [3.0]}
    assert read["chart"]["curves"][0] == {"label": "a", "x": [0, 1, 2], "y": [[1, 2, 3], [3, 4, 5]], "kind": "line"}
