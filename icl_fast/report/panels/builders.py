"""What the panels of the table and of the family are put together from."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from icl_fast.analysis import opaque_heads
from icl_fast.analysis.arrays import Floats, finite, unablated
from icl_fast.analysis.phase_change import MAX_ABRUPTNESS, MIN_DROP, MIN_EVIDENCE, MIN_PREFIX_MATCHING, MIN_SNAPSHOTS
from icl_fast.errors import InputError
from icl_fast.measure.store import json_attribute
from icl_fast.report.panels.panel import Heatmap, Panel, Series
from icl_fast.report.study import ModelStudy, Progress, Setting, Study

PROGRESS: dict[Progress, str] = {"tokens": "training tokens seen", "steps": "optimizer step"}
SEQUENCES = "training sequences seen"
NATS = "nats per token"
LAYER = "layer, counted from 0"
_LONGEST_SLUG = 80  # characters, of the 255 that a file's name may have
NOTHING_FINITE = "there is no finite value to show"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """By name, of models, runs or members, what it is as a part of a key: lower case, `[a-z0-9_-]` only, unique, short.

    No dots: what follows the last one would pass for a file's ending.
    """
    made: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:_LONGEST_SLUG] or "model"
        slug, number = plain, 1
        while slug in made.values():
            number += 1
            slug = f"{plain}-{number}"
        made[name] = slug
    return made


def filled(panel: Panel, content: Callable[[], Mapping[str, Any]]) -> Panel:
    """The panel with what `content` gives for its fields; where an analysis refuses, with its reason instead."""
    try:
        return replace(panel, **content())
    except InputError as error:
        return replace(panel, absent=f"N/A: {error}", series=(), heatmap=None)


def over_training(model: ModelStudy, kind: str = "lines") -> dict[str, Any]:
    """The fields of a panel that shows one model over training."""
    return {
        "kind": kind,
        "x_label": PROGRESS[model.progress],
        "over_training": model.snapshots > 1,
        "log_x": spaced_exponentially(seen(model)),
        "band": band(model),
    }


def heads_over_training(model: ModelStudy) -> dict[str, Any]:
    """The fields of a panel with a line a head (see `head_lines`): of one snapshot a point a head, by layer."""
    return over_training(model) if model.snapshots > 1 else {"kind": "points", "x_label": LAYER}


def each_head(model: ModelStudy) -> str:
    """What a caption says of such a panel."""
    return "A line a head" if model.snapshots > 1 else "Of the only snapshot, a point a head against its layer"


def seen(model: ModelStudy) -> Floats:
    """[snapshot] how much training each snapshot had, as `model.progress` counts it."""
    counted = model.losses["tokens" if model.progress == "tokens" else "snapshot"]
    return np.asarray(counted.values, dtype=np.float64)


def band(model: ModelStudy) -> tuple[float, float] | None:
    """The interval of the phase change, as `seen` counts."""
    if model.interval is None:
        return None
    # an interval set by hand need not begin and end at a snapshot
    start, end = np.interp(model.interval, model.losses["snapshot"].values, seen(model))
    return float(start), float(end)


def spaced_exponentially(tokens: Floats) -> bool:
    """Whether snapshots after 0 tokens, or sequences, lie more evenly on a logarithmic axis than on a linear one."""
    trained = tokens[tokens > 0]
    if len(trained) < 3:
        return False
    linear, log = np.diff(trained), np.diff(np.log(trained))
    return bool(log.std() / log.mean() < linear.std() / linear.mean())


def snapshot_names(model: ModelStudy) -> tuple[str, ...]:
    """[snapshot] what each snapshot is called."""
    steps = model.losses["snapshot"].values
    if model.progress == "steps":
        return tuple(f"step {step:,}" for step in steps)
    return tuple(f"step {step:,}, {int(tokens):,} tokens" for step, tokens in zip(steps, seen(model), strict=True))


def line(label: str, x: Floats, y: Floats, error: Floats | None = None, **fields: Any) -> Series | None:
    """A series of the finite points; None where there is none."""
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return None
    if error is not None:
        error = error[known] if np.isfinite(error[known]).all() else None
    if names := fields.get("names"):
        fields["names"] = tuple(name for name, keep in zip(names, known, strict=True) if keep)
    return Series(label, x[known], y[known], error, **fields)


def there(series: Iterable[Series | None], empty: str = NOTHING_FINITE) -> tuple[Series, ...]:
    """Those that hold something.

    Raises:
        InputError: none does; the message is `empty`.
    """
    kept = tuple(one for one in series if one is not None)
    if not kept:
        raise InputError(empty)
    return kept


def scores(model: ModelStudy, name: str) -> xr.DataArray:
    """A head score over training, [snapshot, layer, head].

    Raises:
        InputError: it was not measured.
    """
    if name not in model.heads:
        raise InputError(f"{name} of {model.name} was not measured; run `icl-fast evaluate` on it")
    if why := undefined(model).get(name):
        raise InputError(f"undefined because {why}")
    return model.heads[name].transpose("snapshot", "layer", "head")


def undefined(model: ModelStudy) -> dict[str, str]:
    """By measure that the model's architecture does not define, why."""
    return json_attribute(model.heads, "undefined")


