"""gpu-tune with a fake nvcc and fake GPU processes that fail, hang and are wrong; its cases on the CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gpu_check
import gpu_tune
import harness
import pytest
import torch
from gpu_tune import Run
from tune_variants import AGAIN, AS_IS, KERNELS, OPS, Tuned

from icl_fast.ops import _backend

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "csrc/cuda"

KERNEL = Tuned(
    "fake",
    "product",
    ("one", "two"),
    "main_kernel",
    80,
    (),
    {
        "larger": {"SIZE": 2},
        "broken": {"BROKEN": True},
        "hangs": {"HANGS": True},
        "crashes": {"CRASHES": True},
        "wrong": {"WRONG": True},
    },
)

# Compiles a file to the list of its macros; what ptxas would print is about one kernel of three
NVCC = r"""#!/bin/sh
defines=""; target=""
for word in "$@"; do
  case "$word" in
    -DICL_BROKEN=*) echo "two.cu(3): error: no such tile"; exit 2 ;;
    -DICL_VARIANT|-DICL_CUDA) ;;
    -D*) defines="$defines $word" ;;
  esac
  [ "$before" = -o ] && target="$word"
  before="$word"
done
case "$*" in *-shared*) defines=$(cat "$(dirname "$target")/one.o") ;; esac
echo "$defines" > "$target"
case "$*" in *one.cu*) cat <<END
ptxas info    : Compiling entry function '_Z11main_kernelI1aE' for 'sm_80'
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z11main_kernelI1bE' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z5otherv' for 'sm_80'
    0 bytes stack frame, 64 bytes spill stores, 64 bytes spill loads
ptxas info    : Used 255 registers, 400 bytes cmem[0]
END
esac
"""
# What times a module: $0 is the module, $1 the file of results
TIMER = r"""
case "$(cat "$0")" in
  *HANGS*) sleep 100 ;;
  *CRASHES*) kill -SEGV $$ ;;
  *WRONG*) echo "harness.WrongResult: result 0 is off"; exit 1 ;;
  *SIZE=2*) ms=0.5 ;;
  *) ms=1.0 ;;
