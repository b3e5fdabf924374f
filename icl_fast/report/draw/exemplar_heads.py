"""Figures of what the heads of one snapshot do, like Figures 4.5a, 5.3, 5.4, C.1 and C.3 of Singh's thesis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from icl_fast.report.colours import MODELS
from icl_fast.report.draw.axes import colour_bar, end_at_data, label_axes, label_points, legend_beside, plain
from icl_fast.report.draw.figures import save_figure

_MOST_LABELS = 20  # that a panel of labels has room for
_MOST_POINTS = 2000

Floats = NDArray[np.float64]


def draw_wiring(found: xr.Dataset, member: int, path: Path) -> list[Path]:
    """Draw `measure_wiring` of one member as PNG and SVG (Fig C.3).

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    one = found.isel(member=member)
    figure = Figure(figsize=(14, 7.6), layout="constrained")
    figure.suptitle(
        f"{plain(one['member'].item())}: wiring at step {one.attrs['step']:,}, {one.attrs['evaluator']} sequences"
    )
    axes = figure.subplots(2, 3)
    for row, preserve in zip(axes, one["preserve"].values, strict=True):
        accuracy = one["accuracy"].sel(preserve=preserve)
        change = accuracy.sel(kind="single") - one["accuracy_alone"]
        way = "patterns (values preserved)" if preserve == "value-preserving" else "values (patterns preserved)"
        most = float(np.abs(change).max()) or 1.0
        _map(
            row[0],
            change,
            f"Change of accuracy without it,\nby way of {way}",
            "change of accuracy",
            "RdBu",
            (-most, most),
        )
        _map(
            row[1],
            accuracy.sel(kind="single-pair"),
            f"Accuracy with it alone,\nby way of {way}",
            "accuracy",
            "viridis",
            (0, 1),
        )
    for axis, matrix in zip(axes[:, 2], ("k", "v"), strict=True):
        scores = one["composition"].sel(matrix=matrix)
        limits = float(scores.min()), float(scores.max())
        _map(axis, scores, f"Composition score with {matrix.upper()}", "score", "viridis", limits)
    return save_figure(figure, path)


