"""What nvcc made of csrc/cuda, read off the built module: tensor-core instructions, registers, local memory.

The rules, for every kernel of icl_fast/_C and every architecture in it:
- it lives in the anonymous namespace of its file (so its name tells the file) and has a row in CEILINGS;
- no stack frame and no local memory (what spills lives there), and no more registers than its ceiling;
- if it is compiled for bf16 or fp16 (a template argument or a parameter is of that type) it multiplies on tensor cores,
  except those in NOT_PRODUCTS; if for neither, it does not: that would be TF32, where full float32 is promised;
- a file `*_sm90.cu` is compiled for sm_90a alone, its products use wgmma (HGMMA) on tiles that TMA (UTMALDG) brings;
  every other file is compiled for sm_80 and sm_90a, and its products use mma.sync (HMMA).

The table that can be pasted into a note: `.venv/bin/python python_tests/build/test_cuda_static.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

from icl_fast.ops import _backend

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
ARCHS = ("sm_80", "sm_90a")

# Most registers a thread may take, in any instance of a kernel or ("name<arguments>", as in the report) in one of them.
# A multiprocessor has 65,536: 4 blocks of 128 threads fit on it with 128 registers each, 2 with 255.
CEILINGS: dict[str, dict[str, int]] = {
    "axpy_kernel": {"sm_80": 32, "sm_90a": 32},
}
# Kernels of narrow numbers that multiply no matrices, each with what it does instead.
NOT_PRODUCTS: dict[str, str] = {}

needs_nvcc = pytest.mark.skipif(
    NVCC is None or os.environ.get("ICL_FAST_CUDA", "").lower() == "off", reason="no nvcc, or switched off"
)


class Kernel(NamedTuple):
    """One kernel instance in one architecture's code."""

    file: str  # without .cu
    name: str
    arguments: str  # of the template
    narrow: bool  # works on bf16 or fp16
    arch: str
    registers: int
    shared: int  # static; what a launch adds is not in the code
    stack: int
    instructions: Counter[str]

    @property
    def local(self) -> int:
        """Loads and stores of local memory."""
        return sum(self.instructions[name] for name in ("LDL", "STL"))

    @property
    def ceiling(self) -> int | None:
        row = CEILINGS.get(self.name + self.arguments) or CEILINGS.get(self.name, {})
        return row.get(self.arch)


def violations(kernels: list[Kernel]) -> list[str]:
    """What breaks the rules, a line each."""
    return [
        f"{kernel.file}.cu: {kernel.name}{kernel.arguments}, {kernel.arch}: {problem}"
        for kernel in kernels
        for problem in problems(kernel)
    ]


def problems(kernel: Kernel) -> list[str]:
    found = []
    ceiling = kernel.ceiling
    if not kernel.file:
        found.append("is not in the anonymous namespace of a .cu file")
    if ceiling is None:
        found.append(f"no register ceiling: write one into CEILINGS (it takes {kernel.registers})")
    elif kernel.registers > ceiling:
        found.append(f"{kernel.registers} registers, above its ceiling of {ceiling}")
    if kernel.stack or kernel.local:
        found.append(f"local memory: a stack of {kernel.stack} bytes, {kernel.local} accesses")
    hopper = kernel.file.endswith("_sm90")
    if hopper and kernel.arch != "sm_90a":
        found.append("must be compiled for sm_90a alone")
    product = kernel.narrow and kernel.name not in NOT_PRODUCTS
    needed = [] if not product else ["HGMMA", "UTMALDG"] if hopper else ["HMMA"]
    found += [f"no {name}" for name in needed if not kernel.instructions[name]]
    if not product:
        found += [f"{name}: tensor cores" for name in ("HMMA", "HGMMA") if kernel.instructions[name]]
    return found


def missing(kernels: list[Kernel], sources: dict[str, str]) -> list[str]:
    """The sources that have a kernel which the module lacks, for an architecture they are to be compiled for."""
    there = {(kernel.file, kernel.arch) for kernel in kernels}
    return [
        f"{file}.cu: no kernel in the module for {arch}"
        for file, text in sources.items()
        if "__global__" in text
        for arch in (("sm_90a",) if file.endswith("_sm90") else ARCHS)
        if (file, arch) not in there
    ]


