"""A report's files: the page and, beside it, its figures as PNG and SVG, and the checksums of all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from icl_fast.files import atomic_write, locked, sha256, to_json
from icl_fast.report.draw.static import write_static
from icl_fast.report.page.write import page_text
from icl_fast.report.panels.exemplars import exemplar_panels
from icl_fast.report.panels.family import family_panels
from icl_fast.report.panels.table import ROWS, table_panels
from icl_fast.report.study import Study

CHECKSUMS = "checksums.json"


def write_report(
    study: Study, out: str | Path, *, static: bool = True, on_figure: Callable[[int, int], None] | None = None
) -> Path:
    """Write `out/index.html`, one file that needs nothing else, and every figure's static twins in `out/figures/`.

    Beside them `checksums.json`: file name to SHA-256 (hex). The page is made before anything is written.

    Args:
        study: what is shown.
        out: a folder; made if it is not there.
        static: whether to draw the twins.
        on_figure: called with (done, of how many) after each figure.

    Returns:
        The page's path.

    Raises:
        InputError: as `page_text`, the folder cannot be written, another process is writing it, or the disk is full.
    """
    folder = Path(out)
    table, family = (table_panels(study), family_panels(study)) if study.models else ({}, [])
    exemplars = exemplar_panels(study)
    text = page_text(study, table, ROWS, family, exemplars=exemplars)
    with locked(folder / ".lock-report", f"out: {out}"):
        with suppress(OSError):
            (folder / CHECKSUMS).unlink()  # of an earlier report, whose files are now replaced one by one
        page, figures = folder / "index.html", []
        if static:
            groups = [*family, *(group for of_run in exemplars.values() for group in of_run)]
            groups.append(("Claims", [claim.panel for claim in study.claims if claim.panel is not None]))
            figures = write_static(study, table, groups, folder / "figures", on_figure)
        with atomic_write(page) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")  # a folder's name need not be UTF-8
        hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in (page, *figures)}
        with atomic_write(folder / CHECKSUMS) as temporary:
            temporary.write_text(to_json(hashes, indent=1), encoding="utf-8")
        return page
