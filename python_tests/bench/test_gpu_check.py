"""gpu-check: its stages with fake programs, its tests with fake kernels that fail, hang and take the process down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import gpu_check_child
import pytest
import stages
import torch
from stages import Job, Stage, Verdict, run_stages

from icl_fast.ops import available_impls

ROOT = Path(__file__).parents[2]


def job(folder: Path, **environment: str) -> Job:
    path = os.pathsep.join([str(ROOT), str(ROOT / "bench")])
    report = {"device": {"capability": [8, 0]}}
    (folder / "scratch").mkdir(exist_ok=True)
    everything = {**os.environ, "PYTHONPATH": path, **environment}
    return Job(folder, folder / "stage.log", time.monotonic() + 100, folder / "scratch", report, everything)


def python(program: str) -> Stage:
    """A stage that runs a program."""

    def run(job: Job) -> Verdict:
        code = stages.PROCESSES.run([sys.executable, "-c", program], job.log, job.left(), job.environment)
        return Verdict("passed", "well") if code == 0 else stages.failure(code, stages.last_line(job.log))

    return Stage(program.split()[0], 20, run)


def broken(job: Job) -> Verdict:
    raise ValueError("no such thing")


def test_no_stage_stops_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = python("print")
    slow = Stage("slow", 0.7, python("import time; print('begun', flush=True); time.sleep(60)").run)
    report: dict[str, object] = {"device": {"name": "a GPU"}}
    begun = time.monotonic()
    found = run_stages(
        [
            good,
            python("raise SystemExit('broken on purpose')"),
            Stage("raises", 20, broken),
            slow,
            Stage("depends", 20, good.run, needs=("print", "slow")),
            Stage("last", 20, good.run, needs=("print",)),
        ],
        report,
        tmp_path,
        60,
    )
    assert not found
    assert time.monotonic() - begun < 20
    written = json.loads((tmp_path / "gpu-check.json").read_text())
    assert written == report
    assert written["passed"] is False
    assert written["device"] == {"name": "a GPU"}
    assert {name: (stage["verdict"], stage["summary"]) for name, stage in written["stages"].items()} == {
        "print": ("passed", "well"),
        "raise": ("failed", "exit code 1: broken on purpose"),
        "raises": ("failed", "ValueError: no such thing"),
        "slow": ("timed out", "it took too long"),
        "depends": ("skipped", "slow did not pass"),
        "last": ("passed", "well"),
    }
    assert "begun" in (tmp_path / written["stages"]["slow"]["log"]).read_text()
    assert "Traceback" in (tmp_path / "raises.log").read_text()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(written["stages"])


def test_when_the_time_is_up_nothing_is_begun(tmp_path: Path) -> None:
    good = python("print")
    report: dict[str, object] = {}
    assert not run_stages([good], report, tmp_path, 1)
    assert json.loads((tmp_path / "gpu-check.json").read_text())["stages"]["print"]["summary"] == "no time left"


def test_all_passed_whatever_an_extra_does(tmp_path: Path) -> None:
    assert run_stages([python("print"), Stage("extra", 20, broken, extra=True)], {}, tmp_path, 60)


def test_what_a_program_started_ends_with_it(tmp_path: Path) -> None:
    child = "import time; print('child', flush=True); time.sleep(6); open('survived', 'w')"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    log = tmp_path / "log"
    code = stages.PROCESSES.run([sys.executable, "-c", program], log, 1.5, cwd=tmp_path)
    assert code is None
    assert "child" in log.read_text()
    time.sleep(6)  # where SIGINT is ignored, as in a shell's background, SIGKILL comes 3 s later
    assert not (tmp_path / "survived").exists()


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert stages.PROCESSES.run(["no-such-program"], tmp_path / "log", 5) == 127
    assert "No such file" in (tmp_path / "log").read_text()


FAKE_TESTS = """
import os, time
import pytest, torch

@pytest.mark.parametrize("impl", ["reference", "cuda"])
def test_good(impl):
    assert impl == "cuda"

@pytest.mark.parametrize("impl", ["cuda"])
@pytest.mark.parametrize("n", [1, 2])
def test_takes_the_gpu_away(impl, n):
    def gone(): raise RuntimeError("CUDA error: an illegal memory access")
    torch.cuda.is_available, torch.cuda.synchronize = (lambda: True), gone
    gone()