esac
echo '{"cases": [{"case": "bfloat16 N=1", "median_s": '"$ms"'e-3, "tflops": 1}], "shared": 98304}' > "$1"
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the fake nvcc; timing runs the fake timer."""
    program = tmp_path / "nvcc"
    program.write_text(NVCC)
    program.chmod(0o755)
    command = lambda module, kernel, result: ["sh", "-c", TIMER, str(module), str(result)]  # noqa: E731
    monkeypatch.setattr(gpu_tune, "timing_command", command)
    monkeypatch.setattr(gpu_tune, "VARIANT_SECONDS", 5.0)
    return program


def new_run(tmp_path: Path, nvcc: Path, seconds: float = 100) -> Run:
    (tmp_path / "scratch").mkdir()
    return Run(tmp_path / "scratch", time.monotonic() + seconds, str(nvcc), "80")


def test_a_variant_that_fails_is_a_row_that_says_so(tmp_path: Path, fakes: Path) -> None:
    saved: list[int] = []
    rows = gpu_tune.tune(new_run(tmp_path, fakes), [KERNEL], 2, lambda rows: saved.append(len(rows)))
    assert {row["variant"]: row["error"] for row in rows} == {
        AS_IS: "",
        "larger": "",
        "broken": "two.cu(3): error: no such tile",
        "hangs": "not timed within 5 s",
        "crashes": "ended by signal 11",
        "wrong": "harness.WrongResult: result 0 is off",
        AGAIN: "",
    }
    assert saved == [1, 2, 3, 4, 5, 6, 7]
    assert rows[1] | {"build_s": 0} == {
        "kernel": "product",
        "variant": "larger",
        "numbers": {"SIZE": 2},
        "cases": [{"case": "bfloat16 N=1", "median_s": 0.5e-3, "tflops": 1}],
        "instances": 2,
        "registers": 168,
        "static_shared": 2048,
        "spilled": 16,
        "build_s": 0,
        "error": "",
        "shared": 98304,
    }
    lines = gpu_tune.table(rows).splitlines()
    assert lines[2] == "  case 1: bfloat16 N=1"
    assert [line.split()[-2:] for line in lines if line.startswith(("as is ", "larger"))] == [
        ["1.000", "(1.00x)"],
        ["0.500", "(2.00x)"],
    ]
    assert next(line for line in lines if line.startswith("broken")).endswith("-  two.cu(3): error: no such tile")


def test_what_there_is_no_time_for_says_so(tmp_path: Path, fakes: Path) -> None:
    fakes.write_text("#!/bin/sh\ncase $* in *SIZE*) exec sleep 100 ;; esac\n" + NVCC.removeprefix("#!/bin/sh\n"))
    begun = time.monotonic()
    run = new_run(tmp_path, fakes, seconds=15)
    rows = gpu_tune.tune(run, [KERNEL], 1, lambda rows: None)
    assert time.monotonic() - begun < 60
    errors = {row["variant"]: row["error"] for row in rows}
    assert errors[AS_IS] == ""  # the same module as the last one, but in time
    assert errors["larger"] == "not compiled in time"
    assert errors["wrong"] == "not compiled in time"
    assert errors[AGAIN] == "no time left"


def test_the_whole_script(
    tmp_path: Path, fakes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = {"device": {"name": "a GPU", "capability": [9, 0]}}
    monkeypatch.setattr(gpu_check, "probe", lambda: device)
    monkeypatch.setenv("CUDACXX", str(fakes))
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu_tune.py", "head_ablation_cross_entropy", "--jobs", "2"])
    before = signal.getsignal(signal.SIGTERM)
    assert gpu_tune.main() == 0
    assert signal.getsignal(signal.SIGTERM) is before
    report = json.loads((tmp_path / "gpu-tune-head_ablation_cross_entropy.json").read_text())
    assert report["device"] == device["device"]
    assert report["arch"] == "90a"
    kernels = [kernel for kernel in KERNELS if kernel.op == report["op"]]
    assert [row["variant"] for row in report["rows"]] == [v for kernel in kernels for v in kernel.all_variants()]
    assert all(row["cases"] for row in report["rows"])
    printed = capsys.readouterr().out
    assert "chunks of 512 KiB" in printed
    assert "1.000 (1.00x)" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no_such_op"], 2, "invalid choice: 'no_such_op'"),
        ([], 2, "the following arguments are required: op"),
        (["frozen_attention"], 2, "gpu-tune: nothing to tune here: torch "),
        (
            ["frozen_attention", "--compile-only", "80", "--only", "Hopper"],
            2,
            "no kernel of frozen_attention for sm_80",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(arguments: list[str], code: int, message: str) -> None:
    if "nothing to tune" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, ROOT / "bench/gpu_tune.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "", "CUDACXX": "nvcc"})
    assert done.returncode == code
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


class FakeClock:
    def seconds(self, call: object, repeat: int = 1) -> float:
        call()  # type: ignore[operator]
        return 0.25


QUICK = harness.Options(device="cpu", quick=True, compile=False, seconds=1.0)


@pytest.mark.skipif(not _backend.compiled(), reason="no CPU kernels")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.op}, {kernel.name}")
def test_its_cases_are_checked_and_timed(kernel: Tuned) -> None:
    """By the CPU's kernels."""
    for arguments in kernel.cases:
        row = gpu_tune.time_case(kernel.op, arguments, QUICK, FakeClock())
        assert row["case"].startswith("bfloat16 ")
        assert row["rounds"] == 5
        assert row["q10_s"] == row["median_s"] == row["q90_s"] == 0.25


def test_a_kernel_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_layer_norm_difference as bench

    candidates = [harness.Candidate("ours", lambda x: x + 1), harness.Candidate("reference", lambda x: x)]
    case = harness.Case("N=1", torch.float32, lambda maker: maker.normal(5), candidates, 1.0, 1.0)
    monkeypatch.setattr(bench, "case", lambda options: case)
    clock = SimpleNamespace(seconds=lambda *_: pytest.fail("timed"))
    with pytest.raises(harness.WrongResult):
        gpu_tune.time_case("layer_norm_difference", (), QUICK, clock)


