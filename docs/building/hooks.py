"""What mkdocs does besides: a run for the commands to work on, notebooks executed into pages, pages of other folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import example  # noqa: E402
import notebooks  # noqa: E402

FROM_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_pre_build(config: MkDocsConfig) -> None:
    """Blocks of pages see the program, and the folder that it works in, as one who types them does."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["COLUMNS"] = "100"
    os.environ["ICL_FAST_CACHE"] = str(ROOT / "build" / "docs" / "cache")
    example.make(ROOT / "build" / "docs" / "example")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the executed notebooks, with their pictures, and the documents of the root."""
    for name, content in notebooks.pages(ROOT / "docs" / "tutorials", ROOT / "build" / "docs" / "notebooks"):
        files.append(File.generated(config, f"tutorials/{name}", content=content))
    for source, page in FROM_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files
