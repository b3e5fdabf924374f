"""Builds zoo*.cu with the emulator, once a session, and runs its kernels through ctypes: no torch, no extension."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
ZOO = [Path(__file__).with_name(name) for name in ("zoo.cu", "zoo_sm90.cu", "zoo_arithmetic.cu")]
CHECKED = ["-O1", "-g1", "-fsanitize=thread,bounds,alignment"]  # as the extension's CMakeLists.txt builds kernels


def cuda_include() -> Path | None:
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    if nvcc:
        homes.append(str(Path(nvcc).resolve().parents[1]))
    return next((p for h in homes if h and (p := Path(h) / "include").joinpath("cuda_bf16.h").exists()), None)


@dataclass
class Zoo:
    library: Any
    defects: dict[str, int]

    def place(self, marker: str) -> str:
        """file:line of the only line of the zoo with this @ comment."""
        marked = re.compile(rf"// @{marker}(?![-\w])")
        lines = [(path, i, line) for path in ZOO for i, line in enumerate(path.read_text().splitlines(), 1)]
        (found,) = [f"{path}:{i}" for path, i, line in lines if marked.search(line)]
        return found

    def expect(self, report: str, begins: str, marker: str, *says: str) -> None:
        """One of `begins` (a | b), at the line of `marker`, and saying the rest; "@x" is the line of x."""
        assert any(report.startswith(text) for text in begins.split("|")), report
        if marker:
            assert f"\n  at {self.place(marker)}" in report, report
        for text in says:
            assert (self.place(text[1:]) if text.startswith("@") else text) in report, report

    def settings(
        self,
        *,
        race: bool = True,
        order: str = "asc",
        seed: int = 0,
        eager: bool = False,
        arithmetic: str = "float32",
    ) -> None:
        self.library.zoo_settings(int(race), order.encode(), seed, int(eager), arithmetic.encode())

    def run(self, kernel: str, defect: str, buffers: dict[str, np.ndarray[Any, Any]], *numbers: int) -> str:
        """The report, empty if there is none."""
        message = ctypes.create_string_buffer(8192)
        pointers = (ctypes.c_void_p * len(buffers))(*[b.ctypes.data for b in buffers.values()])
        sizes = (ctypes.c_long * len(buffers))(*[b.nbytes for b in buffers.values()])
        names = (ctypes.c_char_p * len(buffers))(*[name.encode() for name in buffers])
        values = (ctypes.c_long * max(len(numbers), 1))(*numbers)
        failed = self.library.zoo_run(
            kernel.encode(), self.defects[defect], len(buffers), pointers, sizes, names, values, message, len(message)
        )
        return message.value.decode() if failed else ""


def build(folder: Path, compiler: str, include: Path) -> None:
    common = [compiler, "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    common += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/emu'}", f"-isystem{include}", "-c"]
    objects = []

    def compile_one(source: Path) -> None:
        options = [*CHECKED, "-x", "c++"] if source.suffix == ".cu" else ["-O1"]
        output = folder / f"{source.name}.o"
        objects.append(str(output))
        subprocess.run([*common, *options, str(source), "-o", str(output)], check=True)

    emulator = sorted(p for p in (ROOT / "csrc" / "emu").glob("*.cpp") if p.name != "module.cpp")  # the extension's
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, [*ZOO, *emulator]))
    subprocess.run([compiler, "-shared", "-o", str(folder / "zoo.so"), *objects, "-ldl"], check=True)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    compiler, include = shutil.which("g++"), cuda_include()
    if compiler is None:
        pytest.skip("the emulator is compiled with g++, which is not installed")
    if include is None:
        pytest.skip("the emulator needs CUDA's headers (cuda_bf16.h); set CUDA_HOME to where CUDA is installed")
    # workers of pytest-xdist share what the first of them has built
    shared = os.environ.get("PYTEST_XDIST_WORKER") is not None
    folder = (tmp_path_factory.getbasetemp().parent / "zoo") if shared else tmp_path_factory.mktemp("zoo")
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "zoo.so").exists():
            build(folder, compiler, include)
    source = Path(__file__).with_name("zoo.h").read_text()
    enum = re.sub(r"//.*", "", re.search(r"enum Defect \{(.*?)\};", source, re.S).group(1))  # type: ignore[union-attr]
    defects = {name: value for value, name in enumerate(re.findall(r"k\w+", enum))}
    return Zoo(ctypes.CDLL(str(folder / "zoo.so")), defects)
