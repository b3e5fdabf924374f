"""The stage that runs tests on a GPU, with fake kernels that fail, hang and take the process down."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gpu_check_tests
import pytest
from stages import ROOT, Job

from icl_fast import OPS

MakeJob = Callable[..., Job]


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


def test_one_failing_kernel_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_job: MakeJob
) -> None:
    folder = tmp_path / "python_tests" / "ops"
    folder.mkdir(parents=True)
    (folder / "test_fake.py").write_text(FAKE_TESTS)
    monkeypatch.setattr(gpu_check_tests, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check_tests, "STALLED", 8.0)
    found = gpu_check_tests.run_suite(make_job(), "fake", "")
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
    order = [line["id"] for line in gpu_check_tests.read_journal(tmp_path / "scratch" / "fake.jsonl") if "id" in line]
    assert order[-1].endswith("test_takes_the_gpu_away[2-cuda]")  # not before all others have had their turn
    assert "the result is wrong" in (tmp_path / "stage.log").read_text()


def test_a_suite_that_is_not_collected_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_job: MakeJob
) -> None:
    folder = tmp_path / "python_tests" / "ops"
    folder.mkdir(parents=True)
    (folder / "test_fake.py").write_text("import no_such_module")
    monkeypatch.setattr(gpu_check_tests, "ROOT", tmp_path)
    found = gpu_check_tests.run_suite(make_job(), "fake", "")
    assert not found["ok"]
    assert found["failures"][0]["message"].startswith("no test: ")


def test_the_op_tests_run_under_the_journal(make_job: MakeJob) -> None:
    """As on a GPU, for an implementation that is here, and with no more than one test."""
    here = make_job(GPU_CHECK_IMPL="reference", PYTEST_ADDOPTS="-k test_is_the_definition")
    found = gpu_check_tests.run_suite(here, "linear_cross_entropy", "")
    assert (found["passed"], found["failed"]) == (1, 0)
    assert found["not_run"] > 10  # collected, and then left out by -k


# every op, what else is checked, and on Hopper the ops with kernels of its own without these
@pytest.mark.parametrize(
    ("capability", "suites"),
    [((8, 0), len(OPS) + 2), ((9, 0), len(OPS) + 2 + len(gpu_check_tests.ON_HOPPER))],
)
def test_the_verdict_of_the_tests(
    monkeypatch: pytest.MonkeyPatch, make_job: MakeJob, capability: tuple[int, int], suites: int
) -> None:
    here = make_job(capability)
    good = {"passed": 3, "failed": 0, "skipped": 1, "not_run": 0, "ok": True}
    bad = {"passed": 2, "failed": 1, "skipped": 1, "not_run": 2, "ok": False}
    monkeypatch.setattr(gpu_check_tests, "run_suite", lambda *_: good)
    found = gpu_check_tests.tests(here)
    assert (found.verdict, found.summary) == ("passed", f"{3 * suites} passed, 0 failed, {suites} skipped")
    assert len(found.details) == suites
    assert ("frozen_attention (kernels of sm_80)" in found.details) == (capability == (9, 0))
    monkeypatch.setattr(gpu_check_tests, "run_suite", lambda _, op, arch: bad if op == "gated_difference" else good)
    found = gpu_check_tests.tests(here)
    assert found.verdict == "failed"
    assert found.summary.endswith(f"1 failed, {suites} skipped, 2 not run; not well: gated_difference")


def test_what_lacks_packages_is_left_out(monkeypatch: pytest.MonkeyPatch, make_job: MakeJob) -> None:
    here = make_job()
    good = {"passed": 3, "failed": 0, "skipped": 1, "not_run": 0, "ok": True}
    monkeypatch.setattr(gpu_check_tests, "run_suite", lambda *_: good)
    monkeypatch.setattr(gpu_check_tests, "find_spec", lambda name: None if name == "xarray" else True)
    found = gpu_check_tests.tests(here)
    assert found.verdict == "passed"
    assert found.summary.endswith("; sequences, exemplar_loop left out for want of xarray")
    assert len(found.details) == len(OPS)


@pytest.mark.parametrize("file", gpu_check_tests.WORLDS.values())
def test_what_else_is_checked_has_tests_on_a_gpu(file: str) -> None:
    text = (ROOT / "python_tests" / file).read_text()
    assert '@pytest.mark.parametrize("impl", ["cuda"])\ndef test_' in text


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
