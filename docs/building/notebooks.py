"""Tutorials, executed: from `.py` in jupytext's percent format to a notebook with its output, and to a page."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExtractOutputPreprocessor, TagRemovePreprocessor
from nbformat import NotebookNode
from traitlets.config import Config

AT_A_TIME = 2
SECONDS = 300  # a cell


def execute(source: Path, folder: Path) -> NotebookNode:
    """The notebook of a `.py`, executed in a folder; it is kept there as `.ipynb`.

    Raises:
        CellExecutionError: a cell raised.
    """
    notebook = jupytext.read(source)
    folder.mkdir(parents=True)
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    jupytext.write(notebook, folder.with_suffix(".ipynb"))
    return notebook


def pages(sources: Path, folder: Path) -> Iterator[tuple[str, str | bytes]]:
    """All notebooks of a folder as Markdown, with what they drew and the notebooks themselves: (file name, content)."""
    settings = Config()
    settings.MarkdownExporter.preprocessors = [TagRemovePreprocessor, ExtractOutputPreprocessor]
    settings.TagRemovePreprocessor.remove_cell_tags = ["remove"]
    names = sorted(sources.glob("*.py"))
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        executed = pool.map(lambda source: execute(source, folder / source.stem), names)
        for source, notebook in zip(names, executed, strict=True):
            name = source.stem
            exporter = MarkdownExporter(config=settings)
            text, extracted = exporter.from_notebook_node(notebook, {"unique_key": name, "output_files_dir": ""})
            title, _, rest = text.partition("\n")
            yield f"{name}.md", f"{title}\n\n*This page is [a notebook]({name}.ipynb), executed as it is read here.*\n{rest}"
            yield f"{name}.ipynb", folder.joinpath(f"{name}.ipynb").read_bytes()
            yield from extracted["outputs"].items()