def draw_heads(found: xr.Dataset, member: int, path: Path) -> list[Path]:
    """Draw what `icl_fast.studies.exemplar_heads.measure_heads` found of one member as PNG and SVG.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    one = found.isel(member=member)
    figure = Figure(figsize=(15, 16.4), layout="constrained")
    figure.suptitle(
        f"{plain(one['member'].item())}: heads of the last layer after {one.attrs['sequences']:,} sequences, "
        f"on {one.attrs['evaluator']}"
    )
    # rows laid out each on its own: long names in one take no room in the others
    axes = np.array([row.subplots(1, 3) for row in figure.subfigures(4, 1, squeeze=False)[:, 0]])
    _strength_panel(axes[0, 0], one)
    _residual_panel(axes[0, 1], one)
    perfect = one.sel(patterns="perfect")
    _label_panel(axes[0, 2], perfect["label_accuracy"])
    _mistakes_panel(axes[2, 2], perfect)
    for axis in axes[3, 1:]:
        axis.set_axis_off()
    _curves(axes[1, 0], one["forced_attention"])
    label_axes(
        axes[1, 0], "Each head alone, its attention forced", "attention to the right label", "accuracy in context"
    )
    for axis, name, what in (
        (axes[1, 1], "temperature_alone", "Each head alone"),
        (axes[1, 2], "temperature_among_all", "One head among all"),
    ):
        _curves(axis, one[name])
        axis.set_xscale("log", base=2)
        label_axes(axis, f"{what}, attending to labels only", "temperature", "accuracy in context")
    _query_panel(axes[2, 0], one["query"].values)
    _delta_panel(axes[2, 1], one["delta"].values, one["induction"].values)
    _path_panel(axes[3, 0], one)
    return save_figure(figure, path)


def draw_race(found: xr.Dataset, path: Path) -> list[Path]:
    """Draw what `icl_fast.studies.head_race.measure_race` found: a point a head, a colour a seed (Fig C.6).

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    names = [str(name) for name in found["against"].values]
    figure = Figure(figsize=(5 * len(names), 4.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, seed in enumerate(found["seed"].values):
            of_seed = found.sel(seed=seed)
            axis.plot(of_seed["induction"], of_seed[name], "o", color=MODELS[number % 8], label=f"seed {seed}")
        one = found.sel(against=name)
        title = f"r = {float(one['pearson']):.2f}, by ranks {float(one['spearman']):.2f}"
        label_axes(axis, title, "induction strength", name.replace("_", " "))
    legend_beside(axis)
    return save_figure(figure, path)


def _strength_panel(axis: Axes, one: xr.Dataset) -> None:
    strength = one["induction"].values
    alone, perfect = one["overall"].values
    for head in range(len(strength)):
        for values, marker in ((one["without"].values, "^"), (alone, "o"), (perfect, "s")):
            face = MODELS[head % 8] if marker != "s" else "none"
            axis.plot(strength[head], values[head], marker, color=MODELS[head % 8], markerfacecolor=face, markersize=6)
    end_at_data(axis)
    label_points(axis, strength, alone, [str(head) for head in range(len(strength))])
    for marker, face, label in (
        ("^", "0.4", "without it"),
        ("o", "0.4", "it alone"),
        ("s", "none", "alone, perfect pattern"),
    ):
        axis.plot([], [], marker, color="0.4", markerfacecolor=face, label=label)
    label_axes(axis, "Heads removed, kept alone, made perfect", "induction strength", "accuracy, all outputs")
    legend_beside(axis)


def _residual_panel(axis: Axes, one: xr.Dataset) -> None:
    """Tables C.1 and C.2 as bars: on what the best head gets wrong, and on everything."""
    heads = np.arange(one.sizes["head"])
    title = []
    for number, patterns in enumerate(one["patterns"].values):
        table = one.sel(patterns=patterns)
        for name, alpha in (("overall", 0.35), ("on_mistakes", 1.0)):
            label = f"{'perfect patterns' if number else patterns},\n{'on its mistakes' if alpha == 1 else 'on all'}"
            place = heads + (number - 0.5) * 0.4
            axis.bar(place, table[name].values, 0.36, color=MODELS[number], alpha=alpha, label=label)
        title.append(f"head {int(table['reference'])}, {int(table['mistakes']):,}")
    label_axes(
        axis, f"The best head's mistakes ({title[0]}; perfect: {title[1]})", "head alone", "accuracy, all outputs"
    )
    axis.set_xticks(heads)
    axis.set_ylim(0, 1.04)
    legend_beside(axis)


def _label_panel(axis: Axes, accuracy: xr.DataArray) -> None:
    if accuracy.sizes["label"] > _MOST_LABELS:
        axis.set_axis_off()
        text = f"{accuracy.sizes['label']:,} labels: no panel by label"
        axis.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    image = axis.imshow(accuracy.values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axis.set_title("Perfect patterns: accuracy by label", fontsize=10)
    axis.set_xlabel("label")
    axis.set_ylabel("head alone")
    colour_bar(axis, image, "accuracy")


def _mistakes_panel(axis: Axes, one: xr.Dataset) -> None:
    """The share of each label in a head's mistakes; heads are as opaque as they are strong (Fig C.1b)."""
    shares, strength = one["label_mistakes"].values, one["induction"].values
    if shares.shape[1] > _MOST_LABELS:
        axis.set_axis_off()
        axis.annotate(
            f"{shares.shape[1]:,} labels: no panel by label", (0.5, 0.5), xycoords="axes fraction", ha="center"
        )
        return
    for head, share in enumerate(shares):
        opacity = float(np.clip(strength[head], 0.1, 1.0))
        axis.plot(range(len(share)), share, "o-", color=MODELS[head % 8], alpha=opacity, label=str(head))
    label_axes(axis, "Perfect patterns: mistakes by label", "label", "share of the head's mistakes")
    axis.set_xticks(range(shares.shape[1]))
    legend_beside(axis, title="head alone")


def _query_panel(axis: Axes, query: Floats) -> None:
    """Mean attention of the query by position, `[H,n,T]`; a group of lines for each place of the right label."""
    for place in range(query.shape[1]):
        for head in range(len(query)):
            label = f"right label at {2 * place + 2}" if head == 0 else None
            style = ("-", "--", ":", "-.")[place % 4]
            axis.plot(range(1, query.shape[-1] + 1), query[head, place], style, color=MODELS[head % 8], label=label)
    label_axes(axis, "Attention of the query", "position", "attention")
    legend_beside(axis)


def _delta_panel(axis: Axes, deltas: Floats, strength: Floats) -> None:
    first, second = (int(head) for head in np.argsort(-strength)[:2])
    x, y = deltas[first, :_MOST_POINTS], deltas[second, :_MOST_POINTS]
    axis.plot(x, y, ".", markersize=2, alpha=0.4, color=MODELS[0])
    known = np.isfinite(x) & np.isfinite(y)
    correlation = np.corrcoef(x[known], y[known])[0, 1] if known.sum() > 2 else np.nan
    label_axes(axis, f"Right less wrong labels, by sequence (r = {correlation:.2f})", f"head {first}", f"head {second}")


def _path_panel(axis: Axes, one: xr.Dataset) -> None:
    """Bars of accuracy: connections to the output cut (4.3), compositions (5.5.3), the embedding's own path (5.4)."""
    values = one["path_accuracy"].values
    axis.barh(list(one["path"].values), values, color=MODELS[0])
    for number, value in enumerate(values):
        axis.annotate(f"{value:.3f}", (value, number), xytext=(3, -3), textcoords="offset points", fontsize=8)
    axis.axvline(1 / one.attrs["pairs"], color="0.6", lw=0.8, ls=":")
    label_axes(axis, "Paths", "accuracy in context", "")
    axis.set_xlim(0, 1.15)


def _curves(axis: Axes, curves: xr.DataArray) -> None:
    """A line a head, `[head, x]`."""
    x = curves[curves.dims[-1]].values
    for head, values in enumerate(curves.transpose("head", ...).values):
        axis.plot(x, values, color=MODELS[head % 8], label=str(head))
    legend_beside(axis, title="head")
    end_at_data(axis)


def _map(axis: Axes, values: xr.DataArray, title: str, unit: str, colours: str, limits: tuple[float, float]) -> None:
    shown = values.transpose("writer", "reader").values
    image = axis.imshow(shown, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    axis.set_title(title, fontsize=9)
    axis.set_xticks(range(shown.shape[1]), [str(name) for name in values["reader"].values])
    axis.set_yticks(range(shown.shape[0]), [str(name) for name in values["writer"].values])
    axis.set_xlabel("reader")
    axis.set_ylabel("writer")
    colour_bar(axis, image, unit)
