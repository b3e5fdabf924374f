"""The further figures of Olsson et al. 2022: all models of a report side by side, and their heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.analysis import (
    attribute_heads,
    attribute_icl,
    compare_ablations,
    compare_by_position,
    correlate,
    head_formation,
    joint_scores,
    loss_by_log_tokens,
)
from icl_fast.analysis.arrays import Floats, unablated
from icl_fast.analysis.heads import MOST_EXACT, NARROW, NARROW_COPYING
from icl_fast.errors import InputError
from icl_fast.report.panels.builders import (
    NATS,
    NOTHING_FINITE,
    PROGRESS,
    each_head,
    effect_lines,
    filled,
    final_scores,
    head_points,
    heads_over_training,
    icl_curve,
    icl_definition,
    line,
    loss_curve,
    no_phase_change,
    over_all_snapshots,
    over_seeds,
    sampled,
    scores,
    seen,
    share_by_group,
    single_heads,
    slugs,
    spaced_exponentially,
    there,
)
from icl_fast.report.panels.curiosities import curiosity_panels, other_pairs, score_comparisons
from icl_fast.report.panels.panel import Panel, Series
from icl_fast.report.panels.pca import family_pca
from icl_fast.report.study import ModelStudy, Study

SLOPE_BINS = 12  # between neighbouring snapshots late in training a derivative is noise
ANTI_COPYING = "prefix-matching heads that do not copy"
FIRST_TOKENS = 10
_APPENDIX = "Olsson et al. 2022, Appendix"
_CURIOSITIES = "Olsson et al. 2022, Unexplained Curiosities"


def family_panels(study: Study) -> list[tuple[str, list[Panel]]]:
    """All figures beside the table, grouped under headings.

    What is not measured or refused by an analysis is a panel that says so in `absent`.
    """
    return [
        ("All models in one space", family_pca(study)),
        ("Losses and in-context learning, all models", [_losses(study), _icl_scores(study)]),
        ("How fast the loss falls", [_loss_slopes(study)]),
        (
            "In-context-learning score for other positions",
            [*score_comparisons(study), *_each(study, "icl-pairs", other_pairs)],
        ),
        ("Loss by context position, all models", [_by_position(study), _compared_by_position(study)]),
        ("Where heads form", [*_each(study, "depth", _by_depth), _formation(study)]),
        ("Copying and prefix matching together", _each(study, "joint-scores", _joint_scores)),
        ("Head scores from activations and from weights", [_copying_weights(study), _prefix_weights(study)]),
        (
            "Full beside pattern-preserving ablation",
            [
                *_each(study, "ablation-loss", lambda model: _both_ablations(model, "loss")),
                *_each(study, "ablation-icl", lambda model: _both_ablations(model, "icl")),
                *_each(study, "ablation-loss-difference", lambda model: _ablation_difference(model, "loss")),
                *_each(study, "ablation-icl-difference", lambda model: _ablation_difference(model, "icl")),
                *_each(study, "ablation-full-before-after", lambda model: _full_attribution(model, "before_after")),
                *_each(study, "ablation-full-icl", lambda model: _full_attribution(model, "icl")),
            ],
        ),
        ("Unexplained curiosities", curiosity_panels(study)),
    ]


def _each(study: Study, key: str, build: Callable[[ModelStudy], Panel]) -> list[Panel]:
    """A panel a model, with one y axis a group."""
    keys = slugs(study.models)
    return share_by_group(
        study, [replace(build(model), key=f"family-{key}-{keys[name]}") for name, model in study.models.items()]
    )


def _all_models(
    study: Study, panel: Panel, of: Callable[[ModelStudy], Series | None], empty: str = NOTHING_FINITE
) -> Panel:
    """The panel with a series a model, lines of models that differ in their seed alone as one; those that an analysis
    refuses are left out, and the caption says why.

    Args:
        empty: what to say where there is no series though nothing was refused.
    """

    def content() -> dict[str, object]:
        series, refused = [], []
        for model in study.models.values():
            try:
                series.append(of(model))
            except InputError as error:
                refused.append(str(error))
        kept, said = list(there(series, "; ".join(refused) or empty)), ""
        if panel.kind == "lines":
            kept, said = over_seeds(study, kept)
        left_out = "".join(f" Left out: {reason}." for reason in refused)
        return {"series": tuple(kept), "caption": panel.caption + said + left_out}

    return filled(panel, content)


def _progress(study: Study) -> str:
    """What training is counted by."""
    return PROGRESS[next(iter(study.models.values())).progress]


def _check_several(model: ModelStudy) -> None:
    """Raises: InputError: there is nothing to follow over training."""
    if model.snapshots == 1:
        raise InputError(f"{model.name} has one snapshot")


def _axes_over_training(study: Study) -> dict[str, Any]:
    several = [model for model in study.models.values() if model.snapshots > 1]
    exponential = bool(several) and all(spaced_exponentially(seen(model)) for model in several)
    return {"kind": "lines", "x_label": _progress(study), "over_training": True, "log_x": exponential}


def _losses(study: Study) -> Panel:
    panel = Panel(
        key="family-loss",
        title="Loss over training, all models",
        caption="Mean loss on one random token of each evaluation example, with one standard error. Olsson et al. "
        "2022, Analyses, Loss curve.",
        y_label=f"loss ({NATS})",
        **_axes_over_training(study),
    )
    return _all_models(study, panel, lambda of: over_all_snapshots(of, *loss_curve(of))[0])


def _icl_scores(study: Study) -> Panel:
    definitions = sorted({icl_definition(model) for model in study.models.values()})
    panel = Panel(
        key="family-icl-score",
        title="In-context-learning score, all models",
        caption=f"{'; '.join(definitions).capitalize()}, with one standard error over examples. Lower is more "
        "in-context learning.",
        y_label=f"ICL score ({NATS})",
        **_axes_over_training(study),
    )
    return _all_models(study, panel, lambda of: over_all_snapshots(of, *icl_curve(of))[0])


def _loss_slopes(study: Study) -> Panel:
    panel = Panel(
        key="family-loss-slope",
        title=f"d loss / d ln({_progress(study)}), all models",
        caption="How fast the loss falls for e times more training: derivative of the mean loss over all positions "
        f"along ln({_progress(study)}), by finite differences between {SLOPE_BINS} bins of snapshots, equally wide in "
        "it. In the paper the order of small and large models inverts at the phase change. "
        f"{_CURIOSITIES}, Phase Change Effect on Loss Derivatives.",
        y_label="nats per unit of ln",
        **_axes_over_training(study) | {"log_x": True},
    )

    def slope(model: ModelStudy) -> Series | None:
        _check_several(model)
        curve = unablated(model.name, model.losses, "position_loss").mean("position", skipna=False)
        slopes = loss_by_log_tokens(curve, seen(model).tolist(), bins=SLOPE_BINS)
        return line(model.name, slopes["tokens"].values.astype(np.float64), slopes.values, model=model.name)

    return _all_models(study, panel, slope)


def _smallest(study: Study) -> ModelStudy:
    """The smallest model of those evaluated on the same examples as most others."""
    group = max(study.groups, key=lambda group: len(group.models))
    return min((study.models[name] for name in group.models), key=lambda model: model.parameters)


def _by_position(study: Study) -> Panel:
    panel = Panel(
        key="family-loss-by-position",
        kind="lines",
        title="Loss by context position at the end of training",
        caption="Mean loss at each position of the context, last snapshot, with one standard error.",
        x_label="context position",
        y_label=f"loss ({NATS})",
        log_x=True,
    )

    def curve(model: ModelStudy) -> Series | None:
        last = model.losses.isel(snapshot=-1)
        loss, error = (unablated(model.name, last, name) for name in ("position_loss", "position_loss_sem"))
        return line(model.name, loss["position"].values.astype(np.float64), loss.values, error.values, model=model.name)

    return _all_models(study, panel, curve)


def _compared_by_position(study: Study) -> Panel:
    baseline = _smallest(study)
    panel = Panel(
        key="family-loss-by-position-compared",
        kind="lines",
        title=f"Loss by context position, compared with {baseline.name}",
        caption=f"Loss at each position minus that of the smallest model, {baseline.name}, last snapshot. The error "
        "drawn is the most that it can be: the sum of the two models' standard errors, which that of the difference "
        "cannot exceed. "
        f"{_CURIOSITIES}, Seemingly Constant In-Context Learning Score.",
        x_label="context position",
        y_label=f"difference of losses ({NATS})",
        log_x=True,
    )
    if len(study.group_of(baseline.name).models) < 2:
        return replace(panel, absent="N/A: no two models are evaluated on the same examples")
    shares = []

    def difference(model: ModelStudy) -> Series | None:
        if model is baseline:
            return None
        if study.group_of(model.name) is not study.group_of(baseline.name):
            raise InputError(f"{model.name} is evaluated on other examples than {baseline.name}")
        pair = {of.name: of.losses.isel(snapshot=-1) for of in (baseline, model)}
        found = compare_by_position(pair, baseline.name, first=FIRST_TOKENS).isel(model=0)
        shares.append(
            f"{model.name}: the difference at position {FIRST_TOKENS} is {float(found['formed']):.0%} of that at the "
            f"last (formed); the first {FIRST_TOKENS} positions hold {float(found['summed']):.0%} of the sum over all "
            "(summed)."
        )
        error = found["difference_sem_at_most"].values
        position = found["position"].values.astype(np.float64)
        return line(model.name, position, found["difference"].values, error, model=model.name)

    found = _all_models(study, panel, difference)
    return replace(found, caption=" ".join([found.caption, *shares]))


def _by_depth(model: ModelStudy) -> Panel:
    panel = Panel(
        key="",
        kind="points",
        title=f"Prefix matching by depth: {model.name}",
        caption="A point a head: prefix-matching score at the last snapshot against its layer, 0 being the first. "
        f"{_APPENDIX}, Where induction heads form.",
        x_label=f"layer (0 to {model.config.layers - 1})",
        y_label="prefix-matching score",
    )

    def content() -> dict[str, object]:
        matching = final_scores(model, "prefix_matching")
        depth = np.broadcast_to(np.arange(len(matching), dtype=np.float64)[:, None], matching.shape)
        return {"series": head_points(model, depth, matching), "caption": panel.caption + sampled(model)}

    return filled(panel, content)


def _formation(study: Study) -> Panel:
    limits = sorted({model.types.thresholds.prefix_matching for model in study.models.values()})
    threshold = ", ".join(f"{limit:g}" for limit in limits)
    panel = Panel(
        key="family-formation",
        kind="points",
        title="When each layer's first prefix-matching head forms",
        caption=f"A point a layer: {_progress(study)} at the first snapshot at which a head's prefix-matching score is "
        f"over {threshold}, against relative depth, 1 being the last layer. Layers without such a head have no "
        f"point. {_APPENDIX}, Where induction heads form; the time is ours.",
        x_label="depth (layer / layers)",
        y_label=_progress(study),
        log_y=bool(_axes_over_training(study)["log_x"]),
    )

    def formed(model: ModelStudy) -> Series | None:
        _check_several(model)
        matching = scores(model, "prefix_matching")
        found = head_formation(
            matching, model.losses["snapshot"].values.tolist(), model.types.thresholds.prefix_matching
        )
        first = found["first_of_layer"].values
        when = np.where(first >= 0, seen(model)[first], np.nan)
        names = tuple(
            f"layer {layer}: {ever} of {model.config.heads} heads passed, {last} at the end"
            for layer, (ever, last) in enumerate(zip(found["formed"].values, found["last"].values, strict=True))
        )
        return line(model.name, found["depth"].values, when, model=model.name, names=names)

    return _all_models(study, panel, formed, f"no head's prefix-matching score is ever over {threshold}")


def _joint_scores(model: ModelStudy) -> Panel:
    panel = Panel(
        key="",
        kind="points",
        title=f"Copying and prefix matching: {model.name}",
        caption="A point a head, last snapshot. Top right: induction heads (copying and prefix matching). "
        f"{_APPENDIX}, Distribution of scores.",
        x_label="copying score (-1 to 1)",
        y_label="prefix-matching score (0 to 1)",
    )

    def content() -> dict[str, object]:
        copying, matching = final_scores(model, "copying"), final_scores(model, "prefix_matching")
        limits = model.types.thresholds
        joint = joint_scores(copying, matching, threshold=limits.prefix_matching)
        anti = joint.anti_copying
        names = tuple(f"head {layer}.{head}" for layer, head in np.argwhere(anti))
        marked = line(ANTI_COPYING, copying[anti], matching[anti], model=model.name, names=names)
        there_are = (
            f" Marked: heads with a prefix-matching score over {joint.threshold:g} that score under "
            f"{joint.copying_under:g} on copying, as the paper's anti-copying heads do"
        )
        narrow = (
            f" Of this model those over {limits.copying:g} count as copying; {NARROW}."
            if limits.copying == NARROW_COPYING
            else ""
        )
        heads = head_points(model, copying, matching)
        return {
            "series": (*heads, marked) if marked else heads,
            "caption": f"{panel.caption}{there_are} ({int(anti.sum())} of {anti.size}).{narrow}{sampled(model)}",
        }

    return filled(panel, content)


def _copying_weights(study: Study) -> Panel:
    panel = Panel(
        key="family-copying-weights",
        kind="points",
        title="Copying score against the OV circuit's eigenvalues",
        caption="A point a head, last snapshot. From weights: sum of the OV circuit's eigenvalues over the sum of "
        f"their sizes, from -1 to 1. {_APPENDIX}, Validating head activation evaluators.",
        x_label="OV eigenvalue score (weights)",
        y_label="copying score (activations)",
    )
    return _validated(study, panel, "copying", "ov_copying", first_layer=0)


def _prefix_weights(study: Study) -> Panel:
    panel = Panel(
        key="family-prefix-weights",
        kind="points",
        title="Prefix-matching score against the trace of the QK circuit",
        caption="A point a head from the second layer on, last snapshot. From weights: trace of the QK-circuit term "
        f"through earlier previous-token heads. {_APPENDIX}, Validating head activation evaluators.",
        x_label="trace of QK eigenvalues (weights)",
        y_label="prefix-matching score (activations)",
    )
    return _validated(study, panel, "prefix_matching", "qk_trace", first_layer=1)


def _validated(study: Study, panel: Panel, evaluator: str, weights: str, first_layer: int) -> Panel:
    """Heads of all models by two scores, with the correlation of each model and of all."""
    pairs: dict[str, tuple[Floats, Floats]] = {}

    def points(model: ModelStudy) -> Series | None:
        if model.config.layers <= first_layer:
            return None
        measured, expected = (final_scores(model, name)[first_layer:] for name in (evaluator, weights))
        known = np.isfinite(measured) & np.isfinite(expected)
        pairs[model.name] = measured[known], expected[known]
        names = tuple(f"head {layer + first_layer}.{head}" for layer, head in np.ndindex(measured.shape))
        return line(model.name, expected.ravel(), measured.ravel(), model=model.name, names=names)

    found = _all_models(
        study, panel, points, "all models have one layer; the trace needs earlier heads to compose with"
    )
    figures = [f"{name}: {_correlation(*pair)}." for name, pair in pairs.items()]
    if len(pairs) > 1:
        first, second = (np.concatenate(values) for values in zip(*pairs.values(), strict=True))
        figures.append(f"All heads together: {_correlation(first, second)}.")
    return replace(found, caption=" ".join([found.caption, *figures]))


def _correlation(evaluator: Floats, weights: Floats) -> str:
    if len(evaluator) < 3:
        return f"too few heads for a correlation, n = {len(evaluator)}"
    try:
        found = correlate(evaluator[:, None], weights[:, None])
    except InputError as error:
        return f"no correlation ({error})"
    least = f"; p over all {math.factorial(found.n):,} orders" if found.n <= MOST_EXACT else ""
    return (
        f"Pearson {found.pearson:.2f} ({_p_value(found.pearson_p)}), Spearman {found.spearman:.2f} "
        f"({_p_value(found.spearman_p)}), n = {found.n}{least}"
    )


def _p_value(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-12 else "p < 1e-12"


_EFFECTS = {"loss": "loss", "icl": "ICL score"}


def _compared(model: ModelStudy) -> xr.Dataset:
    """Raises: InputError: one of the two sweeps is not there, or they cannot be compared."""
    for mode in ("full", "pattern-preserving"):
        if mode not in model.ablations:
            raise InputError(f"no {mode} ablation; run `icl-fast ablate --mode {mode}` on it")
    return compare_ablations(model.ablations["full"], model.ablations["pattern-preserving"])


def _both_ablations(model: ModelStudy, of: str) -> Panel:
    what = _EFFECTS[of]
    panel = Panel(
        key="",
        kind="points",
        title=f"Full and pattern-preserving, {what}: {model.name}",
        caption=f"A point a head, last snapshot: change of the {what} when the head is removed (ablated minus whole). "
        "Full ablation lets later attention patterns change, pattern-preserving ablation keeps them. The two are equal "
        "(y = x) for heads that matter through values alone, and for all heads of the last layer. Olsson et al. 2022, "
        "Data Collection (2).",
        x_label=f"pattern-preserving: change of {what} (nats)",
        y_label=f"full: change of {what} (nats)",
    )

    def content() -> dict[str, object]:
        last = _compared(model).isel(snapshot=-1)
        columns = single_heads(last["ablation"])
        shape = (model.config.layers, model.config.heads)
        pattern, full = np.full(shape, np.nan), np.full(shape, np.nan)
        for head, at in columns.items():
            pattern[head], full[head] = last[f"{of}_pattern"].values[at], last[f"{of}_full"].values[at]
        return {"series": head_points(model, pattern, full), "caption": panel.caption + sampled(model)}

    return filled(panel, content)


def _ablation_difference(model: ModelStudy, of: str) -> Panel:
    what = _EFFECTS[of]
    bound = "with one standard error, paired by example"
    if of == "icl":
        bound = "with the most that its standard error can be"
    panel = Panel(
        key="",
        title=f"What heads do through later patterns, {what}: {model.name}",
        caption=f"{each_head(model)}: change of the {what} under full ablation minus that under pattern-preserving "
        f"ablation, {bound}. 0 for heads of the last layer. Olsson et al. 2022, Data Collection (2).",
        y_label="full minus pattern-preserving (nats)",
        **heads_over_training(model),
    )

    def content() -> dict[str, object]:
        both = _compared(model)
        error = both["loss_difference_sem" if of == "loss" else "icl_difference_sem_at_most"]
        lines = effect_lines(model, both[f"{of}_difference"], error)
        return {"series": lines, "caption": panel.caption + sampled(model)}

    return filled(panel, content)


def _full_attribution(model: ModelStudy, of: str) -> Panel:
    """The last two rows of the table under full ablation."""
    titles = {"before_after": "before-and-after vector", "icl": "in-context-learning score"}
    panel = Panel(
        key="",
        title=f"Full ablation, {titles[of]}: {model.name}",
        caption="As in the table, but later attention patterns change with what the head no longer writes; with one "
        f"standard error. {'Negative' if of == 'before_after' else 'Positive'} for induction heads. Olsson "
        "et al. 2022, Data Collection (2).",
        y_label="projection (nats)" if of == "before_after" else "change of ICL score (nats)",
        **heads_over_training(model),
    )
    if of == "before_after" and model.interval is None:
        return replace(panel, absent=f"N/A: {no_phase_change(model)}")

    def content() -> dict[str, object]:
        if "full" not in model.ablations:
            raise InputError("no full ablation; run `icl-fast ablate --mode full` on it")
        full = model.ablations["full"]
        found = attribute_icl(full) if model.interval is None else attribute_heads(full, *model.interval)
        return {
            "series": effect_lines(model, found[of], found[f"{of}_sem"]),
            "caption": panel.caption + sampled(model),
        }

    return filled(panel, content)
