"""Stages: none stops the next, each ends in time, and what a program started ends with it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import stages
from stages import Job, Stage, Verdict, run_stages


def python(program: str) -> Stage:
    """A stage that runs a program."""

    def run(job: Job) -> Verdict:
        code = stages.PROCESSES.run([sys.executable, "-c", program], job.log, job.left(), job.environment)
        return Verdict("passed", "well") if code == 0 else stages.failure(code, stages.last_line(job.log))

    return Stage(program.split()[0], 20, run, f"{program.split()[0]}.log")


def broken(job: Job) -> Verdict:
    raise ValueError("no such thing")


def half(job: Job) -> Verdict:
    return Verdict("failed", "some of it", usable=True)


def test_no_stage_stops_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = python("print")
    slow = Stage("slow", 0.7, python("import time; print('begun', flush=True); time.sleep(60)").run, "slow.log")
    report: dict[str, object] = {"device": {"name": "a GPU"}}
    begun = time.monotonic()
    found = run_stages(
        [
            good,
            python("raise SystemExit('broken on purpose')"),
            Stage("raises", 20, broken, "raises.log"),
            slow,
            Stage("depends", 20, good.run, "more.log", needs=("print", "slow")),
            Stage("half", 20, half, "more.log"),
            Stage("last", 20, good.run, "more.log", needs=("print", "half")),
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
        "half": ("failed", "some of it"),
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
    assert run_stages([python("print"), Stage("extra", 20, broken, "extra.log", extra=True)], {}, tmp_path, 60)


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


def test_of_a_long_log_the_ends_remain(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("begin" + 1000 * "." + "end")
    stages.clip(log, 2000)
    assert len(log.read_text()) == 1008
    stages.clip(log, 100)
    assert log.read_text().startswith("begin.")
    assert log.read_text().endswith(".end")
    assert len(log.read_text()) < 110