@pytest.mark.parametrize("impl", ["cuda"])
def test_crashes(impl): os._exit(11)

@pytest.mark.parametrize("impl", ["cuda"])
def test_hangs(impl): time.sleep(1000)

@pytest.mark.parametrize("impl", ["cuda"])
def test_wrong(impl): assert 1 == 2, "the result is wrong"

@pytest.mark.parametrize("impl", ["cuda"])
def test_skips(impl): pytest.skip("not here")

def test_without_cuda(): raise AssertionError("not a test of a kernel")
"""


def test_one_failing_kernel_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "python_tests" / "ops"
    folder.mkdir(parents=True)
    (folder / "test_fake.py").write_text(FAKE_TESTS)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "STALLED", 8.0)
    found = gpu_check.run_suite(job(tmp_path), "fake", "")
    failures = {failure["id"].split("::")[1]: failure["message"] for failure in found["failures"]}
    assert {name: found[name] for name in ("passed", "failed", "skipped", "not_run", "ok")} == {
        "passed": 1,
        "failed": 5,
        "skipped": 1,
        "not_run": 0,
        "ok": False,
    }
    assert failures["test_hangs[cuda]"] == "hangs"
    assert failures["test_crashes[cuda]"] == "the process ended with exit code 11"
    assert "the result is wrong" in failures["test_wrong[cuda]"]
    assert all("illegal memory access" in failures[f"test_takes_the_gpu_away[{n}-cuda]"] for n in (1, 2))
    order = [line["id"] for line in gpu_check.read_journal(tmp_path / "scratch" / "fake.jsonl") if "id" in line]
    assert order[-1].endswith("test_takes_the_gpu_away[2-cuda]")  # not before all others have had their turn
    assert "the result is wrong" in (tmp_path / "stage.log").read_text()


def test_a_suite_that_is_not_collected_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "python_tests" / "ops"
    folder.mkdir(parents=True)
    (folder / "test_fake.py").write_text("import no_such_module")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    found = gpu_check.run_suite(job(tmp_path), "fake", "")
    assert not found["ok"]
    assert found["failures"][0]["message"].startswith("no test: ")


def test_the_op_tests_run_under_the_journal(tmp_path: Path) -> None:
    """As on a GPU, for an implementation that is here, and with no more than one test."""
    here = job(tmp_path, GPU_CHECK_IMPL="reference", PYTEST_ADDOPTS="-k test_is_the_definition")
    found = gpu_check.run_suite(here, "linear_cross_entropy", "")
    assert (found["passed"], found["failed"]) == (1, 0)
    assert found["not_run"] > 10  # collected, and then left out by -k


@pytest.mark.parametrize(("capability", "suites"), [([8, 0], 9), ([9, 0], 11)])
def test_the_verdict_of_the_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: list[int], suites: int
) -> None:
    here = job(tmp_path)
    here.report["device"]["capability"] = capability
    good = {"passed": 3, "failed": 0, "skipped": 1, "not_run": 0, "ok": True}
    bad = {"passed": 2, "failed": 1, "skipped": 1, "not_run": 2, "ok": False}
    monkeypatch.setattr(gpu_check, "run_suite", lambda *_: good)
    found = gpu_check.tests(here)
    assert (found.verdict, found.summary) == ("passed", f"{3 * suites} passed, 0 failed, {suites} skipped")
    assert len(found.details) == suites
    assert ("frozen_attention (kernels of sm_80)" in found.details) == (suites == 11)
    monkeypatch.setattr(gpu_check, "run_suite", lambda _, op, arch: bad if op == "smeared_attention" else good)
    found = gpu_check.tests(here)
    assert found.verdict == "failed"
    assert found.summary.endswith(f"1 failed, {suites} skipped, 2 not run; not well: smeared_attention")


@pytest.mark.parametrize(("capability", "archs"), [([8, 6], "80-real"), ([9, 0], "90a-real"), ([10, 0], None)])
def test_it_builds_for_this_gpu_and_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: list[int], archs: str | None
) -> None:
    monkeypatch.delenv("ICL_FAST_CUDA_ARCHS", raising=False)
    show = "{name: os.environ.get(name) for name in ('ICL_FAST_CUDA', 'ICL_FAST_CUDA_ARCHS')}, sys.argv[1:]"
    (tmp_path / "setup.py").write_text(f"import os, sys; print({show}); print('error: a.cu'); sys.exit('a summary')")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    here = job(tmp_path)
    here.report["device"]["capability"] = capability
    found = gpu_check.build(here)
    assert (found.verdict, found.summary) == ("failed", "exit code 1: error: a.cu")
    log = here.log.read_text()
    assert str({"ICL_FAST_CUDA": "on", "ICL_FAST_CUDA_ARCHS": archs}) in log
    assert f"'--build-lib', '{tmp_path}'" in log


def test_all_ops_are_checked() -> None:
    assert tuple(sorted(available_impls())) == gpu_check.OPS
    assert set(gpu_check.ON_HOPPER) <= set(gpu_check.OPS)


def test_what_lacks_packages_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = job(tmp_path)
    here.report["device"]["capability"] = [8, 0]
    good = {"passed": 3, "failed": 0, "skipped": 1, "not_run": 0, "ok": True}
    monkeypatch.setattr(gpu_check, "run_suite", lambda *_: good)
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None if name == "xarray" else True)
    found = gpu_check.tests(here)
    assert found.verdict == "passed"
    assert found.summary.endswith("; sequences, exemplar_loop left out for want of xarray")
    assert len(found.details) == len(gpu_check.OPS)


@pytest.mark.parametrize("file", gpu_check.WORLDS.values())
def test_what_else_is_checked_has_tests_on_a_gpu(file: str) -> None:
    text = (gpu_check.ROOT / "python_tests" / file).read_text()
    assert '@pytest.mark.parametrize("impl", ["cuda"])\ndef test_' in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", gpu_check.OPS)
def test_the_calls_for_the_sanitizer_are_right(op: str, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_check_child.run_op(op, dtype, device="cpu", impl="reference")
    assert capsys.readouterr().out.startswith("run ")


CLEAN = "========= COMPUTE-SANITIZER\nrun a\n========= ERROR SUMMARY: 0 errors\n"
WRITE = """========= COMPUTE-SANITIZER
run 64 x 64
========= Invalid __shared__ write of size 4 bytes
=========     at kernel+0x140 in a.cu:10
========= Invalid __shared__ write of size 4 bytes
=========     at kernel+0x150 in a.cu:11
========= ERROR SUMMARY: 2 errors
"""
RACE = """========= COMPUTE-SANITIZER
run 64 x 64
========= Warning: Race reported between Write access at k+0x10 and Read access at k+0x20 [8 hazards]
========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)
"""


@pytest.mark.parametrize(
    ("code", "text", "findings"),
    [
        (0, CLEAN, []),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", []),
        (86, WRITE, ["Invalid __shared__ write of size 4 bytes", "last call: 64 x 64"]),
        (
            0,
            RACE,
            [
                "Warning: Race reported between Write access at k+0x… and Read access at k+0x… [8 hazards]",
                "last call: 64 x 64",
            ],
        ),
        (None, CLEAN, ["it took too long", "last call: a"]),
        (1, CLEAN + "RuntimeError: axpy", ["exit code 1: RuntimeError: axpy", "last call: a"]),
        (0, "", ["exit code 0: "]),
    ],
)
def test_what_the_sanitizer_found(code: int | None, text: str, findings: list[str]) -> None:
    assert gpu_check.sanitizer_findings(code, text) == findings


def fake_program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_sanitizer_runs_over_every_op_and_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(
        tmp_path,
        'echo "$@"; case "$*" in *smeared_attention\\ float16) echo "========= Invalid read"; exit 86;; esac;'
        'echo "========= ERROR SUMMARY: 0 errors"',
        monkeypatch,
    )
    found = gpu_check.sanitizer("memcheck")(job(tmp_path))
    assert found.verdict == "failed"
    assert found.summary == "20 of 21 clean; smeared_attention float16: Invalid read"
    assert found.details == {"smeared_attention float16": ["Invalid read"]}
    hopper = job(tmp_path)
    hopper.report["device"]["capability"] = [9, 0]
    assert gpu_check.sanitizer("memcheck")(hopper).summary.startswith("24 of 25 clean")
    assert "op frozen_attention bfloat16" in (tmp_path / "stage.log").read_text()


def test_without_the_sanitizer_it_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = gpu_check.sanitizer("memcheck")(job(tmp_path))
    assert (found.verdict, found.summary) == ("skipped", "compute-sanitizer is not on this machine")


FAKE_RUN = """
import argparse, json, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("name"), parser.add_argument("--timeout", type=float), parser.add_argument("--json")
name, timeout, file = vars(parser.parse_args()).values()
if name == "broken":
    sys.exit("broken on purpose")
