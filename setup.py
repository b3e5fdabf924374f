"""Drives CMake and Ninja over csrc/ to build the extension module, icl_fast/_C. Needs no torch.

What is built follows from what is there: g++ and nvcc: CPU and CUDA kernels; g++ alone: CPU kernels; no C++ compiler:
nothing, and icl_fast runs on plain torch. A compiler that is there and fails is an error.

Environment:
    CXX, CUDACXX, CUDA_HOME    the compilers to use, instead of the newest g++ that nvcc accepts and the nvcc found
    ICL_FAST_CUDA              auto (default), on (no nvcc is an error), off, or keep-going: on, but kernels that do not
                               compile are left out, and icl_fast.ops._backend.build_info() says which and why
    ICL_FAST_CUDA_ARCHS        as CMAKE_CUDA_ARCHITECTURES; default in csrc/CMakeLists.txt
    ICL_FAST_WERROR            1: a warning is an error, for CI
    ICL_FAST_EMU               1: also icl_fast/_emu, the CUDA kernels on an emulator, for tests; needs CUDA's headers
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_GCC = 10  # the first with enough of C++20
# newest g++ that nvcc accepts as its host compiler, from that nvcc release on
NEWEST_GCC = (((13, 0), 15), ((12, 8), 14), ((12, 4), 13), ((0, 0), 12))


def find_nvcc() -> str | None:
    """Path of nvcc, or None where there is none or ICL_FAST_CUDA=off."""
    wish = os.environ.get("ICL_FAST_CUDA", "auto").lower()
    if wish not in ("auto", "on", "off", "keep-going"):
        raise SystemExit(f"ICL_FAST_CUDA={wish}: must be auto, on, off or keep-going")
    if wish == "off":
        return None
    nvcc = _chosen("CUDACXX")
    if nvcc is None and os.environ.get("CUDA_HOME"):
        nvcc = shutil.which("nvcc", path=os.path.join(os.environ["CUDA_HOME"], "bin"))
    elif nvcc is None:
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None and wish in ("on", "keep-going"):
        raise SystemExit(f"ICL_FAST_CUDA={wish}, but no nvcc was found: put it on PATH, or set CUDACXX or CUDA_HOME")
    return nvcc


def find_cxx(nvcc: str | None) -> str | None:
    """Path of the C++ compiler: CXX, else the newest g++-N there is (that nvcc accepts), else the system's own."""
    newest = NEWEST_GCC[0][1]
    if nvcc:
        release = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version"))
        version = (int(release[1]), int(release[2])) if release else (0, 0)
        newest = next(gcc for since, gcc in NEWEST_GCC if version >= since)
    names = [f"g++-{version}" for version in range(newest, OLDEST_GCC - 1, -1)]
    return _chosen("CXX") or next(filter(None, map(shutil.which, [*names, "g++", "c++", "clang++"])), None)


class CMakeBuild(build_ext):
    """build_ext whose compiler is CMake."""

    def finalize_options(self) -> None:
        self.nvcc = find_nvcc()
        self.cxx = find_cxx(self.nvcc)
        self._emulator = bool(self.nvcc) and os.environ.get("ICL_FAST_EMU") == "1"
        if self._emulator:
            self.distribution.ext_modules.append(Extension("icl_fast._emu", sources=[]))
        super().finalize_options()
        if self.cxx is None:
            if (wish := os.environ.get("ICL_FAST_CUDA", "").lower()) in ("on", "keep-going"):
                raise SystemExit(f"ICL_FAST_CUDA={wish}, but no C++ compiler was found: install g++, or set CXX")
            self.extensions = []

    def run(self) -> None:
        if self.cxx is None:
            print("warning: no C++ compiler found: icl_fast is installed without compiled kernels", file=sys.stderr)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        # A folder of our own, one per Python and kind of build: pip would give a new temporary one every time
        tag = f"{sysconfig.get_config_var('SOABI')}-{Path(self.cxx).name}-{'cuda' if self.nvcc else 'cpu'}"
        folder = ROOT / "build" / tag
        _run(_tool("cmake"), "--log-level=NOTICE", "-S", ROOT / "csrc", "-B", folder, *self._configuration())
        if ext.name == "icl_fast._C":  # the first: a kernel left out by an earlier build gets another chance
            for log in folder.rglob("*.cu.o.log"):
                log.with_suffix("").unlink(missing_ok=True)
                log.unlink()
        _run(_tool("cmake"), "--build", folder)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        module = {"icl_fast._C": "_C", "icl_fast._emu": "emu/_emu"}[ext.name]
        shutil.copy2(folder / (module + sysconfig.get_config_var("EXT_SUFFIX")), target)

    def _configuration(self) -> list[str]:
        import pybind11

        defines = {
            "CMAKE_MAKE_PROGRAM": _tool("ninja"),
            "CMAKE_CXX_COMPILER": self.cxx,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "ICL_CUDA": "ON" if self.nvcc else "OFF",
            "ICL_KEEP_GOING": "ON" if os.environ.get("ICL_FAST_CUDA", "").lower() == "keep-going" else "OFF",
            "CMAKE_COMPILE_WARNING_AS_ERROR": "ON" if os.environ.get("ICL_FAST_WERROR") == "1" else "OFF",
        }
        if self.nvcc:
            defines |= {"CMAKE_CUDA_COMPILER": self.nvcc, "CMAKE_CUDA_HOST_COMPILER": self.cxx}
        if self._emulator:
            defines["ICL_EMU"] = "ON"
        if archs := os.environ.get("ICL_FAST_CUDA_ARCHS"):
            defines["ICL_CUDA_ARCHS"] = archs
        # CMake remembers: forget the archs of an earlier build
        return [
            "-G",
            "Ninja",
            "-UICL_CUDA_ARCHS",
            "-UICL_EMU",
            *(f"-D{name}={value}" for name, value in defines.items()),
        ]


def _chosen(variable: str) -> str | None:
    """The program an environment variable names; None where it is not set."""
    if not (wish := os.environ.get(variable)):
        return None
    if not (program := shutil.which(wish)):
        raise SystemExit(f"{variable}={wish}: no such program")
    return program


def _tool(name: str) -> str:
    """Path of cmake or ninja: the Python package's program, which need not be on PATH, else the system's."""
    folder = ""
    with suppress(ImportError):
        package = import_module(name)
        folder = package.CMAKE_BIN_DIR if name == "cmake" else package.BIN_DIR
    program = shutil.which(name, path=folder) or shutil.which(name)
    if program is None:
        raise SystemExit(f"{name} was not found: pip install {name}")
    return program


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _run(*command: object) -> None:
    if subprocess.run([str(part) for part in command], check=False).returncode:
        raise SystemExit(
            "icl_fast: building csrc/ failed, the reason is above. CXX=... takes another compiler, "
            "ICL_FAST_CUDA=off leaves the CUDA kernels out, ICL_FAST_CUDA=keep-going those that do not compile."
        )


setup(ext_modules=[Extension("icl_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
