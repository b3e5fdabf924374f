"""Whole numbers, finite numbers, names: what is taken, and one line that names the argument for what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.arguments import different_names, finite_number, whole_number
from icl_fast.errors import InputError


@pytest.mark.parametrize("value", [7, np.int8(7), np.uint64(7), np.array(7), torch.tensor(7), torch.tensor([7])])
def test_whole_numbers(value: Any) -> None:
    number = whole_number("count", value, 7, 7)
    assert number == 7
    assert type(number) is int


@pytest.mark.parametrize("value", [7.0, "7", None, True, [7], np.array([7, 7]), torch.tensor([7, 7]), float("nan")])
def test_no_whole_numbers(value: Any) -> None:
    with pytest.raises(InputError, match=r"^count: must be a whole number, got "):
        whole_number("count", value)


@given(st.integers(), st.integers(), st.integers())
def test_bounds_are_in(value: int, least: int, most: int) -> None:
    if least <= value <= most:
        assert whole_number("count", value, least, most) == value
    else:
        with pytest.raises(InputError, match=r"^count: must be -?\d+ or more|^count: must be at most -?\d+") as error:
            whole_number("count", value, least, most)
        assert len(str(error.value)) < 300


def test_a_number_of_thousands_of_digits_is_cut_off() -> None:
    with pytest.raises(InputError, match=r"^count: must be at most 9, got 1000") as error:
        whole_number("count", 10**4000, 0, 9)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_finite_numbers(value: Any) -> None:
    assert finite_number("weight", value, 0, 1) == float(value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, -0.1, "0.5", None, True, [0.5], 10**400])
def test_no_finite_numbers(value: Any) -> None:
    with pytest.raises(InputError, match=r"^weight: must be "):
        finite_number("weight", value, 0, 1)


def test_names() -> None:
    assert different_names("heads", "a, b,c") == ["a", "b", "c"]
    assert different_names("heads", ("a", " b")) == ["a", "b"]
    assert different_names("heads", []) == []


@pytest.mark.parametrize("value", ["", ",", "a,", "a,,b", [""], ["a", " "], "a,a", ["a", "a "], 3, None, [1], [["a"]]])
def test_no_names(value: Any) -> None:
    with pytest.raises(InputError, match=r"^heads: ('' is not understood|a asked for more than once|must be text)"):
        different_names("heads", value)
