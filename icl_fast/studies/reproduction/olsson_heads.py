"""What the claims of Olsson et al. 2022 about induction heads are decided by: ablations, attributions, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icl_fast.analysis import (
    attribute_icl,
    before_after_attribution,
    before_after_vector,
    correlate,
)
from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.analysis.phase_change import MIN_PREFIX_MATCHING
from icl_fast.measure.ablation import UNABLATED
from icl_fast.studies.reproduction.olsson_change import TOKENS, curves
from icl_fast.studies.reproduction.trained import Runs, Trained, ablations, heads, idealised


@dataclass(frozen=True)
class Removed:
    """What removing each head of a model does, at the last snapshot that is looked at.

    Attributes:
        induction: `[head]` whether it matches prefixes.
        icl: `[head]` by how much the ICL score rises without it, nats.
        before_after: `[head]` how far the losses move along the before-and-after vector; NaN where nothing changed.
        score: the ICL score, nats.
    """

    induction: NDArray[np.bool_]
    icl: Floats
    before_after: Floats
    score: float


def removed(trained: Trained) -> Removed:
    """Each head removed, patterns preserved (Olsson et al. 2022, Argument 3; Analyses)."""
    data, one = ablations(trained), curves(trained)
    single = data.isel(ablation=data["layer"].values >= 0)
    layers, of_layer = single["layer"].values, single["head"].values
    matching = heads(trained)["prefix_matching"].isel(snapshot=-1).values[layers, of_layer]
    whole = one.data.sel(ablation=UNABLATED)["loss"]
    before_after = np.full(len(layers), np.nan)
    if one.start is not None and one.end is not None:
        vector = before_after_vector(whole.isel(snapshot=one.start).values, whole.isel(snapshot=one.end).values)
        last = data["loss"].isel(snapshot=[-1])
        before_after = before_after_attribution(
            vector, last.sel(ablation=UNABLATED).values, last.isel(ablation=data["layer"].values >= 0).values
        )[0][0]
    icl = attribute_icl(data)["icl"].sel(ablation=single["ablation"]).isel(snapshot=-1).values
    return Removed(matching > MIN_PREFIX_MATCHING, icl, before_after, float(one.score[-1]))


def _icl_chart(trained: Sequence[Trained]) -> Chart:
    """Every induction head, and of all others of a model the mean with its deviation."""
    lines = []
    for one in trained:
        data = ablations(one)
        effects, tokens = attribute_icl(data)["icl"], data["tokens"].values / 1e6
        single = data["ablation"].values[data["layer"].values >= 0]
        induction = removed(one).induction
        for name in single[induction]:
            lines.append(Curve(f"{one.label}: without {name}", tokens, effects.sel(ablation=name)))
        others = [effects.sel(ablation=name) for name in single[~induction]]
        lines.append(Curve(f"{one.label}: without one of the others", tokens, others))
    return Chart("Change of the ICL score without a head", TOKENS, "nats per token", lines)


def score_taken(runs: Runs) -> Measurement:
    """What removing heads takes of the ICL score, as a share of it: all induction heads one by one, and the best."""
    found = [removed(trained) for trained in _all(runs)]
    quantities = {
        "by_induction": [one.icl[one.induction].sum() / abs(one.score) for one in found],
        "by_best": [one.icl.max() / abs(one.score) for one in found],
        "best_is_induction": [float(one.induction[one.icl.argmax()]) for one in found],
        "induction_heads": [float(one.induction.sum()) for one in found],
    }
    return Measurement(quantities, _icl_chart(_all(runs)))


def most_taken(runs: Runs, *, induction: bool = False) -> Measurement:
    """What removing one head takes of the ICL score at most, as a share of it.

    Args:
        induction: of the induction heads; False: of all others.
    """
    found = [removed(trained) for trained in _all(runs)]
    largest = [max(one.icl[one.induction == induction], default=float("nan")) / abs(one.score) for one in found]
    return Measurement({"largest": largest}, _icl_chart(_all(runs)))


def _all(runs: Runs) -> list[Trained]:
    return [trained for of_role in runs.values() for trained in of_role]


def before_after(runs: Runs, *, induction: bool = True) -> Measurement:
    """How far removing heads moves the losses back along the before-and-after vector (negative: undoes the change).

    Args:
        induction: of the induction heads; False: of all others.
    """
    found = [removed(trained) for trained in _all(runs)]
    chosen = [one.before_after[one.induction == induction] for one in found]
    negative = [np.minimum(one.before_after, 0).sum() for one in found]
    quantities = {
        "attribution": [of.sum() if len(of) else np.nan for of in chosen],
        "share": [
            np.minimum(of, 0).sum() / every if len(of) and every < 0 else np.nan
            for of, every in zip(chosen, negative, strict=True)
        ],
    }
    bars = [
        Curve(f"{trained.label}: {'induction' if kind else 'other'} heads", *_by_head(one, kind), "points")
        for trained, one in zip(_all(runs), found, strict=True)
        for kind in (True, False)
        if (one.induction == kind).any()
    ]
    return Measurement(quantities, Chart("Before-and-after attribution", "head, by layer", "nats", bars))


def _by_head(one: Removed, induction: bool) -> tuple[Floats, Floats]:
    at = np.flatnonzero(one.induction == induction)
    return at.astype(float), one.before_after[at]


def evaluator_agrees(runs: Runs, *, score: str, weights: str, first_layer: int = 0) -> Measurement:
    """The correlation of a score read off activations with one read off weights, over all heads of all models.

    Args:
        score, weights: variables of `icl_fast.measure.evaluate`.
        first_layer: the earliest layer in which both are defined.
    """
    points, xs, ys = [], [], []
    for trained in _all(runs):
        last = heads(trained).isel(snapshot=-1)
        x, y = (last[name].values[first_layer:].ravel() for name in (weights, score))
        xs.append(x)
        ys.append(y)
        points.append(Curve(f"{trained.label}", x, y, "points"))
    x, y = np.concatenate(xs), np.concatenate(ys)
    found = correlate(y[:, None], x[:, None])
    chart = Chart(f"{score} and {weights}", weights, score, points)
    return Measurement({"pearson": [found.pearson], "spearman": [found.spearman], "heads": [float(len(x))]}, chart)


def in_layer(runs: Runs, *, layer: int = -1) -> Measurement:
    """What part of a model's induction heads lies in one of its layers, by default the last."""
    shares, points = [], []
    for trained in _all(runs):
        matching = heads(trained)["prefix_matching"].isel(snapshot=-1).values
        formed = (matching > MIN_PREFIX_MATCHING).sum(1)
        shares.append(formed[layer] / formed.sum() if formed.sum() else float("nan"))
        layers = np.repeat(np.arange(len(matching)), matching.shape[1]).astype(float)
        points.append(Curve(f"{trained.label}", layers, matching.ravel(), "points"))
    chart = Chart("Prefix matching by layer", "layer", "prefix-matching score", points)
    return Measurement({"share_in_layer": shares}, chart)


def pattern_recovers(runs: Runs, *, pattern: str, score: str, beyond: str | None = None) -> Measurement:
    """The share of a head's effect on the loss that an idealised pattern recovers, at the last snapshot.

    Args:
        pattern: of `icl_fast.measure.heads.idealised_patterns.PATTERNS`.
        score: the head is the one with the highest, `previous_token` or `prefix_matching`.
        beyond: a pattern whose share is taken from it.
    """
    shares, lines = [], []
    for trained in _all(runs):
        data, scores = idealised(trained), heads(trained)[score].isel(snapshot=-1).values
        layer, head = np.unravel_index(scores.argmax(), scores.shape)
        recovered = data["recovered"].isel(layer=layer, head=head)
        share = recovered.sel(pattern=pattern) - (recovered.sel(pattern=beyond) if beyond is not None else 0)
        shares.append(float(share.isel(snapshot=-1)))
        lines += [
            Curve(f"{trained.label}, {layer}.{head}: {name}", data["tokens"].values / 1e6, recovered.sel(pattern=name))
            for name in recovered["pattern"].values
        ]
    return Measurement({"recovered": shares}, Chart("Recovered by idealised patterns", TOKENS, "share", lines))
