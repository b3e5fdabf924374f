"""setup.py's routes, each really run on a copy of the sources: with nvcc, CPU only, no compiler, one that fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Build = Callable[..., subprocess.CompletedProcess[str]]

needs_cxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that the build reads, in a folder of their own."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    (tree / "icl_fast").mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "icl_fast/__init__.py"):
        shutil.copy(ROOT / name, tree / name)
    return tree


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH folder with nothing in it. CUDA_HOME points there too, so /usr/local/cuda is not looked at."""
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


@pytest.fixture
def build(tree: Path) -> Build:
    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        ours = ("ICL_FAST_CUDA", "ICL_FAST_CUDA_ARCHS", "ICL_FAST_EMU", "ICL_FAST_WERROR")
        variables = ("CXX", "CUDACXX", "CUDA_HOME", *ours)
        clean = {name: value for name, value in os.environ.items() if name not in variables}
        return subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=tree,
            env=clean | environment,
            capture_output=True,
            text=True,
        )

    return run


def empty_sources(tree: Path) -> None:
    """What is left compiles in no time and links; it cannot be imported."""
    for other in [*tree.glob("csrc/*.cpp"), *tree.glob("csrc/*/*.cu"), *tree.glob("csrc/*/*.cpp")]:
        other.write_text("")


def extension(tree: Path) -> Path:
    return tree / "icl_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def build_info(tree: Path) -> dict[str, object]:
    """What the built module says of itself."""
    return ask(tree, "module.build_info()")


