"""Tables in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from rich import box
from rich.table import Column, Table

from icl_fast.analysis import JointPCA, Thresholds, gained_inside, head_types, loss_bump
from icl_fast.analysis.ablation_changes import ablation_changes
from icl_fast.analysis.arrays import unablated
from icl_fast.analysis.phase_change import MAX_ABRUPTNESS, MIN_DROP, MIN_EVIDENCE, MIN_PREFIX_MATCHING
from icl_fast.cli.console import Cell, echo, number, print_table
from icl_fast.cli.measure_tables import print_strategies
from icl_fast.measure.ablation import UNABLATED
from icl_fast.measure.ablation.device_speed import measure_speed
from icl_fast.measure.ablation.options import DTYPES
from icl_fast.measure.store import json_attribute
from icl_fast.memory import in_units
from icl_fast.report.study import counted_by

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from icl_fast.analysis import PhaseChange
    from icl_fast.measure.ablation import PlannedSweep
    from icl_fast.report.study import Study
    from icl_fast.studies.demo import DemoResult

_LONGEST = 200  # characters of an attribute


def print_ablations(results: xr.Dataset, *, most: int = 40) -> None:
    """What each ablation did at the last snapshot of a sweep: to the loss and, if it is there, to the ICL score."""
    last = results.isel(snapshot=-1)
    changes = ablation_changes(last) if last.sizes["ablation"] > 1 else None
    if "loss" in last:
        shown = {"loss": (last["loss"].mean("example"), "loss", None)}
        if "icl_score" in last:
            shown["ICL score"] = (last["icl_score"], "icl_score", None)
    else:
        some = last["position"].values[:4]
        shown = {f"loss at {int(p)}": (last["position_loss"].sel(position=p), "position_loss", p) for p in some}
    table = Table("ablation", title=f"step {int(last['snapshot'])}, nats per token")
    for name in shown:
        table.add_column(name, justify="right")
        table.add_column(f"change of {name}", justify="right")
    names = last["ablation"].values
    if len(names) > most + 1:  # whole model first, which nothing changes: then those that change the most
        first = next(iter(shown.values()))[0]
        change = np.abs(first.values - float(first.sel(ablation=UNABLATED)))
        change[names == UNABLATED] = np.inf
        names = names[np.argsort(-change, kind="stable")[: most + 1]]
    for ablation in names:
        row = [str(ablation)]
        for values, variable, position in shown.values():
            row.append(number(values.sel(ablation=ablation), ".4f"))
            if changes is None or ablation == UNABLATED:
                row.append(Cell("", None))
                continue
            of = changes.sel(ablation=ablation)
            of = of if position is None else of.sel(position=position)
            row.append(number(of[f"{variable}_change"], "+.4f", of[f"{variable}_change_sem"]))
        table.add_row(*row)
    print_table(table)
    if (more := last.sizes["ablation"] - 1 - most) > 0:
        echo(f"… and {more} more, which change it less, in the results")
    if "icl_score" in last:
        echo(f"ICL score: {last['icl_score'].attrs['long_name']}")
    if changes is not None:
        echo("±: standard error of the change, paired by example; a change of less than two of them may be none")
        if "icl_score" in last:
            echo(f"removing these raises the ICL score most: {_raising(changes)}")


def _raising(changes: xr.Dataset, most: int = 3) -> str:
    """The ablations that raise the ICL score most, of those that do by more than two standard errors."""
    change, error = changes["icl_score_change"], changes["icl_score_change_sem"]
    sure = change.where(change > 2 * error, drop=True)
    strongest = sure.sortby(sure, ascending=False)[:most]
    shown = (
        f"{name} by {number(value, '+.3f', error.sel(ablation=name))}"
        for name, value in zip(strongest["ablation"].values, strongest.values, strict=True)
    )
    return ", ".join(shown) or "no head (by more than two standard errors)"


def print_head_scores(results: xr.Dataset, width: int, *, most: int = 40) -> None:
    """The heads of the last snapshot that `evaluate` measured, best prefix matching first, and what was left out.

    Args:
        width: of the model.
    """
    titles = {
        "prefix matching": "prefix_matching",
        "copying": "copying",
        "previous token": "previous_token",
        "QK trace": "qk_trace",
        "OV copying": "ov_copying",
    }
    last = results.isel(snapshot=-1)
    columns = {name: last[name].values for name in titles.values()}
    limits = Thresholds().for_width(width)
    types = head_types(columns["previous_token"], columns["prefix_matching"], columns["copying"], limits)
    table = Table(
        "head",
        "type",
        *(Column(title, justify="right") for title in titles),
        box=box.SIMPLE,
        title=f"step {int(last['snapshot'])}",
    )
    order = np.argsort(-columns["prefix_matching"], axis=None, kind="stable")
    for layer, head in zip(*np.unravel_index(order[:most], types.types.shape), strict=True):
        values = [of_all[layer, head] for of_all in columns.values()]
        numbers = (number(value, ".3f") for value in values)
        table.add_row(f"{layer}.{head}", str(types.types[layer, head]), *numbers)
    print_table(table)
    if (more := types.types.size - most) > 0:
        echo(f"… and {more} more in the results")
    echo(f"type: {types.thresholds}")
    said: dict[str, list[str]] = {}
    for name, why in json_attribute(results, "undefined").items():
        said.setdefault(why, []).append(next((title for title in titles if titles[title] == name), name))
    for why, names in said.items():
        echo(f"{', '.join(names)}: undefined because {why}")
    for step, why in json_attribute(results, "left_out").items():
        echo(f"left out: step {step}, {why}")


def print_idealised(results: xr.Dataset, *, most: int = 40) -> None:
    """The heads of the last snapshot that do most for the loss, and how much of that each idealised pattern keeps."""
    last = results.isel(snapshot=-1)
    names = [str(name) for name in last["pattern"].values]
    titles = ("head", "effect, nats", *(f"kept by {name}" for name in names))
    table = Table(
        *(Column(title, justify="right") for title in titles), box=box.SIMPLE, title=f"step {int(last.snapshot)}"
    )
    effect = last["effect"].values
    for layer, head in zip(*np.unravel_index(np.argsort(-effect, axis=None)[:most], effect.shape), strict=True):
        of = last.isel(layer=layer, head=head)
        row = [number(of["effect"], ".4f", of["effect_sem"])]
        row += map(number, of["recovered"].values, len(names) * [".2f"], of["recovered_sem"].values)
        table.add_row(f"{layer}.{head}", *row)
    print_table(table)
    if (more := effect.size - most) > 0:
        echo(f"… and {more} more, which do less, in the results")
    echo("effect: loss without the head less that of the whole model; kept: 1 as by its own pattern, 0 as without it")


def print_templates(results: xr.Dataset, *, most: int = 10) -> None:
    """Accuracy on the template task at the last snapshot, and the heads that attend most to the right labels."""
    last = results.isel(snapshot=-1)
    right = last["right"].values
    accuracy = number(last["accuracy"], ".3f", last["accuracy_sem"])
    echo(
        f"step {int(last['snapshot'])}: accuracy {accuracy}, by a guess {results.attrs['chance']:.3f}",
        facts={"accuracy": accuracy, "accuracy standard error": accuracy.error, "chance": results.attrs["chance"]},
    )
    titles = ("head", "attention to right labels", "to wrong ones")
    table = Table(*(Column(title, justify="right") for title in titles), box=box.SIMPLE)
    for layer, head in zip(*np.unravel_index(np.argsort(-right, axis=None)[:most], right.shape), strict=True):
        of = last.isel(layer=layer, head=head)
        row = (number(of[name], ".3f", of[f"{name}_sem"]) for name in ("right", "wrong"))
        table.add_row(f"{layer}.{head}", *row)
    print_table(table)
    echo(f"to the right ones if all labels were alike, and nothing else attended to: {results.attrs['blind']:.3f}")


def print_results(results: xr.Dataset, store: Path) -> None:
    """What a store holds: its dims, variables and attributes, and how it is opened."""
    sizes = {str(dim): size for dim, size in results.sizes.items()}
    echo(f"{store}: " + ", ".join(f"{size} {dim}" for dim, size in sizes.items()), facts={"sizes": sizes})
    table = Table("variable", "dims", "units", "what", box=box.SIMPLE)
    for name, values in {**results.data_vars, **results.coords}.items():
        said = (str(values.attrs.get(key, "")) for key in ("units", "long_name"))
        table.add_row(str(name), ", ".join(map(str, values.dims)), *said)
    print_table(table)
    for name, value in results.attrs.items():
        text = " ".join(str(value).split())
        echo(f"{name}: {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}", facts={str(name): value})
    echo(f"opened by: icl_fast.open_results({str(store)!r}), as an xarray Dataset; --csv and --netcdf are for others")


def print_pca(pca: JointPCA) -> None:
    """How much of the variance the components explain, and where each run begins and ends."""

    def point(of_one: np.ndarray) -> Cell:
        return Cell(", ".join(f"{value:+.2f}" for value in of_one), of_one.tolist())

    for component, (variance, part) in enumerate(
        zip(pca.explained_variance, pca.explained_variance_ratio, strict=True), start=1
    ):
        line = f"component {component}: {part:.1%} of the variance ({variance:.3g} nats²)"
        echo(line, facts={f"share of component {component}": float(part)})
    table = Table(
        "run",
        *(Column(name, justify="right") for name in ("snapshots", "first", "last")),
        box=box.SIMPLE,
        title="coordinates, nats",
    )
    for name, path in pca.coordinates.items():
        table.add_row(name, Cell(str(len(path)), len(path)), point(path[0]), point(path[-1]))
    print_table(table)


def print_plan(planned: PlannedSweep) -> None:
    """The stages of one chunk of examples, and what the whole sweep takes at the speed of this machine."""
    plan = planned.plan
    chunks, snapshots = -(-plan.examples // plan.chunk), len(planned.series.steps)
    echo(
        f"{len(plan.ablations)} ablations ({plan.mode}) of {snapshots} snapshots on {plan.examples} examples of "
        f"{planned.evaluation.inputs.shape[1]} tokens, losses at {plan.positions.rows_per_example} positions each"
    )
    if plan.engine == "definition":
        echo(f"by definition: {len(plan.ablations) + 1} passes of {plan.chunk} examples, {chunks} times")
        _print_streamed(planned, chunks * (len(plan.ablations) + 1))
        return
    on = torch.device(plan.device)
    schedule = plan.schedule(planned.config, planned.evaluation.inputs.shape[1])
    _print_streamed(planned, chunks * max(1, len(schedule.waves())))
    speed = measure_speed(on, DTYPES[plan.dtype])
    table = Table(
        "stage",
        *(Column(name, justify="right") for name in ("variants", "GFLOP", "MB", "ms")),
        box=box.SIMPLE,
        title=f"a chunk of {plan.chunk} examples, {plan.dtype}",
    )
    for stage in schedule.stages:
        numbers = (
            number(stage.flops / 1e9, ".2f"),
            number(stage.bytes / 1e6, ".0f"),
            number(speed.seconds(stage) * 1e3, ".1f"),
        )
        table.add_row(stage.name, Cell(str(stage.variants), stage.variants), *numbers)
    print_table(table)
    seconds, times = sum(map(speed.seconds, schedule.stages)), chunks * snapshots
    together = f", {schedule.variants} ablations at a time" if len(schedule.waves()) > 1 else ""
    echo(
        f"activations: about {schedule.bytes / 2**20:.0f} MiB of {plan.memory / 2**20:.0f} MiB{together}\n"
        f"on {on}, which multiplies {speed.flops / 1e9:.0f} GFLOP/s and copies {speed.bytes / 1e9:.1f} GB/s: at "
        f"least {seconds * 1e3:.0f} ms a chunk, {times} chunks, {seconds * times:.0f} s in all"
    )


def _print_streamed(planned: PlannedSweep, passes: int) -> None:
    """How often weights are read that do not stay in memory, if there are any: in every pass, and first to be checked.

    Args:
        passes: over all layers, of one snapshot.
    """
    if not planned.streamed:
        return
    passes += planned.plan.replacement == "mean" and -(-planned.plan.examples // planned.plan.chunk)
    times = len(planned.series.steps) * (1 + passes)
    echo(
        f"weights: {in_units(planned.streamed)} of a snapshot are streamed layer by layer, as they would take most of "
        f"the memory: read {times} times, {in_units(times * planned.streamed)} in all"
    )


_VERDICT = ("loss", "ICL score", "drop", "best head", "change")
_RULE = (
    f"change: yes if the fitted ICL score drops by {MIN_DROP} or more, the best head's prefix matching (in brackets) "
    f"ends at {MIN_PREFIX_MATCHING} or more, and a change whose end/begin is under {MAX_ABRUPTNESS:g} describes the "
    f"whole curve better than a smooth fall, with an evidence (difference of AICc) of {MIN_EVIDENCE:g} or more"
)
_FALL = ("begins", "ends", "end/begin", "if smooth", "evidence", "resampled")


def _verdict(sweep: xr.Dataset, matching: xr.DataArray, change: PhaseChange | None) -> tuple[Cell, ...]:
    """A model's `_VERDICT`; `matching` [layer, head] is of the last snapshot."""
    last, best = sweep.isel(snapshot=-1).sel(ablation=UNABLATED), matching.argmax(("layer", "head"))
    head = f"{int(best['layer'])}.{int(best['head'])}"
    verdict = "too few snapshots" if change is None else "yes" if change.happened else "no"
    if change is not None and change.happened and change.window is not None:
        verdict += ", " + _training(sweep, change.window)
    return (
        number(last["loss"].mean(), ".3f"),
        number(last["icl_score"], "+.3f", last["icl_score_sem"]),
        Cell("-", None) if change is None else _with_interval(change.drop, change.drop_interval, ".3f"),
        Cell(f"{head} ({float(matching.max()):.2f})", {"head": head, "prefix matching": float(matching.max())}),
        Cell(verdict, None if change is None else {"happened": change.happened, "steps": change.window}),
    )


