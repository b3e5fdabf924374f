"""What the documents promise holds: Python blocks of README.md run, public names are in it, named files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import icl_fast

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/*.md")))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
# a path from the root; capitals and stars stand for a name
PATH = re.compile(r"`((?:icl_fast|csrc|bench|configs|docs|python_tests)/[a-z0-9_./-]+)`")


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {number}" for number in range(1, len(BLOCKS) + 1)])
def test_python_blocks_run_in_the_source_tree(block: str, tmp_path: Path) -> None:
    for name in ("configs", "icl_fast"):  # runs are written beside links to the tree, not into it
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_python_blocks() -> None:
    assert len(BLOCKS) >= 2  # else nothing is tested above


@pytest.mark.parametrize("name", icl_fast.__all__)
def test_every_public_name_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [Path(document).parent / link for link in re.findall(r"\]\((?!https?:)([\w./-]+)\)", text)]
    missing = [str(path) for path in [*links, *PATH.findall(text)] if not (ROOT / path).exists()]
    assert not missing


def test_every_command_is_in_the_readme() -> None:
    from icl_fast.cli.main import COMMANDS

    assert not [name for name in COMMANDS if f"icl-fast {name}" not in README and f"make {name}" not in README]
