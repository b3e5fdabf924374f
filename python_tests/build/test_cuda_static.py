"""What nvcc made of csrc/cuda, read off the object files of icl_fast/_C: tensor cores, registers, local memory.

The rules, for every kernel and every architecture it is compiled for:
- no stack frame and no local memory (what spills lives there), and no more registers than its ceiling in CEILINGS;
- if it is compiled for bf16 or fp16 (a template argument or a parameter is of that type) it multiplies on tensor cores,
  except those in NOT_PRODUCTS; if for neither, it does not: that would be TF32, where full float32 is promised;
- a file `*_sm90.cu` is compiled for sm_90a alone, its products use wgmma (HGMMA) on tiles that TMA (UTMALDG) brings,
  and several are in flight (fewer WARPGROUP.ARRIVE and WARPGROUP.DEPBAR than HGMMA);
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
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

from icl_fast.ops import _backend

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
ARCHS = ("sm_80", "sm_90a")

# Most registers a thread may take, for kernels whose label in the report begins with the key; the longest key counts.
# A multiprocessor has 65,536: 4 blocks of 128 threads fit on it with 128 registers each, 3 with 168, 2 with 255.
CEILINGS: dict[str, dict[str, int]] = {
    "activation_difference: activation_difference_kernel": {"sm_80": 64, "sm_90a": 64},
    "axpy: axpy_kernel": {"sm_80": 32, "sm_90a": 32},
    "cross_entropy_difference: finish_kernel": {"sm_80": 128, "sm_90a": 128},
    "cross_entropy_difference: main_kernel": {"sm_80": 255, "sm_90a": 255},
    "cross_entropy_difference_sm90: cross_entropy_difference_kernel": {"sm_90a": 168},
    "frozen_attention: attention_forward<(Keys)0, ": {"sm_80": 224, "sm_90a": 224},  # given keys
    "frozen_attention: attention_forward<(Keys)0, ForwardShape<float, ": {"sm_80": 255, "sm_90a": 255},
    "frozen_attention: attention_forward<(Keys)2, ": {"sm_80": 192, "sm_90a": 192},  # a given pattern
    "frozen_attention: attention_forward<(Keys)2, ForwardShape<float, ": {"sm_80": 168, "sm_90a": 168},
    "frozen_attention_sm90: frozen_attention_kernel": {"sm_90a": 168},
    "gated_difference: gated_difference_kernel": {"sm_80": 96, "sm_90a": 96},
    "head_ablation_cross_entropy: combine_kernel": {"sm_80": 32, "sm_90a": 32},
    "head_ablation_cross_entropy: deviation_kernel": {"sm_80": 128, "sm_90a": 128},
    "head_ablation_cross_entropy: deviation_kernel<float>": {"sm_80": 168, "sm_90a": 168},
    "head_ablation_cross_entropy: heads_kernel": {"sm_80": 32, "sm_90a": 32},
    "head_ablation_cross_entropy: main_kernel": {"sm_80": 255, "sm_90a": 255},
    "head_ablation_cross_entropy: product_kernel<Gemm<": {"sm_80": 128, "sm_90a": 128},
    "head_ablation_cross_entropy: product_kernel<Gemm<float, ": {"sm_80": 255, "sm_90a": 255},
    "head_ablation_cross_entropy: rows_kernel": {"sm_80": 40, "sm_90a": 40},
    "head_ablation_cross_entropy: weight_kernel": {"sm_80": 32, "sm_90a": 32},
    "head_ablation_cross_entropy_sm90: head_ablation_kernel": {"sm_90a": 168},
    "layer_norm_difference: layer_norm_difference_kernel": {"sm_80": 48, "sm_90a": 48},
    "linear_cross_entropy_bwd: column_sums_kernel": {"sm_80": 32, "sm_90a": 32},
    "linear_cross_entropy_bwd: grad_bias_kernel": {"sm_80": 32, "sm_90a": 32},
    "linear_cross_entropy_bwd: product_kernel<Gemm<": {"sm_80": 128, "sm_90a": 128},
    "linear_cross_entropy_bwd: product_kernel<Gemm<float, ": {"sm_80": 255, "sm_90a": 255},
    "linear_cross_entropy_bwd: scale_kernel": {"sm_80": 32, "sm_90a": 32},
    "linear_cross_entropy_fwd: combine_kernel": {"sm_80": 32, "sm_90a": 32},
    "linear_cross_entropy_fwd: forward_kernel<Gemm<": {"sm_80": 128, "sm_90a": 128},
    "linear_cross_entropy_fwd: forward_kernel<Gemm<float, ": {"sm_80": 255, "sm_90a": 255},
    "linear_cross_entropy_fwd_sm90: linear_cross_entropy_kernel": {"sm_90a": 168},
    "smeared_attention_bwd: attention_backward<false, ": {"sm_80": 208, "sm_90a": 208},  # of the queries
    "smeared_attention_bwd: attention_backward<true, ": {"sm_80": 255, "sm_90a": 255},  # of the keys and values
    "smeared_attention_bwd: row_numbers": {"sm_80": 72, "sm_90a": 72},
    "smeared_attention_bwd: sum_gate": {"sm_80": 48, "sm_90a": 48},
    "smeared_attention_bwd: unsmear": {"sm_80": 64, "sm_90a": 64},
    "smeared_attention_fwd: attention_forward<(Keys)1, ": {"sm_80": 255, "sm_90a": 255},
    "smeared_attention_fwd: smear_kernel": {"sm_80": 32, "sm_90a": 32},
}
# Kernels of narrow numbers that multiply no matrices, each with what it does instead.
NOT_PRODUCTS: dict[str, str] = {
    "activation_difference_kernel": "subtracts activations, element by element",
    "gated_difference_kernel": "subtracts gated activations, element by element",
    "layer_norm_difference_kernel": "subtracts normed rows",
    "finish_kernel": "makes losses of sums; the few rows whose sums it cannot use it multiplies in float32",
    "heads_kernel": "centres the rows of W_O",
    "rows_kernel": "centres the rows of the stream",
    "smear_kernel": "mixes each key with the one before it",
    "weight_kernel": "multiplies the unembedding by the gain of the norm",
    "unsmear": "takes the gradient of smeared keys back to the keys",
    "column_sums_kernel": "adds up the gradient of the logits, for the bias",
    "grad_bias_kernel": "adds up the parts of those sums",
}

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
    def label(self) -> str:
        return f"{self.file}: {self.name}{self.arguments}"

    @property
    def ceiling(self) -> int | None:
        key = max((key for key in CEILINGS if self.label.startswith(key)), key=len, default="")
        return CEILINGS.get(key, {}).get(self.arch)


def violations(kernels: list[Kernel]) -> list[str]:
    """What breaks the rules, a line each."""
    return [f"{kernel.label}, {kernel.arch}: {problem}" for kernel in kernels for problem in problems(kernel)]


def problems(kernel: Kernel) -> list[str]:
    found = []
    ceiling = kernel.ceiling
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
    if kernel.instructions["WARPGROUP"] >= max(1, kernel.instructions["HGMMA"]):
        found.append("wgmma one after the other: nvcc waits after each (ptxas C7510 to C7519 say why)")
    if not product:
        found += [f"{name}: tensor cores" for name in ("HMMA", "HGMMA") if kernel.instructions[name]]
    return found


def missing(kernels: list[Kernel], files: set[str]) -> list[str]:
    """The files that have no kernel for an architecture they are to be compiled for."""
    there = {(kernel.file, kernel.arch) for kernel in kernels}
    return [
        f"{file}.cu: no kernel for {arch}"
        for file in sorted(files)
        for arch in (("sm_90a",) if file.endswith("_sm90") else ARCHS)
        if (file, arch) not in there
    ]


def idle(kernels: list[Kernel]) -> list[str]:
    """The rows above that are about no kernel."""
    labels, names = [kernel.label for kernel in kernels], {kernel.name for kernel in kernels}
    found = [f"CEILINGS: {key}: no such kernel" for key in CEILINGS if not any(x.startswith(key) for x in labels)]
    return found + [f"NOT_PRODUCTS: {name}: no such kernel" for name in NOT_PRODUCTS if name not in names]


def report(kernels: list[Kernel]) -> str:
    rows = [("kernel", "arch", "registers", "ceiling", "static shared", "HMMA", "HGMMA", "UTMALDG", "stack", "LDL+STL")]
    for k in kernels:
        count = k.instructions
        numbers = (k.shared, count["HMMA"], count["HGMMA"], count["UTMALDG"], k.stack, k.local)
        rows.append(
            (f"{k.file}: {k.name}{k.arguments}", k.arch, str(k.registers), str(k.ceiling or "none"), *map(str, numbers))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def kernels_of(compiled: Path) -> list[Kernel]:
    """The kernels of an object file, FILE.cu.o."""
    usages = resource_usages(run(cuobjdump(), "--dump-resource-usage", compiled))
    code = instructions(run(cuobjdump(), "-sass", compiled)) if usages else {}
    symbols = sorted({symbol for symbol, _ in usages})
    plain = dict(zip(symbols, run("c++filt", stdin="\n".join(symbols)).splitlines(), strict=True)) if symbols else {}
    kernels = []
    for (symbol, arch), use in usages.items():
        narrow = bool(re.search("__nv_bfloat16|__half", plain[symbol]))
        numbers = use["REG"], use["SHARED"], use["STACK"] + use["LOCAL"]
        name, arguments = signature(plain[symbol])
        kernels.append(Kernel(compiled.name.split(".")[0], name, arguments, narrow, arch, *numbers, code[symbol, arch]))
    return sorted(kernels, key=lambda kernel: kernel[:5])


def signature(demangled: str) -> tuple[str, str]:
    """Name and template arguments of a kernel, without namespaces."""
    shorter = (
        ("(anonymous namespace)::", ""),
        ("icl::", ""),
        ("__nv_bfloat16", "bf16"),
        ("__half", "fp16"),
        ("> >", ">>"),
    )
    for long, short in shorter:
        demangled = demangled.replace(long, short)
    found = re.match(r"(?:void )?(\w+)", demangled)
    assert found, demangled
    depth = 0
    for end in range(found.end(), len(demangled)):
        depth += {"<": 1, ">": -1}.get(demangled[end], 0)
        if depth == 0 and demangled[end] == "(":  # the parameters
            return found[1], demangled[found.end() : end]
    return found[1], ""


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


def built_objects() -> list[Path]:
    """The object files that icl_fast/_C was linked from. It must be for both architectures, and newer than csrc."""
    archs = {arch.removesuffix("-real") for arch in _backend.build_info().get("cuda_archs", ())}
    assert {arch.removeprefix("sm_") for arch in ARCHS} <= archs, f"built for {archs}, not for {ARCHS}: make setup"
    module = Path(_backend.module().__file__)
    sources = [CSRC / "ops.h", *(CSRC / "cuda").iterdir(), *(CSRC / "ptx").rglob("*.h")]
    newest = max(sources, key=lambda file: file.stat().st_mtime)
    assert newest.stat().st_mtime <= module.stat().st_mtime, f"{newest.name} is newer than {module.name}: make setup"
    code = module.read_bytes()
    for folder in (ROOT / "build").glob("*-cuda"):
        if (folder / module.name).is_file() and (folder / module.name).read_bytes() == code:
            rules = (folder / "build.ninja").read_text()  # of objects, those of this build and not of an older one
            return [folder / name for name in sorted({*re.findall(r"(?<!\S)CMakeFiles/[\w.]+/cuda/\w+\.cu\.o", rules)})]
    raise AssertionError(f"{module} was not built in {ROOT / 'build'}: make setup")


def built_kernels() -> list[Kernel]:
    with ThreadPoolExecutor(2) as pool:
        return [kernel for kernels in pool.map(kernels_of, built_objects()) for kernel in kernels]


@needs_nvcc
def test_every_kernel_keeps_the_rules() -> None:
    kernels = built_kernels()
    print(report(kernels))
    files = {file.stem for file in (CSRC / "cuda").glob("*.cu")}
    assert violations(kernels) + missing(kernels, files) + idle(kernels) == []


def strong_needs(objects: list[Path]) -> list[str]:
    """What objects need of each other and have not declared weak."""
    symbols = {file.name: re.findall(r" ([A-Zvw]) (_ZN3icl\S+)", run("nm", file)) for file in objects}
    defined = {symbol for own in symbols.values() for kind, symbol in own if kind not in "Uvw"}
    return [f"{name}: {s}" for name, own in symbols.items() for kind, s in own if kind == "U" and s in defined]


@needs_nvcc
def test_any_kernel_can_be_left_out() -> None:
    """By csrc/keep_going.py: the module is linked and loads without."""
    objects = built_objects()
    bindings = next(file.with_name("bindings.cpp.o") for file in objects if file.name == "axpy.cu.o")
    assert strong_needs([bindings, *objects]) == []


GOOD = Kernel("axpy", "axpy_kernel", "<bf16>", True, "sm_80", 32, 0, 0, Counter(HMMA=8, LDG=4))
HOPPER = GOOD._replace(file="axpy_sm90", arch="sm_90a", instructions=Counter(HGMMA=8, UTMALDG=2, WARPGROUP=2))


@pytest.fixture
def hopper_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CEILINGS, "axpy_sm90: axpy", {"sm_80": 32, "sm_90a": 32})


@pytest.mark.usefixtures("hopper_ceiling")
@pytest.mark.parametrize("kernel", [GOOD, HOPPER, GOOD._replace(narrow=False, instructions=Counter(FFMA=1))])
def test_a_good_kernel_has_no_problems(kernel: Kernel) -> None:
    assert violations([kernel]) == []


@pytest.mark.usefixtures("hopper_ceiling")
@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (GOOD._replace(registers=33), "33 registers, above its ceiling of 32"),
        (GOOD._replace(stack=8), "local memory: a stack of 8 bytes, 0 accesses"),
        (GOOD._replace(instructions=Counter(HMMA=1, LDL=2, STL=1)), "local memory: a stack of 0 bytes, 3 accesses"),
        (GOOD._replace(instructions=Counter(FFMA=9)), "no HMMA"),
        (GOOD._replace(narrow=False), "HMMA: tensor cores"),
        (GOOD._replace(name="new"), "no register ceiling: write one into CEILINGS (it takes 32)"),
        (HOPPER._replace(instructions=Counter(UTMALDG=1, HMMA=1)), "no HGMMA"),
        (HOPPER._replace(instructions=Counter(HGMMA=1)), "no UTMALDG"),
        (
            HOPPER._replace(instructions=Counter(UTMALDG=1, HGMMA=4, WARPGROUP=8)),
            "wgmma one after the other: nvcc waits after each (ptxas C7510 to C7519 say why)",
        ),
        (HOPPER._replace(arch="sm_80"), "must be compiled for sm_90a alone"),
    ],
)
def test_a_bad_kernel_has_one(kernel: Kernel, problem: str) -> None:
    assert violations([kernel]) == [f"{kernel.label}, {kernel.arch}: {problem}"]


def test_one_instance_may_have_a_ceiling_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CEILINGS, "axpy: axpy_kernel<bf16>", {"sm_80": 30})
    assert GOOD.ceiling == 30
    assert GOOD._replace(arguments="<fp16>").ceiling == 32


def test_a_kernel_that_is_not_compiled_is_missing() -> None:
    assert missing([GOOD, HOPPER], {"axpy", "axpy_sm90"}) == ["axpy.cu: no kernel for sm_90a"]


@pytest.mark.usefixtures("hopper_ceiling")
def test_a_row_about_no_kernel_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOT_PRODUCTS, "axpy_kernel", "adds")
    monkeypatch.setitem(NOT_PRODUCTS, "gone", "")
    found = idle([GOOD])
    assert "CEILINGS: axpy_sm90: axpy: no such kernel" in found
    assert "NOT_PRODUCTS: gone: no such kernel" in found
    assert not any("axpy: axpy_kernel" in line or "NOT_PRODUCTS: axpy" in line for line in found)


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("icl::axpy_kernel(float*, float)", ("axpy_kernel", "")),
        ("void icl::(anonymous namespace)::a<__half, (bool)1>(__half*)", ("a", "<fp16, (bool)1>")),
        ("void icl::a<(icl::Keys)0, icl::Shape<float, 2> >(icl::P, icl::Q<int>)", ("a", "<(Keys)0, Shape<float, 2>>")),
        ("void icl::a<icl::(anonymous namespace)::B>(int (*)(int))", ("a", "<B>")),
    ],
)
def test_the_name_of_a_kernel(demangled: str, name: tuple[str, str]) -> None:
    assert signature(demangled) == name


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
    run(NVCC, "-c", f"-gencode=arch=compute_{arch[3:]},code={arch}", "-o", tmp_path / "probe.cu.o", source)
    spill, tile = kernels_of(tmp_path / "probe.cu.o")
    assert (spill.file, spill.name, spill.arguments, spill.arch) == ("probe", "spill_kernel", "<bf16, 64>", arch)
    assert spill.narrow
    assert spill.stack >= 256
    assert spill.local >= 64
    assert (tile.name, tile.arguments, tile.narrow, tile.stack, tile.local) == ("tile_kernel", "", False, 0, 0)
    assert tile.shared >= 256
    assert tile.instructions["HMMA"] == 1
    assert tile.registers >= 8


if __name__ == "__main__":
    found = built_kernels()
    print(report(found))
    sys.exit("\n".join(violations(found)) or None)
