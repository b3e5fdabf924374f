"""All sequences that there are, against the formula of Singh 2025, C.1, and against draws."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from icl_fast.data.evaluation_sequences import EvaluationSequences, evaluation_sequences
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.errors import InputError

CHAPTER_4: dict[str, Any] = {
    "p_icl": 1.0,
    "classes": 50,
    "exemplars": 1,
    "label_pool": 5,
    "held_out_classes": 10,
    "held_out_label_pairs": 0.2,
}


def listed(name: str = "train", count: Any = "all", per_class: int = 3, **values: Any) -> EvaluationSequences:
    table: Any = SimpleNamespace(features=torch.zeros(60, per_class, 1), base=torch.arange(60))
    return evaluation_sequences(name, SequenceConfig(**{**CHAPTER_4, **values}), table, count)


def rows(one: EvaluationSequences) -> list[tuple[int, ...]]:
    parts = one.sequences
    columns = [parts.classes, parts.exemplars, parts.labels, parts.target[:, None], parts.kind[:, None]]
    return [tuple(row) for row in torch.cat(columns, 1).tolist()]


def test_chapter_4_has_78400() -> None:
    whole = listed()
    assert len(whole.sequences) == len(set(rows(whole))) == 78_400
    assert bool(whole.answered.all())
    assert torch.equal(whole.correct[:, 0], whole.sequences.target)
    assert set(rows(listed(count=2000))) <= set(rows(whole))


@pytest.mark.parametrize("name", ["train", "icl", "held-out-classes", "held-out-label-pairs"])
def test_every_draw_is_listed_and_every_sequence_drawn(name: str) -> None:
    small: dict[str, Any] = {"classes": 3, "exemplars": 2, "label_pool": 4, "held_out_classes": 3}
    whole = listed(name, **small)
    # F C (C - 1) L (L - 1) 2 E^3, with F L (L - 1) / 2 pairs of labels
    pairs = {"icl": 1, "held-out-label-pairs": 1, "train": 5, "held-out-classes": 5}[name]
    assert len(whole.sequences) == 2 * 2 * pairs * 3 * 2 * 2**3
    drawn = listed(name, 20_000, **small)
    assert set(rows(drawn)) == set(rows(whole))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"p_icl": 0.0, "held_out_label_pairs": 0.0}, "p_icl: must be 1"),
        ({"zipf": 1.0}, "zipf: must be 0"),
        ({"noise": 0.5}, r"noise 0\.5: must be 0"),
        ({"pairs": 4, "burstiness": 2}, "pairs 4: must be 2"),
        ({"matched": True}, "matched: must be false"),
    ],
)
def test_what_cannot_be_listed_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"sequences all: sequences.{said}"):
        listed(**values)