report = {"commit": "c", "benches": [{"name": name, "error": "", "cases": []}], "targets": [{"verdict": "holds"}]}
if name != "slow" or timeout < 10:
    open(file, "w").write(json.dumps(report))
if name == "slow":
    time.sleep(100)
"""


def test_the_benches_become_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.py").write_text(FAKE_RUN)
    monkeypatch.setattr(gpu_check, "BENCH", tmp_path)
    here = job(tmp_path)
    here.deadline = time.monotonic() + 12
    found = gpu_check.benches((), "bench.json", ("slow", "broken", "good"))(here)
    assert found.verdict == "failed"
    assert found.details["failures"] == {"broken": "no result"}  # and "slow" had its share of the time, not all of it
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [bench["name"] for bench in written["benches"]] == ["slow", "good"]
    assert (written["commit"], written["targets"]) == ("c", 2 * [{"verdict": "holds"}])
    assert "broken on purpose" in (tmp_path / "stage.log").read_text()


def test_a_real_bench_is_understood(tmp_path: Path) -> None:
    found = gpu_check.benches(("--device", "cpu", "--quick"), "bench.json", ("call_overhead",))(job(tmp_path))
    assert (found.verdict, found.details["failures"]) == ("passed", {})
    assert any(row["name"] == "ours" and row["median_s"] > 0 for row in found.details["medians"])


def test_the_verdict_of_the_benches() -> None:
    row = {"name": "ours", "missing": "", "median_s": 0.5, "of_matmul": 0.7, "of_copy": None}
    case = {"name": "a case", "candidates": [row], "errors": []}
    bad = {"name": "another", "candidates": [], "errors": ["Traceback\nWrongResult: far away\n"]}
    good = {"name": "one", "error": "", "cases": [case]}
    targets = [{"verdict": "holds"}, {"verdict": "falls short by 3.0%"}]
    found = gpu_check.bench_verdict({"benches": [good], "targets": targets}, ["one"])
    assert (found.verdict, found.summary) == ("passed", "targets: 1 of 2 hold")
    assert found.details["medians"] == [
        {"bench": "one", "case": "a case", "name": "ours", "missing": "", "median_s": 0.5, "of_matmul": 0.7}
    ]
    wrong = {"name": "two", "error": "ended after 9 s\n", "cases": [bad]}
    found = gpu_check.bench_verdict({"benches": [good, wrong], "targets": targets}, ["one", "two", "three"])
    assert found.verdict == "failed"
    assert found.details["failures"] == {
        "two": "ended after 9 s; another: WrongResult: far away",
        "three": "no result",
    }


BLOCK = """
import re, sys
from importlib import metadata

