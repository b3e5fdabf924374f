"""gpu-check as a whole, on a device that is not there: whatever its parts do, it ends in time and says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_check
import gpu_check_summary
import pytest
import source_tree
import torch
from catalog import NAMES
from stages import ROOT, Job

MakeJob = Callable[..., Job]

# Three ops, so that it is quick; everything else is that of the real package.
PACKAGE = f"OPS = ('alpha', 'beta', 'gamma')\n__path__.append({str(ROOT / 'icl_fast')!r})\n"
CHILD = """
import json, sys
what, *rest = sys.argv[1:]
if what == "op":
    print("run a call")
    sys.exit(print("========= ERROR SUMMARY: 0 errors"))
versions = {"torch": "2.11.0+cu130", "torch_cuda": "13.0", "pytest": "8"}
found = {
    "probe": {"device": {"name": "NVIDIA Nothing", "capability": [8, 0]}, "driver": None, "versions": versions},
    "launch": {"nvcc": "13.0", "cuda_archs": ["80"], "lacking": ["gamma"], "not_built": {"gamma_fwd": "error"}},
}[what]
open(rest[0], "w").write(json.dumps(found)) if rest else print(json.dumps(found))
"""
TESTS = """
import os, time, pytest

@pytest.mark.parametrize("impl", ["reference"])
def test_good(impl):
    for hidden in ("pydantic", "zarr"):
        with pytest.raises(ImportError, match="hidden"):
            __import__(hidden)

@pytest.mark.parametrize("impl", ["reference"])
def test_bad(impl):
    """
CASES = """
import argparse, json, os, time
parser = argparse.ArgumentParser()
parser.add_argument("--json"), parser.add_argument("--begin", type=int)
arguments = parser.parse_known_args()[0]
turns = [("alpha", "first"), ("beta", "crashes"), ("gamma", "hangs"), ("alpha", "second")][arguments.begin:]
row = {"name": "ours", "missing": "", "compare": True, "median_s": 0.001, "tflops": 700.0, "of_matmul": 0.875}
slow = {"name": "torch", "missing": "", "compare": True, "median_s": 0.003}
benches, targets = {}, []

def save(left, running):
    report = {"benches": list(benches.values()), "targets": targets, "left_out": left, "running": running}
    open(arguments.json, "w").write(json.dumps(report))

for index, (name, what) in enumerate(turns):
    save(turns[index:], turns[index : index + 1])
    if what == "crashes":
        os._exit(11)
    if what == "hangs":
        time.sleep(100)
    bench = benches.setdefault(name, {"name": name, "error": "", "cases": []})
    bench["cases"].append({"name": what, "headline": True, "candidates": [row, slow], "errors": []})
    target = {"bench": name, "case": what, "metric": "of matmul", "direction": "at least", "value": 0.7}
    targets.append(target | {"verdict": "holds", "measured": 0.875})
