"""What is trained on and what is held out: never the same exemplar, character or pair of labels."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.splits import ExemplarTable, Split, split
from icl_fast.errors import InputError


def table(base: list[int], exemplars: int = 1) -> ExemplarTable:
    stand_in: Any = SimpleNamespace(features=torch.zeros(len(base), exemplars, 1), base=torch.tensor(base))
    return stand_in  # type: ignore[no-any-return]


def attempt(config: SequenceConfig, exemplars: ExemplarTable) -> Split | str:
    """The split, or the message that refuses it."""
    try:
        return split(config, exemplars)
    except InputError as error:
        return str(error)


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=40), st.integers(0, 40), st.integers(1, 40) | st.none(), st.data()
)
def test_classes_are_held_out_with_all_of_their_character(
    base: list[int], held: int, classes: int | None, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 2**63 - 1))
    config = SequenceConfig(classes=classes, held_out_classes=held, split_seed=seed)
    parts = attempt(config, table(base))
    if isinstance(parts, str):
        assert "classes" in parts
        most = max(base.count(character) for character in base)
        assert held + most > len(base) - (classes or 1)  # whole characters: at most one class too many by `most`
        return
    train, held_out = parts.train_classes.tolist(), parts.held_out_classes.tolist()
    assert len(held_out) == len(set(held_out)) == held
    assert len(train) == len(set(train))
    assert set(train) | set(held_out) <= set(range(len(base)))
    assert not {base[k] for k in train} & {base[k] for k in held_out}
    if classes is not None:
        assert len(train) == classes
    elif not held:
        assert len(train) == len(base)


@given(st.integers(1, 12), st.integers(0, 6), st.integers(1, 12) | st.none(), st.integers(0, 99))
def test_exemplars(available: int, held: int, exemplars: int | None, seed: int) -> None:
    config = SequenceConfig(exemplars=exemplars, held_out_exemplars=held, split_seed=seed)
    given_table = table(list(range(30)), available)
    train = exemplars or available - held
    if train < 1 or train + held > available:
        with pytest.raises(InputError, match=r"sequences\.exemplars .* held_out_exemplars"):
            split(config, given_table)
        return
    parts = split(config, given_table)
    assert parts.train_exemplars.shape == (30, train)
    assert parts.held_out_exemplars.shape == (30, held)
    both = np.concatenate([parts.train_exemplars, parts.held_out_exemplars], axis=1)
    assert both.min() >= 0
    assert both.max() < available
    assert all(len(set(row)) == len(row) for row in both.tolist())


@given(st.integers(3, 30), st.floats(0.01, 0.9), st.integers(0, 9))
def test_label_pairs(pool: int, fraction: float, seed: int) -> None:
    config = SequenceConfig(p_icl=1.0, label_pool=pool, held_out_label_pairs=fraction, split_seed=seed)
    parts = attempt(config, table([0, 1]))
    if isinstance(parts, str):
        assert "sequences.held_out_label_pairs" in parts
        assert fraction > 0.3 or pool < 5
        return
    assert parts.train_label_pairs is not None
    assert parts.held_out_label_pairs is not None
    train, held_out = (
        {tuple(p) for p in pairs.tolist()} for pairs in (parts.train_label_pairs, parts.held_out_label_pairs)
    )
    assert not train & held_out
    assert train | held_out == set(combinations(range(pool), 2))
    assert len(held_out) == max(1, round(fraction * pool * (pool - 1) / 2))
    assert {label for pair in train for label in pair} == set(range(pool))


def test_no_pairs_are_listed_when_none_is_held_out() -> None:
    parts = split(SequenceConfig(p_icl=1.0, label_pool=2**20), table([0, 1]))
    assert parts.train_label_pairs is None
    assert parts.held_out_label_pairs is None


def test_the_split_follows_from_its_seed_alone() -> None:
    config = SequenceConfig(held_out_classes=40, classes=300, held_out_exemplars=3)
    base = [k // 8 for k in range(800)]
    first = split(config, table(base, 20))
    same = split(config.model_copy(update={"seed": 5, "pairs": 8, "zipf": 1.0}), table(base, 20))
    other = split(config.model_copy(update={"split_seed": 1}), table(base, 20))
    for name in ("train_classes", "held_out_classes", "train_exemplars", "held_out_exemplars"):
        assert np.array_equal(getattr(first, name), getattr(same, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert len({base[k] for k in first.held_out_classes}) == 5
    assert not np.array_equal(first.train_exemplars[0], first.train_exemplars[1])


def test_more_classes_include_fewer() -> None:
    given_table = table([k // 8 for k in range(800)], 20)
    few = split(SequenceConfig(held_out_classes=100, classes=50, exemplars=2), given_table)
    many = split(SequenceConfig(held_out_classes=100, classes=400, exemplars=15, held_out_exemplars=5), given_table)
    assert np.array_equal(many.train_classes[:50], few.train_classes)
    assert np.array_equal(many.train_exemplars[:, :2], few.train_exemplars)
    assert np.array_equal(many.held_out_classes, few.held_out_classes)


def test_exemplars_must_say_their_characters() -> None:
    bad: Any = SimpleNamespace(features=torch.zeros(4, 2, 1), base=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match=r"exemplars\.base"):
        split(SequenceConfig(), bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 17}, r"sequences\.classes 17: the exemplars have 16 classes; "),
        (
            {"classes": 9, "held_out_classes": 3},
            r"sequences\.classes 9: .* 8 classes of characters that are not held out",
        ),
        ({"held_out_classes": 17}, r"sequences\.held_out_classes 17: there are 16 classes in all"),
        ({"held_out_classes": 9}, r"sequences\.classes 0: .*held_out_classes 9"),
        ({"held_out_exemplars": 3}, r"sequences\.exemplars 0 and held_out_exemplars 3: a class has 3"),
    ],
)
def test_impossible_splits(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split(SequenceConfig(**changes), table([k // 8 for k in range(16)], 3))
