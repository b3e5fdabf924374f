"""Tutorials, executed: from `.py` in jupytext's percent format to a notebook with its output, and to a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode

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
    home = folder / source.stem
    home.mkdir(parents=True)
    notebook, place = jupytext.read(source), {"metadata": {"path": str(home)}}
    NotebookClient(notebook, timeout=SECONDS, startup_timeout=SECONDS, coalesce_streams=True, resources=place).execute()
    jupytext.write(notebook, home.with_suffix(".ipynb"))
    return as_page(notebook, source.stem)


def as_page(notebook: NotebookNode, name: str) -> Executed:
    """An executed notebook as a page, without the colours of a terminal and what went to standard error."""
    files = {f"{name}.ipynb": jupytext.writes(notebook, "ipynb").encode()}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    output["text"] = strip_ansi(output["text"])
    text, made = MarkdownExporter().from_notebook_node(notebook, {"unique_key": name, "output_files_dir": ""})
    title, _, rest = text.lstrip().partition("\n")
    page = f"{title}\n\n*This page is [a notebook]({name}.ipynb), executed as it is read here.*\n{rest}"
    return Executed(page, files | made["outputs"])
