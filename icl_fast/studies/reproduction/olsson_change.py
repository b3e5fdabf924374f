"""Claims of Olsson et al. 2022 about the phase change, as it shows in losses and ICL scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import xarray as xr

from icl_fast.analysis import (
    PhaseChange,
    icl_score,
    joint_pca,
    loss_by_log_tokens,
    phase_change_of,
)
from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.analysis.loss_bump import gained_inside, loss_bump
from icl_fast.errors import InputError
from icl_fast.measure.ablation import UNABLATED
from icl_fast.studies.reproduction.trained import ICL_WINDOW, Runs, Trained, heads, losses

TOKENS, NATS = "training tokens (millions)", "nats per token"
EARLY = (5, 10, 25, 50, 100)  # positions to compare the end of the context with


@dataclass(frozen=True)
class Curves:
    """A training's curves over its snapshots after step 0, and the verdict on them.

    Attributes:
        tokens: `[S]`, in millions.
        loss, score, matching: `[S]` mean loss, ICL score, the best head's prefix-matching score.
        start, end: indices of the snapshots between which the change lies; None: there was none.
    """

    trained: Trained
    data: xr.Dataset
    tokens: Floats
    loss: Floats
    score: Floats
    matching: Floats
    change: PhaseChange
    start: int | None
    end: int | None

    @property
    def name(self) -> str:
        """The experiment's and the seed's."""
        return self.trained.label


@cache
def curves(trained: Trained) -> Curves:
    """Everything that the claims about the phase change read off a training."""
    data = losses(trained)
    whole = data.sel(ablation=UNABLATED)
    matching = heads(trained)["prefix_matching"]
    change = phase_change_of(data, matching)
    if change is None:
        raise InputError(f"{trained.label}: has too few snapshots for a phase change")
    steps, score = data["snapshot"].values, whole["icl_score"].values
    first = int(steps[0] == 0)
    at = [None if index is None or not change.happened else index - first for index in (change.start, change.end)]
    return Curves(
        trained,
        data.isel(snapshot=slice(first, None)),
        data["tokens"].values[first:] / 1e6,
        whole["position_loss"].mean("position").values[first:],
        score[first:],
        matching.max(("layer", "head")).values[first:],
        change,
        *at,
    )


def _all(runs: Runs) -> list[Curves]:
    return [curves(trained) for of_role in runs.values() for trained in of_role]


def _chart(title: str, found: Sequence[Curves], of: Callable[[Curves], Floats], y_label: str = NATS) -> Chart:
    return Chart(title, TOKENS, y_label, [Curve(one.name, one.tokens, of(one)) for one in found])


def phase_changes(runs: Runs) -> Measurement:
    """Whether each training goes through a phase change, how far its ICL score falls in it, how abruptly."""
    found = _all(runs)
    quantities = {
        "changed": [float(one.change.happened) for one in found],
        "drop": [one.change.drop for one in found],
        "prefix_matching": [one.change.prefix_matching for one in found],
        "evidence": [one.change.evidence for one in found],
        "support": [one.change.support for one in found],
    }
    return Measurement(quantities, _chart("ICL score", found, lambda one: one.score))


def abruptness(runs: Runs) -> Measurement:
    """How many times the tokens of its start the end of the change takes; of the best smooth fit beside it."""
    found = _all(runs)
    quantities = {
        "abruptness": [_of_change(one, one.change.abruptness) for one in found],
        "abruptness_high": [_of_change(one, (one.change.abruptness_interval or (np.nan,))[-1]) for one in found],
        "smooth_abruptness": [_of_change(one, one.change.smooth_abruptness) for one in found],
    }
    return Measurement(quantities, _chart("ICL score", found, lambda one: one.score))


def _of_change(one: Curves, value: float | None) -> float:
    return value if value is not None and one.change.happened else float("nan")


def lasting(runs: Runs) -> Measurement:
    """What of the fall of the ICL score is there at the end of training, of the change's own fall."""
    found = _all(runs)
    kept = []
    for one in found:
        before = np.nan if one.start is None else one.score[one.start]
        kept.append((before - one.score[-1]) / (before - one.score[one.end or -1]))
    return Measurement({"kept": kept}, _chart("ICL score", found, lambda one: one.score))


