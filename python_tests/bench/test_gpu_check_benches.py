"""The stages that run benches: what was measured is kept, whatever a case does, and none waits for another bench's."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_check_benches
import gpu_check_cases
import harness
import pytest
from gpu_check_benches import bench_verdict, benches, merged, stalls
from harness_options import Options
from stages import BENCH, Job

MakeJob = Callable[..., Job]

# gpu_check_cases.py with other benches
CASES = """
import runpy, sys
sys.path.append({bench!r})
import catalog
catalog.NAMES = {names!r}
runpy.run_path({bench!r} + "/gpu_check_cases.py", run_name="__main__")
"""
FAKE = """
import os, sys
import torch
from harness import Candidate, Case, Inputs

def case(shape, call=lambda x: x.x, headline=False):
    candidates = [Candidate("ours", call), Candidate("reference", lambda x: x.x)]
    make = lambda maker: Inputs(x=maker.normal(3))
    return Case(shape, torch.float32, make, candidates, flops=1.0, bytes=1.0, headline=headline)

def cases(options):
    return """
SCRIPTS = {
    "good": "[case('rest'), case('headline', headline=True)]",
    "wrong": "[case('first', lambda x: x.x + 1), case('second')]",
    "crash": "[case('first'), case('crashes', lambda x: os._exit(9)), case('third')]",
}


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in SCRIPTS.items():
        (tmp_path / f"bench_{name}.py").write_text(FAKE + script)
    (tmp_path / "gpu_check_cases.py").write_text(CASES.format(bench=str(BENCH), names=tuple(SCRIPTS)))
    monkeypatch.setattr(gpu_check_benches, "BENCH", tmp_path)


@pytest.mark.usefixtures("fakes")
def test_the_benches_become_one_report(tmp_path: Path, make_job: MakeJob) -> None:
    here = make_job()
    found = benches(("--quick",), "bench.json")(here)
    written = json.loads((tmp_path / "bench.json").read_text())
    cases = {bench["name"]: [case["name"].split()[1] for case in bench["cases"]] for bench in written["benches"]}
    assert cases == {"good": ["headline", "rest"], "wrong": ["first", "second"], "crash": ["first", "third"]}
    errors = {bench["name"]: bench["error"] for bench in written["benches"]}
    assert errors == {"good": "", "wrong": "", "crash": "float32 crashes forward: exit code 9"}
    assert written["left_out"] == []
    assert written["options"]["quick"] is True
    assert found.verdict == "failed"
    assert set(found.details["failures"]) == {"wrong", "crash"}
    assert found.summary.startswith("6 cases, 0 left out for want of time; targets: 0 of 0 hold; wrong: float32 first")
    # headlines, then the first of each bench, then the second
    begun = [line.partition(" 1/1: float32 ") for line in here.log.read_text().splitlines() if " 1/1: " in line]
    assert [f"{bench} {case.split()[0]}" for bench, _, case in begun] == [
        "good headline",
        *("good rest", "wrong first", "crash first"),
        *("wrong second", "crash crashes", "crash third"),
    ]


@pytest.mark.usefixtures("fakes")
def test_what_time_cuts_off_is_left_out(tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is ended as its stage's time is up, while a case runs."""
    monkeypatch.setattr(gpu_check_benches, "LEAST", 0.0)
    here = make_job()

    def run(command: list[Any], *others: Any, **more: Any) -> None:
        report = {"running": [["b", "y"]], "left_out": [["b", "y"], ["c", "z"]], "targets": []}
        report["benches"] = [{"name": "a", "error": "", "cases": [{"name": "x", "errors": []}]}]
        command[-1].write_text(json.dumps(report))
        here.deadline = time.monotonic()

    monkeypatch.setattr(gpu_check_benches.PROCESSES, "run", run)
    found = benches((), "bench.json")(here)
    assert found.summary == "1 cases, 2 left out for want of time; targets: 0 of 0 hold; no time for: b, c"
    assert json.loads((tmp_path / "bench.json").read_text())["left_out"] == [["b", "y"], ["c", "z"]]