def _with_interval(value: float, interval: tuple[float, float] | None, form: str) -> Cell:
    shown = "" if interval is None else f" ({interval[0]:{form}}-{interval[1]:{form}})"
    return Cell(f"{value:{form}}{shown}", {"value": value, "interval": interval})


def _fall(sweep: xr.Dataset, change: PhaseChange | None) -> tuple[Cell, ...]:
    """A model's `_FALL`; empty where its score does not fall."""
    if (
        change is None
        or change.window is None
        or change.start_interval is None
        or change.end_interval is None
        or change.abruptness is None
    ):
        return ()
    assert change.abruptness is not None  # there is one where there is a window
    begins, ends = (
        Cell(f"{_training(sweep, (at,))} ({_training(sweep, interval)})", {"step": at, "interval": interval})
        for at, interval in zip(change.window, (change.start_interval, change.end_interval), strict=True)
    )
    return (
        begins,
        ends,
        _with_interval(change.abruptness, change.abruptness_interval or (np.nan, np.nan), ".1f"),
        Cell("-", None) if change.smooth_abruptness is None else number(change.smooth_abruptness, ".1f"),
        number(change.evidence, ".0f"),
        Cell(f"{change.support:.0%} yes", change.support),
    )


def _inside(name: str, sweep: xr.Dataset, change: PhaseChange | None) -> None:
    """What happens in a model's change: how much of the last ICL score it brings, and whether the loss falls faster."""
    if change is None or not change.happened or change.window is None or change.start is None or change.end is None:
        return
    gained = gained_inside(unablated("sweep", sweep, "icl_score").values.tolist(), change.start, change.end)
    losses = unablated("sweep", sweep, "loss").mean("example").values
    bump = loss_bump(sweep["snapshot"].values.tolist(), losses.tolist(), change.window)
    slopes = ", ".join("too few snapshots" if np.isnan(of[0]) else f"{of[0]:.2f}±{of[1]:.2f}" for of in bump.slopes)
    echo(
        f"{name}: {gained:.0%} of the last ICL score is gained in the change; d loss / d ln(step) before, in and after "
        f"it: {slopes}" + ", a bump" * bump.steeper
    )


