"""Claims of Singh 2025, 4.4 and 4.5: parts of the circuit clamped in training, and what data do to the others."""

from __future__ import annotations

import math

import numpy as np

from icl_fast.analysis import learning_time
from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.analysis.convexity import non_convexity
from icl_fast.measure import measure_strategies, open_measured, open_results
from icl_fast.studies.reproduction.claim import Claim
from icl_fast.studies.reproduction.singh_induction import CHANGED, PLATEAU, SEEN, change_of, of_seeds
from icl_fast.studies.reproduction.trained import SEQUENCES, Runs, Trained, training_loss

FREE, PT_ATTEND, LAYER_1 = "clamps:no clamp", "clamps:pt-attend (1)", "clamps:layer-1 (1, 2)"
MATCH, COPY = "clamps:match (1, 2, 3qk, 4)", "clamps:copy (3v, 5)"
LAYER_1_COPY = "clamps:layer-1 and copy (1, 2, 3v, 5)"
_TEST = (
    f"the test: a loss is smooth if it rises by less than {CHANGED} of its range above the largest convex curve below "
    "it, as an exponential does by 0"
)


def shape(runs: Runs) -> Measurement:
    """Whether the training loss is one smooth fall (`non_convexity`), and when it is learned."""
    found = [training_loss(trained) for trained in runs["run"]]
    quantities = {
        "non_convexity": [non_convexity(*one) for one in found],
        "learned_after": [float(learning_time(*one)) for one in found],
    }
    return Measurement(quantities, _chart("Training loss", runs))


def sharpness(runs: Runs) -> Measurement:
    """How long the change takes under a clamp over how long without, from 0.9 to 0.4 log 2.

    A change without a clamp that is not over at the end counts as over then: the ratio is smaller in truth.
    """
    lasting = {"clamped": [_lasting(trained) for trained in runs["clamped"]]}
    lasting["free"] = [_lasting(trained, at_least=True) for trained in runs["free"]]
    ratios = [clamped / free for clamped, free in zip(lasting["clamped"], lasting["free"], strict=True)]
    return Measurement({"duration_ratio": ratios, **_named("lasting", lasting)}, _chart("Training loss", runs))


def speed(runs: Runs) -> Measurement:
    """Learning times under clamps over that without: the largest and the smallest of the roles but "free".

    What is not learned at the end without a clamp counts as learned then: the ratios are smaller in truth.
    """
    times = {role: _times(runs, role) for role in runs if role != "free"}
    times["free"] = [_at_the_latest(trained) for trained in runs["free"]]
    ratios = np.array([np.divide(times[role], times["free"]) for role in runs if role != "free"])
    quantities = {"largest_ratio": ratios.max(0).tolist(), "smallest_ratio": ratios.min(0).tolist()}
    return Measurement({**quantities, **_named("learned_after", times)}, _chart("Training loss", runs))


def progress(runs: Runs, *, clamp: str) -> Measurement:
    """A clamp in every snapshot of one training, beside a training under it (Fig 4.8).

    Besides the whole curves, what of them is below 1.1 log 2: without the fall to guessing.

    Args:
        clamp: `match` or `pt-attend`.
    """
    of_snapshots = [_clamped(trained, clamp) for trained in runs["free"]]
    quantities = {}
    for name, curves in (("progress", of_snapshots), ("clamped", map(training_loss, runs["clamped"]))):
        of_each = list(curves)
        quantities[f"{name}_non_convexity"] = [non_convexity(*one) for one in of_each]
        quantities[f"{name}_non_convexity_from_log_2"] = [_from_guessing(*one) for one in of_each]
    line = Curve("clamped in each snapshot", of_snapshots[0][0], [values for _, values in of_snapshots])
    lines = [line, of_seeds("clamped", runs, training_loss)]
    return Measurement(quantities, Chart(f"Loss with {clamp} clamped", SEEN, "nats", lines))


def previous_token_clamps(runs: Runs) -> Measurement:
    """Learning times with previous-token patterns clamped in one head, in some, in all of layer 1 (C.5.2).

    Over that without a clamp; what was not learned counts as learned at the end.
    """
    times = {role: np.array([_at_the_latest(trained) for trained in of]) for role, of in runs.items()}
    few = np.array([times[role] / times["free"] for role in runs if role not in ("free", "all")])
    quantities = {
        "few_largest": few.max(0).tolist(),
        "few_smallest": few.min(0).tolist(),
        "all_ratio": (times["all"] / times["free"]).tolist(),
    }
    return Measurement(quantities, _chart("Training loss", runs))


def layer_1_of_seeds(runs: Runs) -> Measurement:
    """Learning times of layer 2 on a finished layer 1: of its own seed, over the fastest of other seeds (Fig C.4).

    Roles: `own N` and `other N ...` for the seeds N; what was not learned counts as learned at the end.
    """
    times = {role: [_at_the_latest(trained) for trained in of] for role, of in runs.items()}
    ratios = []
    for seed in dict.fromkeys(role.split()[1] for role in runs):
        others = np.min([times[role] for role in runs if role.startswith(f"other {seed} ")], 0)
        ratios += np.divide(times[f"own {seed}"], others).tolist()
    return Measurement({"own_over_other": ratios}, _chart("Layer 2 on a finished layer 1", runs))


