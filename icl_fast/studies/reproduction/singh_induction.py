"""Claims of Singh 2025, 4.3: the plateau, the change, the strategy that is learned, the heads that form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from icl_fast.analysis import learning_time
from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.analysis.convexity import non_convexity
from icl_fast.studies.reproduction.claim import Claim
from icl_fast.studies.reproduction.trained import Runs, Trained, curve, training_loss

SEEN = "sequences seen"
PLATEAU = math.log(2)  # nats: guessing one of the two labels in context
CHANGED = 0.1  # a curve that is less convex than this has a plateau and a change; `non_convexity` says what it means
STRONG = 0.3  # induction strength
ONE_LAYER = "chapter4_one_layer"  # cannot learn the task


def accuracy(runs: Runs, evaluator: str) -> Measurement:
    """The accuracy on an evaluator's sequences at the end of training, over all outputs."""
    found = [curve(trained, evaluator) for trained in runs["run"]]
    chart = _over_training(f"Accuracy on {evaluator}", "accuracy, all outputs", found)
    return Measurement({"accuracy": [float(values[-1]) for _, values in found]}, chart)


def plateau(runs: Runs) -> Measurement:
    """Of the training from when the loss first comes near log 2 until it is learned, the share within 10% of log 2."""
    found = [training_loss(trained) for trained in runs["run"]]
    shares, times = [], []
    for seen, loss in found:
        times.append(float(learning_time(seen, loss)))
        before = loss[(np.cumsum(loss < 1.1 * PLATEAU) > 0) & (seen < times[-1])]
        shares.append(_mean(np.abs(before / PLATEAU - 1) < 0.1))
    return Measurement({"plateau_share": shares, "learned_after": times}, _losses(runs))


def guessing(runs: Runs) -> Measurement:
    """Accuracy and probability of the right label while the loss is within 10% of log 2, before it is learned."""
    accuracies, probabilities = [], []
    for trained in runs["run"]:
        seen, loss = curve(trained, "train", "loss")
        time = learning_time(*training_loss(trained))
        at = (np.abs(loss / PLATEAU - 1) < 0.1) & (seen < time)
        accuracies.append(_mean(curve(trained, "train")[1][at]))
        probabilities.append(_mean(curve(trained, "train", "probability")[1][at]))
    quantities = {"plateau_accuracy": accuracies, "plateau_probability": probabilities}
    found = [curve(trained, "train", "probability") for trained in runs["run"]]
    return Measurement(quantities, _over_training("Probability of the right label", "probability", found))


def change(runs: Runs) -> Measurement:
    """The shape of the training loss, and how long the change takes beside the plateau before it.

    The change is from the last time that the loss is above 0.9 log 2 to the last above 0.4 log 2, the plateau from the
    first time that it is below 1.1 log 2 to the change.
    """
    found = [training_loss(trained) for trained in runs["run"]]
    ratios, shapes = [], []
    for seen, loss in found:
        shapes.append(non_convexity(seen, loss))
        begin, end = change_of(seen, loss)
        near = seen[loss < 1.1 * PLATEAU]
        before = begin - near[0] if len(near) else math.nan
        ratios.append((end - begin) / before if before > 0 else math.nan)
    return Measurement({"non_convexity": shapes, "change_over_plateau": ratios}, _losses(runs))


def change_of(seen: Floats, loss: Floats) -> tuple[float, float]:
    """Sequences seen where the loss stays below 0.9 log 2, and where below 0.4 log 2; NaN where it never does."""
    begin, end = (float(learning_time(seen, loss, threshold=share * PLATEAU)) for share in (0.9, 0.4))
    return begin, end


def strength(runs: Runs) -> Measurement:
    """How the strength of the last layer's heads rises with the fall of the loss, from the plateau on.

    `correlation`: of the finally strongest head's strength with the loss; `rise`: of that strength.
    """
    correlations, rises, strongest, weakest, strong, lines = [], [], [], [], [], []
    for trained in runs["run"]:
        seen, of_heads = curve(trained, "train", "induction")
        last, loss = of_heads[:, -1], curve(trained, "train", "loss")[1]
        best = last[:, int(last[-1].argmax())]
        after = np.cumsum(loss < 1.1 * PLATEAU) > 0
        correlations.append(_correlation(best[after], loss[after]))
        rises.append(best[-1] - best[after][0] if after.any() else math.nan)
        strongest.append(last[-1].max())
        weakest.append(last[-1].min())
        strong.append(float((last[-1] > STRONG).sum()))
        lines.append((seen, best))
    quantities = {
        "correlation": correlations,
        "rise": rises,
        "strongest": strongest,
        "weakest": weakest,
        "strong_heads": strong,
    }
    return Measurement(quantities, _over_training("Strongest head of layer 2", "induction strength", lines))


