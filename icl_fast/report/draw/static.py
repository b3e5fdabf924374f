"""The static twins of a report's panels (matplotlib), for papers: every panel and the whole table, as PNG and SVG."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator

from icl_fast.analysis.arrays import Floats
from icl_fast.analysis.heads import MOST_OPAQUE
from icl_fast.report.colours import (
    BAND,
    DEPTH,
    DIVERGING,
    MARK,
    OTHERS,
    PHASE_CHANGE,
    SEQUENTIAL,
    TYPES,
    default_by,
    depth_colour,
    series_colours,
)
from icl_fast.report.draw.figures import save_figure
from icl_fast.report.panels.builders import PROGRESS, SEQUENCES
from icl_fast.report.panels.panel import Heatmap, Panel
from icl_fast.report.panels.table import ROWS
from icl_fast.report.study import Study

Drawn = TypeVar("Drawn", bound=Callable[..., Any])
_FAINT = 0.2
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^vP"
_MOST_NAMES = 20  # along an axis
_MOST_LISTED = 18  # series in a legend
_MOST_LAYERS = 8  # that a legend lists one by one
_STYLE: Any = {
    "text.parse_math": False,  # a model's name may hold $ signs
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
}


def _styled(function: Drawn) -> Drawn:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(_STYLE):
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


@_styled
def draw(panel: Panel, study: Study) -> Figure:
    """One panel as a figure, with its legend and its caption.

    Args:
        study: that the panel is of: it says how models and heads are coloured.
    """
    width, high = 7.4, 3.1  # inches
    names = panel.heatmap.y_names if panel.heatmap is not None else ()
    left = 0.55 + 0.075 * max(5, *map(len, names), 0)
    wide = 5.5 - left
    caption = _wrap(panel.caption, 125)
    title = _wrap(panel.title, 78)
    below, above = 0.62 + 0.145 * len(caption), 0.12 + 0.2 * len(title)
    height = below + high + above
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((left / width, below / height, wide / width, high / height))
    axis.set_title("\n".join(title), loc="left", fontweight="bold")
    figure.text(0.15 / width, 0.08 / height, "\n".join(caption), fontsize=7.5, color="#444444", va="bottom")
    _fill(axis, panel, series_colours(study, panel), detailed=True)
    if panel.heatmap is not None:
        beside = ((left + wide + 0.15) / width, below / height, 0.14 / width, high / height)
        _colour_bar(figure.add_axes(beside), panel.heatmap)
    elif handles := _legend(panel, study):
        axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, borderaxespad=0)
    return figure


@_styled
def draw_table(study: Study, panels: dict[str, list[Panel]]) -> Figure:
    """The whole Model Analysis Table: a column a model, nine rows, each explained at its left.

    Args:
        panels: as `table_panels` gives them.
    """
    wide, high, across, down = 2.35, 1.7, 0.5, 0.62  # inches: of a panel, and between two
    left, right, above, below = 3.95, 1.9, 1.3, 0.75
    columns = len(panels)
    width = left + columns * (wide + across) + right
    height = above + len(ROWS) * (high + down) + below
    figure = Figure(figsize=(width, height))
    figure.text(0.2 / width, 1 - 0.3 / height, study.title, fontsize=15, fontweight="bold", va="top")
    for index, row in enumerate(ROWS):
        bottom = height - above - index * (high + down) - high
        _row_text(
            figure, 0.2 / width, (bottom + high) / height, f"{index + 1}  {row.title}", row.explanation, row.reading
        )
        of_row = [of_model[index] for of_model in panels.values()]
        for column, (name, panel) in enumerate(zip(panels, of_row, strict=True)):
            at = left + column * (wide + across)
            axis = figure.add_axes((at / width, bottom / height, wide / width, high / height))
            _fill(axis, panel, series_colours(study, panel), detailed=False)
            if index == 0:
                axis.set_title(_column_title(study, name), loc="left", fontweight="bold", pad=12)
            # y is the same in the whole row, and x in all rows but the first
            axis.set_ylabel(panel.y_label if column == 0 else "", fontsize=8)
            labelled = index in (0, len(ROWS) - 1) or not panel.over_training
            axis.set_xlabel(panel.x_label if labelled else "", fontsize=8)
        at = left + columns * (wide + across) - across + 0.15
        shown = next((panel for panel in of_row if panel.absent is None), None)
        if shown is not None and shown.heatmap is not None:
            _colour_bar(figure.add_axes((at / width, bottom / height, 0.14 / width, high / height)), shown.heatmap)
        elif shown is not None:
            figure.legend(
                handles=_row_legend(of_row),
                loc="upper left",
                bbox_to_anchor=(at / width, (bottom + high) / height),
                frameon=False,
                borderaxespad=0,
            )
    counted = PROGRESS[next(iter(study.models.values())).progress]
    note = (
        f"x axis of rows 2 to 9: {counted}; of one snapshot, heads by layer. A faint band around a line: one standard "
        "error over examples. "
        "Rows 8 and 9: pattern-preserving ablation. After Olsson et al. 2022, Model Analysis Table."
    )
    wrapped = "\n".join(_wrap(note, int(15 * width)))
    figure.text(0.2 / width, 0.15 / height, wrapped, fontsize=8, color="#444444")
    return figure


def write_static(
    study: Study,
    table: dict[str, list[Panel]],
    groups: Sequence[tuple[str, list[Panel]]],
    folder: str | Path,
    on_figure: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write every panel of a report, and the whole table, as PNG and SVG; returns the files' paths.

    Files are named after the panels' keys, and `table` is the whole table; without models there is none.

    Args:
        study: what is reported on.
        table: by model, the rows of the Model Analysis Table.
        groups: (heading, panels) of each group of further figures, and of those of runs on exemplars.
        folder: where the files go.
        on_figure: called after every figure with how many are done and how many there are.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    panels = [panel for of_model in table.values() for panel in of_model]
    panels += [panel for _, of_group in groups for panel in of_group]
    figures: dict[str, Callable[[], Figure]] = {panel.key: functools.partial(draw, panel, study) for panel in panels}
    if study.models:
        figures["table"] = functools.partial(draw_table, study, table)
    written = []
    for done, (name, figure) in enumerate(figures.items(), start=1):
        written += save_figure(figure(), Path(folder) / name)
        if on_figure is not None:
            on_figure(done, len(figures))
    return written


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False)


def _column_title(study: Study, name: str) -> str:
    model = study.models[name]
    layers = "1 layer" if model.config.layers == 1 else f"{model.config.layers} layers"
    group = study.group_of(name)
    on = _wrap(f"on {group.text}, {group.context} tokens", 30)
    return "\n".join([*_wrap(name, 30), f"{layers}, {model.parameters:,} parameters", *on])


def _row_text(figure: Figure, x: float, y: float, title: str, explanation: str, reading: str) -> None:
    lines = _wrap(title, 34)
    figure.text(x, y, "\n".join(lines), fontsize=10, fontweight="bold", va="top")
    height = figure.get_figheight()
    y -= (0.17 * len(lines) + 0.05) / height
    lines = _wrap(explanation, 50)
    figure.text(x, y, "\n".join(lines), fontsize=7.5, va="top")
    y -= (0.128 * len(lines) + 0.06) / height
    figure.text(x, y, "\n".join(_wrap(reading, 50)), fontsize=7.5, color="#555555", style="italic", va="top")


def _fill(axis: Axes, panel: Panel, colours: Sequence[str], *, detailed: bool) -> None:
    """Draw a panel's content into axes."""
    if panel.absent is not None:
        axis.set_axis_off()
        text = "\n".join(_wrap(panel.absent, 62 if detailed else 36))
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=9 if detailed else 8, color="#666666")
        return
    _scales(axis, panel)
    if panel.heatmap is not None:
        _heatmap(axis, panel.heatmap, panel.log_x)
    {"lines": _lines, "path": _path, "points": _points, "heatmap": lambda *_: None}[panel.kind](axis, panel, colours)
    if panel.y_range is not None:
        axis.set_ylim(*panel.y_range)
    if panel.kind == "lines" and axis.get_ylim()[0] < 0 < axis.get_ylim()[1]:
        axis.axhline(0, color="#999999", lw=0.7, zorder=0.5)
    if panel.band is not None:
        # a change that begins before any training begins at the edge of a logarithmic axis
        limits = axis.get_xlim()
        start, end = (max(at, limits[0]) for at in panel.band) if panel.log_x else panel.band
        if panel.heatmap is None:
            axis.axvspan(start, end, color=BAND, alpha=0.18, lw=0, zorder=0)
        else:
            axis.vlines((start, end), 0, 1, transform=axis.get_xaxis_transform(), color=BAND, lw=1.2)
        axis.set_xlim(limits)
    axis.set_xlabel(panel.x_label if detailed else "")
    axis.set_ylabel(panel.y_label)


