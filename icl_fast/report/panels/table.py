"""The Model Analysis Table of Olsson et al. 2022: a column a model, nine rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from icl_fast.analysis import loss_by_log_position, loss_heatmap
from icl_fast.errors import InputError
from icl_fast.report.panels.builders import (
    NATS,
    change_fit,
    each_head,
    effect_lines,
    filled,
    heads_over_training,
    heatmap,
    icl_curve,
    icl_definition,
    loss_curve,
    no_phase_change,
    over_all_snapshots,
    over_training,
    sampled,
    score_lines,
    share_by_group,
    share_colours,
    slugs,
)
from icl_fast.report.panels.panel import Panel
from icl_fast.report.panels.pca import table_pca
from icl_fast.report.study import ModelStudy, Study

ANALYSES = "Olsson et al. 2022, Analyses"
PATTERN_PRESERVING = (
    "Pattern-preserving ablation: the head's output is set to zero, later heads keep their attention patterns"
)


MOST_SLOPE = 0.3  # nats; the paper's colours end at 0.3 and -0.2 or -0.3
SLOPE_BINS = 16  # between neighbouring positions a mean over some hundred examples is noise


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        key: part of the keys of its panels.
        title: a few words.
        explanation: what is measured, in one sentence.
        reading: how to read it.
    """

    key: str
    title: str
    explanation: str
    reading: str


ROWS = (
    Row(
        "pca",
        "PCA of token losses",
        "Each point is a snapshot: its losses on one random token of each evaluation example, projected onto the first "
        "two principal components of all snapshots of all models that are evaluated on the same examples.",
        "Follow the path from the untrained model to the trained one. A sharp turn means that another kind of thing is "
        "being learned; the phase change is marked. Paths of other models in the plane are grey.",
    ),
    Row(
        "loss",
        "Loss over training",
        "Mean loss on one random token of each evaluation example after training on so many tokens, Loss(n_train).",
        "Lower is better. The phase change often shows as a bump or a bend.",
    ),
    Row(
        "loss_by_position",
        "Loss by context position",
        "Mean loss of the i-th token of the context after training on so many tokens, Loss(n_train, i_ctx).",
        "A vertical slice is one snapshot; dark is a low loss. After the phase change late positions are darker than "
        "early ones.",
    ),
    Row(
        "slope_by_position",
        "d loss / d ln(context position)",
        "How much the loss changes with e times more context: the derivative of the row above along ln(i_ctx).",
        "Blue: the loss falls as the context grows, the model uses it. Red: it rises.",
    ),
    Row(
        "icl_score",
        "In-context-learning score",
        "Loss at a late position minus loss at an early one: the 500th and the 50th token of 512 in the paper, "
        "as far along in a shorter context.",
        "More negative is more in-context learning. A sudden fall is the phase change.",
    ),
    Row(
        "prefix_matching",
        "Prefix-matching score, each head",
        "On random tokens repeated four times: the share of a head's attention on the tokens that followed the present "
        "token earlier.",
        "1 is a perfect prefix matcher, half of what makes an induction head (the other half is copying). Compare when "
        "lines rise with the band.",
    ),
    Row(
        "qk_trace",
        "Trace of QK eigenvalues, each head",
        "From the weights alone: the trace of the QK-circuit term through which a head finds tokens like the present "
        "one by way of earlier heads, each weighted by its previous-token score.",
        "Positive: the head looks for tokens that come after one like the present one. Heads of the first layer have "
        "none.",
    ),
    Row(
        "ablation_before_after",
        "Ablation: before-and-after vector, each head",
        "Change of the token losses when a head is removed, projected onto the unit vector of how they changed in the "
        "phase change.",
        "Below 0: without the head the losses go back towards those before the phase change, as for induction heads; "
        "0: it has no part in the change. (The next row has the other sign: there induction heads lie above 0.)",
    ),
    Row(
        "ablation_icl",
        "Ablation: in-context-learning score, each head",
        "In-context-learning score without a head minus that of the whole model.",
        "Above 0: without the head the score is higher, the model learns less in context, as for induction heads.",
    ),
)


def table_panels(study: Study) -> dict[str, list[Panel]]:
    """The table's panels by model, in the order of `ROWS`.

    Panels of a row have the same y axis (of models evaluated on the same examples), heatmaps the same colours. What is
    not defined, not measured or refused by an analysis is a panel that says so in `absent`.
    """
    builders: tuple[Callable[[Study, ModelStudy], Panel], ...] = (
        table_pca,
        _loss,
        _loss_by_position,
        _slope_by_position,
        _icl_score,
        _prefix_matching,
        _qk_trace,
        _before_after,
        _icl_ablation,
    )
    keys = slugs(study.models)
    table: dict[str, list[Panel]] = {name: [] for name in study.models}
    for number, (row, build) in enumerate(zip(ROWS, builders, strict=True), start=1):
        panels = [
            replace(build(study, model), key=f"table-{number}-{row.key}-{keys[name]}", title=f"{row.title}: {name}")
            for name, model in study.models.items()
        ]
        if build is _prefix_matching:
            panels = [replace(panel, y_range=(-0.02, 1.02)) for panel in panels]
        else:
            panels = share_by_group(study, share_colours(panels))
        for name, panel in zip(study.models, panels, strict=True):
            table[name].append(panel)
    return table