def formed_inside(runs: Runs) -> Measurement:
    """What part of the rise of the best head's prefix-matching score lies inside the phase change."""
    found = _all(runs)
    share = [
        np.nan
        if one.start is None
        else (one.matching[one.end] - one.matching[one.start]) / (one.matching.max() - one.matching[0])
        for one in found
    ]
    chart = _chart("Best head's prefix-matching score", found, lambda one: one.matching, "attention")
    return Measurement({"share_inside": share}, chart)


def earlier(runs: Runs) -> Measurement:
    """How many times earlier the change is half done in `smeared` than in `plain`, seed by seed."""
    smeared, plain = ([curves(trained) for trained in runs[role]] for role in ("smeared", "plain"))
    quantities = {
        "times_earlier": [_middle(late) / _middle(early) for early, late in zip(smeared, plain, strict=False)],
        "smeared_middle": [_middle(one) for one in smeared],
        "plain_middle": [_middle(one) for one in plain],
    }
    return Measurement(quantities, _chart("ICL score", [*smeared, *plain], lambda one: one.score))


def _middle(one: Curves) -> float:
    """Millions of tokens (the geometric mean of the fitted start and end) at which it is half done; NaN without one."""
    if one.change.window is None or not one.change.happened:
        return float("nan")
    steps = float(np.sqrt(one.change.window[0] * one.change.window[1]))
    return steps * float(one.tokens[-1]) / float(one.data["snapshot"].values[-1])


def bump(runs: Runs) -> Measurement:
    """Whether the loss falls more steeply in the change than around it, and is convex everywhere but there.

    A training without a change (the control) is looked at in the window of the training in the role `window`.
    """
    found, windows = ([curves(trained) for trained in runs[role]] for role in ("model", "window"))
    bumps = [
        loss_bump(one.data["snapshot"].values.tolist(), one.loss.tolist(), window.change.window)
        if window.change.window is not None and window.change.happened
        else None
        for one, window in zip(found, windows, strict=False)
    ]
    quantities = {
        "steeper": [np.nan if one is None else float(one.steeper) for one in bumps],
        "height": [np.nan if one is None else one.height for one in bumps],
        # under a thousandth of a nat outside is none
        "height_over_outside": [np.nan if one is None else one.height / max(one.height_outside, 1e-3) for one in bumps],
    }
    return Measurement(quantities, _chart("Loss", found, lambda one: one.loss))


def gained(runs: Runs) -> Measurement:
    """The share of the last ICL score that is gained inside the phase change."""
    found = _all(runs)
    share = [
        float("nan") if one.start is None or one.end is None else gained_inside(one.score.tolist(), one.start, one.end)
        for one in found
    ]
    return Measurement({"share_gained": share}, _chart("ICL score", found, lambda one: one.score))


def pivot(runs: Runs) -> Measurement:
    """The angle by which a model's path in the plane of the joint PCA turns at the start of the change.

    Between the way from the first snapshot to the change and the way through it. A model without a change (the
    control) is looked at in the interval of the training in the role `window`.
    """
    found, windows = ([curves(trained) for trained in runs[role]] for role in ("model", "window"))
    every = {one.name: one for one in (*found, *windows)}
    plane = joint_pca({name: one.data for name, one in every.items()})
    angles = []
    for one, window in zip(found, windows, strict=False):
        if window.start is None or window.end is None:
            angles.append(np.nan)
            continue
        path = plane.coordinates[one.name][:, :2]
        ends = (window.tokens[0], window.tokens[window.start], window.tokens[window.end])
        first, start, end = (path[np.abs(one.tokens - at).argmin()] for at in ends)
        angles.append(_angle(start - first, end - start))
    lines = [Curve(name, *plane.coordinates[name][:, :2].T) for name in every]
    chart = Chart("Losses in the plane of the joint PCA", "component 1 (nats)", "component 2 (nats)", lines)
    return Measurement({"turned_by_degrees": angles}, chart)