def final_scores(model: ModelStudy, name: str) -> Floats:
    """The same at the last snapshot, [layer, head].

    Raises:
        InputError: it was not measured.
    """
    return np.asarray(scores(model, name).values[-1], dtype=np.float64)


def score_lines(model: ModelStudy, name: str) -> tuple[Series, ...]:
    """A head score over training, a line a head.

    Raises:
        InputError: it was not measured, or is nowhere finite.
    """
    values = np.asarray(scores(model, name).values, dtype=np.float64)
    return head_lines(model, {head: (values[(slice(None), *head)], None) for head in np.ndindex(values.shape[1:])})


def effect_lines(model: ModelStudy, values: xr.DataArray, errors: xr.DataArray) -> tuple[Series, ...]:
    """What removing each head does over training, a line a head, of values [snapshot, ablation].

    Raises:
        InputError: no single head was removed, or no value is finite.
    """
    columns = single_heads(values)
    values, errors = values.transpose("snapshot", "ablation"), errors.transpose("snapshot", "ablation")
    return head_lines(model, {head: (values.values[:, at], errors.values[:, at]) for head, at in columns.items()})


def single_heads(values: xr.DataArray) -> dict[tuple[int, ...], int]:
    """Where along `ablation` each head is the only one removed."""
    pairs = zip(values["layer"].values.tolist(), values["head"].values.tolist(), strict=True)
    return {(layer, head): at for at, (layer, head) in enumerate(pairs) if layer >= 0}


def head_lines(model: ModelStudy, of: Mapping[tuple[int, ...], tuple[Floats, Floats | None]]) -> tuple[Series, ...]:
    """A line over training for each head, from its values and standard errors; of one snapshot a point at its layer.

    Raises:
        InputError: no value is finite.
    """
    x, alone = seen(model), model.snapshots == 1
    return of_heads(model, {head: (np.array(head[:1], float) if alone else x, *values) for head, values in of.items()})


def head_points(model: ModelStudy, x: Floats, y: Floats) -> tuple[Series, ...]:
    """A point for each head, from [layer, head] values.

    Raises:
        InputError: no value is finite.
    """
    return of_heads(model, {head: (x[head][None], y[head][None], None) for head in np.ndindex(x.shape)})


def of_heads(
    model: ModelStudy, of: Mapping[tuple[int, ...], tuple[Floats, Floats, Floats | None]]
) -> tuple[Series, ...]:
    """A series for each head, from its x, y and standard errors.

    Raises:
        InputError: no value is finite.
    """
    drawn = opaque(model)
    return there(
        line(f"head {head[0]}.{head[1]}", x, y, error, model=model.name, head=head, opaque=bool(drawn[head]))
        for head, (x, y, error) in of.items()
    )


