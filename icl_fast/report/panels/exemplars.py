"""The figures of a run on exemplars, or of a population: curves, strategies, attention, wiring, ablations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.analysis import learning_time, transience
from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.learning import LEARNED, LEAST_RISE
from icl_fast.measure.ablation import UNABLATED
from icl_fast.report.colours import EVALUATORS
from icl_fast.report.panels.builders import SEQUENCES, filled, line, share_range, slugs, spaced_exponentially, there
from icl_fast.report.panels.panel import Heatmap, Panel, Series
from icl_fast.report.study import ExemplarStudy, Study

Groups = list[tuple[str, list[Panel]]]

MOST_MEMBERS = 6  # whose heads have figures of their own
_WITHIN, _AMONG = "among the labels in context", "among all outputs"
_SHOWN_OVER_TRAINING = ("train", "icl", "ciwl", "flip")  # on which heads are removed over training
_THESIS = "Singh 2025"


def exemplar_panels(study: Study) -> dict[str, Groups]:
    """All figures of every run on exemplars, by its name, grouped under headings.

    What is not measured or not defined is a panel that says so in `absent`.
    """
    keys = slugs(study.exemplars)
    return {
        name: [
            (heading, [replace(panel, key=f"exemplars-{keys[name]}-{panel.key}") for panel in panels])
            for heading, panels in _groups(run)
        ]
        for name, run in study.exemplars.items()
    }


def learning_times(run: ExemplarStudy, *, for_good: bool = True) -> Floats:
    """[member] sequences seen until the training loss stays below 0.4 log 2, or first drops below; NaN: it does not, or
    was not finite."""
    losses = _floats(run.curves["training_loss"].transpose("logged", "member"))
    times = np.full(losses.shape[1], np.nan)
    known = np.isfinite(losses).all(0)
    if losses.size and known.any():
        seen = run.curves["logged_sequences"].values
        times[known] = learning_time(seen, losses[:, known], for_good=for_good)
    return times


def _groups(run: ExemplarStudy) -> Groups:
    alone = len(run.members) == 1
    groups = [
        ("Training curves", [_loss(run), *_total_loss(run), *_accuracies(run)]),
        ("Strategies over snapshots", _strategies(run)),
    ]
    if not alone:
        groups.insert(1, ("Learning times", [_learning_times(run)]))
    if run.ablations is None:
        absent = f"N/A: a model of architecture {run.config.model.architecture} has no attention"
        nothing = Panel("attention", "lines", "Attention", "", x_label="", y_label="", absent=absent)
        return [*groups, ("Heads", [nothing])]
    drawn = run.members[:MOST_MEMBERS]
    member_keys = slugs(run.members)
    for number, member in enumerate(drawn):
        suffix = "" if alone else f"-{member_keys[member]}"
        of = "" if alone else f" of {member}"
        more = ""
        if number == 0 and len(run.members) > len(drawn):
            more = f" Drawn are the first {len(drawn)} of {len(run.members)} members; all are in the run's results."
        for heading, panels in (
            (f"Attention of the heads{of}, over snapshots", _attention(run, number)),
            (f"Wiring{of} at the last snapshot", _wiring(run, number)),
            (f"Removing each head{of}, at the last snapshot", _removed(run, number)),
            (f"Removing each head{of}, over snapshots", _removed_over_training(run, number)),
            (f"What each layer{of} writes to the output, over snapshots", [_cut_from_output(run, number)]),
        ):
            keyed = [replace(one, key=one.key + suffix, caption=one.caption + more) for one in panels]
            groups.append((heading, keyed))
    return groups


def _over_training(seen: Floats) -> dict[str, Any]:
    """The fields of a panel of lines over training."""
    return {"kind": "lines", "x_label": SEQUENCES, "over_training": True, "log_x": spaced_exponentially(seen)}


def _floats(values: xr.DataArray) -> Floats:
    return np.asarray(values.values, dtype=np.float64)


def _evaluators(data: xr.Dataset) -> list[str]:
    """Those measured, the strategies first."""
    measured = data["evaluator"].values if "evaluator" in data else ()
    return [name for name in EVALUATORS if name in measured]


def _over_members(seen: Floats, values: xr.DataArray, label: str, **fields: Any) -> Series | None:
    """A line of values [time, member]: of one member; of several, which differ by seed, their mean with its error."""
    of = _floats(values.transpose(..., "member"))
    count = of.shape[1]
    error = of.std(1, ddof=1) / math.sqrt(count) if count > 1 else None
    return line(label, seen, of.mean(1), error, **fields)


def _mean_of(run: ExemplarStudy) -> str:
    """What a caption says of lines that are means."""
    return f" Mean over {len(run.members)} seeds, with one standard error." if run.of_seeds else ""


def _by_evaluator(run: ExemplarStudy, seen: Floats, data: xr.Dataset, metric: str) -> tuple[Series, ...]:
    """A line an evaluator, of a run alone or of seeds.

    Raises:
        InputError: the metric is defined on no evaluator.
    """
    return there(
        _over_members(seen, data[metric].sel(evaluator=name), name, evaluator=name) for name in _evaluators(data)
    )


def _by_setting(run: ExemplarStudy, seen: Floats, values: xr.DataArray) -> tuple[Series, ...]:
    """A line a setting: of one member; of several seeds their mean, with one standard deviation.

    Raises:
        InputError: no value is finite.
    """
    lines = []
    for name, members in run.settings.items():
        of = _floats(values.isel(member=members).transpose(..., "member"))
        deviation = of.std(1, ddof=1) if len(members) > 1 else None
        lines.append(line(name, seen, of.mean(1), deviation))
    return there(lines)


def _each(run: ExemplarStudy) -> str:
    """What a caption says of `_by_setting`."""
    if len(run.settings) == len(run.members):
        return "A line a member."
    return "A line a setting: the mean over its seeds, with one standard deviation."


def _loss(run: ExemplarStudy) -> Panel:
    curves = run.curves
    seen, pairs = _floats(curves["logged_sequences"]), run.config.sequences.pairs
    panel = Panel(
        key="loss",
        title="Loss over training",
        caption=f"Cross-entropy of the query's label. Guessing one of the {pairs} labels in context costs "
        f"log {pairs} = {math.log(pairs):.3f} nats. {_learned(run)} {_each(run)} {_THESIS}, Fig 4.3a.",
        y_label="loss (nats)",
        **_over_training(seen),
    )

    def content() -> dict[str, object]:
        if len(run.members) > 1:
            return {"series": _by_setting(run, seen, curves["training_loss"])}
        train = line("train", seen, _floats(curves["training_loss"].isel(member=0)), evaluator="train")
        held_out = [name for name in _evaluators(curves) if name.startswith("held-out")]
        others = [
            line(name, at, _floats(curves["loss"].sel(evaluator=name).isel(member=0)), evaluator=name)
            for name in held_out
            for at in [_floats(curves["sequences"])]
        ]
        return {"series": there([train, *others])}

    return filled(panel, content)


def _total_loss(run: ExemplarStudy) -> list[Panel]:
    """Of runs with L2."""
    if "total_loss" not in run.curves:
        return []
    seen = _floats(run.curves["logged_sequences"])
    panel = Panel(
        key="total-loss",
        title="Loss with its L2 term",
        caption=f"{_each(run)} The training loss and the L2 term of the weights at that point. {_THESIS}, Fig B.4.",
        y_label="loss (nats)",
        **_over_training(seen),
    )
    return [filled(panel, lambda: {"series": _by_setting(run, seen, run.curves["total_loss"])})]


def _learned(run: ExemplarStudy) -> str:
    """A sentence on when the members had learned."""
    times, rule = learning_times(run), f"the training loss stays below 0.4 log 2 = {LEARNED:.3f}"
    if len(times) == 1:
        return f"From {times[0]:,.0f} sequences on {rule}." if np.isfinite(times[0]) else f"At no time {rule}."
    return f"In {int(np.isfinite(times).sum())} of {len(times)} members {rule} in the end."


def _learning_times(run: ExemplarStudy) -> Panel:
    times = learning_times(run)
    never = [name for name, time in zip(run.members, times, strict=True) if not np.isfinite(time)]
    panel = Panel(
        key="learning-times",
        kind="points",
        title="When each member learns",
        caption=f"Two points a member: training sequences seen until the training loss first drops below 0.4 log 2 = "
        f"{LEARNED:.3f} nats, and until it stays below. {_THESIS}, C.6."
        + (f" Not by the end of training: {', '.join(never)}." if never else ""),
        x_label=f"member (1 to {len(times)})",
        y_label=SEQUENCES,
    )

    def content() -> dict[str, object]:
        number = np.arange(1, len(times) + 1, dtype=np.float64)
        names, first = tuple(run.members), learning_times(run, for_good=False)
        lines = [line("stays below", number, times, names=names), line("first below", number, first, names=names)]
        series = there(lines, "no member has learned")
        return {"series": series, "y_range": (0.0, 1.05 * float(np.nanmax([times, first])))}

    return filled(panel, content)


def _accuracies(run: ExemplarStudy) -> list[Panel]:
    """What was measured while the run was trained."""
    if "sequences" not in run.curves:
        return []
    seen = _floats(run.curves["sequences"])
    source = f"Measured during training. {_THESIS}, Fig {{}}."
    if len(run.members) == 1 or run.of_seeds:
        return [
            _of_metric(run, seen, run.curves, "accuracy_in_context", source.format("5.1b"), "curves"),
            _of_metric(run, seen, run.curves, "accuracy", source.format("5.2"), "curves"),
            _of_metric(run, seen, run.curves, "loss", source.format("5.9b"), "curves"),
        ]
    return [
        _of_evaluator(run, seen, run.curves, name, source.format("2.2-2.7, 3.2-3.10, 5.1b, 5.11"))
        for name in _evaluators(run.curves)
    ]


_METRICS = {
    "accuracy_in_context": (f"Accuracy {_WITHIN}", "accuracy"),
    "accuracy": (f"Accuracy {_AMONG}", "accuracy"),
    "probability_in_context": (f"Probability of right labels {_WITHIN}", "probability"),
    "probability": (f"Probability of right labels {_AMONG}", "probability"),
    "loss": ("Loss by evaluator", "loss (nats)"),
}


def _transience(seen: Floats, data: xr.Dataset) -> str:
    """A sentence on how ICL rises and falls, of runs whose labels are fixed."""
    if not {"icl", "ciwl"} <= set(data["evaluator"].values) or len(seen) < 3:
        return ""
    curves = _floats(data["accuracy_in_context"].sel(evaluator="icl").transpose(..., "member"))
    found = [transience(seen, curve, chance=0.5) for curve in curves.T if np.isfinite(curve).all()]
    if len(found) != 1:
        return f" ICL is transient in {sum(one.transient for one in found)} of {len(found)} members."
    (one,) = found
    if one.height < 0.5 + LEAST_RISE:
        return f" There is no ICL: at most {one.height:.3f}."
    fall = "" if math.isnan(one.decay) else f", {one.decay:+.3g} a million sequences from the peak on"
    verdict = "transient" if one.transient else "not transient"
    return (
        f" ICL sets on after {one.onset:,.0f} sequences and is highest after {one.peak:,.0f} ({one.height:.3f}); "
        f"{one.end:.3f} at the end{fall}: {verdict} (Fig 3.2a)."
    )


def _of_metric(run: ExemplarStudy, seen: Floats, data: xr.Dataset, metric: str, source: str, key: str) -> Panel:
    """A line an evaluator."""
    title, unit = _METRICS[metric]
    panel = Panel(
        key=f"{key}-{metric.replace('_', '-')}",
        title=title,
        caption=f"A line an evaluator.{_mean_of(run)} {source}"
        + (_transience(seen, data) if metric == "accuracy_in_context" else ""),
        y_label=unit,
        **_over_training(seen),
    )
    return filled(panel, lambda: {"series": _by_evaluator(run, seen, data, metric)})


def _of_evaluator(
    run: ExemplarStudy, seen: Floats, data: xr.Dataset, name: str, source: str, metric: str = "accuracy"
) -> Panel:
    """A line a member: of answers among the labels in context where one of those is right, else among all outputs."""
    within = bool(np.isfinite(data[f"{metric}_in_context"].sel(evaluator=name)).any())
    chosen = f"{metric}_in_context" if within else metric
    title, unit = _METRICS[chosen]
    panel = Panel(
        key=f"{metric}-{name}",
        title=f"{name}: {title[0].lower()}{title[1:]}",
        caption=f"{_each(run)} {source}" + (_transience(seen, data) if name == "icl" else ""),
        y_label=unit,
        **_over_training(seen),
    )
    return filled(panel, lambda: {"series": _by_setting(run, seen, data[chosen].sel(evaluator=name))})


def _strategies(run: ExemplarStudy) -> list[Panel]:
    """How every snapshot answers."""
    data = run.strategies.isel(clamp=0)
    seen = _floats(data["sequences"])
    source = f"{data.attrs['evaluated']:,} sequences of each, every snapshot. {_THESIS}, Fig {{}}."
    if len(run.members) == 1 or run.of_seeds:
        figures = {"probability_in_context": "5.1b", "probability": "5.2", "loss": "4.3a, 5.9b"}
        return [
            _of_metric(run, seen, data, metric, source.format(figure), "strategies")
            for metric, figure in figures.items()
        ]
    return [
        _of_evaluator(run, seen, data, name, source.format("5.1b, 5.11"), "probability") for name in _evaluators(data)
    ]


def _attention(run: ExemplarStudy, member: int) -> list[Panel]:
    """Where the heads of the first and the last layer attend."""
    data = run.strategies.isel(clamp=0, member=member)
    seen, last = _floats(data["sequences"]), data.sizes["layer"] - 1
    name = "flip" if "flip" in data["evaluator"].values else "train"
    data = data.sel(evaluator=name)

    def panel(metric: str, layer: int, title: str, what: str, figure: str) -> Panel:
        made = Panel(
            key=f"attention-{metric.replace('_', '-')}",
            title=f"{title}, layer {layer}",
            caption=f"A line a head: {what}, mean over {run.strategies.attrs['evaluated']:,} {name} sequences. "
            f"{_THESIS}, Fig {figure}.",
            y_label="attention",
            **_over_training(seen),
        )
        values = data[metric].isel(layer=layer)
        heads = range(values.sizes["head"])
        return filled(
            made,
            lambda: {
                "series": there(line(f"head {layer}.{head}", seen, _floats(values.isel(head=head))) for head in heads)
            },
        )

    induction = "attention of the query to right labels less that to wrong ones"
    return [
        panel("induction", last, "Induction strength", induction, "4.3b, 5.6a"),
        panel("previous_token", 0, "Previous-token strength", "attention of labels to the exemplar before", "5.7, top"),
        panel("own", 0, "Attention to self", "attention of labels to themselves", "5.7, bottom"),
    ]


def _matrix(values: xr.DataArray, rows: str, columns: str, units: str, limits: tuple[float, float] | None) -> Heatmap:
    """Values of rows by columns, the first row on top as in a printed matrix; without limits about 0."""
    z = _floats(values.transpose(rows, columns))[::-1]
    names = [tuple(str(name) for name in values[dim].values) for dim in (columns, rows)]
    x, y = (np.arange(len(of), dtype=np.float64) for of in names)
    low, high = (-(most := _largest([values])), most) if limits is None else limits
    scale = "diverging" if limits is None else "sequential"
    return Heatmap(x, y, z, scale, low, high, units, names[0], names[1][::-1])  # type: ignore[arg-type]


def _largest(values: Sequence[xr.DataArray]) -> float:
    """The largest size of any value that is known; 1 where all are 0 or none is."""
    known = np.concatenate([np.abs(of.values[np.isfinite(of.values)]).ravel() for of in values])
    return float(known.max(initial=0.0)) or 1.0


def _wiring(run: ExemplarStudy, member: int) -> list[Panel]:
    """Fig C.3: three ways of seeing which heads of the first layer heads of the last one read."""
    axes = {"kind": "heatmap", "x_label": "reader (last layer, the only head of it)", "y_label": "writer (first layer)"}
    if run.wiring is None:
        absent = "N/A: one layer; there is nothing before it to read"
        return [Panel(key="wiring", title="Wiring", caption="", absent=absent, **axes)]  # type: ignore[arg-type]
    one = run.wiring.isel(member=member)
    on = f"{one.attrs['evaluated']:,} {one.attrs['evaluator']} sequences. {_THESIS}, Fig C.3"
    ways = {
        "value-preserving": ("match", "values kept as in the whole model: what acts goes by way of patterns", "top"),
        "pattern-preserving": (
            "copy",
            "patterns kept as in the whole model: what acts goes by way of values",
            "bottom",
        ),
    }
    changes = {way: one["accuracy"].sel(kind="single", preserve=way) - one["accuracy_alone"] for way in ways}
    most = _largest(list(changes.values()))
    panels = []
    for way, (name, text, where) in ways.items():
        change = _matrix(changes[way], "writer", "reader", "change of accuracy", None)
        pair = one["accuracy"].sel(kind="single-pair", preserve=way)
        panels += [
            Panel(
                key=f"wiring-{name}-removed",
                title=f"The {name} without one writer",
                caption=f"Change of accuracy {_AMONG} when the writer is removed, {text}; {on}, left, {where}.",
                heatmap=replace(change, low=-most, high=most),
                **axes,  # type: ignore[arg-type]
            ),
            Panel(
                key=f"wiring-{name}-alone",
                title=f"The {name} with one writer alone",
                caption=f"Accuracy {_AMONG} with this one writer, {text}; {on}, middle, {where}.",
                heatmap=_matrix(pair, "writer", "reader", "accuracy", (0.0, 1.0)),
                **axes,  # type: ignore[arg-type]
            ),
        ]
    for matrix in "kv":
        scores = one["composition"].sel(matrix=matrix)
        limits = float(scores.min()), float(scores.max())
        panels.append(
            Panel(
                key=f"wiring-composition-{matrix}",
                title=f"{matrix.upper()}-composition",
                caption=f"Composition scores from the weights alone. {_THESIS}, Fig C.3, right.",
                heatmap=_matrix(scores, "writer", "reader", "score", limits if limits[0] < limits[1] else (0.0, 1.0)),
                **axes,  # type: ignore[arg-type]
            )
        )
    return panels


def _effects(run: ExemplarStudy, member: int) -> xr.DataArray:
    """[snapshot, mode, evaluator, ablation] change of accuracy without a head: among the labels in context, or among
    all outputs where none of those is right; where labels are drawn anew in all sequences, among all outputs: among
    those in context one in as many as there are is right whatever heads do (Fig 4.5a)."""
    assert run.ablations is not None
    data = run.ablations.isel(member=member)
    within = np.isfinite(data["accuracy_in_context"]) & (run.config.sequences.p_icl < 1)
    accuracy = data["accuracy_in_context"].where(within, data["accuracy"])
    whole = accuracy.sel(ablation=UNABLATED, drop=True)
    heads = accuracy.isel(ablation=np.flatnonzero(data["layer"].values >= 0))
    return (heads - whole).transpose("snapshot", "mode", "evaluator", "ablation")


def _change(run: ExemplarStudy) -> str:
    """What captions call the `_effects`."""
    if run.config.sequences.p_icl == 1:
        return f"Change of accuracy {_AMONG}"
    return f"Change of accuracy {_WITHIN} (where none of those is right: {_AMONG})"


def _removed(run: ExemplarStudy, member: int) -> list[Panel]:
    """A map of evaluators by heads for each mode, with one scale."""
    assert run.ablations is not None
    effects = _effects(run, member).isel(snapshot=-1).sel(evaluator=_evaluators(run.ablations))
    most = _largest([effects])
    panels = []
    for mode in effects["mode"].values:
        heatmap = _matrix(effects.sel(mode=mode), "evaluator", "ablation", "change of accuracy", None)
        panels.append(
            Panel(
                key=f"removed-{mode}",
                kind="heatmap",
                title=f"{str(mode).capitalize()} ablation",
                caption=f"{_change(run)} when a head is removed. Modes differ in what later heads keep of the whole "
                f"model; for heads of the last layer all are equal. {_THESIS}, Fig 4.5a, 5.9.2.",
                x_label="head",
                y_label="evaluator",
                heatmap=replace(heatmap, low=-most, high=most),
            )
        )
    return panels


def _removed_over_training(run: ExemplarStudy, member: int) -> list[Panel]:
    """A line a head, fully removed from every snapshot, on each of the evaluators that tell strategies apart."""
    assert run.ablations is not None
    effects, seen = _effects(run, member), _floats(run.ablations["sequences"])
    mode = "full" if "full" in effects["mode"].values else effects["mode"].values[0]
    panels = []
    for name in _evaluators(run.ablations):
        if name not in _SHOWN_OVER_TRAINING:
            continue
        of = effects.sel(mode=mode, evaluator=name)
        panel = Panel(
            key=f"removed-over-training-{name}",
            title=f"{name}: {mode} ablation",
            caption=f"A line a head. {_change(run)} when it is removed from each snapshot. {_THESIS}, 5.9.2.",
            y_label="change of accuracy",
            **_over_training(seen),
        )
        panels.append(filled(panel, _head_lines(seen, of)))
    return share_range(panels)


def _cut_from_output(run: ExemplarStudy, member: int) -> Panel:
    """Fig 4.4: what the loss becomes where the output no longer reads a layer's heads."""
    assert run.ablations is not None
    data = run.ablations.isel(member=member)
    seen = _floats(data["sequences"])
    name = "train" if "train" in data["evaluator"].values else str(data["evaluator"].values[0])
    panel = Panel(
        key="cut-from-output",
        title="Change of loss without a layer's heads in what the output reads",
        caption=f"A line a layer: all its heads removed from each snapshot, the patterns and values of later layers as "
        f"they were; on {name} sequences. {_THESIS}, Fig 4.4.",
        y_label="change of loss (nats)",
        **_over_training(seen),
    )

    def content() -> dict[str, object]:
        loss = data["loss"].sel(mode="direct", evaluator=name)
        change = loss - loss.sel(ablation=UNABLATED, drop=True)
        layers = range(run.config.model.layers)
        return {
            "series": there(
                line(f"layer {layer}", seen, _floats(change.sel(ablation=f"{layer}.*"))) for layer in layers
            )
        }

    return filled(panel, content)


def _head_lines(seen: Floats, of: xr.DataArray) -> Callable[[], dict[str, object]]:
    return lambda: {
        "series": there(line(f"head {head}", seen, _floats(of.sel(ablation=head))) for head in of["ablation"].values)
    }
