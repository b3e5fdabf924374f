"""Drives CMake and Ninja over csrc/ to build the extension module, icl_fast/_C. Needs no torch.

What is built follows from what is there. A C++ compiler: the CPU kernels, in a wheel for this platform; none: nothing,
in a wheel for any, and icl_fast runs on plain torch. A compiler that is there and fails is an error. The CUDA kernels
take nvcc minutes and are of no use to a torch without CUDA: unless asked for they are built where the torch of the
environment that builds has it. pip builds in an environment without torch, but with --no-build-isolation.

Environment:
    CXX, CUDACXX, CUDA_HOME    the compilers to use, instead of the newest g++ that nvcc accepts and the nvcc found
    ICL_FAST_CUDA              auto (default): CUDA kernels where there are nvcc and a torch with CUDA; on: whatever the
                               torch, and no nvcc is an error; off; keep-going: on, but kernels that do not compile are
                               left out, and icl_fast.ops._backend.build_info() says which and why
    ICL_FAST_CUDA_ARCHS        as CMAKE_CUDA_ARCHITECTURES; default in csrc/CMakeLists.txt
    ICL_FAST_WERROR            1: a warning is an error, for CI
    ICL_FAST_EMU               1: also icl_fast/_emu, the CUDA kernels on an emulator, for tests; needs CUDA's headers
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OLDEST_GCC = 10  # the first with enough of C++20
# newest g++ that nvcc accepts as its host compiler, from that nvcc release on
NEWEST_GCC = (((13, 0), 15), ((12, 8), 14), ((12, 4), 13), ((0, 0), 12))


def find_nvcc() -> str | None:
    """Path of nvcc, or None where there is none or it is not wanted."""
    wish = os.environ.get("ICL_FAST_CUDA", "auto").lower()
    if wish not in ("auto", "on", "off", "keep-going"):
        raise SystemExit(f"ICL_FAST_CUDA={wish}: must be auto, on, off or keep-going")
    nvcc = _chosen("CUDACXX")
    if wish == "off" or (wish == "auto" and not torch_has_cuda()):
        return None
    if nvcc is None and os.environ.get("CUDA_HOME"):
        nvcc = shutil.which("nvcc", path=os.path.join(os.environ["CUDA_HOME"], "bin"))
    elif nvcc is None:
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None and wish in ("on", "keep-going"):
        raise SystemExit(f"ICL_FAST_CUDA={wish}, but no nvcc was found: put it on PATH, or set CUDACXX or CUDA_HOME")
    return nvcc


def torch_has_cuda() -> bool:
    """Whether the torch of this environment was built with CUDA; read off its files, as importing it is slow."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    return runpy.run_path(str(Path(torch.origin).with_name("version.py"))).get("cuda") is not None


def find_cxx(nvcc: str | None) -> str | None:
    """Path of the C++ compiler: CXX, else the newest g++-N there is (that nvcc accepts), else the system's own.

    On Windows clang++ alone: cl does not know the vectors of csrc/, and what MinGW builds wants its own libraries.
    """
    if sys.platform == "win32":
        return _chosen("CXX") or shutil.which("clang++")
    newest = NEWEST_GCC[0][1]
    if nvcc:
        release = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version"))
        version = (int(release[1]), int(release[2])) if release else (0, 0)
        newest = next(gcc for since, gcc in NEWEST_GCC if version >= since)
    names = [f"g++-{version}" for version in range(newest, OLDEST_GCC - 1, -1)]
    return _chosen("CXX") or next(filter(None, map(shutil.which, [*names, "g++", "c++", "clang++"])), None)


class CMakeBuild(build_ext):
    """build_ext whose compiler is CMake."""

    def run(self) -> None:
        if self.extensions:
            cuda = f"those for CUDA with {NVCC}" if NVCC else "not for CUDA (see ICL_FAST_CUDA in setup.py)"
            print(f"icl_fast: building the CPU kernels with {CXX}, {cuda}")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        # A folder of our own, one per Python and kind of build: pip would give a new temporary one every time
        abi = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag  # Windows has no SOABI
        tag = f"{abi}-{Path(CXX).name}-{'cuda' if NVCC else 'cpu'}"
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
            "CMAKE_CXX_COMPILER": CXX,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "ICL_CUDA": "ON" if NVCC else "OFF",
            "ICL_KEEP_GOING": "ON" if os.environ.get("ICL_FAST_CUDA", "").lower() == "keep-going" else "OFF",
            "CMAKE_COMPILE_WARNING_AS_ERROR": "ON" if os.environ.get("ICL_FAST_WERROR") == "1" else "OFF",
        }
        if NVCC:
            defines |= {"CMAKE_CUDA_COMPILER": NVCC, "CMAKE_CUDA_HOST_COMPILER": CXX}
        if EMULATOR:
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


class WithConfigs(build_py):
    """build_py that takes the configs along, as icl_fast/configs; an editable install has them beside the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for config in sorted((ROOT / "configs").rglob("*.yaml")):
            target = Path(self.build_lib, "icl_fast", config.relative_to(ROOT))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(config, target)


def long_description() -> str:
    """README.md for those who have it alone: pictures and files beside it are named, not linked to."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    beside = r"\[([^\]]*)\]\((?![a-z]+:|#)[^)]*\)"
    return re.sub(beside, r"\1", re.sub(f"!{beside}", r"*(picture: \1)*", text))


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


NVCC = find_nvcc()
CXX = find_cxx(NVCC)
EMULATOR = NVCC is not None and os.environ.get("ICL_FAST_EMU") == "1"
if CXX is None:
    if (wish := os.environ.get("ICL_FAST_CUDA", "").lower()) in ("on", "keep-going"):
        raise SystemExit(f"ICL_FAST_CUDA={wish}, but no C++ compiler was found: install g++, or set CXX")
    print("warning: no C++ compiler found: icl_fast is installed without compiled kernels", file=sys.stderr)
modules = [] if CXX is None else ["icl_fast._C", "icl_fast._emu"] if EMULATOR else ["icl_fast._C"]
setup(
    ext_modules=[Extension(name, sources=[]) for name in modules],  # a wheel with none is for any platform
    cmdclass={"build_ext": CMakeBuild, "build_py": WithConfigs},
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
