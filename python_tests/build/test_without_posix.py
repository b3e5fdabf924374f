"""A machine without what Windows lacks: everything imports, and locks and writes hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import icl_fast

PACKAGE = Path(icl_fast.__file__).parent
# these have their own ways there
OTHERS = """
import click, rich.progress, tokenizers, torch, xarray, yaml, zarr
import matplotlib.font_manager, scipy.stats, sklearn.decomposition
"""
WINDOWS = """
import os, signal, socket, subprocess, sys

LACKING = {"fcntl", "grp", "pwd", "resource", "termios"}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name in LACKING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
for name in LACKING:
    sys.modules.pop(name, None)
for module, names in {
    os: ("fork", "register_at_fork", "sched_getaffinity", "sysconf", "O_DIRECTORY", "O_NONBLOCK", "mkfifo"),
    signal: ("SIGALRM", "SIGHUP", "SIGKILL", "setitimer", "ITIMER_REAL"),
}.items():
    for name in names:
        delattr(module, name)
"""
IMPORTS = """
import importlib, pkgutil, icl_fast
for module in pkgutil.walk_packages(icl_fast.__path__, "icl_fast."):
    if module.name not in ("icl_fast._C", "icl_fast._emu", "icl_fast.scale.on_ray"):  # the last imports Ray
        importlib.import_module(module.name)
from icl_fast import files
assert files.fcntl is None
print("all there")
"""
LOCKS = """
from pathlib import Path
from icl_fast.errors import InputError
from icl_fast.files import atomic_write, locked
with locked("folder/.lock", "out: folder"):
    with atomic_write("folder/kept") as temporary:
        temporary.write_text("kept")
    try:
        with locked("folder/.lock", "out: folder"):
            print("both have it")
    except InputError as error:
        print(error)
    assert Path("folder/.lock").exists()
with locked("folder/.lock", "out: folder", wait=True):
    print("free again")
print(*sorted(path.name for path in Path("folder").iterdir()))
"""


def run(program: str, folder: Path) -> str:
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    done = subprocess.run([sys.executable, "-c", path + program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported(tmp_path: Path) -> None:
    assert run(OTHERS + WINDOWS + IMPORTS, tmp_path) == "all there\n"


def test_locks_hold(tmp_path: Path) -> None:
    """filelock's: on Windows the system's own, here, where that is hidden from it, by files."""
    assert run(WINDOWS + LOCKS, tmp_path).splitlines() == [
        "out: folder is being written by another process; wait for it, or write elsewhere",
        "free again",
        "kept",
    ]
