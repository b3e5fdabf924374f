"""Figures of Olsson et al. 2022, Unexplained Curiosities: the ICL score across models, loss spikes, odd heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from icl_fast.analysis import icl_score_variants
from icl_fast.analysis.curiosities import LEAST_SPIKE, SPIKE
from icl_fast.report.panels.builders import (
    NATS,
    PROGRESS,
    filled,
    icl_curve,
    icl_definition,
    line,
    over_training,
    scores,
    seen,
    slugs,
    there,
)
from icl_fast.report.panels.panel import Panel, Series
from icl_fast.report.study import EvaluationGroup, ModelStudy, Study

_SECTION = "Olsson et al. 2022, Unexplained Curiosities"


def score_comparisons(study: Study) -> list[Panel]:
    """The last ICL score of models evaluated on the same examples, by their size, for several pairs of positions."""
    return [_compared(study, group, number) for number, group in enumerate(study.groups, start=1)]


def curiosity_panels(study: Study) -> list[Panel]:
    """The loss spikes of all models, and each model's odd heads."""
    keys = slugs(study.models)
    return [
        _spikes(study),
        *(_odd_heads(model, f"family-odd-heads-{keys[name]}") for name, model in study.models.items()),
    ]


def other_pairs(model: ModelStudy) -> Panel:
    """The ICL score of a model over training, for several pairs of positions."""
    panel = Panel(
        key="",
        title=f"ICL score for other positions: {model.name}",
        caption="Mean loss at the last position minus that at an earlier one, for several earlier ones. "
        f"{_SECTION}, Seemingly Constant In-Context Learning Score.",
        y_label=f"late minus early loss ({NATS})",
        **over_training(model),
    )
    if model.snapshots == 1:
        return replace(panel, absent="N/A: one snapshot")

    def content() -> dict[str, object]:
        pairs = _pairs(model)
        values = icl_score_variants(model.losses, pairs)  # [snapshot, pair]
        x = seen(model)
        return {
            "series": there(
                line(f"{late} minus {early}", x, values[:, at], model=model.name)
                for at, (early, late) in enumerate(pairs)
            )
        }

    return filled(panel, content)


def _pairs(model: ModelStudy) -> list[tuple[int, int]]:
    """(early, late): the last position, and those nearest to 1/64, ..., 1/2 of it."""
    positions = model.losses["position"].values
    late = int(positions[-1])
    near = {int(positions[np.abs(positions - late / 2**power).argmin()]) for power in (6, 5, 4, 3, 2, 1)}
    return [(early, late) for early in sorted(near - {late})]


def _compared(study: Study, group: EvaluationGroup, number: int) -> Panel:
    models = sorted((study.models[name] for name in group.models), key=lambda model: model.parameters)
    panel = Panel(
        key=f"family-icl-sizes-{number}",
        kind="points",
        title=f"ICL score by size of the model, for several pairs of positions ({group.text})",
        caption=f"A point a model, last snapshot. The score's own pair, {icl_definition(models[0])}, with one standard "
        "error; the other series: mean loss at the last position minus that at an earlier one. In the paper the score "
        "is about the same for all models after the phase change, whichever the pair. "
        f"{_SECTION}, Seemingly Constant In-Context Learning Score.",
        x_label="parameters",
        y_label=f"late minus early loss ({NATS})",
        log_x=True,
    )
    if len(models) < 2:
        return replace(panel, absent="N/A: no two models are evaluated on the same examples")

    def content() -> dict[str, object]:
        sizes = np.array([model.parameters for model in models], dtype=np.float64)
        own = [icl_curve(model) for model in models]
        names = tuple(model.name for model in models)
        series = [
            line(
                "the score's pair",
                sizes,
                np.array([score[-1] for score, _ in own]),
                np.array([error[-1] for _, error in own]),
                names=names,
            )
        ]
        pairs = _pairs(models[0])
        values = np.stack([icl_score_variants(model.losses.isel(snapshot=[-1]), pairs)[0] for model in models])
        series += [
            line(f"{late} minus {early}", sizes, values[:, at], names=names) for at, (early, late) in enumerate(pairs)
        ]
        return {"series": there(series), "caption": panel.caption + _spread(models)}

    return filled(panel, content)


def _spread(models: list[ModelStudy]) -> str:
    """How much the score differs between models that went through the change, beside what they gained in it."""
    changed = [model for model in models if model.change is not None and model.change.happened]
    if len(changed) < 2:
        return ""
    last = [float(icl_curve(model)[0][-1]) for model in changed]
    drops = [model.change.drop for model in changed if model.change is not None]
    return (
        f" Of the {len(changed)} models that went through the change the scores lie within {np.ptp(last):.2f} nats; "
        f"each fell by {min(drops):.2f} to {max(drops):.2f}."
    )


def _spikes(study: Study) -> Panel:
    panel = Panel(
        key="family-loss-spikes",
        kind="points",
        title="Loss spikes",
        caption=f"A point a snapshot whose mean loss is over the median of the 5 around it by {LEAST_SPIKE:g} nats or "
        f"more, and by {SPIKE:g} standard deviations of that difference. {_SECTION}, Additional Curiosities.",
        x_label=PROGRESS[next(iter(study.models.values())).progress],
        y_label=f"over the snapshots around it ({NATS})",
        over_training=True,
    )

    def content() -> dict[str, object]:
        return {"series": there((_spikes_of(model) for model in study.models.values()), "no model's loss has a spike")}

    return filled(panel, content)


def _spikes_of(model: ModelStudy) -> Series | None:
    spikes = [one for one in model.curiosities if one.kind == "loss spike"]
    at = [int(np.flatnonzero(model.losses["snapshot"].values == one.step)[0]) for one in spikes]
    names = tuple(f"{model.name}, step {one.step}" for one in spikes)
    return line(model.name, seen(model)[at], np.array([one.size for one in spikes]), model=model.name, names=names)


def _odd_heads(model: ModelStudy, key: str) -> Panel:
    odd = [one for one in model.curiosities if one.head is not None]
    panel = Panel(
        key=key,
        title=f"Odd heads: {model.name}",
        caption="Prefix-matching score of heads that fall after they rose, that match prefixes and do not copy, or "
        f"whose removal does what one would not expect of them. {_SECTION}, Additional Curiosities.",
        y_label="prefix-matching score",
        **over_training(model),
    )

    def content() -> dict[str, object]:
        matching = np.asarray(scores(model, "prefix_matching").values, dtype=np.float64)
        series = there(
            (
                line(
                    f"head {head[0]}.{head[1]}", seen(model), matching[:, head[0], head[1]], model=model.name, head=head
                )
                for head in dict.fromkeys(one.head for one in odd if one.head is not None)
            ),
            "no odd head",
        )
        found = "; ".join(
            f"{one.head[0]}.{one.head[1]} ({one.kind}): {one.what}" for one in odd if one.head is not None
        )
        return {"series": series, "caption": f"{panel.caption} Found: {found}."}

    return filled(panel, content)
