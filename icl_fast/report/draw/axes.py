"""How the axes of static figures look."""

from __future__ import annotations

from matplotlib.axes import Axes


def label_axes(axis: Axes, title: str, x: str, y: str) -> None:
    """A title and labels, with units; no frame above and at the right."""
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