def _training(sweep: xr.Dataset, steps: Sequence[float]) -> str:
    """Steps as the table counts training: `0.6-4.6M` tokens, or `step 300-2400`."""
    if counted_by([sweep]) == "steps":
        return "step " + "-".join(f"{step:.0f}" for step in steps)
    tokens = np.interp(steps, sweep["snapshot"].values, sweep["tokens"].values) / 1e6
    return "-".join(f"{at:.1f}" for at in tokens) + "M"


def _print_falls(models: Mapping[str, tuple[xr.Dataset, PhaseChange | None]]) -> None:
    """Where each model's ICL score falls, with the intervals of `icl_fast.analysis.phase_change`."""
    rows = {name: row for name, (sweep, change) in models.items() if (row := _fall(sweep, change))}
    if not rows:
        return
    table = Table(
        "model",
        *(Column(name, justify="right") for name in _FALL),
        box=box.SIMPLE,
        pad_edge=False,
        title="the fall of the ICL score, begun at 10% and ended at 90% of the fit (95% intervals)",
    )
    for name, row in rows.items():
        table.add_row(name, *row)
    print_table(table)
    drawn = {change.resampled for _, change in models.values() if change is not None}
    echo(f"intervals: over {' or '.join(sorted(drawn))}")
    for name, (sweep, change) in models.items():
        _inside(name, sweep, change)


