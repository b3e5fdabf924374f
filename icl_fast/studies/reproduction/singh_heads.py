"""Claims of Singh 2025, 4.3 to 4.3.3, C.2, C.3: what the heads of the two layers do for the output and each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from icl_fast.analysis import learning_time
from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.measure import measure_ablations, measure_wiring, open_measured, open_results
from icl_fast.measure.ablation import UNABLATED
from icl_fast.measure.exemplar.measured_run import ALL, PREVIOUS_TOKEN, REST, MeasuredRun
from icl_fast.measure.exemplar.single_heads import single_heads
from icl_fast.studies.exemplar_heads import measure_heads
from icl_fast.studies.reproduction.claim import Claim
from icl_fast.studies.reproduction.singh_induction import SEEN
from icl_fast.studies.reproduction.trained import SEQUENCES, Runs, Trained, training_loss

_SEQUENCES = 2000  # of the snapshots whose heads are looked at: accuracies to 0.011 or better
ABOVE_CHANCE = 0.53  # accuracy: 0.5 is guessing one of the labels in context, and three standard errors


def cut_from_output(runs: Runs, layer: int) -> Measurement:
    """All heads of a layer removed from what the output reads, patterns and values as they were (Fig 4.4).

    `accuracy_drop`: at the end; `early_change`: of the loss, the largest of the snapshots before it is learned;
    `end_over_early`: that at the end over it.
    """
    quantities: dict[str, list[float]] = {"accuracy_drop": [], "early_change": [], "end_over_early": []}
    lines: list[Floats] = []
    for trained in runs["run"]:
        found = _cut(trained)
        removed, whole = (found.sel(ablation=which) for which in (f"{layer}.*", UNABLATED))
        change = (removed["loss"] - whole["loss"]).values
        early = change[found["sequences"].values < float(learning_time(*training_loss(trained)))]
        largest = float(early.max()) if len(early) else math.nan
        drop = (whole["accuracy"] - removed["accuracy"]).values[-1]
        for name, value in zip(quantities, (drop, largest, float(change[-1]) / largest), strict=True):
            quantities[name].append(float(value))
        lines.append(change)
    seen = found["sequences"].values
    title = f"Layer {layer + 1} cut from the output"
    return Measurement(quantities, Chart(title, SEEN, "change of loss (nats)", [Curve("mean over seeds", seen, lines)]))


def removed_and_alone(runs: Runs, quantities: Sequence[str]) -> Measurement:
    """Every head of the last layer removed, and alone, at the end of training; accuracies are over all outputs.

    `strongest_drop`, `other_drop`: without the strongest head, and the largest without any other one;
    `strongest_alone`, `weakest_alone`; `difference`: between all heads but the strongest, and it alone;
    `correlation`, `spread`: of strengths with accuracies alone, and the range of those.

    Args:
        quantities: which of these.
    """
    found = [_heads(trained) for trained in runs["run"]]
    chosen: dict[str, list[float]] = {name: [] for name in quantities}
    points = []
    for one in found:
        strength, without = one["induction"].values, one["without"].values
        alone = one["overall"].sel(patterns="as it is").values
        best, drops = int(strength.argmax()), float(one["whole"]) - without
        measured = {
            "strongest_drop": drops[best],
            "other_drop": np.delete(drops, best).max(),
            "without_strongest": without[best],
            "strongest_alone": alone[best],
            "weakest_alone": alone[int(strength.argmin())],
            "difference": abs(without[best] - alone[best]),
            "correlation": np.corrcoef(strength, alone)[0, 1] if np.ptp(strength) and np.ptp(alone) else math.nan,
            "spread": np.ptp(alone),
        }
        for name, values in chosen.items():
            values.append(float(measured[name]))
        points.append((strength, alone, without))
    strengths, alone_of_all, without_of_all = (np.concatenate(of) for of in zip(*points, strict=True))
    curves = [
        Curve("it alone", strengths, alone_of_all, kind="points"),
        Curve("without it", strengths, without_of_all, kind="points"),
    ]
    return Measurement(chosen, Chart("Heads of layer 2", "induction strength", "accuracy, all outputs", curves))


def copying(runs: Runs) -> Measurement:
    """Heads of the last layer alone, as they are and with perfect patterns (Fig C.1a): mean over the heads."""
    found = [_heads(trained)["overall"] for trained in runs["run"]]
    perfect = [float(one.sel(patterns="perfect").mean()) for one in found]
    gain = [value - float(one.sel(patterns="as it is").mean()) for value, one in zip(perfect, found, strict=True)]
    number = range(found[0].sizes["head"])
    curves = [Curve(f"{which}", number, [one.sel(patterns=which) for one in found], kind="points") for which in _KINDS]
    chart = Chart("Heads of layer 2 alone", "head", "accuracy, all outputs", curves)
    return Measurement({"mean_perfect": perfect, "mean_gain": gain}, chart)


def others_on_mistakes(runs: Runs, *, at_random: bool = False) -> Measurement:
    """Accuracy of the other heads on what the best head gets wrong, less that on all sequences (table C.1).

    Args:
        at_random: on as many sequences drawn at random instead.
    """
    differences, curves = [], []
    for trained in runs["run"]:
        correct = _answers(trained)
        best = int(correct.mean(-1).argmax())
        chosen = ~correct[best]
        if at_random:
            chosen = np.random.default_rng(0).permutation(chosen)
        others = np.delete(correct, best, axis=0)
        change = others[:, chosen].mean(-1) - others.mean(-1) if chosen.any() else np.full(len(others), math.nan)
        differences.append(float(change.mean()))
        curves.append(change)
    chart = Chart(
        "Other heads on the best head's mistakes",
        "head, without the best",
        "accuracy less that on all sequences",
        [Curve("mean over seeds", range(len(curves[0])), curves, kind="points")],
    )
    return Measurement({"difference": differences}, chart)


def strength_and_learning_time(runs: Runs, *, shifted: int = 0) -> Measurement:
    """Strengths in trainings with all heads against the learning times of each head alone from the start (Fig C.6).

    Correlations over all heads of all seeds: one alone of all.

    Args:
        shifted: by so many heads the strengths are those of others.
    """
    roles = [role for role in runs if role != "all"]
    found = [_heads(trained) for trained in runs["all"]][: len(runs[roles[0]])]
    strength = np.concatenate([np.roll(one["induction"].values, shifted) for one in found])
    alone = np.concatenate([one["overall"].sel(patterns="as it is").values for one in found])
    times = [float(learning_time(*training_loss(runs[role][seed]))) for seed in range(len(found)) for role in roles]
    known = np.isfinite(times)
    time = float(np.corrcoef(strength[known], np.array(times)[known])[0, 1])
    accuracy = float(np.corrcoef(strength, alone)[0, 1])
    quantities = {
        "time_correlation": [time],
        "accuracy_correlation": [accuracy],
        "weaker_by": [accuracy - abs(time)],
        "learned": [float(known.sum())],
    }
    points = [Curve("heads of all seeds", strength[known], np.array(times)[known], kind="points")]
    return Measurement(quantities, Chart("Strong heads learn fast alone", "induction strength", SEEN, points))


def layer_1_sets(runs: Runs) -> Measurement:
    """Sets of heads of layer 1 removed, patterns or values of layer 2 kept (table C.3): accuracies over all outputs.

    `previous_gap`: of previous-token heads, with patterns kept less with values kept; `rest_gap`: of the rest, the
    other way round; `no_layer_1_...`: of all of them.
    """
    quantities: dict[str, list[float]] = {}
    for trained in runs["run"]:
        accuracy = _wiring(trained)["accuracy_without"]
        values, patterns = (accuracy.sel(preserve=f"{kind}-preserving") for kind in ("value", "pattern"))
        measured = {
            "previous_gap": patterns.sel(set=PREVIOUS_TOKEN) - values.sel(set=PREVIOUS_TOKEN),
            "rest_gap": values.sel(set=REST) - patterns.sel(set=REST),
            "no_layer_1_patterns_kept": patterns.sel(set=ALL),
            "no_layer_1_values_kept": values.sel(set=ALL),
            "previous_token_heads": _wiring(trained)["is_previous_token"].sum(),
        }
        for name, value in measured.items():
            quantities.setdefault(name, []).append(float(value))
    sets = [PREVIOUS_TOKEN, REST, ALL]
    lines = [
        Curve(
            f"{kind} kept",
            range(len(sets)),
            [
                _wiring(trained)["accuracy_without"].sel(preserve=f"{kind[:-1]}-preserving", set=sets).values
                for trained in runs["run"]
            ],
            kind="points",
        )
        for kind in ("patterns", "values")
    ]
    return Measurement(
        quantities, Chart("Heads of layer 1 removed", f"0: {sets[0]}, 1: {sets[1]}, 2: {sets[2]}", "accuracy", lines)
    )


def pairs_of_heads(runs: Runs) -> Measurement:
    """One head of each layer alone, patterns by way of it (Fig C.3b, top): which pairs are above guessing.

    `most_readers`: that one writer serves; `most_writers`: that serve one reader.
    """
    readers, writers, best = [], [], []
    for trained in runs["run"]:
        accuracy = _wiring(trained)["accuracy"].sel(kind="single-pair", preserve="value-preserving")
        above = accuracy.transpose("writer", "reader").values > ABOVE_CHANCE
        readers.append(float(above.sum(1).max()))
        writers.append(float(above.sum(0).max()))
        best.append(np.sort(accuracy.values.ravel())[::-1])
    chart = Chart(
        "One head of each layer",
        "pair, the best first",
        "accuracy",
        [Curve("mean over seeds", range(len(best[0])), best)],
    )
    return Measurement({"most_readers": readers, "most_writers": writers}, chart)


_KINDS = ("as it is", "perfect")


@cache  # exemplars are read and encoded once for all that is measured of a snapshot
def _opened(path: Path, step: int) -> MeasuredRun:
    return open_measured(path, snapshots=str(step), evaluators=["train"], sequences=_SEQUENCES)


@cache
def _heads_of(path: Path, step: int) -> xr.Dataset:
    return measure_heads(_opened(path, step))


def _heads(trained: Trained) -> xr.Dataset:
    """Of the last snapshot looked at, this member."""
    return _heads_of(trained.run.path, trained.last).isel(member=trained.member)


@cache
def _wiring_of(path: Path, step: int) -> xr.Dataset:
    return measure_wiring(_opened(path, step))


def _wiring(trained: Trained) -> xr.Dataset:
    return _wiring_of(trained.run.path, trained.last).isel(member=trained.member)


@cache
def _answers_of(path: Path, step: int) -> torch.Tensor:
    measured = _opened(path, step)
    return single_heads(measured.on_each(measured.snapshot(step).model)[0]).correct


def _answers(trained: Trained) -> np.ndarray:
    """[H,N] whether each head of the last layer alone answers each sequence."""
    found: np.ndarray = _answers_of(trained.run.path, trained.last)[trained.member].numpy()
    return found


@cache
def _cut_of(path: Path, out: Path) -> xr.Dataset:
    measured = open_measured(path, evaluators=["train"], sequences=SEQUENCES)
    layers = [f"{layer}.*" for layer in range(measured.series.population.config.model.layers)]
    return open_results(measure_ablations(measured, modes=["direct"], heads=layers, out=out, force=True))


def _cut(trained: Trained) -> xr.Dataset:
    """Each layer cut from the output, in every snapshot."""
    found = _cut_of(trained.run.path, trained.results / "cut_from_output.zarr")
    return trained.cut(found).sel(mode="direct", evaluator="train")


_ONE_HEAD = "single_heads:only 1.3"

CLAIMS = (
    Claim(
        name="layer-1-to-output-is-not-needed",
        source="4.3 (99.99% to 99.98%)",
        statement="At the end of training nothing is lost if the output does not read layer 1.",
        runs={"run": "chapter4"},
        measure=cut_from_output,
        arguments={"layer": 0},
        rule="accuracy_drop < 0.01",
        without_arguments={"layer": 1},
    ),
    Claim(
        name="layer-1-to-output-mattered-before",
        source="4.3, Figure 4.4a",
        statement="Before the change what layer 1 writes to the output lowers the loss; at the end it does not.",
        runs={"run": "chapter4"},
        measure=cut_from_output,
        arguments={"layer": 0},
        rule="early_change > 0.02 and end_over_early < 0.5",
        without_arguments={"layer": 1},
    ),
    Claim(
        name="layer-2-to-output-grows",
        source="4.3, Figure 4.4b",
        statement="What layer 2 writes to the output becomes more important, above all with the change.",
        runs={"run": "chapter4"},
        measure=cut_from_output,
        arguments={"layer": 1},
        rule="end_over_early > 2",
        without_arguments={"layer": 0},
    ),
    Claim(
        name="single-ablations-hide-redundancy",
        source="4.3.1, Figure 4.5a (triangles)",
        statement="Removing any head of layer 2 but the strongest costs nothing, removing that one little.",
        runs={"run": "chapter4"},
        measure=removed_and_alone,
        arguments={"quantities": ("other_drop", "strongest_drop")},
        rule="other_drop < 0.01 and strongest_drop < 0.05",
        without={"run": _ONE_HEAD},
    ),
    Claim(
        name="all-but-one-shows-it",
        source="4.3.1, Figure 4.5a (circles)",
        statement="Alone heads differ widely, and their accuracy goes with their induction strength.",
        runs={"run": "chapter4"},
        measure=removed_and_alone,
        arguments={"quantities": ("correlation", "spread")},
        rule="correlation > 0.7 and spread > 0.3",
        without={"run": "chapter4@0"},
    ),
    Claim(
        name="strongest-head-nearly-suffices",
        source="4.3.1, Figure 4.5a (98%)",
        statement="The strongest head alone mostly solves the task.",
        runs={"run": "chapter4"},
        measure=removed_and_alone,
        arguments={"quantities": ("strongest_alone", "weakest_alone")},
        rule="strongest_alone > 0.9",
        without={"run": "chapter4@0.1"},
    ),
    Claim(
        name="heads-are-additive",
        source="4.3.1, Figure 4.5a",
        statement="All heads but the strongest do together about as well as it does alone.",
        runs={"run": "chapter4"},
        measure=removed_and_alone,
        arguments={"quantities": ("difference", "without_strongest")},
        rule="difference < 0.05 and without_strongest > 0.9",
        without={"run": _ONE_HEAD},
    ),
    Claim(
        name="strong-heads-learn-fast-alone",
        source="4.3.2, C.6, Figure C.6",
        statement="Heads that learn fast alone become the strong ones, though less so than strong ones are accurate.",
        runs={
            **{f"1.{head} alone": f"single_heads:only 1.{head}" for head in range(8)},
            "all": "single_heads:all heads",
        },
        measure=strength_and_learning_time,
        rule="time_correlation < -0.3 and accuracy_correlation > 0.7 and weaker_by > 0",
        without_arguments={"shifted": 3},
        note="the control holds each head against another one's strength",
    ),
    Claim(
        name="copying-is-imperfect",
        source="C.2, Figure C.1a",
        statement="With a perfect pattern most heads alone do better and are still far from perfect: they copy badly.",
        runs={"run": "chapter4"},
        measure=copying,
        rule="mean_gain > 0.05 and mean_perfect < 0.95",
        without={"run": "chapter4@0"},
    ),
    Claim(
        name="residual-heads-table-c1",
        source="C.2, Table C.1",
        statement="What the best head gets wrong the others get wrong more often than usual: no residual heads.",
        runs={"run": "chapter4"},
        measure=others_on_mistakes,
        rule="difference < -0.03",
        without_arguments={"at_random": True},
    ),
    Claim(
        name="layer-1-heads-serve-match-or-copy",
        source="C.3, Table C.3",
        statement="Previous-token heads serve the patterns of layer 2, the rest of layer 1 its values.",
        runs={"run": "chapter4"},
        measure=layer_1_sets,
        rule="previous_gap > 0.1 and rest_gap > 0.1",
        without={"run": "chapter4@0"},
    ),
    Claim(
        name="layer-1-is-read-by-values-too",
        source="C.3 (55% and 11%)",
        statement="Without layer 1 accuracy falls far, whether layer 2 keeps its patterns or its values.",
        runs={"run": "chapter4"},
        measure=layer_1_sets,
        rule="no_layer_1_patterns_kept < 0.8 and no_layer_1_values_kept < 0.8",
        without={"run": "clamps:layer-1 (1, 2)"},
        note="the control is trained, and measured, without layer 1",
    ),
    Claim(
        name="wiring-is-many-to-many",
        source="4.3.3, Figure C.3b",
        statement="A previous-token head serves several induction heads, and some are served by several.",
        runs={"run": "chapter4"},
        measure=pairs_of_heads,
        rule="most_readers >= 2 and most_writers >= 2",
        without={"run": _ONE_HEAD},
        note=f"a pair serves that has an accuracy above {ABOVE_CHANCE}, where guessing has 0.5",
    ),
)
