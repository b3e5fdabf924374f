"""Every kind of sequence against its definition; frequencies against their formulas and a brute-force sampler."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from icl_fast.data.counter_random import normal, random_words
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.sequences import (
    KINDS,
    Sequences,
    _kind_limits,
    describe,
    output_labels,
    training_sequences,
    zipf_weights,
)
from icl_fast.data.splits import ExemplarTable, split
from icl_fast.errors import InputError
from icl_fast.schema import ValidationError


def table(classes: int, exemplars: int = 1, per_character: int = 1) -> ExemplarTable:
    stand_in: Any = SimpleNamespace(
        features=torch.zeros(classes, exemplars, 1), base=torch.arange(classes) // per_character
    )
    return stand_in  # type: ignore[no-any-return]


def draw(config: SequenceConfig, exemplars: ExemplarTable, count: int, start: int = 0) -> Sequences:
    return training_sequences(config, exemplars).draw(start, count)


def same(one: Sequences, other: Sequences) -> bool:
    return all(torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


@st.composite
def configs(draw: st.DrawFn, pairs: int | None = None) -> SequenceConfig:
    n = pairs or draw(st.integers(1, 9))
    shares = [draw(st.integers(0, 2)) for _ in range(4)]
    assume(sum(shares))
    fixed, icl, iwl, ciwl = (share / sum(shares) for share in shares)
    bursty = draw(st.sampled_from([0.0, 0.5, 1.0]))
    needs_burst = bool(fixed * bursty or icl)
    assume(n > 1 or not needs_burst)
    burst = draw(st.integers(1, n // 2 if needs_burst else 9))
    relabelled = n - 2 * burst + 2
    pool = draw(st.integers(max(2, relabelled), 14))
    hold = bool(icl) and relabelled == 2 and pool > 4 and draw(st.booleans())
    return SequenceConfig(
        pairs=n,
        burstiness=burst,
        p_bursty=bursty,
        p_icl=icl,
        p_iwl=iwl,
        p_ciwl=ciwl,
        classes=draw(st.integers(n + 1 if iwl or ciwl else max(1, relabelled), 14)),
        exemplars=draw(st.integers(1, 4)),
        labels_per_class=draw(st.integers(1, 3)),
        label_pool=pool,
        zipf=draw(st.sampled_from([0.0, 0.7, 1.0, 2.0, 9.0])),
        matched=draw(st.booleans()),
        held_out_classes=draw(st.integers(0, 8)),
        held_out_exemplars=draw(st.integers(0, 2)),
        held_out_label_pairs=0.2 if hold else 0.0,
        split_seed=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


TABLE = table(32, 6, per_character=4)


def check(config: SequenceConfig, sequences: Sequences, exemplars: ExemplarTable) -> None:
    """Every sequence is of its kind, by the words of the definition."""
    parts = split(config, exemplars)
    rank = {int(k): place for place, k in enumerate(parts.train_classes)}
    pairs = None if parts.train_label_pairs is None else {frozenset(p) for p in parts.train_label_pairs.tolist()}
    n, b, m = config.pairs, config.burstiness, config.labels_per_class
    composition = sorted([b, b] + [1] * (n - 2 * b))
    columns = [getattr(sequences, field.name).tolist() for field in fields(sequences)]
    for classes, numbers, labels, target, kind_index in zip(*columns, strict=True):
        kind = KINDS[kind_index]
        *context, query = classes
        assert len(labels) == n
        assert all(e in parts.train_exemplars[k] for k, e in zip(classes, numbers, strict=True))
        if config.matched:
            assert all(e == numbers[-1] for k, e in zip(context, numbers, strict=False) if k == query)
        own = {k: range(rank[k] * m, rank[k] * m + m) for k in classes}
        label_of = dict(zip(context, labels, strict=True))
        assert [label_of[k] for k in context] == labels, "a class has one label in a sequence"
        assert target == label_of.get(query, target)
        counts = Counter(context)
        if kind in ("bursty", "icl"):
            assert sorted(counts.values()) == composition
            assert counts[query] == b
        if kind == "icl":
            assert len(set(label_of.values())) == len(label_of)
            assert max(labels) < config.label_pool
            assert pairs is None or frozenset(labels) in pairs
        elif kind == "ciwl":
            assert len(set(classes)) == n + 1
            (cue,) = (k for k, label in label_of.items() if label == target)
            assert target in own[query]
            assert all(label in own[k] for k, label in label_of.items() if k != cue)
        else:
            assert all(label in own[k] for k, label in label_of.items())
            assert target in own[query]
        if kind == "iwl":
            assert len(set(classes)) == n + 1
            assert target not in labels
        assert kind != "flip"


@settings(max_examples=120)
@given(configs())
def test_every_kind_satisfies_its_definition(config: SequenceConfig) -> None:
    sequences = draw(config, TABLE, 40)
    check(config, sequences, TABLE)
    assert all(getattr(sequences, field.name).dtype == torch.int64 for field in fields(sequences))
    assert max(int(sequences.labels.max()), int(sequences.target.max())) < output_labels(config, TABLE)


@settings(max_examples=50)
@given(configs(), st.integers(0, 2**40), st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_batches_do_not_matter(config: SequenceConfig, start: int, sizes: list[int]) -> None:
    sampler = training_sequences(config, TABLE)
    whole = sampler.draw(start, sum(sizes))
    noise = sampler.noise(start, sum(sizes), 3)
    begin = 0
    for size in sizes:
        assert same(sampler.draw(start + begin, size), whole[begin : begin + size])
        assert torch.equal(sampler.noise(start + begin, size, 3), noise[begin : begin + size])
        begin += size


@settings(max_examples=40)
@given(st.integers(1, 6).flatmap(lambda pairs: st.lists(configs(pairs=pairs), min_size=1, max_size=5)))
def test_members_of_a_population_are_drawn_as_alone(members: list[SequenceConfig]) -> None:
    sampler = training_sequences(members, TABLE)
    together = sampler.draw(11, 20)
    assert together.classes.shape == (len(members), 20, members[0].pairs + 1)
    noise = sampler.noise(11, 20, 5)
    for member, config in enumerate(members):
        alone = training_sequences(config, TABLE)
        assert same(together[member], alone.draw(11, 20))
        assert torch.equal(noise[member], alone.noise(11, 20, 5))


def test_seeds_differ_and_nothing_else_is_random() -> None:
    config = SequenceConfig()
    torch.manual_seed(1)
    first = draw(config, TABLE, 50)
    torch.manual_seed(2)
    assert same(first, draw(config, TABLE, 50))
    assert not same(first, draw(config.model_copy(update={"seed": 1}), TABLE, 50))
    assert not same(first, draw(config, TABLE, 50, start=1))


def brute_force(config: SequenceConfig, exemplars: ExemplarTable, count: int) -> Counter[tuple[int, ...]]:
    """The same distribution, one sequence at a time, as the thesis says it."""
    random = np.random.default_rng(7)
    parts = split(config, exemplars)
    n, b, m = config.pairs, config.burstiness, config.labels_per_class
    weights = zipf_weights(len(parts.train_classes), config.zipf)
    p = weights / weights.sum()
    shares = [config.p_fixed * config.p_bursty, config.p_fixed * (1 - config.p_bursty)]
    shares += [config.p_icl, config.p_iwl, config.p_ciwl]
    drawn: Counter[tuple[int, ...]] = Counter()
    for _ in range(count):
        kind = KINDS[int(np.searchsorted(np.cumsum(shares), random.random()))]
        own = [int(rank * m + random.integers(m)) for rank in range(len(p))]
        if kind == "iid":
            *context, query = random.choice(len(p), n + 1, p=p).tolist()
        else:
            # drawn one after the other, each by its weight among those left
            ranks = random.choice(len(p), min(len(p), n + 1), replace=False, p=p, shuffle=False).tolist()
            query, others = ranks[0], ranks[1:]
            if kind in ("iwl", "ciwl"):
                context = others
            else:
                context = ([ranks[0]] * b + [ranks[1]] * b + ranks[2:])[:n]
        shown = dict(enumerate(own))
        if kind == "icl":
            new = list(dict.fromkeys(context))
            if parts.train_label_pairs is not None:
                values = random.permutation(parts.train_label_pairs[random.integers(len(parts.train_label_pairs))])
            else:
                values = random.permutation(config.label_pool)[: len(new)]
            shown |= dict(zip(new, values.tolist(), strict=True))
        if kind == "ciwl":
            shown[context[0]] = own[query]
        context = random.permutation(context).tolist()
        target = shown[query]
        classes = parts.train_classes[[*context, query]].tolist()
        numbers = [int(parts.train_exemplars[k][random.integers(len(parts.train_exemplars[k]))]) for k in classes]
        if config.matched:
            numbers = [numbers[-1] if k == query else e for k, e in zip([*context, query], numbers, strict=True)]
        drawn[(*classes, *numbers, *(shown[k] for k in context), target)] += 1
    return drawn


@pytest.mark.parametrize(
    "changes",
    [
        {"pairs": 2, "classes": 3, "exemplars": 2},
        {"pairs": 3, "classes": 3, "p_bursty": 0.6, "zipf": 1.0},
        {"pairs": 2, "classes": 3, "p_bursty": 0.0, "labels_per_class": 2},
        {"pairs": 2, "classes": 4, "p_icl": 1.0, "label_pool": 4, "held_out_label_pairs": 0.2},
        {"pairs": 3, "classes": 3, "p_icl": 1.0, "label_pool": 4},
        {"pairs": 2, "classes": 4, "p_iwl": 1.0, "zipf": 1.5},
        {"pairs": 3, "classes": 4, "p_ciwl": 1.0},
        {"pairs": 2, "classes": 3, "exemplars": 3, "matched": True},
        {"pairs": 2, "classes": 3, "p_icl": 0.3, "p_iwl": 0.2, "p_ciwl": 0.2, "p_bursty": 0.5, "zipf": 0.5},
    ],
)
def test_distribution_is_that_of_a_brute_force_sampler(changes: dict[str, Any]) -> None:
    config, exemplars, count = SequenceConfig(**{"exemplars": 1, **changes}, seed=3), table(6, 3), 3000
    expected = brute_force(config, exemplars, count)
    sequences = draw(config, exemplars, 8 * count)
    parts = (sequences.classes, sequences.exemplars, sequences.labels, sequences.target[:, None])
    observed = Counter(map(tuple, torch.cat(parts, dim=1).tolist()))
    often = [key for key in expected | observed if expected[key] + observed[key] >= 45]
    rows = [[counts[key] for key in often] for counts in (expected, observed)]
    rare = [sum(counts.values()) - sum(row) for counts, row in zip((expected, observed), rows, strict=True)]
    if sum(rare) >= 45:
        rows = [[*row, other] for row, other in zip(rows, rare, strict=True)]
    assert len(rows[0]) > 10
    assert stats.chi2_contingency(np.array(rows)).pvalue > 1e-3


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("p_bursty", [0.0, 1.0])
def test_queries_follow_zipf(exponent: float, p_bursty: float) -> None:
    config = SequenceConfig(zipf=exponent, p_bursty=p_bursty, seed=1)
    exemplars = table(200)
    sequences = draw(config, exemplars, 100_000)
    count_of_class = np.bincount(sequences.classes[:, -1].numpy(), minlength=200)
    counts = count_of_class[split(config, exemplars).train_classes]
    expected = np.arange(1, 201) ** -exponent
    assert stats.chisquare(counts, expected / expected.sum() * 100_000).pvalue > 1e-3
    assert (sequences.target.bincount(minlength=200).numpy() == counts).all(), "a class's label is its rank"


def test_rare_classes_of_a_long_tail_keep_their_frequency() -> None:
    """Rank 6,401 to 12,800 at exponent 1, and that every class of a uniform table is as likely as any other."""
    exemplars = table(12_800)
    sequences = draw(SequenceConfig(zipf=1.0), exemplars, 100_000)
    weights = 1 / np.arange(1, 12_801)
    share = weights[6400:].sum() / weights.sum()
    assert (sequences.target >= 6400).float().mean().item() == pytest.approx(share, abs=4 * (share / 100_000) ** 0.5)
    uniform = draw(SequenceConfig(), exemplars, 128_000)
    for values in (uniform.target, uniform.labels[:, 0], uniform.labels[:, 1]):
        assert stats.chisquare(np.bincount(values.numpy(), minlength=12_800)).pvalue > 1e-3


def test_shares_of_the_kinds() -> None:
    config = SequenceConfig(pairs=8, burstiness=3, p_bursty=0.9, p_icl=0.1, label_pool=4, p_iwl=0.05, p_ciwl=0.25)
    counts = np.bincount(draw(config, table(200), 50_000).kind.numpy(), minlength=6)
    expected = [0.6 * 0.9, 0.6 * 0.1, 0.1, 0.05, 0.25]
    assert counts[5] == 0
    assert stats.chisquare(counts[:5], np.array(expected) * 50_000).pvalue > 1e-3


@pytest.mark.parametrize(
    "mix", [(0.1, 0.2, 0.7, 0.0, 0.0, 0.0), (0.3, 0.0, 0.3, 0.4 - 8e-10, 0.0, 0.0), (0, 0, 0, 1, 0, 0)]
)
def test_no_word_draws_a_kind_of_probability_0(mix: tuple[float, ...]) -> None:
    limits = _kind_limits(mix)
    for word in (0, 2**31, 2**32 - 1):
        assert mix[sum(word >= limit for limit in limits)] > 0


@pytest.mark.parametrize(("kind", "times"), [({}, 3), ({"p_ciwl": 1.0}, 1), ({"p_icl": 1.0, "label_pool": 9}, 3)])
def test_every_arrangement_of_the_pairs_is_as_likely(kind: dict[str, Any], times: int) -> None:
    sequences = draw(SequenceConfig(pairs=7, burstiness=times, **kind), table(40), 35_000)
    correct = sequences.labels == sequences.target[:, None]
    arrangements = Counter(map(tuple, correct.tolist()))
    assert len(arrangements) == math.comb(7, times)
    assert stats.chisquare(list(arrangements.values())).pvalue > 1e-3


def test_labels_of_a_class_are_as_likely_and_independent_of_other_classes() -> None:
    config = SequenceConfig(pairs=2, classes=2, labels_per_class=3)
    labels = draw(config, table(2), 30_000).labels.sort(dim=1).values
    assert set(labels[:, 0].tolist()) == {0, 1, 2}
    counts = Counter(map(tuple, labels.tolist()))
    assert len(counts) == 9
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_context_exemplars_are_independent_of_the_query() -> None:
    sequences = draw(SequenceConfig(), table(10, 4), 20_000)
    pairs = torch.stack([sequences.exemplars[:, 0], sequences.exemplars[:, -1]], dim=1)
    counts = Counter(map(tuple, pairs.tolist()))
    assert len(counts) == 16
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"pairs": 1, "p_bursty": 0.0, "classes": 1},
        {"pairs": 1, "p_iwl": 1.0, "classes": 2},
        {"pairs": 2, "classes": 2},
        {"pairs": 8, "burstiness": 4, "classes": 2},
        {"pairs": 8, "burstiness": 4, "classes": 2, "p_icl": 1.0},
        {"pairs": 8, "burstiness": 4, "classes": 9, "p_ciwl": 1.0},
        {"pairs": 9, "burstiness": 4, "classes": 3},
    ],
)
def test_smallest_configs(changes: dict[str, Any]) -> None:
    config, exemplars = SequenceConfig(**changes), table(9)
    check(config, draw(config, exemplars, 200), exemplars)
    classes = changes["classes"]
    if classes > 1:
        with pytest.raises(InputError, match=rf"sequences\.classes {classes - 1}: .* needs {classes} different"):
            draw(config.model_copy(update={"classes": classes - 1}), exemplars, 1)


def test_an_empty_draw() -> None:
    empty = draw(SequenceConfig(labels_per_class=2, p_icl=0.5), table(9), 0)
    assert len(empty) == 0
    assert empty.classes.shape == (0, 3)


def test_chapter_4_has_the_sequences_that_it_counts() -> None:
    """Appendix C.1 counts them for the 8 of 10 pairs of labels trained on; here with 4 classes."""
    config = SequenceConfig(p_icl=1.0, classes=4, exemplars=1, label_pool=5, held_out_label_pairs=0.2)
    sequences = draw(config, table(20, 3), 20_000)
    seen = {(*k, *label) for k, label in zip(sequences.classes.tolist(), sequences.labels.tolist(), strict=True)}
    assert len(seen) == round(1.6 * 4 * 3 * 5 * 4)


def test_outputs() -> None:
    assert output_labels(SequenceConfig(), table(12_800)) == 12_800
    assert output_labels(SequenceConfig(labels_per_class=3, classes=7), table(9)) == 21
    assert output_labels(SequenceConfig(p_icl=1.0, label_pool=5), table(50)) == 5
    assert output_labels(SequenceConfig(p_icl=0.5, label_pool=60), table(50)) == 60


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("impl", ["cuda"])
def test_draws_on_a_gpu_are_those_on_the_cpu(impl: str) -> None:
    members = [
        SequenceConfig(pairs=8, burstiness=3, p_bursty=0.5, p_ciwl=0.2, p_iwl=0.2, zipf=1.0, labels_per_class=2),
        SequenceConfig(pairs=8, burstiness=4, p_icl=1.0, label_pool=5, held_out_label_pairs=0.2, seed=2**62),
    ]
    here, there = (training_sequences(members, table(200, 20), device) for device in ("cpu", impl))
    one, other = here.draw(5, 5000), there.draw(5, 5000)
    assert all(torch.equal(getattr(one, field.name), getattr(other, field.name).cpu()) for field in fields(one))
    torch.testing.assert_close(here.noise(5, 100, 9), there.noise(5, 100, 9).cpu())


def test_noise() -> None:
    exemplars = table(5, 2)
    sampler = training_sequences([SequenceConfig(noise=0.5), SequenceConfig(), SequenceConfig(noise=0.5)], exemplars)
    noise = sampler.noise(0, 2000, 7)
    assert noise.shape == (3, 2000, 3, 7)
    assert noise.dtype == torch.float32
    assert noise[0].std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(noise[0], noise[2])
    assert not noise[1].any()
    assert noise[0].unique().numel() > 40_000
    drawn_from = random_words(torch.tensor([0]), torch.arange(2000), torch.arange(6), torch.tensor([0]))
    assert not torch.equal(noise[0].flatten(1), 0.5 * normal(drawn_from)[0, :, :21]), "no word of the draws is used"


def test_describe() -> None:
    sequences = Sequences(
        torch.tensor([[3, 7, 3], [4, 5, 6]]),
        torch.tensor([[0, 1, 2], [9, 9, 9]]),
        torch.tensor([[10, 11], [12, 13]]),
        torch.tensor([10, 13]),
        torch.tensor([0, 4]),
    )
    assert describe(sequences).splitlines() == [
        "bursty  *3/0:10*  7/1:11  ? 3/2:10",
        "ciwl    4/9:12  5/9:13*  ? 6/9:13",
    ]
    assert describe(sequences[1:], "abcdefgh").splitlines() == ["ciwl    e/9:12  f/9:13*  ? g/9:13"]  # type: ignore[arg-type]
    population = training_sequences([SequenceConfig(seed=k) for k in range(3)], table(9)).draw(0, 4)
    assert describe(population) == "\n".join(describe(population[k]) for k in range(3))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"pairs": 0}, "pairs"),
        ({"pairs": 2, "burstiness": 2}, "burstiness=2"),
        ({"pairs": 1}, "burstiness=1: .* do not fit into pairs=1"),
        ({"p_icl": 0.6, "p_iwl": 0.3, "p_ciwl": 0.2}, r"p_icl=0\.6 \+ p_iwl=0\.3 \+ p_ciwl=0\.2 are more than 1"),
        ({"p_icl": 1.0, "pairs": 8, "label_pool": 7}, "label_pool=7: .* needs 8 different labels"),
        ({"label_pool": 1}, "label_pool"),
        ({"held_out_label_pairs": 0.2}, r"held_out_label_pairs=0\.2: .*p_icl=0"),
        (
            {"held_out_label_pairs": 0.2, "p_icl": 1.0},
            r"held_out_label_pairs=0\.2: label_pool must be 3 to 2048, got 2",
        ),
        ({"held_out_label_pairs": 0.2, "p_icl": 1.0, "label_pool": 2049}, "label_pool must be 3 to 2048, got 2049"),
        (
            {"held_out_label_pairs": 0.2, "p_icl": 1.0, "label_pool": 9, "pairs": 4},
            "burstiness must be half of pairs=4",
        ),
        ({"matched": True, "noise": 0.1}, r"noise=0\.1: matched"),
        ({"noise": float("nan")}, "noise"),
        ({"zipf": -1.0}, "zipf"),
        ({"seed": -1}, "seed"),
        ({"classes": "50"}, "classes"),
        ({"shots": 4}, "shots"),
    ],
)
def test_impossible_configs(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        SequenceConfig(**changes)


def test_impossible_draws() -> None:
    sampler = training_sequences(SequenceConfig(), table(9))
    for start, count in ((-1, 1), (0, -1)):
        with pytest.raises(InputError, match=r"^(start|count): must be 0 or more, got -1$"):
            sampler.draw(start, count)
        with pytest.raises(InputError, match=r"^(start|count): must be 0 or more, got -1$"):
            sampler.noise(start, count, 2)
    with pytest.raises(InputError, match=r"sequences\.pairs: .* got 2 and 3"):
        training_sequences([SequenceConfig(), SequenceConfig(pairs=3)], table(9))
    with pytest.raises(InputError, match="at least one member"):
        training_sequences([], table(9))
