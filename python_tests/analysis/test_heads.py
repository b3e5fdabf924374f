"""Heads by their scores: hand-made heads, loops written out, and what does not depend on order or seed."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from icl_fast import InputError
from icl_fast.analysis import (
    Thresholds,
    correlate,
    head_formation,
    head_types,
    heads_of_interest,
    joint_scores,
    opaque_heads,
)

PREVIOUS = np.array([[0.9, 0.1], [0.0, 0.6]])
PREFIX = np.array([[0.0, 0.3], [0.8, 0.7]])
COPYING = np.array([[0.5, -0.7], [0.9, 0.2]])


def test_types() -> None:
    found = head_types(PREVIOUS, PREFIX, COPYING)
    # 0.1 matches prefixes but copies the opposite; 1.1 is both, and an induction head first
    assert found.types.tolist() == [["previous token", "other"], ["induction", "induction"]]
    assert found.thresholds == Thresholds(0.5, 0.2, 0)
    strict = head_types(PREVIOUS, PREFIX, COPYING, Thresholds(previous_token=0.95, prefix_matching=0.75, copying=0.5))
    assert strict.types.tolist() == [["other", "other"], ["induction", "other"]]
    assert strict.thresholds.prefix_matching == 0.75


def test_copying_is_judged_at_0_but_in_narrow_models() -> None:
    of = Thresholds(prefix_matching=0.3)
    assert [of.for_width(width).copying for width in (128, 511, 512, 768)] == [-0.6, -0.6, 0, 0]
    assert Thresholds(copying=0.1).for_width(128).copying == 0.1
    copying = np.full((2, 2), -0.5)
    assert (head_types(PREVIOUS, PREFIX, copying, of.for_width(128)).types == "induction").sum() == 2
    assert not (head_types(PREVIOUS, PREFIX, copying, of).types == "induction").any()
    assert "the paper's 0 is out of reach" in str(of.for_width(128))
    assert "the paper" not in str(of.for_width(512))


def test_a_score_at_its_threshold_does_not_pass() -> None:
    at = Thresholds(previous_token=0.9, prefix_matching=0.8, copying=0.2)
    assert head_types(PREVIOUS, PREFIX, COPYING, at).types.tolist() == [["other", "other"], ["other", "other"]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5])
def test_thresholds_are_within_the_scores(value: float) -> None:
    with pytest.raises(InputError, match="copying: must be from -1 to 1"):
        Thresholds(copying=value)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6), st.floats(0, 1))
def test_formation_against_loops(snapshots: int, layers: int, heads: int, seed: int, threshold: float) -> None:
    scores = np.random.default_rng(seed).uniform(0, 1, (snapshots, layers, heads))
    steps = [10 * s for s in range(snapshots)]
    formed = head_formation(scores, steps, threshold)
    for layer in range(layers):
        firsts = []
        for head in range(heads):
            first = next((s for s in range(snapshots) if scores[s, layer, head] > threshold), -1)
            assert formed["first"][layer, head] == first
            assert formed["first_step"][layer, head] == (steps[first] if first >= 0 else -1)
            firsts += [first] if first >= 0 else []
        assert formed["formed"][layer] == len(firsts)
        assert formed["first_of_layer"][layer] == min(firsts, default=-1)
        assert formed["last"][layer] == sum(scores[-1, layer] > threshold)
        assert formed["depth"][layer] == pytest.approx((layer + 1) / layers)
    assert formed.attrs["threshold"] == threshold


def test_joint_scores() -> None:
    joint = joint_scores(COPYING, PREFIX, bins=4)
    assert joint.anti_copying.tolist() == [[False, True], [False, False]]
    assert joint.copying_edges.tolist() == [-1, -0.5, 0, 0.5, 1]
    expected = np.zeros((4, 4), dtype=int)
    expected[3, 0] = expected[0, 1] = expected[3, 3] = expected[2, 2] = (
        1  # (0.5, 0), (-0.7, 0.3), (0.9, 0.8), (0.2, 0.7)
    )
    np.testing.assert_array_equal(joint.counts, expected)
    assert not joint_scores(COPYING, PREFIX, threshold=0.3).anti_copying.any()
    assert not joint_scores(COPYING, PREFIX, copying_under=-0.7).anti_copying.any()


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 30))
def test_every_head_is_counted_once(seed: int, layers: int, heads: int, bins: int) -> None:
    random = np.random.default_rng(seed)
    copying, prefix = random.uniform(-1, 1, (layers, heads)), random.uniform(0, 1, (layers, heads))
    copying[0, 0], prefix[0, 0] = -1 - 1e-9, 1 + 1e-9  # what rounding may give
    joint = joint_scores(copying, prefix, bins=bins)
    assert joint.counts.shape == (bins, bins)
    assert joint.counts.sum() == layers * heads
    for layer in range(layers):
        for head in range(heads):
            assert joint.anti_copying[layer, head] == (prefix[layer, head] > 0.2 and copying[layer, head] < 0)


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(2, 8))
def test_correlation_by_its_definition(seed: int, layers: int, heads: int) -> None:
    evaluator, weights = np.random.default_rng(seed).normal(size=(2, layers, heads))
    found = correlate(evaluator, weights)
    assert found.n == layers * heads
    assert found.pearson == pytest.approx(np.corrcoef(evaluator.ravel(), weights.ravel())[0, 1])
    ranks = [np.argsort(np.argsort(values.ravel())) for values in (evaluator, weights)]
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    stretched = correlate(evaluator, np.exp(weights))
    assert stretched.spearman == pytest.approx(found.spearman)
    turned = correlate(-2 * evaluator + 1, weights)
    assert turned.pearson == pytest.approx(-found.pearson)
    assert turned.pearson_p == pytest.approx(found.pearson_p)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(3, 6))
def test_p_values_of_few_heads_are_shares_of_all_orders(seed: int, heads: int) -> None:
    evaluator, weights = np.random.default_rng(seed).normal(size=(2, heads, 1))
    found = correlate(evaluator, weights)
    for of, size, p in (
        (stats.pearsonr, found.pearson, found.pearson_p),
        (stats.spearmanr, found.spearman, found.spearman_p),
    ):
        orders = [of(evaluator[:, 0], order).statistic for order in itertools.permutations(weights[:, 0])]
        assert p == pytest.approx(np.mean(np.abs(orders) >= abs(size) - 1e-9))
        assert p >= 1 / len(orders)


def test_four_heads_in_order_do_not_have_a_p_of_0() -> None:
    found = correlate(np.arange(4.0)[:, None], np.arange(4.0)[:, None] ** 3)
    assert found.spearman == pytest.approx(1)
    assert found.spearman_p == pytest.approx(2 / 24)


def test_correlation_matches_heads_by_dim() -> None:
    weights = xr.DataArray(COPYING.T, dims=("head", "layer"))
    assert correlate(COPYING, weights).pearson == pytest.approx(1)


def test_small_models_are_all_opaque() -> None:
    assert opaque_heads(np.zeros((10, 10))).all()
    assert opaque_heads(np.zeros((10, 10)), count=99).sum() == 99


@given(st.integers(0, 10**6), st.integers(0, 100), st.integers(1, 200))
def test_the_sample(seed: int, draw: int, count: int) -> None:
    scores = np.random.default_rng(seed).uniform(0, 1, (12, 16)) ** 4
    opaque = opaque_heads(scores, count=count, seed=draw)
    assert opaque.shape == scores.shape
    assert opaque.sum() == min(count, scores.size)
    np.testing.assert_array_equal(opaque, opaque_heads(scores, count=count, seed=draw))


def test_the_sample_is_biased_as_stated() -> None:
    scores = np.zeros((1, 101))
    scores[0, :2] = 0.9, 0.3
    weights = scores[0] + scores.mean()
    drawn = Counter(int(np.argmax(opaque_heads(scores, count=1, seed=seed))) for seed in range(4000))
    for head in (0, 1):
        chance = weights[head] / weights.sum()
        assert abs(drawn[head] / 4000 - chance) < 4 * np.sqrt(chance * (1 - chance) / 4000)
    assert set(drawn) - {0, 1}  # heads that score 0 keep a chance


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"prefix_matching is \[1, 2\], previous_token is \[2, 2\]"):
        head_types(PREVIOUS, PREFIX[:1], COPYING)
    with pytest.raises(InputError, match=r"prefix_matching: must be from 0 to 1, got 1\.5 at head 1\.0"):
        opaque_heads(np.array([[0.0, 1], [1.5, 0]]))
    with pytest.raises(InputError, match=r"copying: must be from -1 to 1, got -2\.0 at head 0\.1"):
        joint_scores(np.array([[0.0, -2]]), np.zeros((1, 2)))
    with pytest.raises(
        InputError, match="copying: 1 of 4 values are not finite, the first at layer index 0, head index 1"
    ):
        head_types(PREVIOUS, PREFIX, np.where(COPYING < 0, np.nan, COPYING))
    with pytest.raises(InputError, match="bins: must be 1 or more"):
        joint_scores(COPYING, PREFIX, bins=0)
    with pytest.raises(InputError, match="count: must be 1 or more"):
        opaque_heads(PREFIX, count=0)
    scores = np.full((3, 2, 2), 0.5)
    for steps in ([1, 2], [1, 3, 2]):
        with pytest.raises(InputError, match="steps must rise and be one a snapshot"):
            head_formation(scores, steps, 0.2)
    scores[1, 0, 1] = np.nan
    with pytest.raises(InputError, match="at snapshot index 1, layer index 0, head index 1; leave out the snapshots"):
        head_formation(scores, [1, 2, 3], 0.2)
    with pytest.raises(InputError, match=r"of 3 heads or more, got \[1, 2\] and \[1, 2\]"):
        correlate(PREFIX[:1], COPYING[:1])
    with pytest.raises(InputError, match=r"must agree .* got \[2, 2\] and \[4, 1\]"):
        correlate(PREFIX, COPYING.reshape(4, 1))
    with pytest.raises(InputError, match="weights: all heads have the same value"):
        correlate(PREFIX, np.ones((2, 2)))


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_heads_of_interest_are_the_highest_in_turns(count: int, random: Random) -> None:
    scores = [np.array([[random.random() for _ in range(4)] for _ in range(3)]) for _ in range(2)]
    scores[0][1, 2] = np.nan
    left = [sorted(np.ndindex(3, 4), key=lambda head: -of[head] if np.isfinite(of[head]) else np.inf) for of in scores]
    expected: list[tuple[int, ...]] = []
    for turn in range(12):
        for order in left:
            if order[turn] not in expected and len(expected) < count:
                expected.append(order[turn])
    assert heads_of_interest(scores, count) == sorted(expected)
