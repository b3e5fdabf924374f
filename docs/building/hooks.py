"""What mkdocs does besides: runs for the commands to work on, tutorials executed, documents of the root."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import example  # noqa: E402
import notebooks  # noqa: E402

FROM_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
executed: dict[str, Future[notebooks.Executed]] = {}  # by page; on a core beside the one that makes the other pages


def on_pre_build(config: MkDocsConfig) -> None:
    """Blocks of pages see the program, and the folder that it works in, as one who types them does."""
    build = ROOT / "build" / "docs"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["COLUMNS"] = "100"
    os.environ["ICL_FAST_CACHE"] = str(build / "cache")
    shutil.rmtree(build, ignore_errors=True)
    pool = ThreadPoolExecutor(1)
    for source in TUTORIALS:
        executed[f"tutorials/{source.stem}.md"] = pool.submit(notebooks.execute, source, build / "notebooks")
    pool.shutdown(wait=False)
    example.make(build / "example")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the documents of the root, and the tutorials, which are filled when they were executed."""
    for source, page in FROM_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    for page in executed:
        files.append(File.generated(config, page, content=""))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills a tutorial, and adds what it drew."""
    if page.file.src_uri not in executed:
        return markdown
    done = executed[page.file.src_uri].result()
    for name, content in done.files.items():
        files.append(File.generated(config, f"tutorials/{name}", content=content))
    return done.page
