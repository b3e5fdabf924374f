"""What the documents promise holds: Python blocks run, commands have the options they are given, named files exist.

The site itself, with what its pages run while they are built and the tutorials, is tested by `make docs`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import click
import pytest

from icl_fast.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]
PAGES = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md"))]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *PAGES]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
# a path from the root; capitals and stars stand for a name
PATH = re.compile(r"`((?:icl_fast|csrc|bench|configs|docs|python_tests)/[a-z0-9_./-]+)`")
BLOCK = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)

# How a block says what becomes of it. `python`: it runs here. `py`: what it needs is not here (another library, a
# network). `sh`, `bash`: commands, whose options are checked here; with `exec` they, or Python, run in `make docs`.
KINDS = {"python", "py", "sh", "bash", ""}


def blocks(document: str) -> list[tuple[str, str, str]]:
    """Language, options and text of each fenced block."""
    found = BLOCK.findall(TEXTS[document])
    return [(language, options.strip(), dedent(text)) for _, language, options, text in found]


PYTHON = [
    pytest.param(text, id=f"{document} {number}")
    for document in DOCUMENTS
    for number, (language, options, text) in enumerate(blocks(document), 1)
    if language == "python" and not options
]
LINES = sorted(
    {
        line
        for document in DOCUMENTS
        for language, _, text in blocks(document)
        if language in ("sh", "bash")
        for line in re.sub(r"\\\n\s*", " ", text).splitlines()
        if re.search(r"\bicl(-fast|_fast) [a-z-]", line.split("#")[0])
    }
)


@pytest.mark.parametrize("block", PYTHON)
def test_python_blocks_run_in_the_source_tree(block: str, tmp_path: Path) -> None:
    for name in ("configs", "icl_fast"):  # runs are written beside links to the tree, not into it
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_are_blocks_to_test() -> None:
    assert len(PYTHON) >= 3
    assert len(LINES) >= 30


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_says_what_becomes_of_it(document: str) -> None:
    assert {language for language, _, _ in blocks(document)} <= KINDS


def commands(line: str) -> list[list[str]]:
    """The words after `icl-fast` of each call of it in a line of shell."""
    words = shlex.split(re.sub(r"\$\([^()]*\)", "X", line).replace(";", " ; "), comments=True)
    starts = [at for at, word in enumerate(words) if word == "icl-fast" or words[at - 1 : at + 1] == ["-m", "icl_fast"]]
    calls = []
    for start in starts:
        rest = words[start + 1 :]
        end = next((at for at, word in enumerate(rest) if word in (";", "|", "&&", ">", "done") or ">" in word), None)
        calls.append(rest[:end])
    return calls


@pytest.mark.parametrize("line", LINES)
def test_commands_and_their_options_exist(line: str) -> None:
    """As click parses them: unknown options and missing values are refused; files need not exist."""
    for words in commands(line):
        command: click.Command = cli
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            name, *words = words
            found = command.get_command(click.Context(command), name)
            assert found is not None, f"no command {name}"
            command = found
        command.make_parser(click.Context(command)).parse_args([word for word in words if word not in ("...", "…")])


MADE = {"docs/contributing.md": "CONTRIBUTING.md", "docs/changelog.md": "CHANGELOG.md"}  # pages that the build makes


def source(path: Path) -> Path:
    """What a page is made of: itself, but for tutorials and documents of the root."""
    name = str((ROOT / path).resolve().relative_to(ROOT))
    return ROOT / MADE.get(name, re.sub(r"^(docs/tutorials/.*)\.md$", r"\1.py", name))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document: str) -> None:
    text = BLOCK.sub("", TEXTS[document])
    links = re.findall(r"\]\((?!https?:)([\w./-]+)(?:#[\w-]+)?\)", text)
    paths = [*(Path(document).parent / link for link in links), *map(Path, PATH.findall(text))]
    missing = [str(path) for path in paths if not source(path).exists()]
    assert not missing


def test_every_tutorial_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    tutorials = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
    assert len(tutorials) == 5
    assert not [path.stem for path in tutorials if f"tutorials/{path.stem}.md" not in navigation]


def test_every_command_is_in_the_reference_with_its_help() -> None:
    page = TEXTS["docs/reference/commands.md"]
    assert not [name for name in COMMANDS if f"\n## {name}\n" not in page or f"icl-fast {name} --help" not in page]
