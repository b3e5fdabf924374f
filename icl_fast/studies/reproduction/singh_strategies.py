"""Claims of Singh 2025, chapter 5 and appendix D: in-context learning emerges and is replaced; the two toy models.

Rules: the thesis describes curves. "Emerges" is taken as an accuracy within context of at least 3/4, halfway from
chance to perfect; "does not emerge" as one that stays under 0.6; "is learned" or "dominates" as one beyond 0.9 at the
end; "fades" as half or more of the rise from chance lost (the rule of `icl_fast.analysis.learning.transience`).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import xarray as xr
from scipy.ndimage import median_filter

from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.claims import Chart, Curve, Measurement
from icl_fast.studies.reproduction.claim import Claim
from icl_fast.studies.reproduction.singh_curves import (
    SEEN,
    highest_of,
    later,
    risen,
    strategies_learned,
)
from icl_fast.studies.reproduction.trained import Runs, curve, strategies
from icl_fast.toy import Setting, plateaus, simulate_settings

SEEDS = 100  # of the toy models
_WITHOUT = "interventions.without_heads"


def layer_1(runs: Runs) -> Measurement:
    """Attention of labels in layer 1, a mean over its heads, from the peak of ICL to the end.

    Quantities: `previous_lost`: the share of the attention to the exemplar before that is lost; `own_gained`: by how
    much attention to the label itself rises.
    """
    lost, gained = [], []
    lines: dict[str, list[Floats]] = {"previous token": [], "itself": []}
    for one in runs["run"]:
        seen, previous = curve(one, "train", "previous_token")
        previous, own = previous[:, 0].mean(-1), curve(one, "train", "own")[1][:, 0].mean(-1)
        peak = int(np.searchsorted(seen, risen(one, "icl").peak))
        lost.append(float(1 - previous[-1] / previous[peak]))
        gained.append(float(own[-1] - own[peak]))
        lines["previous token"].append(previous)
        lines["itself"].append(own)
    curves = [Curve(name, seen / 1e6, values) for name, values in lines.items()]
    chart = Chart("Attention of labels in layer 1", SEEN, "attention, mean over heads", curves)
    return Measurement({"previous_lost": lost, "own_gained": gained}, chart)


def given_the_end(runs: Runs, parts: str, evaluator: str = "flip") -> Measurement:
    """How far snapshots that are given parts of the last one answer otherwise, from the peak of ICL on.

    Quantity: `difference`, the mean absolute difference in accuracy within context on an evaluator's sequences.
    """
    differences, lines = [], []
    for one in runs["run"]:
        peak = risen(one, "icl").peak
        found = [strategies(one), strategies(one, f"last:{parts}")]
        of = [data["accuracy_in_context"].sel(evaluator=evaluator).isel(clamp=0).values for data in found]
        seen = found[0]["sequences"].values
        differences.append(float(np.abs(of[1] - of[0])[seen >= peak].mean()))
        lines += [
            Curve(f"{one.name}: {name}", seen / 1e6, values)
            for name, values in zip(("as trained", f"last {parts}"), of, strict=True)
        ]
    chart = Chart(f"Accuracy on {evaluator}", SEEN, "accuracy within context", lines)
    return Measurement({"difference": differences}, chart)


def divot(runs: Runs) -> Measurement:
    """How far the loss on CIWL sequences rises above its lowest so far, and later falls below that.

    Quantity: `rise`, as a share of the fall from the first loss to the lowest; of running medians of three evaluations.
    """
    rises, lines = [], []
    for one in runs["run"]:
        seen, values = curve(one, "ciwl", "loss")
        loss = median_filter(values, size=3, mode="nearest")
        low = np.minimum.accumulate(loss)
        undone = np.minimum.accumulate(loss[::-1])[::-1] < low
        rises.append(float(np.where(undone, loss - low, 0.0).max() / (loss[0] - loss.min())))
        lines.append(values)
    chart = Chart("Loss on CIWL sequences", SEEN, "nats", [Curve("run", seen / 1e6, lines)])
    return Measurement({"rise": rises}, chart)


def take_over(runs: Runs) -> Measurement:
    """As `later`, of trainings without heads of layer 1, and whether these are the ones that ICL rests on.

    Quantity: `removed_attention`: the share that the removed heads have of the attention to the token before in layer 1
    of `other`, at its peak of ICL. The config names heads of trainings on one machine; rounding may form others.
    """
    found = later(runs)
    shares = []
    for run, other in zip(runs["run"], runs["other"], strict=False):
        members = run.run.population.config.members
        names = [] if isinstance(members, int) or run.member is None else members[run.member].set.get(_WITHOUT, [])
        seen, attention = curve(other, "train", "previous_token")
        at_peak = attention[np.searchsorted(seen, risen(other, "icl").peak), 0]
        shares.append(float(at_peak[[int(name.split(".")[1]) for name in names]].sum() / at_peak.sum()))
    return Measurement({**found.quantities, "removed_attention": shares}, found.chart)


@cache
def _simulated(mu: float, alpha: float, seeds: int) -> xr.Dataset:
    return simulate_settings([Setting(mu=mu, alpha=alpha)], range(seeds)).isel(setting=0)


def coopetition(runs: Runs, mu: float = 0.1, alpha: float = 0.1) -> Measurement:
    """The toy model of strategy racing, over 100 seeds: shares of those that leave the plateau.

    Quantities: `emerged`, `transient`, `learned_1`, `learned_2`, `divot` (see `icl_fast.toy.RULES`), of mechanisms 1
    and 2; `share_out`: of all seeds, those that leave it.
    """
    data = _simulated(mu, alpha, SEEDS)
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


CLAIMS = (
    Claim(
        name="icl-is-transient",
        source="5.3, Figure 5.1b; 3.3, Figure 3.2a",
        statement="Where labels never change, in-context learning emerges and then fades, as the loss goes on falling.",
        runs={"run": "transience"},
        measure=strategies_learned,
        rule="icl_highest >= 0.75 and mean icl_lost >= 0.5",
        without={"run": "variants:matched"},
    ),
    Claim(
        name="ciwl-remains",
        source="5.3, Figure 5.1b; 5.5",
        statement="What remains is CIWL: the label that was learned, picked among those that the context shows.",
        runs={"run": "transience"},
        measure=strategies_learned,
        rule="ciwl_end > 0.9",
        without={"run": "transience@0.1"},
    ),
    Claim(
        name="iwl-near-chance",
        source="5.4, Figure 5.2",
        statement="Without the label in context it hardly answers: pure in-weights learning stays near chance.",
        runs={"run": "transience"},
        measure=strategies_learned,
        rule="iwl_highest < 0.05",
        without={"run": "few_classes"},
    ),
    Claim(
        name="flip-turns-from-1-to-0",
        source="5.3, Figure 5.1b",
        statement="Swapped labels are answered from the context first and from the weights in the end.",
        runs={"run": "transience"},
        measure=strategies_learned,
        rule="flip_highest > 0.6 and mean flip_end < 0.1",  # untrained weights are at 0.5, more or less
        without={"run": "one_layer"},
    ),
    Claim(
        name="icl-is-faster",
        source="5.6.4; 5.8",
        statement="In-context learning emerges before CIWL does.",
        runs={"run": "transience", "other": "transience"},
        measure=later,
        arguments={"evaluator": "ciwl", "than": "icl"},
        rule="times_later > 1",
        without={"run": "few_classes", "other": "few_classes"},
    ),
    Claim(
        name="few-classes-and-exemplars-no-icl",
        source="D.1.3, Figure D.3",
        statement="With fewer classes and exemplars ICL does not emerge, and pure in-weights learning gets stronger.",
        runs={"run": "few_classes"},
        measure=strategies_learned,
        rule="icl_highest < 0.6 and iwl_end > 0.05",
        without={"run": "transience"},
        note="200 classes of 5 exemplars beside 3,200 of 20",
    ),
    Claim(
        name="learned-positions-are-needed",
        source="D.1.2, Figure D.2",
        statement="With rotary or sinusoidal positions two attention-only layers show no ICL.",
        runs={"rotary": "rotary", "sinusoidal": "sinusoidal"},
        measure=highest_of,
        rule="rotary < 0.6 and sinusoidal < 0.6",
        without={"rotary": "transience", "sinusoidal": "transience"},
    ),
    Claim(
        name="one-layer-learns-ciwl-only",
        source="5.5.3, Figure 5.5",
        statement="One layer is enough for CIWL, and never shows ICL.",
        runs={"run": "one_layer"},
        measure=strategies_learned,
        rule="ciwl_end > 0.9 and icl_highest < 0.6",
        without={"run": "transience"},
    ),
    Claim(
        name="layer-1-turns-to-itself",
        source="5.6.1, Figure 5.7",
        statement="As ICL fades, heads of layer 1 turn from the previous token to the label's own.",
        runs={"run": "transience"},
        measure=layer_1,
        rule="mean previous_lost >= 0.5 and own_gained > 0",
        without={"run": "variants:matched"},
    ),
    Claim(
        name="layer-2-hardly-changes",
        source="5.6.1, Figure 5.6b",
        statement="Given layer 2 and unembedding of the end, snapshots behave as they did, once layer 2 has formed.",
        runs={"run": "transience"},
        measure=given_the_end,
        arguments={"parts": "layer-2+unembed"},
        rule="mean difference < 0.1",
        without_arguments={"parts": "embed+layer-1"},
    ),
    Claim(
        name="icl-alone-is-harder",
        source="5.6.2, Figure 5.8a",
        statement="Where only ICL solves the task it is learned far more slowly than where CIWL would do as well.",
        runs={"run": "icl_only", "other": "transience"},
        measure=later,
        rule="times_later > 2",
        without={"run": "icl_on_bursty"},
    ),
    Claim(
        name="final-layer-2-lets-icl-be-learned",
        source="5.6.2, Figure 5.8a",
        statement="Given the final layer 2 and unembedding of a run that ended in CIWL, ICL is learned quickly.",
        runs={"run": "icl_only", "other": "icl_on_bursty"},
        measure=later,
        rule="times_later > 2",
        without={"other": "icl_only"},
    ),
    Claim(
        name="middle-ciwl-checkpoints-help",
        source="5.6.3, Figure 5.8b",
        statement="So do layers 2 from the middle of a training on CIWL alone; early and late ones do not.",
        runs={"early": "icl_on_early_ciwl", "middle": "icl_on_middle_ciwl", "late": "icl_on_late_ciwl"},
        measure=highest_of,
        rule="middle >= 0.75 and early < 0.6 and late < 0.6",
        without={"middle": "icl_on_late_ciwl"},
        note="the window was searched for, as in the thesis; within 80,000 sequences: in more, late ones learn it too",
    ),
    Claim(
        name="no-icl-after-ciwl",
        source="5.6.4, Figure 5.8c",
        statement="Trained on from an early CIWL checkpoint, ICL still emerges; once CIWL has formed it does not.",
        runs={"early": "bursty_after_early_ciwl", "late": "bursty_after_late_ciwl"},
        measure=highest_of,
        rule="early >= 0.75 and late < 0.6",
        without={"late": "transience"},
    ),
    Claim(
        name="ciwl-needs-no-icl",
        source="5.9.1, Figure 5.11a",
        statement="Where labels cannot attend to the exemplar before them ICL never emerges; CIWL does all the same.",
        runs={"run": "variants:no previous token"},
        measure=strategies_learned,
        rule="icl_highest < 0.6 and ciwl_end > 0.9",
        without={"run": "transience"},
    ),
    Claim(
        name="other-heads-take-over",
        source="5.9.2, Figure 5.11b",
        statement="Trained without the layer-1 heads that ICL rested on, ICL is delayed and not prevented.",
        runs={"run": "without_heads", "other": "transience"},
        measure=take_over,
        rule="removed_attention > 0.5 and mean times_later > 1.1 and run_highest >= 0.75",
        without={"run": "variants:no previous token"},
    ),
    Claim(
        name="matched-exemplars-keep-icl",
        source="5.8, Figure 5.10",
        statement="Where the context shows the query's own exemplar, ICL stays and goes on to dominate.",
        runs={"run": "variants:matched"},
        measure=strategies_learned,
        rule="icl_end > 0.9 and flip_end > 0.9",
        without={"run": "transience"},
    ),
    Claim(
        name="toy-mechanism-1-is-transient",
        source="5.7, Figures 5.9a and D.5",
        statement="In the toy model of strategy racing mechanism 1 is learned first and lost to mechanism 2.",
        runs={},
        measure=coopetition,
        rule="emerged > 0.9 and transient > 0.9 and learned_2 > 0.9",
        without_arguments={"mu": 0.0},
        note="100 seeds; those that stay on the plateau are left out, as in the thesis",
    ),
    Claim(
        name="toy-without-bias-1-stays",
        source="5.8; D.2, Figure D.6",
        statement="Without the bias against it (mu = 0), mechanism 1 stays and mechanism 2 is never learned.",
        runs={},
        measure=coopetition,
        arguments={"mu": 0.0},
        rule="learned_1 > 0.9 and learned_2 < 0.1",
        without_arguments={"mu": 0.1},
    ),
    Claim(
        name="toy-divot",
        source="5.7, Figure 5.9",
        statement="Where mechanism 1 is nearly learned, mechanism 2 gets worse for a while before it is learned.",
        runs={},
        measure=coopetition,
        rule="divot > 0.5",
        without_arguments={"mu": 0.0},
        note="without competition (alpha = 0) the divot is there as well, in 0.96 of the seeds",
    ),
    Claim(
        name="ciwl-divot",
        source="5.7, Figure 5.9b",
        statement="In the transformer, too, CIWL gets worse for a while as ICL forms.",
        runs={"run": "transience"},
        measure=divot,
        rule="rise > 0.01",
        without={"run": "variants:no previous token"},
        note="the threshold is that of the toy models (`icl_fast.toy.RULES`)",
    ),
    Claim(
        name="toy-plateau-needs-many-vectors",
        source="4.4.2; C.4",
        statement="A product of three vectors has a plateau that a single one has not: parts that must meet.",
        runs={},
        measure=toy_plateau,
        rule="times_longer > 10",
        without_arguments={"vectors": 1},
    ),
)