def _angle(a: Floats, b: Floats) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))))


def same_score(runs: Runs) -> Measurement:
    """How much the ICL scores of models of different sizes differ at the end: their deviation over their mean."""
    found = _all(runs)
    last = np.array([one.score[-1] for one in found])
    quantities = {"relative_deviation": [last.std(ddof=1) / abs(last.mean())], "icl_score": last.tolist()}
    return Measurement(quantities, _chart("ICL score", found, lambda one: one.score))


def other_pairs(runs: Runs) -> Measurement:
    """How much ICL scores of models differ at the end if they compare the context's end with other early positions.

    As in `same_score`, the largest of several early positions; the late one is the last 13 of the context.
    """
    found, lines, deviations = _all(runs), [], []
    length = found[0].data.sizes["position"]
    late = list(range(length - ICL_WINDOW + 1, length + 1))
    for early in EARLY:
        around = list(range(early - min(early - 1, ICL_WINDOW // 2), early + ICL_WINDOW // 2 + 1))
        last = np.array([icl_score(one.data.isel(snapshot=[-1]), around, late)[0] for one in found])
        deviations.append(last.std(ddof=1) / abs(last.mean()))
        lines.append(Curve(f"end of context less {early}", np.arange(1, len(found) + 1), last))
    chart = Chart("ICL scores of other pairs", "model, by depth", NATS, lines)
    return Measurement({"largest_deviation": [max(deviations)]}, chart)


def derivative_order(runs: Runs) -> Measurement:
    """Whether the loss of the small model falls more slowly than the large one's before the change, faster after it.

    d loss / d ln(tokens), in 24 bins of ln(tokens), averaged before the start and after the end of the large model's
    change; the small model's is taken from the large one's: positive before (the large one falls faster) and negative
    after.
    """
    before, after, lines = [], [], []
    for small, large in zip(runs["small"], runs["large"], strict=False):
        slow, fast = curves(small), curves(large)
        slopes = [loss_by_log_tokens(one.loss, one.data["tokens"].values.tolist(), bins=24) for one in (slow, fast)]
        at = slopes[0]["tokens"].values / 1e6
        difference = slopes[0].values - slopes[1].values
        lines += [Curve(one.name, at, slope.values) for one, slope in zip((slow, fast), slopes, strict=True)]
        if fast.start is None or fast.end is None:
            before.append(np.nan)
            after.append(np.nan)
            continue
        before.append(difference[at < fast.tokens[fast.start]].mean())
        after.append(difference[at >= fast.tokens[fast.end]].mean())
    chart = Chart("d loss / d ln(tokens)", TOKENS, "nats", lines, log_x=True)
    return Measurement({"before": before, "after": after}, chart)


def early_advantage(runs: Runs) -> Measurement:
    """What part of the large model's advantage late in the context is there after ten tokens.

    The advantage is averaged over positions 8 to 12 and over the last quarter of the context, as there are few
    examples (`icl_fast.analysis.compare_by_position` takes single positions).
    """
    formed, lines = [], []
    for small, large in zip(runs["small"], runs["large"], strict=False):
        slow, fast = curves(small), curves(large)
        by_position = [
            one.data["position_loss"].sel(ablation=UNABLATED).isel(snapshot=-1).values for one in (slow, fast)
        ]
        advantage = by_position[0] - by_position[1]
        early, late = advantage[7:12].mean(), advantage[-len(advantage) // 4 :].mean()
        formed.append(early / late if late > 0 else np.nan)  # else the larger one is no better
        lines.append(Curve(f"{slow.name} less {fast.name}", np.arange(1, len(advantage) + 1), advantage))
    chart = Chart("Advantage by context position", "context position", NATS, lines, log_x=True)
    return Measurement({"formed_by_tenth": formed}, chart)