def ask(tree: Path, question: str) -> Any:
    """A question to the built module, in a process that has no torch loaded."""
    program = (
        "import importlib.util, json, sys\n"
        f"spec = importlib.util.spec_from_file_location('_C', {str(extension(tree))!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules\n"
        f"print(json.dumps({question}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def fake_torch(folder: Path, cuda: str | None) -> str:
    """A folder for PYTHONPATH with a torch that can be asked for its CUDA, and not imported."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "torch" / "version.py").write_text(f"__version__ = '2.0'\ncuda = {cuda!r}\n")
    return str(folder)


def fake_program(path: Path) -> str:
    path.write_text("#!/bin/sh\necho broken on purpose >&2\nexit 1\n")
    path.chmod(0o755)
    return str(path)


@needs_cxx
def test_without_nvcc_it_builds_the_cpu_kernels(tree: Path, build: Build, bare_path: Path) -> None:
    for tool in ("g++", "as", "ld"):
        (bare_path / tool).symlink_to(str(shutil.which(tool)))
    done = build(PATH=str(bare_path), CUDA_HOME=str(bare_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert build_info(tree) | {"compiler": "", "pybind11": ""} == {
        "compiler": "",
        "pybind11": "",
        "openmp": True,
        "cuda": False,
        "cuda_archs": [],
        "nvcc": None,
    }
    again = build(PATH=str(bare_path), CUDA_HOME=str(bare_path))
    assert "ninja: no work to do" in again.stdout


def test_without_a_compiler_it_warns_in_one_line_and_builds_nothing(tree: Path, build: Build, bare_path: Path) -> None:
    done = build(PATH=str(bare_path), CUDA_HOME=str(bare_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "warning: no C++ compiler found: icl_fast is installed without compiled kernels"
    assert not extension(tree).exists()


@pytest.mark.parametrize("wish", ["on", "keep-going"])
def test_cuda_on_without_nvcc_is_an_error(tree: Path, build: Build, bare_path: Path, wish: str) -> None:
    done = build(PATH=str(bare_path), CUDA_HOME=str(bare_path), ICL_FAST_CUDA=wish)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith(f"ICL_FAST_CUDA={wish}, but no nvcc was found")


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("ICL_FAST_CUDA", "must be auto, on, off or keep-going"),
        ("CXX", "no such program"),
        ("CUDACXX", "no such program"),
    ],
)
def test_a_wrong_variable_is_named(build: Build, variable: str, message: str) -> None:
    done = build(**{variable: "gibberish"})
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == f"{variable}=gibberish: {message}"


def test_a_compiler_that_fails_is_an_error(tree: Path, build: Build, bare_path: Path) -> None:
    done = build(CXX=fake_program(bare_path / "g++"), ICL_FAST_CUDA="off")
    assert done.returncode != 0
    assert "building csrc/ failed" in done.stderr
    assert not extension(tree).exists()


@needs_cxx
def test_an_nvcc_that_fails_is_an_error(tree: Path, build: Build, bare_path: Path) -> None:
    done = build(CUDACXX=fake_program(bare_path / "nvcc"), ICL_FAST_CUDA="on")
    assert done.returncode != 0
    assert "building csrc/ failed" in done.stderr
    assert not extension(tree).exists()


@pytest.mark.parametrize(
    ("wish", "cuda", "built"),
    [
        ("auto", "12.6", True),
        ("", "12.6", True),
        ("auto", None, False),
        ("", None, False),
        ("on", None, True),
        ("off", "12.6", False),
    ],
)
def test_nvcc_is_left_alone_where_torch_has_no_cuda(
    build: Build, bare_path: Path, tmp_path: Path, wish: str, cuda: str | None, built: bool
) -> None:
    """What it sets out to build; the compilers are fakes that fail."""
    nvcc = fake_program(bare_path / "nvcc")
    programs = {"CXX": fake_program(bare_path / "g++"), "CUDACXX": nvcc}
    environment = programs | ({"ICL_FAST_CUDA": wish} if wish else {})
    done = build(**environment, PYTHONPATH=fake_torch(tmp_path / "site", cuda))
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("icl_fast: building")]
    assert said.endswith(f"those for CUDA with {nvcc}" if built else "not for CUDA (see ICL_FAST_CUDA in setup.py)")
    assert done.returncode != 0  # of the C++ compiler


def test_where_there_is_no_torch_nvcc_is_left_alone(build: Build, bare_path: Path, tmp_path: Path) -> None:
    """As in the environment that pip builds in."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    nvcc = fake_program(bare_path / "nvcc")
    done = build(CXX=fake_program(bare_path / "g++"), CUDACXX=nvcc, PYTHONPATH=str(tmp_path / "site"))
    assert nvcc not in done.stdout + done.stderr


@needs_cxx
@pytest.mark.parametrize("in_ci", ["1", "0"])
def test_a_warning_in_our_sources_is_an_error_in_ci_alone(tree: Path, build: Build, in_ci: str) -> None:
    """Another compiler has other warnings: they must not end a build elsewhere."""
    empty_sources(tree)
    with open(tree / "csrc/cpu/axpy.cpp", "a") as file:
        file.write("static int unused() { return 0; }\n")
    done = build(ICL_FAST_CUDA="off", ICL_FAST_WERROR=in_ci)
    assert (done.returncode != 0) == (in_ci == "1"), done.stdout + done.stderr
    assert "unused-function" in done.stdout + done.stderr


@needs_cxx
@needs_nvcc
@pytest.mark.parametrize("only_in", ["__CUDA_ARCH__ == 800", "defined(__CUDA_ARCH_FEAT_SM90_ALL)"])
def test_a_warning_in_a_kernel_is_an_error_in_ci(tree: Path, build: Build, only_in: str) -> None:
    empty_sources(tree)
    axpy = (ROOT / "csrc/cuda/axpy.cu").read_text()
    unused = f"#if {only_in}\n__global__ void axpy_again() {{ int unused = 0; }}\n#endif\n"
    (tree / "csrc/cuda/axpy.cu").write_text(axpy + unused)
    done = build(ICL_FAST_CUDA="on", ICL_FAST_WERROR="1")
    assert done.returncode != 0
    assert 'variable "unused" was declared but never referenced' in done.stdout + done.stderr


@needs_cxx
@needs_nvcc
@pytest.mark.slow
def test_with_nvcc_it_builds_the_cuda_kernels_for_the_chosen_archs(tree: Path, build: Build) -> None:
    done = build(ICL_FAST_CUDA="on", ICL_FAST_CUDA_ARCHS="80-real;90-virtual")
    assert done.returncode == 0, done.stdout + done.stderr
    info = build_info(tree)
    assert info["cuda"] is True
    assert info["cuda_archs"] == ["80-real", "90-virtual"]


@needs_cxx
@needs_nvcc
@pytest.mark.slow
def test_a_kernel_that_does_not_compile_leaves_the_others(tree: Path, build: Build) -> None:
    kept = {name: (tree / name).read_text() for name in ("csrc/cuda/axpy.cu", "csrc/cuda/bindings.cpp")}
    module = (tree / "csrc/cuda/variant.cpp").read_text()  # has no CPU kernels
    empty_sources(tree)
    for name, text in {**kept, "csrc/bindings.cpp": module}.items():
        (tree / name).write_text(text)
    broken = tree / "csrc/cuda/activation_difference.cu"
    broken.write_text("// fine\nint broken = on_purpose;\n")

    done = build(ICL_FAST_CUDA="on", ICL_FAST_CUDA_ARCHS="80-real")
    assert done.returncode != 0
    assert "ICL_FAST_CUDA=keep-going" in done.stderr.splitlines()[-1]
    assert not extension(tree).exists()

    done = build(ICL_FAST_CUDA="keep-going", ICL_FAST_CUDA_ARCHS="80-real")
    assert done.returncode == 0, done.stdout + done.stderr
    (source, why), *others = ask(tree, "sorted(module.not_built().items())")
    assert (source, others) == ("activation_difference", [])
    assert why.startswith(
        'csrc/cuda/activation_difference.cu(2): error: identifier "on_purpose" is undefined (all of it: build/'
    )
    assert "on_purpose" in (tree / why.partition("all of it: ")[2].rstrip(")")).read_text()
    assert ask(tree, "[hasattr(module, name + '_cuda') for name in ('axpy', 'activation_difference')]") == [True, False]

    broken.write_text("// fine\n")
    done = build(ICL_FAST_CUDA="keep-going", ICL_FAST_CUDA_ARCHS="80-real")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ask(tree, "module.not_built()") == {}


@needs_cxx
@pytest.mark.parametrize(
    ("printed", "why"),
    [
        ("note: here\nx.cu(3): error: no such thing\nx.cu(9): error: nor this", "x.cu(3): error: no such thing"),
        ("ptxas fatal   : Unresolved extern", "ptxas fatal   : Unresolved extern"),
        ('one "quoted" \\ line', 'one "quoted" \\ line'),
        ("", "exit code 2"),
    ],
)
def test_what_is_linked_in_place_of_a_kernel_says_why(tmp_path: Path, printed: str, why: str) -> None:
    """keep_going.py, with an nvcc that fails."""
    (tmp_path / "printed").write_text(printed)
    (tmp_path / "nvcc").write_text(f"#!/bin/sh\ncat {tmp_path}/printed >&2\nexit 2\n")
    (tmp_path / "nvcc").chmod(0o755)
    target = tmp_path / "axpy.cu.o"
    command = [ROOT / "csrc/keep_going.py", "g++", tmp_path / "nvcc", "-c", "cuda/axpy.cu", "-o", target]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (tmp_path / "main.cpp").write_text(
        '#include "cuda/not_built.h"\n#include <cstdio>\n'
        'int main() { for (auto& [source, why] : icl::NotBuilt::all()) printf("%s: %s", source.c_str(), why.c_str()); }'
    )
    program = [tmp_path / "main.cpp", target, "-std=c++20", f"-I{ROOT / 'csrc'}", "-o", tmp_path / "main"]
    subprocess.run(["g++", *program], check=True)
    said = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True).stdout
    assert said == f"axpy: {why} (all of it: {os.path.relpath(f'{target}.log', ROOT)})"
    assert printed in Path(f"{target}.log").read_text()


@needs_cxx
def test_an_nvcc_that_does_well_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "axpy.cu.o"
    command = ["sh", "-c", "echo made > $3", "-c", "cuda/axpy.cu", "-o", target]
    subprocess.run([sys.executable, ROOT / "csrc/keep_going.py", "g++", *command], check=True)
    assert target.read_text() == "made\n"
    assert [path.name for path in tmp_path.iterdir()] == ["axpy.cu.o"]