def alone_learns(runs: Runs) -> Measurement:
    """Trainings with one head of layer 2 from the start, a role each but "all": do they learn, and how much later?

    `worst_accuracy`: on training sequences at the end, of the worst head; `first_delay`, `last_delay`: learning times
    of the fastest and the slowest head over that of all heads together.
    """
    roles = [role for role in runs if role != "all"]
    times = {role: [float(learning_time(*training_loss(one))) for one in runs[role]] for role in runs}
    ends = [[float(curve(one, "train")[1][-1]) for one in runs[role]] for role in roles]
    never = float(training_loss(runs["all"][0])[0][-1])  # what is not learned counts as learned at the end
    whole = np.array(times["all"])
    alone = np.nan_to_num(np.array([times[role] for role in roles]), nan=never)  # [head,seed]
    delays = alone / whole[: alone.shape[1]]
    quantities = {
        "worst_accuracy": np.min(ends, 0).tolist(),
        "first_delay": np.min(delays, 0).tolist(),
        "last_delay": np.max(delays, 0).tolist(),
    }
    lines = [_of_seeds(role, [training_loss(one) for one in of]) for role, of in runs.items()]
    return Measurement(quantities, Chart("One head of layer 2, and all", SEEN, "training loss (nats)", lines))


def of_seeds(role: str, runs: Runs, read: Callable[[Trained], tuple[Floats, Floats]]) -> Curve:
    """A curve of all seeds of a role."""
    return _of_seeds(role, [read(trained) for trained in runs[role]])


def _of_seeds(label: str, found: Sequence[tuple[Floats, Floats]]) -> Curve:
    return Curve(label, found[0][0], [values for _, values in found])


def _over_training(title: str, unit: str, found: Sequence[tuple[Floats, Floats]]) -> Chart:
    return Chart(title, SEEN, unit, [_of_seeds("mean over seeds", found)])


def _losses(runs: Runs) -> Chart:
    curves = [Curve(trained.name, *training_loss(trained)) for trained in runs["run"]]
    return Chart("Training loss", SEEN, "nats", curves)


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _correlation(x: Floats, y: Floats) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0 else math.nan


_HEADS = {f"1.{head} alone": f"single_heads:only 1.{head}" for head in range(8)}

CLAIMS = (
    Claim(
        name="plateau-at-log-2",
        source="4.3, Figure 4.3a",
        statement="Before the change the loss stays on a plateau at log 2.",
        runs={"run": "chapter4"},
        measure=plateau,
        rule="plateau_share > 0.5",
        without={"run": "clamps:match (1, 2, 3qk, 4)"},
        note="the control learns copying alone, which passes log 2 without a stop",
    ),
    Claim(
        name="plateau-is-guessing",
        source="4.3, footnote 8",
        statement="On the plateau the model guesses between the two labels in context, with equal weight on both.",
        runs={"run": "chapter4"},
        measure=guessing,
        rule="plateau_accuracy > 0.4 and plateau_accuracy < 0.6 and plateau_probability > 0.4 and "
        "plateau_probability < 0.6",
        without={"run": "chapter4@0"},
    ),
    Claim(
        name="sudden-change",
        source="4.3, Figure 4.3a",
        statement="The plateau ends in a sudden change of the loss.",
        runs={"run": "chapter4"},
        measure=change,
        rule=f"non_convexity > {CHANGED} and change_over_plateau < 1",
        without={"run": "clamps:match (1, 2, 3qk, 4)"},
    ),
    Claim(
        name="near-perfect-accuracy",
        source="4.3, Figure 4.3a (99.99%)",
        statement="The two-layer model learns the task with near-perfect accuracy.",
        runs={"run": "chapter4"},
        measure=accuracy,
        arguments={"evaluator": "train"},
        rule="accuracy > 0.99",
        without={"run": ONE_LAYER},
    ),
    Claim(
        name="held-out-exemplars",
        source="4.3, Figure 4.3a",
        statement="It generalises to classes that it was never trained on.",
        runs={"run": "chapter4"},
        measure=accuracy,
        arguments={"evaluator": "held-out-classes"},
        rule="accuracy > 0.9",
        without={"run": ONE_LAYER},
    ),
    Claim(
        name="held-out-relabelings",
        source="4.3, Figure 4.3a",
        statement="It generalises to pairs of labels that it was never trained on together.",
        runs={"run": "chapter4"},
        measure=accuracy,
        arguments={"evaluator": "held-out-label-pairs"},
        rule="accuracy > 0.9",
        without={"run": ONE_LAYER},
    ),
    Claim(
        name="strength-rises-with-the-change",
        source="4.3, Figure 4.3b",
        statement="Induction heads emerge with the change of the loss.",
        runs={"run": "chapter4"},
        measure=strength,
        rule="correlation < -0.8 and rise > 0.3",
        without={"run": ONE_LAYER},
    ),
    Claim(
        name="many-induction-heads",
        source="4.3, 4.3.1, Figure 4.3b",
        statement="All heads of layer 2 come to some induction, and several become strong.",
        runs={"run": "chapter4"},
        measure=strength,
        rule="weakest > 0 and strong_heads >= 3",
        without={"run": ONE_LAYER},
        note=f"strong: {STRONG} or more",
    ),
    Claim(
        name="every-head-alone-learns",
        source="4.3.2, Figure 4.5b",
        statement="With any one head of layer 2 alone from the start the model learns the task as well.",
        runs={**_HEADS, "all": "single_heads:all heads"},
        measure=alone_learns,
        rule="worst_accuracy > 0.95",
        without={"1.0 alone": ONE_LAYER},
    ),
    Claim(
        name="one-head-learns-later",
        source="4.3.2, Figure 4.5b",
        statement="One head alone learns later than all heads together.",
        runs={**_HEADS, "all": "single_heads:all heads"},
        measure=alone_learns,
        rule="first_delay > 1",
        without={"all": "single_heads:only 1.3"},
    ),
)