def test_benches_that_do_not_start_say_why(tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu_check_cases.py").write_text("raise SystemExit('broken on purpose')")
    monkeypatch.setattr(gpu_check_benches, "BENCH", tmp_path)
    found = benches((), "bench.json")(make_job())
    assert (found.verdict, found.summary) == ("failed", "exit code 1: broken on purpose")


def test_real_benches_are_understood(tmp_path: Path) -> None:
    options = Options(quick=True, compile=False, memory=False)
    turns = gpu_check_cases.all_turns(options, ("frozen_attention", "toy"))
    assert [turn.bench for turn in turns] == ["frozen_attention", "frozen_attention", "toy", "toy"]  # headlines first
    head = {"options": {"quick": True}}
    report = gpu_check_cases.measure(turns[1:3], options, head, str(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    found = bench_verdict(report)
    assert (found.verdict, found.details["failures"]) == ("passed", {})
    assert found.summary == "2 cases, 0 left out for want of time; targets: 0 of 0 hold"


def test_after_the_gpu_is_lost_no_case_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no case that the process did not survive: the next one begins with the case after it."""
    lost = {"name": "toy", "device": "cpu", "error": "", "lost": "it is gone"}
    lost["cases"] = [{"name": "x", "errors": ["CUDA error"], "metrics": {}, "candidates": []}]
    monkeypatch.setattr(harness, "run_bench", lambda *others: lost)
    options = Options(quick=True)
    turns = gpu_check_cases.all_turns(options, ("toy",))
    report = gpu_check_cases.measure(turns, options, {"options": {"quick": True}}, str(tmp_path / "report.json"))
    assert (report["running"], report["left_out"]) == ([], [("toy", turns[1].case.name)])
    assert len(report["benches"][0]["cases"]) == 1


def test_every_headline_comes_before_every_other_case() -> None:
    turns = gpu_check_cases.all_turns(Options(device="cuda", compile=False))
    headlines = [turn.bench for turn in turns if turn.case.headline]
    assert [turn.bench for turn in turns][: len(headlines)] == headlines
    rest = [turn.bench for turn in turns[len(headlines) :]]
    assert rest[-2:] == ["head_scores"] * 2  # which takes longest
    rest = rest[:-2]
    assert len(set(rest)) == len(set(rest[: len(set(rest))])) > 10  # each once, before one has its second
    several = [["a", "b", "c"], [], ["d", "e"]]
    assert list(gpu_check_cases.in_turns(several)) == ["a", "d", "b", "e", "c"]


def test_a_process_that_begins_no_case_hangs(tmp_path: Path) -> None:
    result, now = tmp_path / "report.json", time.time()
    assert not stalls(result, now)
    assert stalls(result, now - 2 * gpu_check_benches.STALLED)  # it did not even begin the first
    result.write_text("")
    assert not stalls(result, now - 2 * gpu_check_benches.STALLED)
    os.utime(result, 2 * (now - 2 * gpu_check_benches.STALLED,))
    assert stalls(result, now)


def test_the_verdict_of_the_benches() -> None:
    good: dict[str, Any] = {"name": "one", "error": "", "cases": [{"name": "a", "errors": []}]}
    bad = {"name": "another", "candidates": [], "errors": ["Traceback\nWrongResult: far away\n"]}
    targets = [{"bench": "one", "verdict": verdict, "measured": 1.0} for verdict in ("holds", "falls short by 3.0%")]
    targets += [{"bench": "one", "verdict": "not measured", "measured": None}]
    found = bench_verdict({"benches": [good], "targets": targets, "left_out": [("one", "b")]})
    assert found.verdict == "passed"
    assert found.summary == "1 cases, 1 left out for want of time; targets: 1 of 2 hold"
    wrong = {"name": "two", "error": "b: hangs", "cases": [bad]}
    left_out = [("one", "b"), ("three", "a"), ("three", "b")]
    found = bench_verdict({"benches": [good, wrong], "targets": targets, "left_out": left_out})
    assert found.verdict == "failed"
    assert found.details["failures"] == {"two": "b: hangs; another: WrongResult: far away", "no time for": "three"}


def test_merging_keeps_both() -> None:
    report = {"commit": "a", "benches": [], "targets": []}
    one = {"name": "x", "error": "", "cases": [1], "ceilings": {"copy": 1.0}}
    report = merged(report, {"options": {}, "benches": [one], "targets": []})
    report = merged(report, {"benches": [{**one, "error": "e", "cases": [2]}], "targets": []})
    assert report["benches"] == [{**one, "error": "e", "cases": [1, 2]}]
    assert (report["commit"], report["options"]) == ("a", {})
