"""Curves of the exemplar world over training: Singh 2025, Figures 2.2 to 2.7, 3.2 to 3.10, 4.3 to 4.9, 5.1 to 5.11."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_fast.report.colours import EVALUATORS, MODELS
from icl_fast.report.draw.axes import end_at_data, label_axes, legend_beside, legend_of_row, plain
from icl_fast.report.draw.figures import save_figure

_SEQUENCES = "training sequences (millions)"
FACET = " | "  # in a member's name: what comes before it is a line, what comes after it a panel
_MOST_NAMED = 12  # lines that a legend names


def draw_curves(curves: xr.Dataset, title: str, pairs: int, path: Path) -> Path:
    """Draw what was measured during training as PNG and SVG: one run, a population, or a grid of runs.

    Args:
        curves: of `training_curves`.
        title, pairs: as in `run_figure`.
        path: of the files, without a suffix.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    names = [str(name) for name in curves["member"].values]
    if len(names) == 1:
        figure = run_figure(curves.isel(member=0), title, pairs)
    elif all(FACET in name for name in _settings(curves)):
        figure = facet_figure(curves, title, pairs)
    else:
        figure = population_figure(curves, title, pairs)
    return save_figure(figure, path)[0]


def run_figure(curves: xr.Dataset, title: str, pairs: int) -> Figure:
    """One run: losses, accuracies by evaluator, and what the heads of the first and last layer, if any, attend to.

    Where labels are fixed, the loss on every evaluator too.

    Args:
        curves: of `training_curves`, one member.
        title: over the figure.
        pairs: n, which gives the loss of guessing one of the labels in context.
    """
    attends, fixed_labels = "layer" in curves.sizes, "ciwl" in curves["evaluator"].values
    rows = 1 + attends + fixed_labels
    figure = Figure(figsize=(17, 4.2 * rows), layout="constrained")
    figure.suptitle(_title(title, curves))
    parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    axes = [part.subplots(1, 3) for part in parts]
    _loss(axes[0][0], curves, pairs)
    _accuracies(axes[0][1], curves, "accuracy_in_context", "Accuracy among the labels in context", 1 / pairs)
    _accuracies(axes[0][2], curves, "accuracy", "Accuracy among all outputs", None)
    legend_of_row(parts[0], axes[0])
    if attends:
        _attention(axes[1], curves)
        legend_of_row(parts[1], axes[1][:1], title="head")
    if fixed_labels:  # Fig 5.9b
        _by_evaluator(axes[-1][0], curves, "loss", "Loss by evaluator", "nats")
        axes[-1][0].set_ylim(bottom=0)
        for axis in axes[-1][1:]:
            axis.set_axis_off()
        legend_of_row(parts[-1], axes[-1][:1])
    return figure


def _attention(axes: Sequence[Axes], curves: xr.Dataset) -> None:
    """What the heads of the first and the last layer attend to, a panel for each kind of strength."""
    shown = "flip" if "flip" in curves["evaluator"] else "train"
    last = curves.sizes["layer"] - 1
    measured = (
        ("induction", last, "attention of the query to right less wrong labels"),
        ("previous_token", 0, "attention of labels to the exemplar before"),
        ("own", 0, "attention of labels to themselves"),
    )
    for axis, (metric, layer, what) in zip(axes, measured, strict=True):
        values = curves[metric].sel(evaluator=shown).isel(layer=layer)
        for head in range(curves.sizes["head"]):
            axis.plot(_millions(curves), values.isel(head=head), color=MODELS[head % 8], label=str(head), lw=1.4)
        label_axes(axis, f"Heads of layer {layer}, on {shown}:\n{what}", _SEQUENCES, "attention")


def population_figure(curves: xr.Dataset, title: str, pairs: int) -> Figure:
    """Several runs: their training losses, and each evaluator's accuracy, a line a member.

    Seeds of one setting are one line, their mean, with a band of one standard deviation (Singh 2025, 3.2.2).
    """
    names = [name for name in EVALUATORS if name in curves["evaluator"].values and name != "train"]
    panels = 1 + len(names)
    columns = 2 if panels == 4 else min(3, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * rows), layout="constrained")
    figure.suptitle(_title(title, curves))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    _member_losses(axes[0], curves, "Training loss", pairs)
    if len(_settings(curves)) <= _MOST_NAMED:
        legend_of_row(figure, axes[:1])
    for axis, name in zip(axes[1:], names, strict=False):
        answered = bool(np.isfinite(curves["accuracy_in_context"].sel(evaluator=name)).any())
        metric = "accuracy_in_context" if answered else "accuracy"
        _draw(axis, _millions(curves), curves[metric].sel(evaluator=name))
        where = "among the labels in context" if answered else "among all outputs"
        label_axes(axis, f"{name}:\naccuracy {where}", _SEQUENCES, "accuracy")
        end_at_data(axis)
    for axis in axes[1 + len(names) :]:
        axis.set_axis_off()
    return figure


