"""Claims of Olsson et al. 2022 about the phase change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from icl_fast.analysis import find_phase_change
from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.measure.ablation import UNABLATED
from icl_fast.studies.reproduction.claim import Claim
from icl_fast.studies.reproduction.trained import Trained, heads, losses

Runs = Mapping[str, Sequence[Trained]]


def phase_change(runs: Runs) -> Measurement:
    """How far the ICL score falls in one change, and the best head's prefix matching at the end."""
    found, curves = [], []
    for trained in runs["model"]:
        data = losses(trained).sel(ablation=UNABLATED)
        matching = heads(trained)["prefix_matching"].max(("layer", "head"))
        scores = data["icl_score"].values.tolist()
        found.append(find_phase_change(data["snapshot"].values.tolist(), scores, matching.values.tolist()))
        curves.append(Curve(trained.run.path.name, (data["tokens"].values / 1e6).tolist(), scores))
    quantities = {
        "happened": [float(one.happened) for one in found],
        "drop": [one.drop for one in found],
        "prefix_matching": [one.prefix_matching for one in found],
    }
    return Measurement(quantities, Chart("ICL score", "training tokens (millions)", "nats per token", curves))


CLAIMS = (
    Claim(
        name="two-layers-change",
        source="Argument 1; Model Analysis Table",
        statement="A model of two attention-only layers goes through a phase change in which its ICL score falls.",
        runs={"model": "two_layer"},
        measure=phase_change,
        rule="happened > 0",
        without={"model": "one_layer"},
    ),
)
