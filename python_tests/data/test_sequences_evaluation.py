"""The evaluators against their definitions: what is shown, what is correct, what is never in training."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from icl_fast.data.evaluation_sequences import EVALUATORS, EvaluationSequences, evaluation_sequences, evaluators
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.sequences import KINDS, Sequences, training_sequences
from icl_fast.data.splits import ExemplarTable, split
from icl_fast.errors import InputError

HELD = {"held_out_classes": 30, "held_out_exemplars": 4}
CHAPTER_5 = SequenceConfig(classes=300, **HELD)
CHAPTER_4 = SequenceConfig(p_icl=1.0, classes=50, exemplars=1, label_pool=5, held_out_label_pairs=0.2, **HELD)
CHAPTER_2 = SequenceConfig(pairs=8, burstiness=3, p_bursty=0.9, zipf=1.0, labels_per_class=2, classes=300, **HELD)


def table() -> ExemplarTable:
    stand_in: Any = SimpleNamespace(features=torch.zeros(400, 10, 1), base=torch.arange(400) // 8)
    return stand_in  # type: ignore[no-any-return]


TABLE = table()


def ranks(config: SequenceConfig, classes: torch.Tensor) -> torch.Tensor:
    """The rank of each class; -1 if it is not trained on."""
    rank = torch.full((400,), -1)
    trained = split(config, TABLE).train_classes
    rank[torch.from_numpy(trained)] = torch.arange(len(trained))
    return rank[classes]


def evaluate(name: str, config: SequenceConfig, count: int = 500) -> tuple[EvaluationSequences, Sequences]:
    made = evaluation_sequences(name, config, TABLE, count)
    assert made.name == name
    assert len(made.sequences) == len(made.correct) == len(made.answered) == count
    shown = (made.sequences.labels[:, :, None] == made.correct[:, None, :]).any(-1)
    assert torch.equal(made.answered, shown.any(-1))
    return made, made.sequences


def kinds(sequences: Sequences) -> set[str]:
    return {KINDS[k] for k in sequences.kind.tolist()}


def query_in_context(sequences: Sequences) -> torch.Tensor:
    return sequences.classes[:, :-1] == sequences.classes[:, -1:]


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (CHAPTER_5, "train icl iwl ciwl flip held-out-exemplars held-out-classes"),
        (CHAPTER_4, "train icl held-out-exemplars held-out-classes held-out-label-pairs"),
        (CHAPTER_2, "train icl iwl iwl-common iwl-rare ciwl flip held-out-exemplars held-out-classes"),
        (SequenceConfig(pairs=3), "train iwl ciwl"),
        (SequenceConfig(pairs=1, p_bursty=0.0), "train iwl ciwl"),
        (SequenceConfig(classes=2), "train icl flip"),
    ],
)
def test_which_are_defined(config: SequenceConfig, names: str) -> None:
    assert evaluators(config, TABLE) == tuple(names.split())
    for name in names.split():
        evaluation_sequences(name, config, TABLE, 3)


@pytest.mark.parametrize("config", [CHAPTER_5, CHAPTER_4, CHAPTER_2])
def test_icl(config: SequenceConfig) -> None:
    made, sequences = evaluate("icl", config)
    assert set(sequences.labels.flatten().tolist()) == {0, 1}
    here = query_in_context(sequences)
    assert (here.sum(1) == config.pairs // 2).all()
    assert torch.equal(sequences.labels == sequences.target[:, None], here)
    assert all(len(set(row)) == 2 for row in sequences.classes.tolist())
    assert (made.correct == sequences.target[:, None]).all()
    assert made.answered.all()
    assert (ranks(config, sequences.classes) >= 0).all()
    assert 0.4 < sequences.target.float().mean() < 0.6


@pytest.mark.parametrize("config", [CHAPTER_5, CHAPTER_2])
def test_iwl(config: SequenceConfig) -> None:
    made, sequences = evaluate("iwl", config)
    assert all(len(set(row)) == len(row) for row in sequences.classes.tolist())
    assert not made.answered.any()
    rank = ranks(config, sequences.classes)
    own = rank[:, -1:] * config.labels_per_class + torch.arange(config.labels_per_class)
    assert torch.equal(made.correct, own), "every label of the query's class is correct"
    assert torch.equal(sequences.labels // config.labels_per_class, rank[:, :-1])


def test_common_and_rare_classes() -> None:
    queries = {}
    for name in ("iwl-common", "iwl-rare"):
        _, sequences = evaluate(name, CHAPTER_2, 5000)
        assert kinds(sequences) == {"iwl"}
        assert not query_in_context(sequences).any()
        queries[name] = ranks(CHAPTER_2, sequences.classes[:, -1]).numpy()
        context = ranks(CHAPTER_2, sequences.classes[:, :-1])
        assert 0.2 < (context < 10).float().mean() < 0.8, "the context is as in training"
    assert set(queries["iwl-common"]) == set(range(10))
    assert set(queries["iwl-rare"]) == set(range(10, 300))
    assert stats.chisquare(np.bincount(queries["iwl-common"])).pvalue > 1e-3
    assert stats.chisquare(np.bincount(queries["iwl-rare"])[10:]).pvalue > 1e-3


def test_common_classes_of_a_uniform_distribution_are_the_first_ones() -> None:
    """Exponent 0 of Figure 2.6d: the same classes as with any other."""
    _, sequences = evaluate("iwl-common", CHAPTER_5, 1000)
    assert set(ranks(CHAPTER_5, sequences.classes[:, -1]).tolist()) == set(range(10))


@pytest.mark.parametrize("config", [CHAPTER_5, CHAPTER_2])
def test_ciwl(config: SequenceConfig) -> None:
    made, sequences = evaluate("ciwl", config)
    assert not query_in_context(sequences).any()
    assert ((sequences.labels == sequences.target[:, None]).sum(1) == 1).all()
    assert all(len(set(classes)) == config.pairs + 1 for classes in sequences.classes.tolist())
    assert torch.equal(sequences.target // config.labels_per_class, ranks(config, sequences.classes[:, -1]))
    assert (made.correct == sequences.target[:, None]).all()
    assert made.answered.all()


@pytest.mark.parametrize("config", [CHAPTER_5, CHAPTER_2])
def test_flip(config: SequenceConfig) -> None:
    made, sequences = evaluate("flip", config)
    rank = ranks(config, sequences.classes)
    here = query_in_context(sequences)
    assert (here.sum(1) == config.pairs // 2).all()
    trained = sequences.labels // config.labels_per_class
    other = rank[:, :-1].masked_fill(here, -1).max(dim=1).values
    assert torch.equal(trained[here], other[:, None].expand_as(here)[here]), "the query's class shows the other's label"
    assert torch.equal(trained[~here], rank[:, -1:].expand_as(here)[~here])
    assert torch.equal(sequences.target // config.labels_per_class, other), "correct is the label in context"
    assert (made.correct == sequences.target[:, None]).all()


@pytest.mark.parametrize("config", [CHAPTER_5, CHAPTER_4, CHAPTER_2])
def test_held_out_exemplars(config: SequenceConfig) -> None:
    parts = split(config, TABLE)
    _, sequences = evaluate("held-out-exemplars", config)
    trained = training_sequences(config, TABLE).draw(0, 500)
    assert kinds(sequences) == kinds(trained)
    for drawn, allowed in ((sequences, parts.held_out_exemplars), (trained, parts.train_exemplars)):
        pairs = zip(drawn.classes.flatten().tolist(), drawn.exemplars.flatten().tolist(), strict=True)
        assert all(exemplar in allowed[k] for k, exemplar in pairs)
    assert (ranks(config, sequences.classes) >= 0).all()


@pytest.mark.parametrize("config", [CHAPTER_5, CHAPTER_4, CHAPTER_2])
def test_held_out_classes(config: SequenceConfig) -> None:
    _, sequences = evaluate("held-out-classes", config, 1000)
    trained = training_sequences(config, TABLE).draw(0, 1000)
    assert set(sequences.classes.flatten().tolist()) == set(split(config, TABLE).held_out_classes.tolist())
    assert not set((sequences.classes // 8).flatten().tolist()) & set((trained.classes // 8).flatten().tolist())
    assert kinds(sequences) == {"icl"}
    pairs = {frozenset(row) for row in sequences.labels.tolist()}
    if config is CHAPTER_4:
        assert pairs == {frozenset(row) for row in trained.labels.tolist()}
    else:
        assert pairs == {frozenset((0, 1))}


def test_held_out_label_pairs() -> None:
    _, sequences = evaluate("held-out-label-pairs", CHAPTER_4)
    trained = training_sequences(CHAPTER_4, TABLE).draw(0, 2000)
    held_out, train = ({frozenset(row) for row in drawn.labels.tolist()} for drawn in (sequences, trained))
    assert (len(held_out), len(train)) == (2, 8)
    assert not held_out & train
    assert {tuple(row) for row in sequences.labels.tolist()} == {
        p for a, b in map(tuple, held_out) for p in ((a, b), (b, a))
    }
    assert set(sequences.classes.flatten().tolist()) == set(split(CHAPTER_4, TABLE).train_classes.tolist())


def test_sets_are_fixed_and_differ_from_training_and_each_other() -> None:
    other_seed = CHAPTER_5.model_copy(update={"seed": 9})
    queries = []
    for name in evaluators(CHAPTER_5, TABLE):
        sequences = evaluate(name, CHAPTER_5)[1]
        again = evaluate(name, other_seed, 100)[1]
        for field in fields(sequences):
            assert torch.equal(getattr(sequences, field.name)[:100], getattr(again, field.name))
        queries.append(tuple(sequences.classes[:, -1].tolist()))
    queries.append(tuple(training_sequences(CHAPTER_5, TABLE).draw(0, 500).classes[:, -1].tolist()))
    assert len(set(queries)) == len(queries)


def test_accuracy_within_context_is_undefined_for_some_training_sequences() -> None:
    made, sequences = evaluate("train", CHAPTER_2)
    iid = sequences.kind == KINDS.index("iid")
    assert iid.any()
    assert made.answered[~iid].all()
    assert not made.answered[iid].all()
    correct = made.correct // CHAPTER_2.labels_per_class
    assert (correct == ranks(CHAPTER_2, sequences.classes[:, -1:])).all()
    assert (made.correct[~made.answered].diff(dim=1) == 1).all(), "either label, where the context does not say which"
    assert (made.correct[made.answered] == sequences.target[made.answered, None]).all()


def test_a_population_has_the_sets_of_its_members() -> None:
    members = [CHAPTER_5, CHAPTER_5.model_copy(update={"classes": 40, "labels_per_class": 3, "split_seed": 2})]
    for name in evaluators(CHAPTER_5, TABLE):
        together = evaluation_sequences(name, members, TABLE, 50)
        for member, config in enumerate(members):
            alone = evaluation_sequences(name, config, TABLE, 50)
            for field in fields(alone.sequences):
                assert torch.equal(
                    getattr(together.sequences, field.name)[member], getattr(alone.sequences, field.name)
                )
            assert torch.equal(together.answered[member], alone.answered)
            sets = zip(together.correct[member].tolist(), alone.correct.tolist(), strict=True)
            assert all(set(one) == set(other) for one, other in sets)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("IWL", CHAPTER_5, "evaluator IWL: must be one of train, icl, iwl"),
        ("icl", SequenceConfig(pairs=3), r"evaluator icl: sequences\.pairs 3: must be even"),
        ("flip", CHAPTER_4, r"evaluator flip: sequences\.p_icl 1: classes have no labels of their own"),
        ("ciwl", SequenceConfig(classes=2), r"evaluator ciwl: sequences\.classes 2: .* needs 3 different classes"),
        ("iwl", SequenceConfig(classes=2), r"evaluator iwl: sequences\.classes 2: .* needs 3 different classes"),
        ("iwl-common", SequenceConfig(zipf=1.0, classes=10), r"sequences\.classes 10: must be more than 10"),
        ("held-out-exemplars", SequenceConfig(), r"sequences\.held_out_exemplars 0: none are held out"),
        ("held-out-classes", SequenceConfig(), r"sequences\.held_out_classes 0: none are held out"),
        (
            "held-out-classes",
            SequenceConfig(held_out_classes=1),
            r"sequences\.held_out_classes 1: .* needs 2 different",
        ),
        ("held-out-label-pairs", CHAPTER_5, r"sequences\.held_out_label_pairs 0: none are held out"),
    ],
)
def test_what_is_not_defined_says_why(name: str, config: SequenceConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluation_sequences(name, config, TABLE)


def test_the_random_streams_of_the_sets_never_change() -> None:
    """A new evaluator goes last, so that the sets of the others stay what stored results were measured on."""
    names = "train icl iwl iwl-common iwl-rare ciwl flip held-out-exemplars held-out-classes held-out-label-pairs"
    assert tuple(EVALUATORS)[:10] == tuple(names.split())
