"""How the axes of static figures look."""

from __future__ import annotations

from matplotlib.axes import Axes


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
