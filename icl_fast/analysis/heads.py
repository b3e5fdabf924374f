"""Heads by their scores: their types, where they form, how scores go together, which are drawn opaque.

Scores are [layers,heads], of one snapshot unless said otherwise: copying in [-1, 1], prefix matching and previous
token in [0, 1] (Olsson et al. 2022, Data Collection (3)). A score passes a threshold when it is greater.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from icl_fast.analysis.arrays import Floats, Values, finite
from icl_fast.errors import InputError

PREVIOUS_TOKEN, INDUCTION, OTHER = "previous token", "induction", "other"
MOST_OPAQUE = 100
MOST_EXACT = 8  # heads of which all 40,320 orders are gone through
WIDE, NARROW_COPYING = 512, -0.6
NARROW = (
    f"copying: the paper's 0 is out of reach of models under {WIDE} wide, in which embeddings overlap; chance is -0.85"
)
_LAYERS_HEADS = ("layer", "head")


@dataclass(frozen=True)
class Thresholds:
    """What a score must be greater than. Olsson et al. 2022 name the types, and no threshold but the sign of copying.

    Attributes:
        previous_token, prefix_matching: ours.
        copying: None: 0, where a head goes from copying to its opposite in the paper, and -0.6 in a model narrower than
            512 (the paper's have a width of 768 or more). There the embeddings of random tokens overlap, and what
            raises one raises others: heads of width-128 models whose OV eigenvalues are positive almost to the last
            score -0.5 to -0.4, their other heads under -0.65. Chance is -0.85: of what a head raises among 25 tokens it
            leaves the one attended to 1/25; -0.6 is 1/9.
    """

    previous_token: float = 0.5
    prefix_matching: float = 0.2
    copying: float | None = None

    def __post_init__(self) -> None:
        for name, low in (("previous_token", 0), ("prefix_matching", 0), ("copying", -1)):
            value = getattr(self, name)
            if value is not None and not low <= value <= 1:
                raise InputError(f"{name}: must be from {low} to 1, as the scores are; got {value}")

    def for_width(self, width: int) -> Thresholds:
        """The same for a model of this width, with a threshold of copying."""
        return self if self.copying is not None else replace(self, copying=NARROW_COPYING if width < WIDE else 0.0)

    def __str__(self) -> str:
        rule = (
            f"induction if prefix matching > {self.prefix_matching} and copying > {self.copying}, else previous token "
            f"if that score > {self.previous_token}"
        )
        return rule if self.copying != NARROW_COPYING else f"{rule} ({NARROW})"


@dataclass(frozen=True)
class HeadTypes:
    """The type of every head, [layers,heads], one of `previous token`, `induction`, `other`, and what decided it."""

    types: NDArray[np.str_]
    thresholds: Thresholds


def head_types(
    previous_token: Values, prefix_matching: Values, copying: Values, thresholds: Thresholds | None = None
) -> HeadTypes:
    """Sort heads into the three types by which the Model Analysis Table colours them.

    "A head with both a 'copying' OV circuit and a 'prefix matching' QK circuit is thereby an induction head by our
    definition" (Olsson et al. 2022, Data Collection (3)). One that passes the previous-token threshold too is an
    induction head still: the definition asks for no more.

    Args:
        previous_token, prefix_matching, copying: [layers,heads].
        thresholds: `Thresholds().for_width(width)` of the model; default: those of a wide one. Returned with the types.

    Raises:
        InputError: shapes that disagree, a score that is not finite or outside its range.
    """
    chosen = (thresholds or Thresholds()).for_width(WIDE)
    previous, prefix, copies = _scores(
        ("previous_token", previous_token, 0), ("prefix_matching", prefix_matching, 0), ("copying", copying, -1)
    )
    assert chosen.copying is not None
    induction = (prefix > chosen.prefix_matching) & (copies > chosen.copying)
    types = np.where(induction, INDUCTION, np.where(previous > chosen.previous_token, PREVIOUS_TOKEN, OTHER))
    return HeadTypes(types, chosen)


def head_formation(scores: Values, steps: Sequence[int], threshold: float) -> xr.Dataset:
    """When and how deep heads form: the first snapshot at which a head's score passes a threshold.

    Olsson et al. 2022, Appendix, "Where induction heads form", shows the scores by depth at the end of training; the
    time is ours.

    Args:
        scores: [snapshot, layer, head], such as prefix matching; snapshots in order of training.
        steps: optimizer steps, one a snapshot, rising.
        threshold: what a score must be greater than.

    Returns:
        Dataset: `first` [layer, head] the index of that snapshot and `first_step` its step, -1 where there is none;
        `formed` [layer] how many heads passed at any time; `first_of_layer` [layer] the smallest index, or -1; `last`
        [layer] how many still pass at the last snapshot. Coord `depth` (layer + 1) / layers, "21 / 40" in the paper.

    Raises:
        InputError: a score that is not finite, or steps that do not rise or are not as many as snapshots.
    """
    values = finite("scores", scores, ("snapshot", *_LAYERS_HEADS))
    if len(steps) != len(values) or list(steps) != sorted(set(steps)):
        raise InputError(f"steps must rise and be one a snapshot, got {len(steps)} for {len(values)} snapshots")
    passes = values > threshold  # [snapshot, layer, head]
    ever = passes.any(0)
    first = np.where(ever, passes.argmax(0), -1)
    earliest = np.where(ever, first, len(values)).min(1)
    layers = values.shape[1]
    return xr.Dataset(
        {
            "first": (_LAYERS_HEADS, first, {"long_name": "index of the first snapshot past the threshold; -1: none"}),
            "first_step": (_LAYERS_HEADS, np.where(ever, np.asarray(steps)[first], -1)),
            "formed": ("layer", ever.sum(1)),
            "first_of_layer": ("layer", np.where(earliest < len(values), earliest, -1)),
            "last": ("layer", passes[-1].sum(1)),
        },
        coords={"layer": np.arange(layers), "depth": ("layer", np.arange(1, layers + 1) / layers)},
        attrs={"threshold": threshold, "source": "Olsson et al. 2022, Where induction heads form"},
    )


@dataclass(frozen=True)
class JointScores:
    """How copying and prefix matching go together.

    Attributes:
        copying, prefix_matching: [layers,heads] as given.
        anti_copying: [layers,heads] prefix-matching heads that score under `copying_under` on copying.
        counts: [copying bins, prefix-matching bins] numbers of heads.
        copying_edges, prefix_matching_edges: of the bins, over the scores' whole ranges.
        threshold: what a prefix-matching head's score is greater than.
        copying_under: what an anti-copying head's score is less than.
    """

    copying: Floats
    prefix_matching: Floats
    anti_copying: NDArray[np.bool_]
    counts: NDArray[np.int64]
    copying_edges: Floats
    prefix_matching_edges: Floats
    threshold: float
    copying_under: float


def joint_scores(
    copying: Values,
    prefix_matching: Values,
    *,
    threshold: float = Thresholds.prefix_matching,
    copying_under: float = 0.0,
    bins: int = 20,
) -> JointScores:
    """The joint distribution of two scores over a model's heads.

    Olsson et al. 2022, Appendix, "Distribution of scores", and Additional Curiosities: "heads that score well on
    'prefix search', but get a negative score on copying, which means they are not induction heads".

    Args:
        copying, prefix_matching: [layers,heads].
        threshold: what scoring well on prefix matching means; the paper gives no number.
        copying_under: what a bad copying score is; the paper's "negative" is 0.
        bins: of each axis.

    Raises:
        InputError: as `head_types`, or no bins.
    """
    if bins < 1:
        raise InputError(f"bins: must be 1 or more, got {bins}")
    copies, prefix = _scores(("copying", copying, -1), ("prefix_matching", prefix_matching, 0))
    counts, across, up = np.histogram2d(copies.ravel(), prefix.ravel(), bins=bins, range=((-1, 1), (0, 1)))
    anti = (prefix > threshold) & (copies < copying_under)
    return JointScores(copies, prefix, anti, counts.astype(np.int64), across, up, threshold, copying_under)


@dataclass(frozen=True)
class Correlation:
    """Pearson's and Spearman's coefficients, their two-sided p-values for no correlation, and of how many heads.

    Of up to 8 heads the p-values are exact, the share of all orders in which the coefficient is at least as large, and
    so never 0; of more by Student's t.
    """

    pearson: float
    pearson_p: float
    spearman: float
    spearman_p: float
    n: int


def correlate(evaluator: Values, weights: Values) -> Correlation:
    """How well a score from activations agrees with one from weights, over a model's heads.

    Olsson et al. 2022, Appendix, "Validating head activation evaluators": copying with the OV circuit's eigenvalues,
    prefix matching with the trace of the QK circuit. That trace is "only defined for attention heads in the second
    layer and beyond": give `[1:]` of both.

    Args:
        evaluator, weights: [layers,heads].

    Raises:
        InputError: shapes that disagree, a value that is not finite, fewer than 3 heads, or all values of one alike.
    """
    scores, traces = finite("evaluator", evaluator, _LAYERS_HEADS), finite("weights", weights, _LAYERS_HEADS)
    if scores.shape != traces.shape or scores.size < 3:
        raise InputError(
            f"evaluator and weights must agree and be of 3 heads or more, "
            f"got {list(scores.shape)} and {list(traces.shape)}"
        )
    first, second = scores.ravel(), traces.ravel()
    for name, values in ("evaluator", first), ("weights", second):
        if np.ptp(values) == 0:
            raise InputError(f"{name}: all heads have the same value, which correlates with nothing")
    pearson, spearman = stats.pearsonr(first, second), stats.spearmanr(first, second)
    p_values = float(pearson.pvalue), float(spearman.pvalue)
    if len(first) <= MOST_EXACT:
        p_values = _exact_p(first, second), _exact_p(stats.rankdata(first), stats.rankdata(second))
    return Correlation(float(pearson.statistic), p_values[0], float(spearman.statistic), p_values[1], len(first))


def _exact_p(first: Floats, second: Floats) -> float:
    """Of all orders of the second, the share in which it correlates with the first at least as much, either way."""
    centred = first - first.mean()
    orders = np.array(list(itertools.permutations(second - second.mean())))
    return float(np.mean(np.abs(orders @ centred) >= abs(float(orders[0] @ centred)) * (1 - 1e-9)))


def opaque_heads(prefix_matching: Values, *, count: int = MOST_OPAQUE, seed: int = 0) -> NDArray[np.bool_]:
    """Which heads are drawn opaque, [layers,heads]: all, or `count` of a model that has more.

    Olsson et al. 2022, Appendix, "Where induction heads form": "a randomized sample of 100 heads (with selection biased
    towards those scoring highly on prefix matching)". How strong the bias is, it does not say. Here heads are drawn one
    after the other, without replacement, with chances in proportion to their score plus the mean score of all: a head
    that scores 0 keeps a chance.

    Args:
        prefix_matching: [layers,heads].
        count: how many.
        seed: the same seed and scores give the same heads.

    Raises:
        InputError: a score that is not finite or outside [0, 1], or a count under 1.
    """
    (scores,) = _scores(("prefix_matching", prefix_matching, 0))
    if count < 1:
        raise InputError(f"count: must be 1 or more, got {count}")
    if scores.size <= count:
        return np.ones(scores.shape, dtype=bool)
    weights = scores.ravel() + scores.mean()
    if scores.mean() == 0:
        weights = np.ones(scores.size)
    chosen = np.random.default_rng(seed).choice(scores.size, count, replace=False, p=weights / weights.sum())
    opaque = np.zeros(scores.size, dtype=bool)
    opaque[chosen] = True
    return opaque.reshape(scores.shape)


def heads_of_interest(scores: Sequence[Floats], count: int) -> list[tuple[int, int]]:
    """Up to `count` heads, (layer, head) in order: the highest by each of some scores, taken in turns.

    Args:
        scores: each [layers,heads]; what is not finite comes last.
        count: how many at most.
    """
    orders = [np.argsort(-np.where(np.isfinite(of), of, -np.inf), axis=None, kind="stable") for of in scores]
    in_turns = dict.fromkeys(int(head) for turn in zip(*orders, strict=True) for head in turn)
    width = scores[0].shape[1]
    return sorted((head // width, head % width) for head in list(in_turns)[:count])


def _scores(*named: tuple[str, Values, int]) -> list[Floats]:
    """Scores of the same heads, each with the least value it can have; rounding past the ends of a range is cut off."""
    arrays: list[Floats] = []
    for name, values, low in named:
        array = finite(name, values, _LAYERS_HEADS)
        if (array < low - 1e-6).any() or (array > 1 + 1e-6).any():
            layer, head = np.argwhere((array < low - 1e-6) | (array > 1 + 1e-6))[0]
            raise InputError(f"{name}: must be from {low} to 1, got {array[layer, head]} at head {layer}.{head}")
        if arrays and array.shape != arrays[0].shape:
            raise InputError(
                f"{name} is {list(array.shape)}, {named[0][0]} is {list(arrays[0].shape)}; they must agree"
            )
        arrays.append(np.clip(array, low, 1))
    return arrays
