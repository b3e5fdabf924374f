"""The report as one HTML file that works offline: data from Python, everything on the screen made by its scripts."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from icl_fast import __version__
from icl_fast.files import atomic_write
from icl_fast.report.page.bundle import bundle
from icl_fast.report.page.manifest import manifest
from icl_fast.report.page.payload import Blob, to_json
from icl_fast.report.panels.exemplars import Groups
from icl_fast.report.panels.panel import Panel
from icl_fast.report.panels.table import Row
from icl_fast.report.panels.texts import texts_payload
from icl_fast.report.study import Study

_STYLES = ("page.css", "texts.css")


def write_page(
    study: Study,
    table: dict[str, list[Panel]],
    rows: Sequence[Row],
    family: Sequence[tuple[str, list[Panel]]],
    path: str | Path,
    *,
    exemplars: Mapping[str, Groups] | None = None,
) -> Path:
    """Write the page that `page_text` gives, whole or not at all.

    Raises:
        InputError: as `page_text`, the disk full or the folder not writable.
    """
    page = page_text(study, table, rows, family, exemplars=exemplars)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # the name of a folder need not be UTF-8
    return Path(path)


def page_text(
    study: Study,
    table: dict[str, list[Panel]],
    rows: Sequence[Row],
    family: Sequence[tuple[str, list[Panel]]],
    *,
    exemplars: Mapping[str, Groups] | None = None,
) -> str:
    """The report page as HTML: one file that asks nothing of any network.

    Args:
        study: what is reported on.
        table: by model, one panel for each row of the Model Analysis Table.
        rows: what each row shows and how to read it.
        family: (heading, panels) of each group of further figures.
        exemplars: by run on exemplars, (heading, panels) of each group of its section.

    Raises:
        InputError: a model or run without its panels, a number that JSON cannot hold.
    """
    blob = Blob()
    data = manifest(study, table, rows, family, exemplars or {}, blob)
    data["texts"] = texts_payload(study, blob.add)
    return html("main", study.title, data, blob)


def html(entry: str, title: str, data: Mapping[str, Any], blob: Blob) -> str:
    """A page as one file that asks nothing of any network.

    Args:
        entry: its script, the name of a module in `assets/` without `.js`.
        title: plain text.
        data: what the script finds as `data`, JSON with arrays as numbers of `blob`.
        blob: the arrays.

    Raises:
        InputError: a number that JSON cannot hold.
    """
    script = bundle(entry, read_script)
    parts = {
        "policy": _policy(script),
        "title": escape(title),
        "style": "\n".join(map(_asset, _STYLES)),
        "manifest": to_json({**data, "version": __version__, "arrays": blob.index}),
        "arrays": blob.encode(),
        "script": script,
    }
    # in one pass: a name in the data that looks like a placeholder stays what it is
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def read_script(name: str) -> str:
    """The source of one of the page's modules."""
    return _asset(f"{name}.js")


def _policy(script: str) -> str:
    """Nothing is loaded from anywhere, and no script runs but the one written into the page."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return resources.files("icl_fast.report.page").joinpath("assets", name).read_text(encoding="utf-8")