def delays(runs: Runs) -> Measurement:
    """Learning times on more diverse data over those on the usual, by what is learned.

    Roles `match`, `copy` (or whatever is learned) and the same with ` of more`; what was not learned by the end counts
    as learned then, so that a delay may be larger.
    """
    quantities = {}
    for role in runs:
        if f"{role} of more" in runs:
            usual = [float(learning_time(*training_loss(trained))) for trained in runs[role]]
            more = [_at_the_latest(trained) for trained in runs[f"{role} of more"]]
            quantities[f"{role}_delay"] = [late / early for late, early in zip(more, usual, strict=True)]
    return Measurement(quantities, _chart("Training loss", runs))


def _times(runs: Runs, role: str) -> list[float]:
    return [float(learning_time(*training_loss(trained))) for trained in runs[role]]


def _at_the_latest(trained: Trained) -> float:
    seen, loss = training_loss(trained)
    time = float(learning_time(seen, loss))
    return float(seen[-1]) if math.isnan(time) else time


def _from_guessing(seen: Floats, loss: Floats) -> float:
    """`non_convexity` from when the loss is first below 1.1 log 2; NaN if that is not before the last two points."""
    below = np.flatnonzero(loss < 1.1 * PLATEAU)
    return non_convexity(seen[below[0] :], loss[below[0] :]) if len(below) and below[0] < len(seen) - 1 else math.nan


def _lasting(trained: Trained, *, at_least: bool = False) -> float:
    """Sequences that the change takes; NaN where it is not over, or those that it took until the end."""
    seen, loss = training_loss(trained)
    begin, end = change_of(seen, loss)
    return float(seen[-1] if at_least and math.isnan(end) else end) - begin


def _named(what: str, by_role: dict[str, list[float]]) -> dict[str, list[float]]:
    return {f"{what}_{role.replace(' ', '_')}": values for role, values in by_role.items()}


def _chart(title: str, runs: Runs) -> Chart:
    return Chart(title, SEEN, "nats", [of_seeds(role, runs, training_loss) for role in runs])


def _clamped(trained: Trained, clamp: str) -> tuple[Floats, Floats]:
    """Sequences seen by each snapshot, and its loss under the clamp."""
    out = trained.results / f"strategies_{clamp}.zarr"
    measured = open_measured(trained.run.path, evaluators=["train"], sequences=SEQUENCES)
    results = open_results(measure_strategies(measured, clamps=[clamp], out=out, force=True))
    found = trained.cut(results).sel(clamp=clamp, evaluator="train")
    return found["sequences"].values.astype(float), found["loss"].values


_NEXT = ((5, 6), (6, 7), (7, 5))
_OF_SEEDS = {
    f"own {seed}"
    if seed == other
    else f"other {seed} {other}": f"layer1_of_seeds:seed {seed} on layer 1 of seed {other}"
    for seed in (5, 6, 7)
    for other in (5, 6, 7)
}