def report(kernels: list[Kernel]) -> str:
    rows = [("kernel", "arch", "registers", "ceiling", "static shared", "HMMA", "HGMMA", "UTMALDG", "stack", "LDL+STL")]
    for k in kernels:
        count = k.instructions
        numbers = (k.shared, count["HMMA"], count["HGMMA"], count["UTMALDG"], k.stack, k.local)
        rows.append((k.name + k.arguments, k.arch, str(k.registers), str(k.ceiling or "none"), *map(str, numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def kernels_of(binary: Path) -> list[Kernel]:
    """All kernels of a cubin, or of an object file or module with several inside."""
    usages = resource_usages(run(cuobjdump(), "--dump-resource-usage", binary))
    code = instructions(run(cuobjdump(), "-sass", binary))
    mangled = sorted({symbol for symbol, _ in usages})
    plain = dict(zip(mangled, run("c++filt", stdin="\n".join(mangled)).splitlines(), strict=True)) if mangled else {}
    kernels = [
        Kernel(
            *signature(symbol, plain[symbol]), arch, use["REG"], use["SHARED"], use["STACK"] + use["LOCAL"], code[key]
        )
        for key, use in usages.items()
        for symbol, arch in [key]
    ]
    return sorted(kernels)


def signature(symbol: str, demangled: str) -> tuple[str, str, str, bool]:
    """File, name and template arguments of a kernel, and whether it works on narrow numbers."""
    inside = re.search(r"_GLOBAL__N__[0-9a-f]+_(\d+)_", symbol)  # then that many letters, the file: 7_axpy_cu_...
    file = symbol[inside.end() :][: int(inside[1])].removesuffix("_cu") if inside else ""
    rest = demangled.partition("(anonymous namespace)::")[2] or demangled
    name, arguments = re.match(r"(?:\w+::)*(\w+)", rest)[1], ""  # type: ignore[index]
    if rest.startswith(name + "<"):
        depth = 0
        for end, letter in enumerate(rest):
            depth += {"<": 1, ">": -1}.get(letter, 0)
            if letter == ">" and depth == 0:
                arguments = rest[len(name) : end + 1].replace("__nv_bfloat16", "bf16").replace("__half", "fp16")
                break
    return file, name, arguments, bool(re.search("__nv_bfloat16|__half", demangled))


def resource_usages(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """(symbol, arch) -> REG, STACK, SHARED, LOCAL; of each ELF file in turn."""
    usages, arch, symbol = {}, "", ""
    for line in text.splitlines():
        if found := re.match(r"arch = (sm_\w+)", line):
            arch = found[1]
        elif found := re.match(r" Function (\S+):", line):
            symbol = found[1]
        elif symbol and "REG:" in line:
            usages[symbol, arch] = {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", line)}
            symbol = ""
    return usages


def instructions(sass: str) -> dict[tuple[str, str], Counter[str]]:
    """(symbol, arch) -> how often each instruction stands in the code, by its name up to the first dot."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    arch, count = "", Counter[str]()
    for line in sass.splitlines():
        if found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)", line):
            count[found[1]] += 1
        elif found := re.match(r"\s+code for (sm_\w+)", line):
            arch = found[1]
        elif found := re.match(r"\s+Function : (\S+)", line):
            count = counts[found[1], arch] = Counter()
    return counts


def cuobjdump() -> Path:
    """cuobjdump of the dev extra, which brings nvdisasm; else the toolkit's."""
    try:
        files = metadata.files("nvidia-cuda-cuobjdump") or []
    except metadata.PackageNotFoundError:
        files = []
    named = [Path(str(file.locate())) for file in files if file.name == "cuobjdump"]
    toolkit = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(Path(str(NVCC)).parent))
    found = next((path for path in (*named, Path(toolkit or "")) if path.is_file()), None)
    assert found, "cuobjdump was not found: make setup, or pip install -e '.[dev]'"
    return found


def run(*command: object, stdin: str | None = None) -> str:
    done = subprocess.run([*map(str, command)], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    return done.stdout


def built_module() -> Path:
    """icl_fast/_C, which must have CUDA kernels for both architectures and not be older than their sources."""
    build = _backend.build_info()
    archs = {arch.removesuffix("-real") for arch in build.get("cuda_archs", ())}
    assert {arch.removeprefix("sm_") for arch in ARCHS} <= archs, f"built for {archs}, not for {ARCHS}: make setup"
    module = Path(_backend.module().__file__)
    newest = max([CSRC / "ops.h", *(CSRC / "cuda").iterdir()], key=lambda file: file.stat().st_mtime)
    assert newest.stat().st_mtime <= module.stat().st_mtime, f"{newest.name} is newer than {module.name}: make setup"
    return module


@needs_nvcc
def test_every_kernel_keeps_the_rules() -> None:
    kernels = kernels_of(built_module())
    print(report(kernels))
    sources = {file.stem: file.read_text() for file in (CSRC / "cuda").glob("*.cu")}
    assert violations(kernels) + missing(kernels, sources) == []


GOOD = Kernel("a", "axpy_kernel", "<bf16>", True, "sm_80", 32, 0, 0, Counter(HMMA=8, LDG=4))
HOPPER = GOOD._replace(file="a_sm90", arch="sm_90a", instructions=Counter(HGMMA=8, UTMALDG=2))


@pytest.mark.parametrize("kernel", [GOOD, HOPPER, GOOD._replace(narrow=False, instructions=Counter(FFMA=1))])
def test_a_good_kernel_has_no_problems(kernel: Kernel) -> None:
    assert violations([kernel]) == []
    assert missing([kernel], {kernel.file + "_without_kernels": "int x;"}) == []


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (GOOD._replace(registers=33), "33 registers, above its ceiling of 32"),
        (GOOD._replace(stack=8), "local memory: a stack of 8 bytes, 0 accesses"),
        (GOOD._replace(instructions=Counter(HMMA=1, LDL=2, STL=1)), "local memory: a stack of 0 bytes, 3 accesses"),
        (GOOD._replace(instructions=Counter(FFMA=9)), "no HMMA"),
        (GOOD._replace(narrow=False), "HMMA: tensor cores"),
        (GOOD._replace(file=""), "is not in the anonymous namespace of a .cu file"),
        (GOOD._replace(name="new"), "no register ceiling: write one into CEILINGS (it takes 32)"),
        (HOPPER._replace(instructions=Counter(UTMALDG=1, HMMA=1)), "no HGMMA"),
        (HOPPER._replace(instructions=Counter(HGMMA=1)), "no UTMALDG"),
        (HOPPER._replace(arch="sm_80"), "must be compiled for sm_90a alone"),
    ],
)
def test_a_bad_kernel_has_one(kernel: Kernel, problem: str) -> None:
    assert violations([kernel]) == [f"{kernel.file}.cu: {kernel.name}<bf16>, {kernel.arch}: {problem}"]


def test_one_instance_may_have_a_ceiling_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CEILINGS, "axpy_kernel<bf16>", {"sm_80": 30})
    assert GOOD.ceiling == 30
    assert GOOD._replace(arguments="<fp16>").ceiling == 32


def test_a_kernel_that_is_not_compiled_is_missing() -> None:
    sources = {"a": "__global__ void a() {}", "a_sm90": "__global__ void b() {}"}
    assert missing([GOOD, HOPPER], sources) == ["a.cu: no kernel in the module for sm_90a"]


PROBE = """
#include <cuda_bf16.h>
namespace icl { namespace {
template <typename T, int kWidth> __global__ void spill_kernel(T* out, const int* which) {
  float a[kWidth];
  for (int i = 0; i < kWidth; ++i) a[i] = float(out[i]) * i;
  for (int i = 0; i < kWidth; ++i) a[which[i]] += a[i];
  out[0] = T(a[which[0]]);
}
__global__ void tile_kernel(float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  unsigned a = threadIdx.x;
  float d[4] = {tile[a ^ 1]};
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a), "r"(a), "r"(a));
  out[a] = d[0] + d[1] + d[2] + d[3];
}
} }
void* use() { return (void*)icl::spill_kernel<__nv_bfloat16, 16 * 4>; }
"""


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_in_a_binary_is_found(tmp_path: Path, arch: str) -> None:
    source = tmp_path / "probe.cu"
    source.write_text(PROBE)
    run(NVCC, "-c", f"-gencode=arch=compute_{arch[3:]},code={arch}", "-o", tmp_path / "probe.o", source)
    spill, tile = kernels_of(tmp_path / "probe.o")
    assert (spill.file, spill.name, spill.arguments, spill.arch) == ("probe", "spill_kernel", "<bf16, 64>", arch)
    assert spill.narrow
    assert spill.stack >= 256
    assert spill.local >= 64
    assert (tile.name, tile.arguments, tile.narrow, tile.stack, tile.local) == ("tile_kernel", "", False, 0, 0)
    assert tile.shared >= 256
    assert tile.instructions["HMMA"] == 1
    assert tile.registers >= 8


if __name__ == "__main__":
    found = kernels_of(built_module())
    print(report(found))
    sys.exit("\n".join(violations(found)) or None)
