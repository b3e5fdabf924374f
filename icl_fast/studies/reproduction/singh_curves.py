"""What the claims of Singh 2025, chapters 2, 3 and 5, read off the training curves of populations on exemplars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.analysis.learning import Transience, transience
from icl_fast.studies.reproduction.trained import Runs, Trained, curve

SEEN = "training sequences (millions)"
CHANCE = 0.5  # of the two labels in context
LEARNED = 0.75  # halfway from there to perfect
STRATEGIES = ("icl", "ciwl", "flip", "iwl")
_LAST = 3  # evaluations that the end is a mean of


def metric_of(evaluator: str) -> str:
    """Accuracy within context (chance 1/2), but of IWL, whose context holds no correct label, that over all outputs."""
    return "accuracy" if evaluator.startswith("iwl") else "accuracy_in_context"


def accuracy(trained: Trained, evaluator: str) -> tuple[Floats, Floats]:
    """The curve of an evaluator, by `metric_of`: sequences seen `[S]`, accuracy `[S]`."""
    return curve(trained, evaluator, metric_of(evaluator))


def end(trained: Trained, evaluator: str) -> float:
    """The accuracy on an evaluator at the end, a mean of the last three evaluations."""
    return float(accuracy(trained, evaluator)[1][-_LAST:].mean())


def risen(trained: Trained, evaluator: str) -> Transience:
    """How the accuracy on an evaluator rises and falls, by the rule of `icl_fast.analysis.learning`."""
    seen, values = accuracy(trained, evaluator)
    return transience(seen, values, chance=CHANCE)


def lost(trained: Trained, evaluator: str) -> float:
    """The share of an evaluator's rise from chance to its highest accuracy that is lost by the end; NaN: no rise."""
    found = risen(trained, evaluator)
    rise = found.height - CHANCE
    return (found.height - found.end) / rise if rise > 0 else float("nan")


def time_to(trained: Trained, evaluator: str, threshold: float = LEARNED) -> float:
    """Sequences until the accuracy on an evaluator first is at a threshold; NaN where it never is."""
    seen, values = accuracy(trained, evaluator)
    reached = values >= threshold
    return float(seen[reached.argmax()]) if reached.any() else float("nan")


def curves_of(role: str, trained: Sequence[Trained], evaluator: str) -> Curve:
    """The curves of all seeds of a role, for a chart."""
    found = [accuracy(one, evaluator) for one in trained]
    return Curve(role, found[0][0] / 1e6, [values for _, values in found])


def strategy_chart(title: str, runs: Runs, evaluators: Sequence[str]) -> Chart:
    """The accuracy of one role on each of some evaluators over training, or of several roles on one evaluator."""
    curves = [
        curves_of(evaluator.upper() if len(runs) == 1 else role, trained, evaluator)
        for role, trained in runs.items()
        for evaluator in evaluators
    ]
    return Chart(title, SEEN, "accuracy", curves)


def strategies_learned(runs: Runs, evaluators: Sequence[str] = STRATEGIES) -> Measurement:
    """Of each strategy the highest accuracy of the training (`run`), that at the end, and what of the rise is lost.

    Quantities: `<evaluator>_highest`, `_end`, `_lost`; of a running median of three evaluations, and a mean of three.
    """
    quantities: dict[str, list[float]] = {}
    for evaluator in evaluators:
        name = evaluator.replace("-", "_")
        quantities[f"{name}_highest"] = [risen(one, evaluator).height for one in runs["run"]]
        quantities[f"{name}_end"] = [end(one, evaluator) for one in runs["run"]]
        if not evaluator.startswith("iwl"):  # whose chance is no half
            quantities[f"{name}_lost"] = [lost(one, evaluator) for one in runs["run"]]
    return Measurement(quantities, strategy_chart("Strategies over training", {"run": runs["run"]}, evaluators))


def later(runs: Runs, evaluator: str = "icl", than: str | None = None) -> Measurement:
    """How many times later `run` reaches an accuracy of 3/4 on an evaluator than `other` does on it (or on `than`).

    One that never does counts as reaching it at the end of its training, a lower bound; where neither does, or `other`
    does not, NaN.
    """
    than = than or evaluator
    ratios, first, second = [], [], []
    for run, other in zip(runs["run"], runs["other"], strict=False):
        first.append(time_to(run, evaluator))
        second.append(time_to(other, than))
        bound = accuracy(run, evaluator)[0][-1] if np.isnan(first[-1]) else first[-1]
        ratios.append(bound / second[-1])
    highest = [risen(one, evaluator).height for one in runs["run"]]
    quantities = {"times_later": ratios, "run_reached": first, "other_reached": second, "run_highest": highest}
    curves = [curves_of(f"run: {evaluator}", runs["run"], evaluator), curves_of(f"other: {than}", runs["other"], than)]
    return Measurement(quantities, Chart("When it is learned", SEEN, "accuracy", curves))


def highest_of(runs: Runs, evaluator: str = "icl") -> Measurement:
    """The highest accuracy on an evaluator of each of some trainings, by their roles."""
    quantities = {role: [risen(one, evaluator).height for one in trained] for role, trained in runs.items()}
    return Measurement(quantities, strategy_chart(f"Accuracy on {evaluator}", runs, [evaluator]))


def best_end(runs: Runs, evaluator: str) -> Measurement:
    """How far the accuracy at the end of the best training of each role is behind that of the role `transformer`."""
    best = {role: max(end(one, evaluator) for one in trained) for role, trained in runs.items()}
    behind = {f"{role}_behind": [best["transformer"] - value] for role, value in best.items() if role != "transformer"}
    quantities = {**{role: [value] for role, value in best.items()}, **behind}
    return Measurement(quantities, strategy_chart(f"Accuracy on {evaluator}", runs, [evaluator]))


def peak_at(trained: Trained, evaluator: str) -> float:
    """Millions of sequences until the highest accuracy; NaN where it is under 3/4: the peak of noise is none."""
    found = risen(trained, evaluator)
    return found.peak / 1e6 if found.height >= LEARNED else float("nan")


_OF_CURVE: dict[str, Callable[[Trained, str], float]] = {
    "highest": lambda one, evaluator: risen(one, evaluator).height,
    "end": end,
    "peak": peak_at,
    "decay": lambda one, evaluator: risen(one, evaluator).decay,
    "lost": lost,
}


def compared(runs: Runs, evaluator: str, at: str = "highest") -> Measurement:
    """An evaluator in a row of trainings, in order, and how it changes from one to the next.

    Args:
        at: what is taken of each: its `highest` accuracy, that at the `end`, its `peak` (millions of sequences until
            the highest), its `decay` (slope from there to the end, per million sequences) or what of the rise is
            `lost`.

    Quantities: each role's, by its name, for each seed; `rise`: the mean of the last role less that of the first;
    `least_step`, `greatest_step`: the smallest and the largest change of the mean from one role to the next.
    """
    found = {role: [_OF_CURVE[at](one, evaluator) for one in trained] for role, trained in runs.items()}
    means = np.array([np.mean(values) for values in found.values()])
    steps = np.diff(means)
    changes = {"rise": [means[-1] - means[0]], "least_step": [steps.min()], "greatest_step": [steps.max()]}
    return Measurement({**found, **changes}, strategy_chart(f"Accuracy on {evaluator}", runs, [evaluator]))