def print_study(study: Study) -> None:
    """What a report found: a row a model, each run on exemplars by evaluator, what was left out."""
    from icl_fast.report.panels.builders import icl_definition  # here: other tables do without what it needs

    if study.models:
        print_table(_verdicts(study))
        _print_falls({name: (model.losses, model.change) for name, model in study.models.items()})
        echo(f"ICL score: {'; '.join(dict.fromkeys(map(icl_definition, study.models.values())))}")
        echo(_RULE)
        for name, model in study.models.items():
            for one in model.curiosities:
                where = f"head {one.head[0]}.{one.head[1]}" if one.head else f"step {one.step}"
                echo(f"{name}: {one.kind}, {where}: {one.what}")
        if not any(model.curiosities for model in study.models.values()):
            echo("no loss spikes and no odd heads (Unexplained Curiosities)")
    for name, exemplars in study.exemplars.items():
        echo(name)
        print_strategies(exemplars.strategies)
    left_out = {name: model.left_out for name, model in study.models.items()}
    left_out |= {name: exemplars.left_out for name, exemplars in study.exemplars.items()}
    for name, model in study.models.items():
        for note in model.notes:
            echo(f"{name}: {note}")
    for name, reasons in left_out.items():
        for step, reason in reasons.items():
            echo(f"{name}: step {step} left out: {reason}")


