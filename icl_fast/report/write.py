"""A report's files: the page and, beside it, its figures as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from icl_fast.files import locked
from icl_fast.report.draw.static import write_static
from icl_fast.report.page.write import write_page
from icl_fast.report.panels.exemplars import exemplar_panels
from icl_fast.report.panels.family import family_panels
from icl_fast.report.panels.table import ROWS, table_panels
from icl_fast.report.study import Study


def write_report(
    study: Study, out: str | Path, *, static: bool = True, on_figure: Callable[[int, int], None] | None = None
) -> Path:
    """Write `out/index.html`, one file that needs nothing else, and every figure's static twins in `out/figures/`.

    Args:
        study: what is shown.
        out: a folder; made if it is not there.
        static: whether to draw the twins.
        on_figure: called with (done, of how many) after each figure.

    Returns:
        The page's path.

    Raises:
        InputError: the folder cannot be written, another process is writing it, or the disk is full.
    """
    table, family = (table_panels(study), family_panels(study)) if study.models else ({}, [])
    exemplars = exemplar_panels(study)
    with locked(Path(out) / ".lock-report", f"out: {out}"):
        if static:
            groups = [*family, *(group for of_run in exemplars.values() for group in of_run)]
            write_static(study, table, groups, Path(out) / "figures", on_figure)
        return write_page(study, table, ROWS, family, Path(out) / "index.html", exemplars=exemplars)