save([], [])
"""
# Limits as short as lets everything end that means to
DRIVER = """
import sys
from dataclasses import replace
import gpu_check, gpu_check_benches, gpu_check_commands, gpu_check_tests
gpu_check_commands.NEED = ("click", "no_such_package")
gpu_check_tests.STALLED = gpu_check_benches.STALLED = 3.0
gpu_check.STAGES = tuple(stage for stage in gpu_check.STAGES if stage.name != "benches, compiled")
sys.exit(gpu_check.main())
"""


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The whole check, in a tree without .git, with fake device, sanitizer and build, and without pydantic and zarr."""
    folder = tmp_path_factory.mktemp("dry run")
    tree, programs, hidden, out = (folder / name for name in ("tree", "programs", "hidden", "out"))
    last = {"alpha": "assert 1 == 2, 'the result is wrong'", "beta": "time.sleep(1000)", "gamma": "os._exit(11)"}
    files = {
        tree / "icl_fast" / "__init__.py": PACKAGE,
        tree / "csrc" / "kernels.cu": "",
        tree / "setup.py": "print('built')",
        tree / "driver.py": DRIVER,
        programs / "compute-sanitizer": 'while [ "$1" != "$PYTHON" ]; do shift; done; exec "$@"',
        **{hidden / f"{name}.py": "raise ImportError('hidden')" for name in ("pydantic", "zarr")},
        **{tree / "python_tests" / "ops" / f"test_{op}.py": TESTS + text for op, text in last.items()},
    }
    for file in (ROOT / "bench").glob("*.py"):
        if not file.name.startswith("bench_"):
            files[tree / "bench" / file.name] = file.read_text()
    files[tree / "bench" / "gpu_check_child.py"] = CHILD
    files[tree / "bench" / "gpu_check_cases.py"] = CASES
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}" if path.parent == programs else text)
    (programs / "compute-sanitizer").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (tree / "bench", hidden))),
        "PYTHON": sys.executable,
        "GPU_CHECK_IMPL": "reference",
        "GIT_CEILING_DIRECTORIES": str(folder),
        "OUT": str(out),
    }
    command = [sys.executable, str(tree / "driver.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400), out


def test_every_stage_ends_and_says_how(dry_run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = dry_run
    assert done.returncode == 1, done.stderr
    report = json.loads((out / "gpu-check.json").read_text())
    stages = report["stages"]
    assert {name: stage["verdict"] for name, stage in stages.items()} == {
        "build": "failed",  # a kernel is missing: the others are checked all the same
        "tests": "failed",
        "memcheck": "passed",
        "racecheck": "passed",
        "commands": "skipped",
        "benches": "failed",
    }
    assert stages["build"]["summary"] == "left out: gamma, gamma_fwd"
    assert stages["tests"]["summary"].startswith("3 passed, 3 failed, 0 skipped; not well: alpha, beta, gamma")
    assert stages["commands"]["summary"] == "for want of no_such_package"
    assert stages["benches"]["seconds"] < 20
    assert report["commit"] == f"no repository; sources {report['sources'][:16]}"


def test_what_benches_had_measured_is_kept(dry_run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Of a bench beside one that crashes and one that hangs."""
    _, out = dry_run
    benches = {bench["name"]: bench for bench in json.loads((out / "bench.json").read_text())["benches"]}
    cases = {name: [case["name"] for case in bench["cases"]] for name, bench in benches.items()}
    assert cases == {"alpha": ["first", "second"], "beta": [], "gamma": []}
    assert benches["beta"]["error"] == "crashes: exit code 11"
    assert benches["gamma"]["error"] == "hangs: hangs"


def test_files_and_no_folder(dry_run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, out = dry_run
    logs = {"build.log", "tests.log", "sanitizer.log", "bench.log"}
    assert {path.name for path in out.iterdir()} == logs | {"summary.txt", "gpu-check.json", "bench.json"}
    assert "racecheck beta" in (out / "sanitizer.log").read_text()
    assert "the result is wrong" in (out / "tests.log").read_text()


def test_the_summary_comes_last(dry_run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = dry_run
    text = (out / "summary.txt").read_text()
    assert done.stdout.endswith(text)
    lines = text.splitlines()
    assert len(lines) < 60
    for line in (
        "== gpu-check: NOT all passed",
        "gamma_fwd.cu: error",
        "beta: test_bad[reference]: hangs",
        "gamma: test_bad[reference]: the process ended with exit code 11",
        "alpha, second: 1 ms; 700 TFLOP/s; 88% of matmul; 3.00x torch; of matmul at least 0.7 holds",
    ):
        assert line in lines
    assert any(line.startswith("alpha: test_bad[reference]: AssertionError: the result is wrong") for line in lines)
    assert "benches: gamma: hangs: hangs" in lines
    assert any(line.startswith("NVIDIA Nothing; ") for line in lines)
    assert any(line.startswith("torch 2.11.0+cu130, CUDA 13.0, ") for line in lines)


def test_a_long_summary_is_cut() -> None:
    tests = [{"id": f"a.py::test_{n}", "message": "wrong\nby far" + 300 * "."} for n in range(40)]
    suite: dict[str, Any] = {
        "failures": tests,
        "not_run": 2,
        "slowest": {f"a.py::test_{n}": float(n) for n in range(5)},
    }
    stage = {"verdict": "failed", "seconds": 1.0, "summary": "", "details": {"an_op": suite}}
    report = {"device": {"name": "GPU"}, "nvidia_smi": "", "driver": None, "cores": 1, "programs": {}, "commit": "c"}
    report |= {"versions": {"torch": "2", "torch_cuda": "13"}, "date": "today", "stages": {"tests": stage}}
    lines = gpu_check_summary.summary(report, {})
    assert lines[0] == "== gpu-check: ended before its end"
    assert "== failures: 41" in lines
    assert "... and 25 more" in lines
    same = [{"id": f"a.py::test_a[{n}]", "message": "wrong"} for n in range(3)]
    assert list(gpu_check_summary.failed_tests("op", same)) == ["op: test_a[0] and 2 more: wrong"]
    assert "  4.0 s  test_4" in lines
    assert max(map(len, lines)) == gpu_check_summary.WIDTH


def test_why_a_headline_was_not_timed() -> None:
    rows = [{"name": "ours", "missing": "WrongResult: far away"}, {"name": "reference", "missing": "", "median_s": 1.0}]
    assert gpu_check_summary.numbers({"candidates": rows, "errors": ["x"]}, []) == "WrongResult: far away"
    assert (
        gpu_check_summary.numbers({"candidates": [], "errors": ["Traceback\nMemoryError: y"]}, []) == "MemoryError: y"
    )


@pytest.mark.parametrize(("capability", "archs"), [((8, 6), "80-real"), ((9, 0), "90a-real"), ((10, 0), None)])
def test_it_builds_for_this_gpu_and_says_why_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_job: MakeJob,
    capability: tuple[int, int],
    archs: str | None,
) -> None:
    monkeypatch.delenv("ICL_FAST_CUDA_ARCHS", raising=False)
    show = "{name: os.environ.get(name) for name in ('ICL_FAST_CUDA', 'ICL_FAST_CUDA_ARCHS')}, sys.argv[1:]"
    (tmp_path / "setup.py").write_text(f"import os, sys; print({show}); print('error: a.cu'); sys.exit('a summary')")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    here = make_job(capability)
    found = gpu_check.build(here)
    assert (found.verdict, found.summary) == ("failed", "exit code 1: error: a.cu")
    log = here.log.read_text()
    assert str({"ICL_FAST_CUDA": "keep-going", "ICL_FAST_CUDA_ARCHS": archs}) in log
    assert f"'--build-lib', '{tmp_path}'" in log


def test_the_parent_needs_no_torch() -> None:
    program = "import sys, gpu_check; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bench")}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0


def test_every_bench_is_run() -> None:
    files = {path.stem.removeprefix("bench_") for path in (ROOT / "bench").glob("bench_*.py")}
    assert set(NAMES) == files


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "gpu_check.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"gpu-check: nothing to check here: torch {torch.__version__} finds no CUDA device\n"
    assert not (tmp_path / "out").exists()


def test_what_is_said_of_the_sources(tmp_path: Path) -> None:
    if shutil.which("git") and (ROOT / ".git").exists():
        assert len(source_tree.commit().removesuffix("+changes")) == 40
    for folder in ("csrc", "icl_fast/ops", "icl_fast/ops/__pycache__"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a").write_text("a")
    before = source_tree.digest(tmp_path)
    assert source_tree.commit(tmp_path) == f"no repository; sources {before[:16]}"
    (tmp_path / "icl_fast/ops/__pycache__/a").write_text("b")
    assert source_tree.digest(tmp_path) == before
    (tmp_path / "csrc/a").rename(tmp_path / "csrc/b")
    assert source_tree.digest(tmp_path) != before
