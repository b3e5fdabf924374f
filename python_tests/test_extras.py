"""What the base install lacks is named in one line, with the extra that brings it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import icl_fast
from icl_fast import extras
from icl_fast.extras import advice, on_use

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
DECLARED = set(re.findall(r"^(\w+) = \[", PROJECT.partition("[project.optional-dependencies]")[2], re.MULTILINE))


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in sys.argv[1].split(",") else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hide
"""
ASK = """
import icl_fast
from click.testing import CliRunner
from icl_fast.cli.main import cli
for line in sys.argv[2:]:
    done = CliRunner().invoke(cli, line.split())
    print(done.exit_code, done.stderr.strip())
for name in ("ablate", "sweep", "open_results", "train"):
    try:
        print(getattr(icl_fast, name).__name__)
    except icl_fast.InputError as error:
        print(error)
"""
EXEMPLARS = "train exemplars/chapter4"


def said(folder: Path, hidden: str, *lines: str) -> list[str]:
    """What command lines say, and names of the package, in a Python that lacks these packages."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})" + WITHOUT + ASK
    command = [sys.executable, "-c", program, hidden, *lines]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_each_command_asks_for_all_that_it_needs(tiny_run: Path, tmp_path: Path) -> None:
    run = f"--ckpt {tiny_run}"
    wanted = {
        **dict.fromkeys((f"ablate {run}", f"evaluate {run}", f"templates {run}", "results nothing"), "measure"),
        **dict.fromkeys(
            (f"report {tiny_run} --out page", f"pca {tiny_run} --out pca.zarr", "demo", "reproduce singh"), "report"
        ),
        **dict.fromkeys((EXEMPLARS, "data glyphs"), "exemplars"),
    }
    lines = said(tmp_path, "xarray,PIL,matplotlib,scipy,sklearn,zarr", *wanted)
    for command, extra, line in zip(wanted, wanted.values(), lines, strict=False):
        missing = "PIL" if command == "data glyphs" else "xarray"
        assert line == f"2 error: {missing} is not installed; pip install 'icl_fast[{extra}]'", command
    advice = "xarray is not installed; pip install 'icl_fast[measure]'"
    assert lines[len(wanted) :] == [f"{name}: {advice}" for name in ("ablate", "sweep", "open_results")] + ["train"]
    assert not list(tmp_path.iterdir())


def test_measuring_needs_nothing_that_only_figures_do(tiny_run: Path, tmp_path: Path) -> None:
    run = f"--ckpt {tiny_run} --snapshots last"
    commands = (f"ablate {run} --examples 4 --out a.zarr", f"evaluate {run} --out b.zarr", "results a.zarr")
    lines = said(tmp_path, "matplotlib,scipy,sklearn,PIL,fontTools", *commands)
    assert [line.partition(" ")[0] for line in lines[: len(commands)]] == ["0"] * len(commands), lines


def test_every_extra_is_declared() -> None:
    named = {*extras._EXTRAS.values(), *extras._ROOMS.values()}
    assert named == {"measure", "report", "exemplars"}
    assert named <= DECLARED


def test_what_no_extra_brings_is_no_advice() -> None:
    assert advice(ModuleNotFoundError("No module named 'gibberish'", name="gibberish")) is None
    assert advice(ModuleNotFoundError("nothing is named")) is None


def test_names_load_on_use() -> None:
    load = on_use("icl_fast", {"sha256": "files"})
    assert load("sha256") is icl_fast.files.sha256
    with pytest.raises(AttributeError, match="module 'icl_fast' has no attribute 'gibberish'"):
        load("gibberish")