def facet_figure(curves: xr.Dataset, title: str, pairs: int) -> Figure:
    """A grid of runs (Figure 4.9): a panel for what comes after ` | ` in the members' names, a line for what is before.

    Members whose names begin with another word, such as "classes" and "labels", are another row.
    """
    of_member = [str(name) for name in curves["setting"].values]
    rows = list(dict.fromkeys(name.split()[0] for name in of_member))
    columns = list(dict.fromkeys(name.split(FACET)[1] for name in of_member))
    figure = Figure(figsize=(4.4 * len(columns), 3.6 * len(rows) + 0.4), layout="constrained")
    figure.suptitle(_title(title, curves))
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            chosen = [k for k, name in enumerate(of_member) if (name.split()[0], name.split(FACET)[1]) == (row, column)]
            named = "member", [of_member[k].split(FACET)[0] for k in chosen]
            _member_losses(axes[i, j], curves.isel(member=chosen).assign_coords(setting=named), column, pairs)
        if len(chosen) <= _MOST_NAMED:  # the same lines in all panels of the row
            legend_beside(axes[i, -1])
    return figure


def strategies_figure(results: xr.Dataset, title: str, pairs: int) -> Figure:
    """One run's snapshots under some clamps (progress measures, Figure 4.8) or with grafts (5.6b, c).

    Args:
        results: of `icl_fast.measure.measure_strategies`, one member.
    """
    clamps = list(results["clamp"].values)
    figure = Figure(figsize=(5 * (1 + len(clamps)), 4.2), layout="constrained")
    figure.suptitle(plain(title))
    axes = figure.subplots(1, 1 + len(clamps), squeeze=False)[0]
    named = "train" if "train" in results["evaluator"].values else results["evaluator"].values[0]
    for number, clamp in enumerate(clamps):
        loss = results["loss"].sel(clamp=clamp, evaluator=named)
        axes[0].plot(_millions(results), loss, color=MODELS[number % 8], label=str(clamp))
    _guessing(axes[0], pairs)
    label_axes(axes[0], f"Loss of every snapshot ({named})", _SEQUENCES, "nats")
    axes[0].set_ylim(bottom=0)
    legend_beside(axes[0])
    for axis, clamp in zip(axes[1:], clamps, strict=True):
        _accuracies(axis, results.sel(clamp=clamp), "accuracy_in_context", f"{clamp}: accuracy in context", 1 / pairs)
    legend_beside(axes[-1])
    return figure


def _title(run: str, curves: xr.Dataset) -> str:
    members, sequences = curves.sizes.get("member", 1), int(curves["sequences"][-1])
    return f"{plain(run)}: {f'{members} trainings of' if members > 1 else 'trained on'} {sequences:,} sequences"


def _loss(axis: Axes, curves: xr.Dataset, pairs: int) -> None:
    axis.plot(curves["logged_sequences"] / 1e6, curves["training_loss"], color=EVALUATORS["train"], lw=1, label="train")
    for name in ("held-out-classes", "held-out-label-pairs", "held-out-exemplars"):
        if name in curves["evaluator"].values:
            axis.plot(_millions(curves), curves["loss"].sel(evaluator=name), color=EVALUATORS[name], label=name)
    _guessing(axis, pairs)
    label_axes(axis, "Loss", _SEQUENCES, "nats")
    axis.set_ylim(bottom=0)


def _accuracies(axis: Axes, curves: xr.Dataset, metric: str, title: str, chance: float | None) -> None:
    _by_evaluator(axis, curves, metric, title, "accuracy")
    if chance is not None:
        axis.axhline(chance, color="0.6", lw=0.8, ls=":", label="chance")
    end_at_data(axis)


def _by_evaluator(axis: Axes, curves: xr.Dataset, metric: str, title: str, unit: str) -> None:
    for name, colour in EVALUATORS.items():
        if name not in curves["evaluator"].values:
            continue
        values = curves[metric].sel(evaluator=name)
        if bool(np.isfinite(values).any()):
            axis.plot(_millions(curves), values, color=colour, label=name)
    label_axes(axis, title, _SEQUENCES, unit)


def _member_losses(axis: Axes, curves: xr.Dataset, title: str, pairs: int) -> None:
    _draw(axis, curves["logged_sequences"] / 1e6, curves["training_loss"], named=True)
    _guessing(axis, pairs)
    label_axes(axis, title, _SEQUENCES, "nats")
    axis.set_ylim(bottom=0)


def _settings(data: xr.Dataset | xr.DataArray) -> dict[str, list[int]]:
    """The members of each setting."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(data["setting"].values):
        found.setdefault(str(name), []).append(number)
    return found


def _draw(axis: Axes, x: xr.DataArray, values: xr.DataArray, *, named: bool = False) -> None:
    """A line a setting: of one member; of several seeds their mean, with a band of one standard deviation.

    Args:
        values: `[time, member]`.
    """
    settings = _settings(values)
    width = 0.6 if len(settings) > _MOST_NAMED else 1.4
    for i, (name, members) in enumerate(settings.items()):
        colour, of_seeds = MODELS[i % 8], values.isel(member=members)
        mean = of_seeds.mean("member", skipna=False)
        axis.plot(x, mean, color=colour, ls=("-", "--")[i // 8 % 2], lw=width, label=plain(name) if named else None)
        if len(members) > 1:
            deviation = of_seeds.std("member", ddof=1, skipna=False)
            axis.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)


def _guessing(axis: Axes, pairs: int) -> None:
    if pairs > 1:
        axis.axhline(math.log(pairs), color="0.6", lw=0.8, ls=":", label=f"log {pairs}: a guess")


def _millions(curves: xr.Dataset) -> xr.DataArray:
    return curves["sequences"] / 1e6