def _scales(axis: Axes, panel: Panel) -> None:
    for coordinate, log, label in (axis.xaxis, panel.log_x, panel.x_label), (axis.yaxis, panel.log_y, panel.y_label):
        if log:
            coordinate.axes.set(**{f"{coordinate.axis_name}scale": "log"})
            coordinate.set_major_locator(_Decades())
            coordinate.set_minor_locator(NullLocator())
        else:
            whole = label.startswith(("layer", "member"))
            coordinate.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole))
        if log or label in (*PROGRESS.values(), SEQUENCES):
            coordinate.set_major_formatter(lambda value, _: short(value))


class _Decades(Locator):
    """1, 2, 5 and so on over few decades, powers of ten over many."""

    def __call__(self) -> Any:
        return self.tick_values(*self.axis.get_view_interval())  # type: ignore[union-attr]

    def tick_values(self, vmin: float, vmax: float) -> Any:
        subs = (1.0, 2.0, 5.0) if vmax < 100 * vmin else (1.0,)
        return LogLocator(subs=subs, numticks=20).tick_values(vmin, vmax)


def short(value: float) -> str:
    """A number of tokens as 500, 20k, 1.5M, 2B."""
    for size, unit in (1e9, "B"), (1e6, "M"), (1e3, "k"):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _shown(panel: Panel, x: Floats, y: Floats) -> Any:
    """Which points an axis can show: a logarithmic one none at 0 or less."""
    return ((x > 0) | (not panel.log_x)) & ((y > 0) | (not panel.log_y))