def opaque(model: ModelStudy) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[layer, head] which heads are drawn opaque: all, of a model with more than 100 a sample of 100."""
    return opaque_heads(final_scores(model, "prefix_matching"))


def sampled(model: ModelStudy) -> str:
    """What a caption says of a model with heads that are not drawn opaque."""
    shown = opaque(model)
    if shown.all():
        return ""
    return (
        f" Of {shown.size} heads {int(shown.sum())} are drawn opaque: a random sample, biased towards high "
        "prefix-matching scores at the last snapshot."
    )


def loss_curve(model: ModelStudy) -> tuple[Floats, Floats | None]:
    """The paper's loss curve, [snapshot]: the mean over examples of the loss at one random position each, and its SE.

    Raises:
        InputError: the losses are not there or not finite.
    """
    losses = finite(f"losses of {model.name}", unablated(model.name, model.losses, "loss"), ("snapshot", "example"))
    count = losses.shape[1]
    return losses.mean(1), losses.std(1, ddof=1) / np.sqrt(count) if count > 1 else None


def icl_curve(model: ModelStudy) -> tuple[Floats, Floats]:
    """The ICL score and its standard error, [snapshot].

    Raises:
        InputError: they are not there.
    """
    of = (unablated(model.name, model.losses, name) for name in ("icl_score", "icl_score_sem"))
    score, error = (np.asarray(values.values, dtype=np.float64) for values in of)
    return score, error


def icl_definition(model: ModelStudy) -> str:
    """Which positions the ICL score compares."""
    attributes = model.losses["icl_score"].attrs if "icl_score" in model.losses else {}
    return str(attributes.get("long_name", "mean loss at a late position minus at an early one"))


def no_phase_change(model: ModelStudy) -> str:
    """Why a model has no before-and-after vector."""
    change = model.change
    if change is None:
        return f"{_counted(model)}, and {MIN_SNAPSHOTS} after step 0 or more are needed to find a phase change"
    longer = (
        "" if change.abruptness is None else f", ending after {change.abruptness:.1f} times the steps it begins after"
    )
    return (
        f"no phase change: the ICL score fell by {change.drop:.2f} nats{longer}, with an evidence of "
        f"{change.evidence:.0f} against a smooth fall, and the best head's prefix-matching score ended at "
        f"{change.prefix_matching:.2f}; the rule asks for {MIN_DROP:g}, less than {MAX_ABRUPTNESS:g}, "
        f"{MIN_EVIDENCE:g} and {MIN_PREFIX_MATCHING:g}, so there is no before and after"
    )


def change_fit(model: ModelStudy) -> str:
    """What a caption says of the fitted phase change; empty: there is none."""
    change = model.change
    if change is None or not change.happened or change.window is None:
        return ""
    assert change.start_interval
    assert change.end_interval
    assert change.abruptness_interval
    begins, ends = (
        f"{at:,.0f} ({low:,.0f} to {high:,.0f})"
        for at, (low, high) in zip(change.window, (change.start_interval, change.end_interval), strict=True)
    )
    low, high = change.abruptness_interval
    smooth = "" if change.smooth_abruptness is None else f", of a smooth fall {change.smooth_abruptness:.1f}"
    return (
        f" The change begins at step {begins} and ends at step {ends}; end over begin is {change.abruptness:.1f} "
        f"({low:.1f} to {high:.1f}){smooth}. Evidence against a smooth fall: {change.evidence:.0f}; "
        f"{change.support:.0%} of resampled curves pass the rule. Intervals: 95%, over {change.resampled}."
    )


def over_all_snapshots(model: ModelStudy, y: Floats, error: Floats | None) -> tuple[Series, ...]:
    """A curve of a model over training.

    Raises:
        InputError: nothing is finite; one snapshot, whose value the message gives.
    """
    if model.snapshots == 1:
        spread = "" if error is None else f" ± {error[0]:.3f}"
        raise InputError(f"{model.name} has one snapshot: {y[0]:.3f}{spread} {NATS}")
    return there([line(model.name, seen(model), y, error, model=model.name)])


def over_seeds(study: Study, curves: Sequence[Series]) -> tuple[list[Series], str]:
    """The curves of models, of those that differ in their seed alone one, and what a caption says of it.

    It is the mean at the values of x that all of them have; its error is half a 95% interval of the mean over seeds, by
    Student's t.
    """
    of_setting: dict[object, list[Series]] = {}
    for one in curves:
        assert one.model is not None
        of_setting.setdefault(study.models[one.model].setting or one.model, []).append(one)
    means, counts = [], set()
    for setting, seeds in of_setting.items():
        x = functools.reduce(np.intersect1d, [one.x for one in seeds])
        if isinstance(setting, str) or len(seeds) == 1 or not len(x):
            means += seeds
            continue
        y = np.stack([one.y[np.isin(one.x, x)] for one in seeds])
        half = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(y)
        assert isinstance(setting, Setting)
        means.append(replace(seeds[0], label=f"{setting.name} ({len(seeds)} seeds)", x=x, y=y.mean(0), error=half))
        counts.add(len(seeds))
    said = " ".join(f"{count} seeds: mean and 95% interval of the mean." for count in sorted(counts))
    return means, f" {said}" if said else ""


def _counted(model: ModelStudy) -> str:
    return "one snapshot" if model.snapshots == 1 else f"{model.snapshots} snapshots"


def share_range(panels: Sequence[Panel]) -> list[Panel]:
    """The panels with one y axis: that of all their values, with their errors."""
    ends = [end for panel in panels for series in panel.series for end in _extent(series)]
    if not ends:
        return list(panels)
    low, high = min(ends), max(ends)
    margin = 0.04 * (high - low) or 0.5
    return [replace(panel, y_range=(low - margin, high + margin)) for panel in panels]


def share_by_group(study: Study, panels: Sequence[Panel]) -> list[Panel]:
    """Panels, one a model, with one y axis for those evaluated on the same examples: others cannot be compared."""
    shared: dict[str, Panel] = {}
    of_model = dict(zip(study.models, panels, strict=True))
    for group in study.groups:
        names = [name for name in group.models if name in of_model]
        shared |= zip(names, share_range([of_model[name] for name in names]), strict=True)
    return [shared[name] for name in of_model]


def _extent(series: Series) -> tuple[float, float]:
    error = np.zeros(len(series.y)) if series.error is None else series.error
    return float((series.y - error).min()), float((series.y + error).max())


def share_colours(panels: Sequence[Panel]) -> list[Panel]:
    """The panels' sequential heatmaps with the same colours: between two percentiles of all trained snapshots' values.

    A few values are far out (the first positions, an untrained model), and would leave one colour to the rest.
    """
    maps = [panel.heatmap for panel in panels if panel.heatmap is not None]
    if not maps or maps[0].scale == "diverging":
        return list(panels)
    values = np.concatenate([(of.z[:, of.x > 0] if (of.x > 0).any() else of.z).ravel() for of in maps])
    low, high = (float(end) for end in np.percentile(values, (2, 98)))
    high = high if high > low else low + 1.0
    return [
        panel if panel.heatmap is None else replace(panel, heatmap=replace(panel.heatmap, low=low, high=high))
        for panel in panels
    ]


def heatmap(model: ModelStudy, values: xr.DataArray, units: str, most: float | None = None) -> Heatmap:
    """Values [snapshot, position] over training: about 0 up to `most` either way, or, if there is none, sequential
    with colours whose ends `share_colours` sets."""
    z, y = values.transpose("position", "snapshot").values, values["position"].values.astype(np.float64)
    if most is not None:
        return Heatmap(seen(model), y, z, "diverging", -most, most, units)
    return Heatmap(seen(model), y, z, "sequential", float(z.min()), float(z.max()), units)
