"""Tutorials, executed: from `.py` in jupytext's percent format to a notebook with its output, and to a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

SECONDS = 600  # a cell, or until a kernel starts, however busy the machine is


@dataclass(frozen=True)
class Executed:
    """A tutorial as a page of Markdown, and the files beside it: the notebook, and what it drew."""

    page: str
    files: dict[str, bytes]


def execute(source: Path, folder: Path) -> Executed:
    """Execute a `.py` as a notebook, in a folder of its name in `folder`; it is kept there as `.ipynb`.

    Raises:
        CellExecutionError: a cell raised.
    """
    name, home = source.stem, folder / source.stem
    home.mkdir(parents=True)
    notebook = jupytext.read(source)
    place = {"metadata": {"path": str(home)}}
    NotebookClient(notebook, timeout=SECONDS, startup_timeout=SECONDS, resources=place).execute()
    kept = folder / f"{name}.ipynb"
    jupytext.write(notebook, kept)
    text, made = MarkdownExporter().from_notebook_node(notebook, {"unique_key": name, "output_files_dir": ""})
    title, _, rest = text.lstrip().partition("\n")
    page = f"{title}\n\n*This page is [a notebook]({kept.name}), executed as it is read here.*\n{rest}"
    return Executed(page, {kept.name: kept.read_bytes(), **made["outputs"]})
