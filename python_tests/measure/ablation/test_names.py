"""The `--heads` language."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_fast import InputError, TransformerConfig
from icl_fast.measure.ablation import Ablation, parse_ablations
from icl_fast.measure.ablation.names import parse_heads

CONFIG = TransformerConfig(vocab=10, context=4, layers=2, width=6, heads=3)


def heads(text: str) -> list[tuple[tuple[int, int], ...]]:
    return [ablation.heads for ablation in parse_ablations(text, CONFIG)]


def test_every_form() -> None:
    assert heads("all") == [((0, 0),), ((0, 1),), ((0, 2),), ((1, 0),), ((1, 1),), ((1, 2),)]
    assert heads("0.2, 1.0") == [((0, 2),), ((1, 0),)]
    assert heads("1.*") == [((1, 0), (1, 1), (1, 2))]
    assert heads("*") == [tuple((layer, head) for layer in range(2) for head in range(3))]
    assert heads("1.1+0.2") == [((0, 2), (1, 1))]
    assert heads("~1.*+0.0") == [((0, 1), (0, 2))]
    assert parse_ablations("embed+1.1", CONFIG) == [Ablation("embed+1.1", ((1, 1),), embed=True)]
    assert parse_ablations("none", CONFIG) == []
    assert parse_ablations("1.1+0.2", CONFIG)[0].heads_of(1) == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2.0", "'2.0' is not in this model; it has layers 0 to 1 and heads 0 to 2"),
        ("0.3", "'0.3' is not in this model"),
        ("0.-1", "is not understood"),
        ("", "'' is not understood"),
        ("0.1,,0.2", "'' is not understood"),
        ("head 3", "is not understood"),
        ("0.1,0.1", "0.1 asked for more than once"),
        ("all,1.1", "1.1 asked for more than once"),
        ("~*", "leaves nothing to remove"),
        ("~embed", "is not understood"),
        ([], "names none; write none for no ablation"),
        (["0.1", "0.1"], "0.1 asked for more than once"),
        (["0.1", ""], "'' is not understood"),
        ("0.1+0.2,0.2+0.1", "0.1+0.2 asked for more than once"),
        ("~0.1+0.2,~0.2+0.1", "~0.1+0.2 asked for more than once"),
        ("0.1+0.1", "heads: '0.1+0.1': 0.1 asked for more than once"),
        ("00.1", "'00.1' is not understood"),
        ("0.01", "'0.01' is not understood"),
        ("٠.١", "is not understood"),
        ("9" * 5000 + ".0", "is not understood"),
        ("none,0.1", "'none' is not understood"),
        (None, "must be text, or a list of text, got None"),
        ([3], "must be text, or a list of text, got [3]"),
    ],
)
def test_bad_input(text: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_ablations(text, CONFIG)
    assert message in str(error.value)
    with pytest.raises(InputError, match=r"^preserve_heads: "):  # the argument that was given, whichever it was
        parse_heads(text, CONFIG, "preserve_heads")


def test_lists_and_sets_of_heads() -> None:
    assert parse_ablations(["0.1", " 1.*"], CONFIG) == parse_ablations("0.1,1.*", CONFIG)
    assert parse_ablations(["none"], CONFIG) == []
    assert parse_heads("1.0,0.1+0.2", CONFIG, "preserve_heads") == ((0, 1), (0, 2), (1, 0))
    for nothing in ("none", "embed", "embed+0.1"):
        with pytest.raises(InputError, match=r"^preserve_heads: .* is no set of heads; name heads such as 1.0"):
            parse_heads(nothing, CONFIG, "preserve_heads")


@given(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=5))
def test_a_set_and_its_complement_part_the_model(chosen: set[tuple[int, int]]) -> None:
    text = "+".join(f"{layer}.{head}" for layer, head in chosen)
    inside, outside = heads(text)[0], heads("~" + text)[0]
    assert set(inside) == chosen
    assert set(inside) | set(outside) == set(heads("*")[0])
    assert not set(inside) & set(outside)