def _lines(axis: Axes, panel: Panel, colours: Sequence[str]) -> None:
    heads = sum(series.head is not None for series in panel.series)
    many = len(panel.series) > 20
    width, opacity = (0.5, 0.6) if heads > MOST_OPAQUE else (0.9 if many else 1.4, 0.9)
    for series, colour, dashes in zip(panel.series, colours, _dashes(panel, colours), strict=True):
        shown = _shown(panel, series.x, series.y)
        x, y = series.x[shown], series.y[shown]
        alpha, order = (opacity, 2.2) if series.opaque else (_FAINT, 2)
        marker = "o" if len(x) <= 12 else ""
        axis.plot(x, y, dashes, color=colour, lw=width, alpha=alpha, zorder=order, marker=marker, ms=3)
        if series.error is not None and series.opaque and heads <= MOST_OPAQUE:
            error = series.error[shown]
            axis.fill_between(x, y - error, y + error, color=colour, alpha=0.08 if many else 0.18, lw=0, zorder=1.5)


def _dashes(panel: Panel, colours: Sequence[str]) -> list[str]:
    """Of each series: solid, and otherwise where there are more models than colours."""
    return [
        "-" if series.head is not None else _DASHES[list(colours[:index]).count(colour) % len(_DASHES)]
        for index, (series, colour) in enumerate(zip(panel.series, colours, strict=True))
    ]


def _path(axis: Axes, panel: Panel, colours: Sequence[str]) -> None:
    for series, colour in zip(panel.series, colours, strict=True):
        marked = series.label == PHASE_CHANGE
        order = 4 if marked else 3 if series.opaque else 2
        alpha = 1 if series.opaque else 0.45
        axis.plot(
            series.x, series.y, color=colour, lw=2.4 if marked else 1.3, alpha=alpha, zorder=order, marker=".", ms=4
        )
        if series.opaque and not marked:
            axis.plot(series.x[:1], series.y[:1], "o", mfc="white", mec=colour, ms=6, zorder=5)
            axis.plot(series.x[-1:], series.y[-1:], "s", color=colour, ms=6, zorder=5)


def _points(axis: Axes, panel: Panel, colours: Sequence[str]) -> None:
    of_heads = any(series.head is not None for series in panel.series)
    for index, (series, colour) in enumerate(zip(panel.series, colours, strict=True)):
        shown = _shown(panel, series.x, series.y)
        x, y = series.x[shown], series.y[shown]
        if series.error is not None and series.opaque:
            axis.vlines(x, y - series.error[shown], y + series.error[shown], color=colour, alpha=0.5, lw=1, zorder=1.5)
        if of_heads and series.head is None:
            axis.plot(x, y, "o", mfc="none", mec=colour, mew=1.4, ms=11, zorder=4)
        else:
            alpha = 0.85 if series.opaque else _FAINT
            marker = "o" if of_heads else _MARKERS[index % len(_MARKERS)]
            axis.plot(x, y, marker, color=colour, alpha=alpha, ms=6, mew=0, zorder=3 if series.opaque else 2)


