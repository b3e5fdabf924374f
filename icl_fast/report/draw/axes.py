"""How the axes of static figures look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.image import AxesImage

from icl_fast.analysis.arrays import Floats

_LABEL = np.array([0.045, 0.055])  # size of a short label, as parts of the axes


def plain(name: str) -> str:
    """The name of a run or a member in matplotlib: `$` is no formula, a leading `_` hides it from no legend."""
    shown = name.encode("utf-8", "replace").decode().replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{shown}" if shown.startswith("_") else shown


def label_axes(axis: Axes, title: str, x: str, y: str) -> None:
    """A title and labels, with units; no frame above and at the right."""
    axis.set_title(plain(title), fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)


def legend_beside(axis: Axes, **options: Any) -> None:
    """A legend at the right of the axes, where it lies over no line."""
    style: dict[str, Any] = {"frameon": False, "fontsize": 8, "loc": "upper left", "borderaxespad": 0}
    axis.legend(**style | {"bbox_to_anchor": (1.02, 1.0)} | options)


def legend_of_row(figure: FigureBase, axes: Iterable[Axes], **options: Any) -> None:
    """One legend for axes that show the same things, at the right of their figure."""
    known = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    style: dict[str, Any] = {"frameon": False, "fontsize": 8, "loc": "outside right upper"}
    figure.legend(known.values(), known.keys(), **style | options)


def end_at_data(axis: Axes, also: Iterable[float] = ()) -> None:
    """Let the y axis end a little beyond what its lines show, and beyond the values of `also`."""
    shown = [np.asarray(line.get_ydata(), float) for line in axis.get_lines()]
    values = np.concatenate([*shown, list(also)])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.04 * (high - low) or 0.05
    axis.set_ylim(low - margin, high + margin)


def label_points(axis: Axes, x: Floats, y: Floats, names: Sequence[str]) -> None:
    """Names beside points, each where it lies over none that is there already; the limits of the axes are set."""
    sizes = np.array([np.ptp(axis.get_xlim()), np.ptp(axis.get_ylim())]) * _LABEL
    around = [(right, up) for far in (1, 2, 3) for right, up in ((far, far), (far, -far), (-far, far), (-far, -far))]
    taken: list[Floats] = []
    for name, *at in zip(names, x, y, strict=True):
        places = [np.array(at) + sizes * step * 0.75 for step in np.array(around)]
        free = [place for place in places if all((np.abs(place - other) >= sizes).any() for other in taken)]
        taken.append((free or places)[0])
        axis.text(float(taken[-1][0]), float(taken[-1][1]), name, fontsize=8, ha="center", va="center")


def colour_bar(axis: Axes, image: AxesImage, label: str) -> None:
    """What the colours of an image mean."""
    axis.get_figure().colorbar(image, ax=axis, label=label)  # type: ignore[union-attr]