def names_with_what_they_need(names):
    found, todo = set(), list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name not in found:
            try:
                needs = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            found.add(name)
            todo += [re.match(r"[\\w.-]+", need)[0] for need in needs if "extra ==" not in need]
    return found

allowed = names_with_what_they_need(["torch", "numpy", "pytest"])
blocked = {
    module
    for module, names in metadata.packages_distributions().items()
    if not allowed & {re.sub(r"[-_.]+", "-", name).lower() for name in names}
} - {"icl_fast"}

class Filter:
    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)

assert {"hypothesis", "pydantic", "rich", "xdist"} <= blocked
sys.meta_path[:] = map(Filter, sys.meta_path)
"""


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="metadata.packages_distributions knows editable installs from 3.11"
)
def test_the_op_tests_need_torch_numpy_and_pytest_alone(tmp_path: Path) -> None:
    (tmp_path / "block_others.py").write_text(BLOCK)
    path = os.pathsep.join([str(ROOT), str(ROOT / "bench"), str(tmp_path)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "block_others", "-p", "no:cacheprovider"]
    some = "test_smeared_attention and reference and float32"  # all are imported
    done = subprocess.run(
        [*command, "-k", some, str(ROOT / "python_tests" / "ops")],
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "gpu_check.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"gpu-check: nothing to check here: torch {torch.__version__} finds no CUDA device\n"
    assert not (tmp_path / "out").exists()


def test_what_is_said_of_the_machine() -> None:
    found = gpu_check.describe()
    assert found["programs"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert len(found["sources"]) == 64
    assert found["sources"] == gpu_check.sources_hash()