def _panel(model: ModelStudy, kind: str, caption: str, y_label: str) -> Panel:
    return Panel(key="", title="", caption=caption, y_label=y_label, **over_training(model, kind))


def _head_panel(model: ModelStudy, caption: str, y_label: str) -> Panel:
    caption = f"{each_head(model)}{caption}"
    return Panel(key="", title="", caption=caption, y_label=y_label, **heads_over_training(model))


def _loss(study: Study, model: ModelStudy) -> Panel:
    count = model.losses.sizes.get("example", 0)
    panel = _panel(
        model, "lines", f"Mean of {count:,} examples, one random token each, with one standard error.", f"loss ({NATS})"
    )

    panel = replace(panel, caption=f"{panel.caption} {ANALYSES}, Loss curve.")
    return filled(panel, lambda: {"series": over_all_snapshots(model, *loss_curve(model))})


_CLIPPED = "Colours are the same for all models and end at {}; what lies beyond has the colour of the end."


_PERCENTILES = "the 2nd and 98th percentiles of all values after training began"


def _loss_by_position(study: Study, model: ModelStudy) -> Panel:
    caption = f"Mean loss at each position of the context. {_CLIPPED.format(_PERCENTILES)}"
    panel = _panel(model, "heatmap", f"{caption} {ANALYSES}, 2D in-context learning plot.", "context position")
    return filled(panel, lambda: {"heatmap": heatmap(model, loss_heatmap(model.losses), NATS)})


def _slope_by_position(study: Study, model: ModelStudy) -> Panel:
    caption = (
        f"Derivative of the mean loss along ln(position), by finite differences between {SLOPE_BINS} bins of "
        "positions, equally wide in ln(position). "
        + _CLIPPED.format(f"{MOST_SLOPE:g} nats, about as in the paper")
        + f" {ANALYSES}, 2D loss derivative plot."
    )
    panel = _panel(model, "heatmap", caption, "context position")
    return filled(
        panel,
        lambda: {
            "heatmap": heatmap(
                model, loss_by_log_position(model.losses, bins=SLOPE_BINS), "nats per unit of ln", MOST_SLOPE
            )
        },
    )


def _icl_score(study: Study, model: ModelStudy) -> Panel:
    panel = _panel(
        model,
        "lines",
        f"{icl_definition(model).capitalize()}, with one standard error over examples; negative: later "
        f"tokens are predicted better.{change_fit(model)} {ANALYSES}, In-context learning score.",
        f"ICL score ({NATS})",
    )

    return filled(panel, lambda: {"series": over_all_snapshots(model, *icl_curve(model))})


def _prefix_matching(study: Study, model: ModelStudy) -> Panel:
    caption = (
        ". 25 random tokens, repeated four times: mean share of attention on the tokens that followed the "
        "present token in earlier repeats; 1 is perfect. Olsson et al. 2022, Data Collection (3)."
    )
    panel = _head_panel(model, caption, "share of attention")
    return filled(
        panel,
        lambda: {"series": score_lines(model, "prefix_matching"), "caption": panel.caption + sampled(model)},
    )


def _qk_trace(study: Study, model: ModelStudy) -> Panel:
    caption = (
        " from the second layer on. Trace of the W of the QK circuit's term Id x h_prev x W (keys through "
        "earlier heads, each scaled by how well it matches an ideal previous-token head); positive: matches what is "
        "the same. Olsson et al. 2022, Data Collection (4)."
    )
    panel = _head_panel(model, caption, "trace")
    if model.config.layers < 2:
        return replace(panel, absent="N/A: one layer; the trace needs earlier heads to compose with")
    return filled(panel, lambda: {"series": score_lines(model, "qk_trace"), "caption": panel.caption + sampled(model)})


def _before_after(study: Study, model: ModelStudy) -> Panel:
    caption = (
        ", with one standard error over examples. Dot product of the change of token losses when the head "
        "is removed (ablated minus whole) with the unit vector of their change in the phase change (end minus start); "
        f"below 0 for induction heads. {PATTERN_PRESERVING}. {ANALYSES}, Ablation attribution."
    )
    panel = _head_panel(model, caption, "projection (nats)")
    if "before_after" not in model.attributions:
        return replace(panel, absent=f"N/A: {no_phase_change(model)}")
    return filled(panel, lambda: _effect(model, panel, "before_after"))


def _icl_ablation(study: Study, model: ModelStudy) -> Panel:
    caption = (
        ", with one standard error over examples, paired. ICL score without the head minus that of the "
        f"whole model ({icl_definition(model)}); positive for induction heads. {PATTERN_PRESERVING}. "
        f"{ANALYSES}, Ablation attribution."
    )
    panel = _head_panel(model, caption, f"change of ICL score ({NATS})")
    return filled(panel, lambda: _effect(model, panel, "icl"))


def _effect(model: ModelStudy, panel: Panel, name: str) -> dict[str, object]:
    values = model.attributions
    if name not in values:
        raise InputError("no head was removed; sweep this run with heads 'all'")
    return {
        "series": effect_lines(model, values[name], values[f"{name}_sem"]),
        "caption": panel.caption + sampled(model),
    }
