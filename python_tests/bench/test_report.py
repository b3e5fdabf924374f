"""Targets, verdicts, tables and the JSON of a report."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import report

TARGET = {"bench": "b", "case": "c", "metric": "m", "direction": "at least", "value": 1.3, "device": "cpu"}


@pytest.mark.parametrize(
    ("direction", "value", "measured", "verdict"),
    [
        ("at least", 1.3, 1.3, "holds"),
        ("at least", 1.3, 1.4, "holds"),
        ("at least", 2.0, 1.5, "falls short by 25.0%"),
        ("at most", 60, 60.0, "holds"),
        ("at most", 60, 75.0, "falls short by 25.0%"),
        ("at most", 60, None, "not measured"),
    ],
)
def test_judge(direction: str, value: float, measured: float | None, verdict: str) -> None:
    assert report.judge({"direction": direction, "value": value}, measured) == verdict


def test_every_target_says_what_of_and_how_much() -> None:
    targets = report.read_targets()
    assert {frozenset(target) - {"isa"} for target in targets} == {frozenset(TARGET)}
    assert {target["direction"] for target in targets} == {"at least", "at most"}
    assert all(float(target["value"]) > 0 for target in targets)


def a_report(**changes: Any) -> dict[str, Any]:
    row = {"missing": "", "median_s": 0.5, "q10_s": 0.25, "q90_s": 1.0, "tflops": 2.0, "of_matmul": 0.8, "gbps": 3.0}
    case = {
        "name": "c",
        "rounds": 7,
        "metrics": {"m": 1.5, "speed vs torch": 2.125},
        "errors": [],
        "candidates": [{"name": "ours", **row}, {"name": "torch", **row}, {"name": "flex", "missing": "no CUDA"}],
    }
    bench = {"name": "b", "device": "cpu", "error": "", "ceilings": {}, "cases": [case]}
    return {"options": {"device": "cpu", "quick": False}, "benches": [{**bench, **changes}]}


def test_finish_judges_the_targets_of_the_benches_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [{**TARGET, "value": 3.0}, {**TARGET, "case": "d"}, {**TARGET, "bench": "x"}, {**TARGET, "device": "cuda"}]
    monkeypatch.setattr(report, "read_targets", lambda: [TARGET, *others])
    targets = report.finish(a_report())["targets"]
    assert [target["verdict"] for target in targets] == ["holds", "falls short by 50.0%", "not measured"]
    assert targets[0] == {**TARGET, "measured": 1.5, "verdict": "holds"}
    quick = a_report()
    quick["options"]["quick"] = True
    assert report.finish(quick)["targets"] == []


@pytest.mark.parametrize("with_rich", [True, False])
def test_tables_say_everything(
    with_rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if with_rich:
        pytest.importorskip("rich")
    else:
        import_module = builtins.__import__

        def without_rich(name: str, *arguments: Any, **named: Any) -> Any:
            if name.startswith("rich"):
                raise ImportError(name)
            return import_module(name, *arguments, **named)

        monkeypatch.setattr(builtins, "__import__", without_rich)
    monkeypatch.setattr(report, "read_targets", lambda: [TARGET, {**TARGET, "value": 3.0}])
    whole = report.finish(a_report(error="Traceback\nSegmentation fault\n"))
    report.print_bench(whole["benches"][0], whole["targets"])
    report.print_summary(whole["targets"])
    out = capsys.readouterr().out
    for text in ("b on cpu", "c (7 rounds)", "500", "250-1000", "80%", "2.12x", "flex: no CUDA", "FAILED Segm"):
        assert text in out
    for text in ("at least 1.3", "at least 3", "1.5", "holds", "falls short by 50.0%", "targets: 1 of 2 hold"):
        assert text in out
    assert "b, c: m: falls short by 50.0%" in out


def test_json_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"seconds": [1.5, 2e-05, -3], "names": ["a", "b"], "empty": [], "none": None, "text": "[\n1,\n2]"}
    report.write_json(values, str(tmp_path / "deep" / "results.json"))
    text = (tmp_path / "deep" / "results.json").read_text()
    assert json.loads(text) == values
    assert "[1.5, 2e-05, -3]" in text  # the samples of a candidate in one line
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["results.json"]
    report.write_json(values, "-")
    assert json.loads(capsys.readouterr().out) == values


def test_environment() -> None:
    found = report.environment({"device": "cpu"})
    assert found["versions"]["torch"]
    assert found["machine"]["cores"] >= 1
    command = ["/home/me/bench/run.py", "--json", "/home/me/results.json", "--device", "cpu"]
    assert report.command_line(command) == "run.py --json results.json --device cpu"
    assert report.command_line(["/site-packages/icl_fast/__main__.py", "bench"]) == "icl-fast bench"


def test_failed() -> None:
    assert not report.failed({"error": "", "cases": [{"errors": []}]})
    assert report.failed({"error": "exit code -11", "cases": []})
    assert report.failed({"error": "", "cases": [{"errors": []}, {"errors": ["ours: ..."]}]})
