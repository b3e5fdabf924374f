"""The container's recipe: every source that it copies is there and let through, and a wheel can be built of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COPIED = [line.split() for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.*)$", RECIPE, re.MULTILINE)]


def test_what_is_copied_is_there_and_let_through() -> None:
    sources = {source for *sources, _ in COPIED for source in sources}
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {"setup.py", "csrc", "icl_fast", "configs"} <= sources
    assert {f"!{source}" for source in sources} == {line for line in let_through if line.startswith("!")}
    assert all((ROOT / source).exists() for source in sources)


def test_torch_is_the_one_that_make_takes() -> None:
    (torch,) = re.findall(r"^ARG TORCH=(.*)$", RECIPE, re.MULTILINE)
    assert f"TORCH ?= torch=={torch}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_a_wheel_is_built_of_what_is_copied(tmp_path: Path) -> None:
    """Without a compiler, as the kernels take minutes."""
    tree = tmp_path / "source"
    tree.mkdir()
    for *sources, _ in COPIED[:-1]:
        for source in map(ROOT.joinpath, sources):
            if source.is_dir():
                shutil.copytree(source, tree / source.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
            else:
                shutil.copy(source, tree)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, "."]
    without = os.environ | {"ICL_FAST_CUDA": "off", "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tree, env=without, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True)
    assert "icl_fast/ops/linear_cross_entropy.py" in listed.stdout
    assert "icl_fast/report/page/assets/page.html" in listed.stdout