def _heatmap(axis: Axes, of: Heatmap, log_x: bool) -> None:
    shown = (of.x > 0) | (not log_x)
    axis.pcolormesh(
        edges(of.x[shown], log_x),
        edges(of.y, False),
        of.z[:, shown],
        cmap=_colour_map(of),
        vmin=of.low,
        vmax=of.high,
        rasterized=True,  # a vector image of all cells takes megabytes
    )
    for coordinate, names in (axis.xaxis, of.x_names), (axis.yaxis, of.y_names):
        every = -(-len(names) // _MOST_NAMES)
        if names:
            coordinate.set_ticks(range(0, len(names), every), names[::every])


def edges(centres: Floats, log: bool) -> Floats:
    """[n + 1] where cells around [n] rising centres meet: half-way, on the axis that they are drawn on."""
    at = np.log(centres) if log else centres
    if len(at) == 1:
        at = np.array([at[0] - 0.5, at[0] + 0.5])
    else:
        between = (at[1:] + at[:-1]) / 2
        at = np.concatenate([[2 * at[0] - between[0]], between, [2 * at[-1] - between[-1]]])
    ends: Floats = np.exp(at) if log else at
    return ends


def _colour_map(of: Heatmap) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list(of.scale, DIVERGING if of.scale == "diverging" else SEQUENTIAL)


def _colour_bar(axis: Axes, of: Heatmap) -> None:
    mappable = ScalarMappable(Normalize(of.low, of.high), _colour_map(of))
    bar = axis.figure.colorbar(mappable, cax=axis, extend="both")
    bar.outline.set_visible(False)
    bar.set_label(of.units, fontsize=8)


def _legend(panel: Panel, study: Study) -> list[Artist]:
    """What a panel's colours mean."""
    if panel.absent is not None:
        return []
    handles: list[Artist] = []
    marker = "o" if panel.kind == "points" else ""
    if names := {series.model for series in panel.series if series.head is not None and series.model is not None}:
        layers = max(study.models[name].config.layers for name in names)
        if default_by(panel) == "type":
            found = {str(kind) for name in names for kind in study.models[name].types.types.ravel()}
            handles += [_handle(kind, colour, marker) for kind, colour in TYPES.items() if kind in found]
        else:
            listed = range(layers) if layers <= _MOST_LAYERS else (0, layers // 2, layers - 1)
            handles += [_handle(f"layer {layer}", depth_colour(layer, layers), marker) for layer in listed]
        handles += [_ring(series.label) for series in panel.series if series.head is None]
    else:
        colours = series_colours(study, panel)
        looks = list(zip(panel.series, _dashes(panel, colours), strict=True))
        for index, (series, dashes) in enumerate(looks[:_MOST_LISTED]):
            if series.opaque:
                shape = _MARKERS[index % len(_MARKERS)] if marker else ""
                handles.append(_handle("\n".join(_wrap(series.label, 24)), colours[index], shape, dashes))
        if (more := len(looks) - _MOST_LISTED) > 0:
            handles.append(Line2D([], [], ls="", label=f"and {more} more"))
    if panel.kind == "path":
        handles += _path_ends()
    return handles + _common(panel)


def _row_legend(panels: Sequence[Panel]) -> list[Artist]:
    """The same for a row of the table."""
    shown = [panel for panel in panels if panel.absent is None]
    marker = "o" if all(panel.kind == "points" for panel in shown) else ""
    handles: list[Artist] = []
    if any(series.head is not None for panel in shown for series in panel.series):
        if default_by(shown[0]) == "type":
            handles += [_handle(kind, colour, marker) for kind, colour in TYPES.items()]
        else:
            names = ("first layer", "early layer", "late layer", "last layer")
            handles += [_handle(name, colour, marker) for name, colour in zip(names, DEPTH, strict=True)]
    if shown[0].kind == "path":
        handles += [*_path_ends(), _handle(PHASE_CHANGE, BAND, "")]
    if any(not series.opaque for panel in shown for series in panel.series) and shown[0].kind == "path":
        handles.append(_handle("the other models", OTHERS, ""))
    banded = next((panel for panel in shown if panel.band is not None), shown[0])
    return handles + _common(banded)


def _common(panel: Panel) -> list[Artist]:
    handles: list[Artist] = []
    if panel.kind != "path" and any(not series.opaque for series in panel.series):
        handles.append(Line2D([], [], color=MARK, alpha=_FAINT, lw=3, label="faint: not in the sample"))
    if panel.band is not None:
        handles.append(Patch(color=BAND, alpha=0.3, lw=0, label=PHASE_CHANGE))
    return handles


def _path_ends() -> list[Artist]:
    return [
        Line2D([], [], ls="", marker="o", mfc="white", mec=MARK, label="start of training"),
        Line2D([], [], ls="", marker="s", color=MARK, label="end of training"),
    ]


def _handle(label: str, colour: str, marker: str, dashes: str = "-") -> Line2D:
    style: dict[str, Any] = {"ls": "", "marker": marker} if marker else {"ls": dashes, "lw": 2}
    return Line2D([], [], color=colour, label=label, **style)


def _ring(label: str) -> Line2D:
    return Line2D([], [], ls="", marker="o", mfc="none", mec=MARK, mew=1.4, ms=9, label="\n".join(_wrap(label, 24)))