def test_every_number_of_a_variant_is_a_tunable_and_every_tunable_is_used() -> None:
    defined = re.findall(r"#ifndef ICL_(\w+)\n#define ICL_\1 ", (CUDA / "tunables.h").read_text())
    named = {name for kernel in KERNELS for numbers in kernel.variants.values() for name in numbers}
    assert named <= set(defined)
    code = "".join(path.read_text() for path in CUDA.iterdir() if path.name != "tunables.h")
    assert [name for name in defined if not re.search(rf"\bICL_{name}\b", code)] == []
    assert [(k.op, source) for k in KERNELS for source in k.sources if not (CUDA / f"{source}.cu").is_file()] == []
    wanted = ("linear_cross_entropy", "frozen_attention", "smeared_attention", "head_ablation_cross_entropy")
    assert set(OPS) == {*wanted, "cross_entropy_difference"}


@pytest.mark.slow
@pytest.mark.skipif(gpu_tune.find_nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("arch", ["90a", "80"])
@pytest.mark.parametrize("op", ["frozen_attention", "smeared_attention"])
def test_the_variants_of_an_op_compile_and_none_spills(tmp_path: Path, op: str, arch: str) -> None:
    command = [sys.executable, ROOT / "bench/gpu_tune.py", op, "--compile-only", arch, "--seconds", "5000"]
    done = subprocess.run([*command, "--json", tmp_path / "rows.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    archs = {80, 90} if arch == "90a" else {80}
    assert {row["kernel"] for row in rows} == {k.name for k in KERNELS if k.op == op and k.arch in archs}
    assert [(row["variant"], row["error"]) for row in rows if row["error"]] == []
    assert [row["variant"] for row in rows if not row["registers"]] == []
    assert [row["variant"] for row in rows if row["spilled"]] == []


@pytest.mark.slow
@pytest.mark.skipif(gpu_tune.find_nvcc() is None or shutil.which("g++") is None, reason="no nvcc or g++")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.op}, {kernel.name}")
def test_every_variant_fits(kernel: Tuned) -> None:
    """What static_asserts say, which g++ tells in a second: nvcc takes a minute."""
    headers = Path(os.path.realpath(str(gpu_tune.find_nvcc()))).parents[1] / "include"
    if not (headers / "cuda_bf16.h").is_file():
        headers = Path("/usr/local/cuda/include")
    fixed = ["g++", "-std=c++20", "-fsyntax-only", "-w", "-DICL_CUDA", "-DICL_VARIANT"]
    fixed += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/emu'}", "-isystem", headers]
    fixed += ["-xc++", CUDA / f"{kernel.sources[-1]}.cu"]
    for name, numbers in kernel.variants.items():
        defines = [f"-DICL_{key}={str(value).lower()}" for key, value in numbers.items()]
        done = subprocess.run([*fixed, *defines], capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"


STANDS_IN = """
import sys, gpu_tune
sys.modules["icl_fast._C"] = module = gpu_tune.load(sys.argv[1])
from icl_fast.ops import _backend, available_impls
assert _backend.module() is module and module.most_shared() == 0
assert not hasattr(module, "gated_difference_cuda") and not hasattr(module, "axpy_cpu")
assert all("cuda" in impls for op, impls in available_impls().items() if op != "exemplar_steps"), available_impls()
module.axpy_cuda(0, 0, 0, 0, 1.0, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(gpu_tune.find_nvcc() is None, reason="no nvcc")
def test_a_module_of_one_op_stands_in_for_all(tmp_path: Path) -> None:
    run = new_run(tmp_path, Path(str(gpu_tune.find_nvcc())), seconds=1000)
    axpy = Tuned("axpy", "axpy", ("axpy",), "axpy_kernel", 80, (), {})
    built = gpu_tune.build(run, axpy, {"GEMM_STAGES": 2}, tmp_path / "built", gpu_tune.build_host_objects(run))
    assert built.error == ""
    assert built.numbers["registers"] > 0
    paths = os.pathsep.join([str(ROOT), str(ROOT / "bench")])
    subprocess.run([sys.executable, "-c", STANDS_IN, built.module], check=True, env={**os.environ, "PYTHONPATH": paths})
