"""The stages that run benches: what was measured is kept, whatever a bench does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_check_benches
import pytest
from gpu_check_benches import bench_verdict, benches, merged
from stages import Job

MakeJob = Callable[..., Job]

FAKE = """
import argparse, json, os, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--json"), parser.add_argument("--budget", type=float), parser.add_argument("--begin", type=int)
file, budget, begin = vars(parser.parse_args()).values()
name, cases = sys.argv[0].rpartition("bench_")[2][:-3], []

def case(number, lost=""):
    cases.append({"name": f"case {number}", "candidates": [], "errors": ["wrong"] if lost else []})
    bench = {"name": name, "error": "", "lost": lost, "left_out": [], "cases": cases}
    target = {"bench": name, "case": "case 0", "metric": "m", "verdict": "holds", "measured": None if begin else 1.0}
    open(file, "w").write(json.dumps({"commit": "c", "benches": [bench], "targets": [target]}))

"""
SCRIPTS = {
    "slow": "case(0); case(1); time.sleep(100)",
    "broken": "sys.exit('broken on purpose')",
    "crash": "for n in range(begin, 4):\n    if n == 2: os._exit(9)\n    case(n)",
    "lost": "for n in range(begin, 4):\n    case(n, 'lost' * (n == 1))\n    if n == 1: sys.exit(1)",
    "good": "case(0)",
}


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in SCRIPTS.items():
        (tmp_path / f"bench_{name}.py").write_text(FAKE + script)
    monkeypatch.setattr(gpu_check_benches, "BENCH", tmp_path)


@pytest.mark.usefixtures("fakes")
def test_the_benches_become_one_report(tmp_path: Path, make_job: MakeJob) -> None:
    here = make_job()
    here.deadline = time.monotonic() + 40
    before = {"name": "good", "error": "", "cases": [{"name": "before", "errors": []}]}
    (tmp_path / "bench.json").write_text(json.dumps({"benches": [before], "targets": []}))
    found = benches((), "bench.json", tuple(SCRIPTS))(here)
    written = json.loads((tmp_path / "bench.json").read_text())
    cases = {bench["name"]: [case["name"] for case in bench["cases"]] for bench in written["benches"]}
    assert cases == {
        "good": ["before", "case 0"],  # what an earlier stage had found
        "slow": ["case 0", "case 1"],
        "broken": [],
        "crash": ["case 0", "case 1", "case 3"],
        "lost": ["case 0", "case 1", "case 2", "case 3"],
    }
    errors = {bench["name"]: bench["error"].partition(" after")[0] for bench in written["benches"]}
    assert errors == {
        "good": "",
        "slow": "ended",
        "broken": "exit code 1, 0 cases were done",
        "crash": "exit code 9, 2 cases were done",
        "lost": "lost",
    }
    assert written["commit"] == "c"
    assert [target["measured"] for target in written["targets"]] == 4 * [1.0]  # not None, as of the second processes
    assert found.verdict == "failed"
    assert set(found.details["failures"]) == {"slow", "broken", "crash", "lost"}
    assert "broken on purpose" in (tmp_path / "stage.log").read_text()


def test_a_real_bench_is_understood(make_job: MakeJob) -> None:
    found = benches(("--quick", "--part", "headline"), "bench.json", ("frozen_attention", "toy"))(make_job())
    assert (found.verdict, found.details["failures"]) == ("passed", {})
    assert found.summary == "2 cases, 0 left out for want of time; targets: 0 of 0 hold"


def test_the_verdict_of_the_benches() -> None:
    good: dict[str, Any] = {"name": "one", "error": "", "left_out": ["b"], "cases": [{"name": "a", "errors": []}]}
    bad = {"name": "another", "candidates": [], "errors": ["Traceback\nWrongResult: far away\n"]}
    targets = [{"bench": "one", "verdict": verdict, "measured": 1.0} for verdict in ("holds", "falls short by 3.0%")]
    targets += [{"bench": "one", "verdict": "not measured", "measured": None}]
    found = bench_verdict({"benches": [good], "targets": targets}, ["one"])
    assert found.verdict == "passed"
    assert found.summary == "1 cases, 1 left out for want of time; targets: 1 of 2 hold"
    wrong = {"name": "two", "error": "ended after 9 s", "cases": [bad]}
    found = bench_verdict({"benches": [good, wrong], "targets": targets}, ["one", "two", "three"])
    assert found.verdict == "failed"
    assert found.details["failures"] == {
        "two": "ended after 9 s; another: WrongResult: far away",
        "no time for": "three",
    }


def test_merging_keeps_both() -> None:
    report = {"commit": "a", "benches": [], "targets": []}
    one = {"name": "x", "error": "", "cases": [1], "left_out": ["c"], "ceilings": {"copy": 1.0}}
    report = merged(report, {"options": {}, "benches": [one], "targets": []})
    report = merged(report, {"benches": [{**one, "error": "e", "cases": [2], "left_out": []}], "targets": []})
    assert report["benches"] == [{**one, "error": "e", "cases": [1, 2]}]
    assert (report["commit"], report["options"]) == ("a", {})
