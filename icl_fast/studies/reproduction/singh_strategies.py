"""Claims of Singh 2025, chapter 5 and appendix D: in-context learning emerges and is replaced; the two toy models.

Rules: the thesis describes curves. "Emerges" is taken as an accuracy within context of at least 3/4, halfway from
chance to perfect; "does not emerge" as one that stays under 0.6; "is learned" or "dominates" as one beyond 0.9 at the
end; "fades" as half or more of the rise from chance lost (the rule of `icl_fast.analysis.learning.transience`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr

from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.analysis.learning import transience
from icl_fast.studies.reproduction.claim import Claim
from icl_fast.studies.reproduction.singh_curves import (
    CHANCE,
    SEQUENCES,
    Runs,
    accuracy,
    curves_of,
    later,
    risen,
    strategies_learned,
)
from icl_fast.studies.reproduction.trained import Trained, curve, strategies
from icl_fast.toy import Setting, plateaus, simulate_settings

SEEDS = range(100)  # of the toy models


def layer_1(runs: Runs) -> Measurement:
    """Attention of labels in layer 1, a mean over its heads: how much to the exemplar before is lost after its peak.

    Quantities: `previous_lost`: the share of the highest attention to the previous token that is gone at the end;
    `own_gained`: by how much attention to itself rose meanwhile.
    """
    lost, gained, lines = [], [], {"previous token": [], "itself": []}
    for one in runs["run"]:
        seen, previous = curve(one, "train", "previous_token")
        previous, own = previous[:, 0].mean(-1), curve(one, "train", "own")[1][:, 0].mean(-1)
        top = int(previous.argmax())
        lost.append(float(1 - previous[-1] / previous[top]))
        gained.append(float(own[-1] - own[top]))
        lines["previous token"].append(previous)
        lines["itself"].append(own)
    curves = [Curve(name, seen / 1e6, values) for name, values in lines.items()]
    chart = Chart("Attention of labels in layer 1", SEQUENCES, "attention, mean over heads", curves)
    return Measurement({"previous_lost": lost, "own_gained": gained}, chart)


def given_the_end(runs: Runs, parts: str, evaluator: str = "flip") -> Measurement:
    """How far snapshots that are given parts of the last one answer otherwise, from the peak of ICL on.

    Quantity: `difference`, the mean absolute difference in accuracy within context on an evaluator's sequences.
    """
    differences, lines = [], []
    for one in runs["run"]:
        peak = risen(one, "icl").peak
        of = [
            data["accuracy_in_context"].sel(evaluator=evaluator).isel(clamp=0).values
            for data in (strategies(one), strategies(one, f"last:{parts}"))
        ]
        seen = strategies(one)["sequences"].values
        differences.append(float(np.abs(of[1] - of[0])[seen >= peak].mean()))
        lines += [
            Curve(f"{one.name}: {name}", seen / 1e6, values)
            for name, values in zip(("as trained", f"last {parts}"), of, strict=True)
        ]
    chart = Chart(f"Accuracy on {evaluator}", SEQUENCES, "accuracy within context", lines)
    return Measurement({"difference": differences}, chart)


def checkpoints(runs: Runs) -> Measurement:
    """The highest accuracy on ICL sequences of trainings that began from an early, a middle and a late checkpoint."""
    quantities = {role: [risen(one, "icl").height for one in trained] for role, trained in runs.items()}
    curves = [curves_of(role, trained, "icl") for role, trained in runs.items()]
    return Measurement(quantities, Chart("ICL from checkpoints", SEQUENCES, "accuracy within context", curves))


def _coopetition(mu: float, alpha: float) -> xr.Dataset:
    return simulate_settings([Setting(mu=mu, alpha=alpha)], SEEDS).isel(setting=0)


def coopetition(runs: Runs, mu: float = 0.1, alpha: float = 0.1) -> Measurement:
    """The toy model of strategy racing, over 100 seeds: shares of those that leave the plateau.

    Quantities: `emerged`, `transient`, `learned_1`, `learned_2`, `divot` (see `icl_fast.toy.RULES`), of mechanisms 1
    and 2; `share_out`: of all seeds, those that leave it.
    """
    data = _coopetition(mu, alpha)
    out = ~data["stuck"].values & ~data["diverged"].values
    share = {name: [float(data[name].values[out].mean())] for name in ("transient", "divot", "learned_1", "learned_2")}
    emerged = ~np.isnan(data["emergence_1"].values)
    quantities = {"share_out": [float(out.mean())], "emerged": [float(emerged[out].mean())], **share}
    curves = [
        Curve(str(mechanism), data["coarse_step"].values, data["quantiles"].sel(mechanism=mechanism, quantile=0.5))
        for mechanism in data["mechanism"].values
    ]
    return Measurement(quantities, Chart("Toy model, median of 100 seeds", "steps", "loss over its plateau", curves))


def toy_plateau(runs: Runs, vectors: int = 3) -> Measurement:
    """The plateau of the tensor-product model: steps with so many vectors over those with one, a median of 40 seeds."""
    counts = (1, 2, 3, 4)
    data = plateaus(counts, [0.1], range(40))
    lengths = data["plateau"].median("seed").values.reshape(len(counts))
    chart = Chart("Toy model's plateau", "vectors", "steps", [Curve("median", counts, lengths, kind="points")])
    return Measurement({"times_longer": [float(lengths[vectors - 1] / lengths[0])]}, chart)