def _verdicts(study: Study) -> Table:
    table = Table(
        "model",
        *(Column(name, justify="right") for name in _VERDICT),
        box=box.SIMPLE,
        pad_edge=False,
        title="what was found (losses in nats per token)",
    )
    for name, model in study.models.items():
        matching = model.heads["prefix_matching"].isel(snapshot=-1)
        table.add_row(name, *_verdict(model.losses, matching, model.change))
    return table


def print_demo(result: DemoResult) -> None:
    """What the demo found: a row a model, the rule, and the heads that carry the ICL score."""
    table = Table(
        "model",
        *(Column(name, justify="right") for name in _VERDICT),
        box=box.SIMPLE,
        pad_edge=False,
        title=f"seed {result.seed}: what was found (losses in nats per token)",
    )
    for name, data in result.models.items():
        matching = data["prefix_matching"].isel(snapshot=-1).rename(layer_="layer", head_="head")
        table.add_row(name, *_verdict(data, matching, result.changes[name]))
    print_table(table)
    _print_falls({name: (data, result.changes[name]) for name, data in result.models.items()})
    echo(_RULE)
    for name, data in result.models.items():
        if data.sizes["ablation"] > 1:
            raising = _raising(ablation_changes(data.isel(snapshot=-1)))
            echo(f"{name}: removing these heads raises the ICL score most: {raising}")
