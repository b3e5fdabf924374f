"""Clamps as they are asked for: by name, stacked and sliced, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from icl_fast.errors import InputError
from icl_fast.models import Clamps, ExemplarShape, make_clamps, no_clamps, stack_clamps

NAMES = [["pt-attend"], ["layer-1"], ["match"], ["copy"], ["layer-1+copy"], ["no-previous-token"]]
SHAPE = ExemplarShape(layers=3, width=32, heads=4)


def test_defaults_are_the_thesis_heads() -> None:
    """Layer 1 Head 2 and Layer 2 Head 3."""
    clamps = make_clamps(SHAPE, ["pt-attend", "match", "copy"])
    assert clamps.previous_token.tolist() == [[False, False, True, False]]
    assert clamps.match.tolist() == [[False, False, False, True]]
    assert clamps.copy.tolist() == [3]


def test_nothing_forced() -> None:
    for shape in (SHAPE, ExemplarShape(layers=1, width=4, heads=1)):  # the default heads need not be there
        one, other = make_clamps(shape), no_clamps(shape)
        assert all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Clamps))
    assert make_clamps(ExemplarShape(width=4, heads=1), ["layer-1", "no-previous-token"]).first_layer.tolist() == [True]


def test_joined_name() -> None:
    one, two = make_clamps(SHAPE, ["layer-1+copy"]), make_clamps(SHAPE, ["copy", "layer-1"])
    assert all(torch.equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(Clamps))
    assert one.first_layer.tolist() == [True]
    assert not one.match.any()


def test_stack_and_slice() -> None:
    alone = [make_clamps(SHAPE, names) for names in NAMES]  # type: ignore[arg-type]
    both = stack_clamps([*alone, no_clamps(SHAPE, 2)])
    assert both.members == 8
    for p, one in enumerate(alone):
        assert all(torch.equal(getattr(both[p : p + 1], f.name), getattr(one, f.name)) for f in fields(Clamps))
    assert both[6:].members == 2
    moved = both.to("meta")
    assert all(getattr(moved, f.name).device.type == "meta" for f in fields(Clamps))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["macth"]}, "clamp macth: must be pt-attend, layer-1, match"),
        ({"names": ["copy+layer-1"]}, "clamp copy"),
        (
            {"names": ["pt-attend"], "previous_token_heads": [4]},
            r"head 0\.4: .* layers 0 to 2, heads 0 to 3",
        ),
        ({"names": ["pt-attend"], "previous_token_heads": [-1]}, r"head 0\.-1"),
        ({"names": ["match"], "induction_heads": [0, 9]}, r"head 2\.9"),
        ({"names": ["copy"], "induction_heads": [4]}, r"head 2\.4"),
        ({"names": ["copy"], "induction_heads": [0, 1]}, r"induction_heads \[0, 1\]: .*name one"),
        ({"names": ["layer-1+copy"], "induction_heads": []}, r"induction_heads \[\]"),
        ({"only_heads": [(3, 0)]}, r"head 3\.0"),
        ({"without_heads": [(-1, 0)]}, r"head -1\.0"),
        ({"temperature": [((0, 4), 1.0)]}, r"head 0\.4"),
        ({"names": ["match", "match"]}, "clamps: match asked for more than once"),
        ({"names": [""]}, "clamps: .* empty item"),
        ({"names": ["match"], "induction_heads": [0, 0]}, r"head 2\.0: is named more than once"),
        ({"names": ["match"], "induction_heads": [1.0]}, r"head \(2, 1\.0\): must be a whole number, got 1\.0"),
        ({"without_heads": [(0, 1), (0, 1)]}, r"head 0\.1: is named more than once"),
        ({"without_heads": 5}, "heads: must be a list, got 5"),
        ({"temperature": [3]}, "temperature: must be a list of .* got 3 in it"),
        ({"without_heads": [1]}, r"head 1: must be \(layer, head\)"),
        ({"temperature": [((0, 1), 0.0)]}, r"temperature of 0\.1: must be 1e-20 or more, got 0\.0"),
        ({"temperature": [((0, 1), 1e-300)]}, r"temperature of 0\.1"),
        ({"temperature": [((0, 1), "1")]}, r"temperature of 0\.1: must be a number, got '1'"),
        ({"temperature": [((0, 1), float("inf"))]}, r"temperature of 0\.1"),
        ({"temperature": [((0, 1), float("nan"))]}, r"temperature of 0\.1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_clamps(SHAPE, **arguments)


@pytest.mark.parametrize("name", ["layer-1", "layer-1+copy"])
def test_one_layer_has_none_before_it(name: Any) -> None:
    with pytest.raises(InputError, match=f"clamp {name}: ".replace("+", r"\+") + ".*only one"):
        make_clamps(ExemplarShape(layers=1), [name])
