"""The report as one HTML file that works offline: data from Python, everything on the screen made by its scripts."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from plotly.offline import get_plotlyjs

from icl_fast import __version__
from icl_fast.files import atomic_write
from icl_fast.report.page.manifest import manifest
from icl_fast.report.page.payload import Blob, to_json
from icl_fast.report.panels.panel import Panel
from icl_fast.report.panels.table import Row
from icl_fast.report.panels.texts import texts_payload
from icl_fast.report.study import Study

_FIRST, _LAST = "icl.js", "main.js"


def write_page(
    study: Study,
    table: dict[str, list[Panel]],
    rows: Sequence[Row],
    family: Sequence[tuple[str, list[Panel]]],
    path: str | Path,
) -> Path:
    """Write the report page: one file that asks nothing of any network.

    Args:
        study: what is reported on.
        table: by model, one panel for each row of the Model Analysis Table.
        rows: what each row shows and how to read it.
        family: (heading, panels) of each group of further figures.
        path: of the HTML file.

    Raises:
        InputError: a model without its panels, the disk full or the folder not writable.
    """
    blob = Blob()
    data = manifest(study, table, rows, family, blob)
    data["texts"] = texts_payload(study, blob.add)
    scripts = [get_plotlyjs(), *_scripts()]
    parts = {
        "policy": _policy(scripts),
        "title": escape(study.title),
        "style": "\n".join(_styles()),
        "manifest": to_json({**data, "version": __version__, "arrays": blob.index}),
        "arrays": blob.encode(),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # in one pass: a name in the data that looks like a placeholder stays what it is
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def _policy(scripts: Sequence[str]) -> str:
    """Nothing is loaded from anywhere, and no script runs but those written into the page."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _scripts() -> list[str]:
    names = sorted(name for name in _names(".js") if name not in (_FIRST, _LAST))
    return [_asset(name) for name in (_FIRST, *names, _LAST)]


def _styles() -> list[str]:
    return [_asset(name) for name in sorted(_names(".css"))]  # page.css before texts.css


def _names(ending: str) -> list[str]:
    folder = resources.files("icl_fast.report.page").joinpath("assets")
    return [entry.name for entry in folder.iterdir() if entry.name.endswith(ending)]


def _asset(name: str) -> str:
    return resources.files("icl_fast.report.page").joinpath("assets", name).read_text(encoding="utf-8")
