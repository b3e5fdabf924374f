"""Claims of Singh 2025, chapter 4: how induction circuits form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.studies.reproduction.claim import Claim
from icl_fast.studies.reproduction.trained import Trained, curve, training_loss

Runs = Mapping[str, Sequence[Trained]]


def accuracy(runs: Runs, evaluator: str) -> Measurement:
    """The accuracy on an evaluator's sequences at the end of training, over all outputs."""
    curves = [curve(trained, evaluator) for trained in runs["run"]]
    values = [of_seed for _, of_seed in curves]
    chart = Chart(f"Accuracy on {evaluator}", "sequences seen", "accuracy", [Curve("run", list(curves[0][0]), values)])
    return Measurement({"accuracy": [float(of_seed[-1]) for of_seed in values]}, chart)


def plateau(runs: Runs) -> Measurement:
    """How long the training loss stays within 10% of log 2, as a share of the training (4.3.1)."""
    losses = [training_loss(trained) for trained in runs["run"]]
    near = [float((np.abs(values - np.log(2)) < 0.1 * np.log(2)).mean()) for _, values in losses]
    chart = Chart(
        "Training loss", "sequences seen", "nats", [Curve("run", list(losses[0][0]), [list(v) for _, v in losses])]
    )
    return Measurement({"share_near_log_2": near}, chart)


CLAIMS = (
    Claim(
        name="near-perfect-accuracy",
        source="4.3.1, Figure 4.3",
        statement="A two-layer attention-only model learns the task with near-perfect accuracy.",
        runs={"run": "chapter4"},
        measure=accuracy,
        arguments={"evaluator": "icl"},
        rule="accuracy > 0.95",
        without={"run": "chapter4@0.1"},
    ),
    Claim(
        name="plateau-at-log-2",
        source="4.3.1, Figure 4.3",
        statement="Before the change the loss stays on a plateau at log 2, the loss of guessing one of the two labels.",
        runs={"run": "chapter4"},
        measure=plateau,
        rule="share_near_log_2 > 0.1",
        without={"run": "chapter4@0"},
    ),
)