CLAIMS = (
    Claim(
        name="pt-attend-clamp-still-changes",
        source="4.4.2, Figure 4.6b (orange)",
        statement="With a previous-token pattern clamped the loss still goes through a change.",
        runs={"run": PT_ATTEND},
        measure=shape,
        rule=f"non_convexity > {CHANGED}",
        without={"run": MATCH},
        note=_TEST,
    ),
    Claim(
        name="layer-1-clamp-still-changes",
        source="4.4.2, Figure 4.6b (red)",
        statement="With layer 1 clamped the loss still goes through a change.",
        runs={"run": LAYER_1},
        measure=shape,
        rule=f"non_convexity > {CHANGED}",
        without={"run": MATCH},
        note=_TEST,
    ),
    Claim(
        name="layer-1-clamp-is-sharper",
        source="4.4.2, Figure 4.6b (7.5e4 instead of 2e5)",
        statement="That change is much sharper than without a clamp.",
        runs={"clamped": LAYER_1, "free": FREE},
        measure=sharpness,
        rule="duration_ratio < 0.7",
        without={"clamped": PT_ATTEND},
    ),
    Claim(
        name="match-clamp-is-smooth",
        source="4.4.2, Figure 4.6b (green)",
        statement="With the match clamped the copy is learned in one smooth, exponential fall.",
        runs={"run": MATCH},
        measure=shape,
        rule=f"non_convexity < {CHANGED} and learned_after > 0",
        without={"run": FREE},
        note=_TEST,
    ),
    Claim(
        name="copy-clamp-still-changes",
        source="4.4.2, Figure 4.6b (pink)",
        statement="With the copy clamped there is a small plateau and a quick change.",
        runs={"run": COPY},
        measure=shape,
        rule=f"non_convexity > {CHANGED}",
        without={"run": MATCH},
        note=_TEST,
    ),
    Claim(
        name="layer-1-and-copy-clamp-is-smooth",
        source="4.4.2, Figure 4.6b (purple)",
        statement="With layer 1 and the copy clamped the match is learned in a more exponential fall.",
        runs={"run": LAYER_1_COPY},
        measure=shape,
        rule=f"non_convexity < {CHANGED} and learned_after > 0",
        without={"run": COPY},
        note=_TEST,
    ),
    Claim(
        name="parts-are-learned-faster",
        source="4.5, Figures 4.6b, 4.9",
        statement="A part of the circuit is learned substantially faster than the whole.",
        runs={"match learned": LAYER_1_COPY, "copy learned": MATCH, "free": FREE},
        measure=speed,
        rule="largest_ratio < 0.5",
        without={"match learned": PT_ATTEND},
    ),
    Claim(
        name="progress-measures-change-where-clamps-do-not",
        source="4.4.3, Figure 4.8",
        statement="Clamped in the snapshots of one training the match shows a change, clamped throughout it does not.",
        runs={"free": FREE, "clamped": MATCH},
        measure=progress,
        arguments={"clamp": "match"},
        rule=f"progress_non_convexity > {CHANGED} and clamped_non_convexity < {CHANGED}",
        without={"free": MATCH},
        note=_TEST,
    ),
    Claim(
        name="progress-measure-of-the-previous-token-changes",
        source="4.4.3, Figure 4.8 (orange)",
        statement="With a previous-token pattern both show a change: clamped in the snapshots, and clamped throughout.",
        runs={"free": FREE, "clamped": PT_ATTEND},
        measure=progress,
        arguments={"clamp": "pt-attend"},
        rule=f"progress_non_convexity > {CHANGED} and clamped_non_convexity > {CHANGED}",
        without={"free": MATCH, "clamped": MATCH},
        note=_TEST,
    ),
    Claim(
        name="which-heads-attend-before-hardly-matters",
        source="C.5.2, Figure C.5",
        statement="Previous-token patterns clamped in one head or three shift the change little, in all heads much.",
        runs={
            "free": "previous_token_heads:no clamp",
            "0.1": "previous_token_heads:0.1",
            "0.2": "previous_token_heads:0.2",
            "0.5": "previous_token_heads:0.5",
            "0.1 and 0.2": "previous_token_heads:0.1, 0.2",
            "three": "previous_token_heads:0.1, 0.2, 0.5",
            "all": "previous_token_heads:all of layer 1",
        },
        measure=previous_token_clamps,
        rule="few_largest < 1.5 and few_smallest > 0.67 and all_ratio > 1.5",
        without={"all": "previous_token_heads:0.1"},
    ),
    Claim(
        name="layer-1-of-its-own-seed",
        source="C.5.1, Figure C.4",
        statement="Layer 2 learns much faster on a finished layer 1 of its own seed than on one of another seed.",
        runs=_OF_SEEDS,
        measure=layer_1_of_seeds,
        rule="own_over_other < 0.7",
        without={f"own {seed}": f"layer1_of_seeds:seed {seed} on layer 1 of seed {other}" for seed, other in _NEXT},
    ),
    Claim(
        name="classes-slow-the-match",
        source="4.5, Figure 4.9, top",
        statement="More classes slow the learning of the match and not that of the copy.",
        runs={
            "match": "data_parts:match learned",
            "match of more": "data_parts:classes 400, match learned",
            "copy": "data_parts:copy learned",
            "copy of more": "data_parts:classes 400, copy learned",
        },
        measure=delays,
        rule="match_delay > 1.2 and copy_delay < 1.2",
        without={
            "match of more": "data_parts:labels 20, match learned",
            "copy of more": "data_parts:labels 20, copy learned",
        },
    ),
    Claim(
        name="labels-slow-the-copy",
        source="4.5, Figure 4.9, bottom",
        statement="More labels slow the learning of the copy and not that of the match.",
        runs={
            "match": "data_parts:match learned",
            "match of more": "data_parts:labels 20, match learned",
            "copy": "data_parts:copy learned",
            "copy of more": "data_parts:labels 20, copy learned",
        },
        measure=delays,
        rule="copy_delay > 1.2 and match_delay < 1.2",
        without={
            "match of more": "data_parts:classes 400, match learned",
            "copy of more": "data_parts:classes 400, copy learned",
        },
    ),
    Claim(
        name="classes-and-labels-delay-the-change",
        source="4.5, Figure 4.9, left",
        statement="More classes, and more labels, delay the change of the whole.",
        runs={
            "classes": "data_whole:classes 50 and labels 5",
            "classes of more": "data_whole:classes 400",
            "labels": "data_whole:classes 50 and labels 5",
            "labels of more": "data_whole:labels 20",
        },
        measure=delays,
        rule="classes_delay > 1.1 and labels_delay > 1.1",
        without={"classes of more": "data_whole:classes 50 and labels 5"},
    ),
)
