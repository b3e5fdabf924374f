"""The figure behind a claim, as a panel."""

from __future__ import annotations

import numpy as np

from icl_fast.analysis.claims import Chart, Curve
from icl_fast.report.panels.builders import filled, line, there
from icl_fast.report.panels.panel import Panel, Series


def claim_panel(name: str, chart: Chart, caption: str) -> Panel:
    """A chart as a panel: of several seeds the mean and, as its error, one standard deviation.

    Args:
        name: of the claim; a part of the panel's key.
        caption: what is said below it.
    """
    points = all(curve.kind == "points" for curve in chart.curves)
    panel = Panel(
        key=f"claim-{name}",
        kind="points" if points else "lines",
        title=chart.title,
        caption=caption,
        x_label=chart.x_label,
        y_label=chart.y_label,
        log_x=chart.log_x,
        log_y=chart.log_y,
    )
    return filled(panel, lambda: {"series": there(map(_series, chart.curves))})


def _series(curve: Curve) -> Series | None:
    x, y = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
    if y.ndim == 1:
        return line(curve.label, x, y)
    spread = y.std(0, ddof=1) if len(y) > 1 else None
    return line(curve.label, x, y.mean(0), spread)
