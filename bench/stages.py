"""Runs the stages of a check one after the other, each with a time limit, a log and a verdict; none stops the next.

Needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from source_tree import ROOT

BENCH = ROOT / "bench"
REHEARSAL = os.environ.get("GPU_CHECK_IMPL", "cuda") != "cuda"  # without a GPU; see gpu_check.py
LEAST = 5.0  # a stage is not started with fewer seconds
LOG_LIMIT, PART_LIMIT = 12_000_000, 1_000_000  # characters of a log, and of one part of it


@dataclass
class Verdict:
    """How a stage ended: "passed", "failed", "timed out", "skipped" (with the reason), in one line and in detail.

    Attributes:
        usable: where it failed, whether what needs it can run all the same.
    """

    verdict: str
    summary: str
    details: dict[str, Any] = field(default_factory=dict)
    usable: bool = False


@dataclass
class Job:
    """What a stage gets."""

    out: Path
    log: Path
    deadline: float  # of time.monotonic()
    scratch: Path
    report: dict[str, Any]  # so far
    environment: dict[str, str]

    def left(self) -> float:
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Stage:
    """One step of the check.

    Attributes:
        limit: the most seconds it may take.
        log: the name of its log, which several stages may share.
        needs: the stages that must have passed, or be usable.
        extra: done with what time is left; its verdict does not count.
    """

    name: str
    limit: float
    run: Callable[[Job], Verdict]
    log: str
    needs: tuple[str, ...] = ()
    extra: bool = False


class Processes:
    """The programs that run, each in a group of its own, so that it ends with all it has started."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(
        self,
        command: Sequence[object],
        log: Path,
        seconds: float,
        environment: dict[str, str] | None = None,
        cwd: Path = ROOT,
        hangs: Callable[[], bool] = lambda: False,
    ) -> int | None:
        """Run a command, appending what it prints to a log. Returns its exit code; None if it was ended.

        Args:
            seconds: how long it may take.
            hangs: asked again and again whether the command should be ended now.
        """
        if self.stopped or seconds <= 0:
            return None
        words = [str(word) for word in command]
        end = time.monotonic() + seconds
        with open(log, "ab") as file:
            file.write(f"$ {' '.join(words)}\n".encode())
            file.flush()
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=cwd,
                    start_new_session=True,
                )
            except OSError as error:
                file.write(f"{error}\n".encode())
                return 127
            self._running.add(process)
            try:
                while time.monotonic() < end and not hangs() and not self.stopped:
                    with suppress(subprocess.TimeoutExpired):
                        return process.wait(min(0.5, max(0.01, end - time.monotonic())))
                file.write(b"\nended: it took too long\n")
                return None
            finally:
                self._end(process)
                self._running.discard(process)

    def stop(self) -> None:
        self.stopped = True
        for process in tuple(self._running):
            self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        for kill in (signal.SIGINT, signal.SIGKILL):  # first politely: it may have started groups of its own
            with suppress(ProcessLookupError):
                os.killpg(process.pid, kill)
            with suppress(subprocess.TimeoutExpired):
                process.wait(3)


PROCESSES = Processes()


def run_stages(stages: Sequence[Stage], report: dict[str, Any], out: Path, seconds: float) -> bool:
    """Run the stages one after the other. The report is written after each. Returns whether all passed."""
    end = time.monotonic() + seconds
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), str(BENCH), os.environ.get("PYTHONPATH")]))
    done = report["stages"] = {}
    for stage in stages:
        started = time.monotonic()
        log = out / stage.log
        missing = [name for name in stage.needs if not done.get(name, {}).get("usable")]
        if missing:
            verdict = Verdict("skipped", f"{', '.join(missing)} did not pass")
        elif end - started < LEAST:
            verdict = Verdict("skipped", "no time left")
        else:
            with tempfile.TemporaryDirectory() as scratch:
                job = Job(out, log, min(started + stage.limit, end), Path(scratch), report, environment)
                try:
                    verdict = stage.run(job)
                except Exception:
                    verdict = Verdict("failed", traceback.format_exc().strip().splitlines()[-1])
                    append_text(log, traceback.format_exc())
        clip(log)
        verdict.usable |= verdict.verdict == "passed"
        took = time.monotonic() - started
        done[stage.name] = {**asdict(verdict), "seconds": round(took, 1), "log": log.name if log.exists() else None}
        write_json(report, out / "gpu-check.json")
        print(f"{stage.name:24}  {verdict.verdict:9}  {took:5.0f} s  {verdict.summary}", flush=True)
    report["passed"] = all(done[stage.name]["verdict"] == "passed" for stage in stages if not stage.extra)
    write_json(report, out / "gpu-check.json")
    return bool(report["passed"])


def in_parallel(workers: int, call: Callable[..., Any], cases: Sequence[tuple[Any, ...]]) -> list[Any]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda case: call(*case), cases))


def child(*arguments: str) -> list[str]:
    """The command of what a GPU may take down."""
    return [sys.executable, str(BENCH / "gpu_check_child.py"), *arguments]


def find_tool(name: str) -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(name, path=f"{home}/bin")


def output(*command: object) -> str:
    """What a program prints; empty where it cannot run."""
    with suppress(OSError, subprocess.TimeoutExpired):
        words = [str(word) for word in command]
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    return ""


def failure(code: int | None, why: str) -> Verdict:
    return Verdict("timed out", "it took too long") if code is None else Verdict("failed", f"exit code {code}: {why}")


def last_line(log: Path, pattern: str = "") -> str:
    return last_line_of(log.read_text(errors="replace"), pattern) if log.exists() else ""


def last_line_of(text: str, pattern: str = "") -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if pattern and re.search(pattern, line)), lines[-1] if lines else "")[:300]


def append_log(log: Path, title: str, part: Path) -> None:
    """Append the log of a part, under a title."""
    clip(part, PART_LIMIT)
    append_text(log, f"== {title}\n{part.read_text(errors='replace') if part.exists() else ''}\n")


def clip(log: Path, limit: int = LOG_LIMIT) -> None:
    """Of a log that is too long leave the beginning and the end."""
    if log.exists() and log.stat().st_size > limit:
        text = log.read_text(errors="replace")
        log.write_text(f"{text[: limit // 2]}\n[...]\n{text[-limit // 2 :]}")


def append_text(log: Path, text: str) -> None:
    with open(log, "a") as file:
        file.write(text)


def write_json(report: dict[str, Any], path: Path) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(report, indent=1) + "\n")
    draft.replace(path)
