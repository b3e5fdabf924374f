"""The stages of gpu-check that run benches: what they have measured is kept, however they end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from stages import BENCH, LEAST, PROCESSES, Job, Verdict, failure, last_line, write_json

STALLED = 60.0  # seconds after which a case that has not ended hangs
NOTHING: dict[str, Any] = {"benches": [], "targets": [], "left_out": []}


def benches(flags: tuple[str, ...], file: str) -> Callable[[Job], Verdict]:
    """A stage: the cases of all benches, in one process (gpu_check_cases.py) as long as none takes it or the GPU away.

    The report so far is written after every process; a case that time cuts off counts as left out.
    """

    def measure(job: Job) -> Verdict:
        report, done = NOTHING, 0
        while job.left() > LEAST and (not done or report["left_out"]):
            result = job.scratch / f"{done}.json"
            command = [sys.executable, BENCH / "gpu_check_cases.py", *flags, "--begin", done, "--json", result]
            hangs = partial(stalls, result, time.time())
            code = PROCESSES.run(command, job.log, job.left(), job.environment, hangs=hangs)
            if not result.exists():
                return failure(code, last_line(job.log))
            part = json.loads(result.read_text())
            done += sum(len(bench["cases"]) for bench in part["benches"])
            if job.left() > 0:
                for name, case in part["running"]:  # the one that it did not survive
                    why = f"{case}: {'hangs' if code is None else f'exit code {code}'}"
                    part = merged(part, {**NOTHING, "benches": [{"name": name, "error": why, "cases": []}]})
                    part["left_out"] = part["left_out"][1:]
                    done += 1
            report = {**merged(report, part), "left_out": part["left_out"]}
            write_json(report, job.out / file)
        return bench_verdict(report)

    return measure


def stalls(result: Path, started: float) -> bool:
    """Whether a process that writes `result` before each case has long not begun one."""
    with suppress(OSError):
        started = result.stat().st_mtime
    return time.time() - started > STALLED


def merged(report: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Both reports in one: the cases of a bench together, and of a target that both have the one that was measured."""
    found = {bench["name"]: bench for bench in report["benches"]}
    for bench in more["benches"]:
        old = found.get(bench["name"], {"error": "", "cases": []})
        joined = {"cases": [*old["cases"], *bench["cases"]]}
        joined["error"] = "; ".join(filter(None, (old["error"], bench["error"])))
        found[bench["name"]] = {**old, **bench, **joined}
    targets = {(t["bench"], t["case"], t["metric"]): t for t in report["targets"]}
    for target in more["targets"]:
        key = target["bench"], target["case"], target["metric"]
        if target["measured"] is not None or key not in targets:
            targets[key] = target
    return {**more, **report, "benches": list(found.values()), "targets": list(targets.values())}


def bench_verdict(report: dict[str, Any]) -> Verdict:
    """Failed where a bench had no case, has an error or a wrong result; targets do not count."""
    bad = {}
    for bench in report["benches"]:
        wrong = [
            f"{case['name']}: {error.strip().splitlines()[-1]}" for case in bench["cases"] for error in case["errors"]
        ]
        if why := "; ".join(filter(None, (bench["error"], *wrong))):
            bad[bench["name"]] = why
    started = {bench["name"] for bench in report["benches"]}
    if late := dict.fromkeys(name for name, _ in report["left_out"] if name not in started):
        bad["no time for"] = ", ".join(late)
    targets = [target["verdict"] for target in report["targets"] if target["measured"] is not None]
    cases = sum(len(bench["cases"]) for bench in report["benches"])
    summary = f"{cases} cases, {len(report['left_out'])} left out for want of time"
    summary += f"; targets: {targets.count('holds')} of {len(targets)} hold"
    summary += "".join(f"; {name}: {why}" for name, why in bad.items())
    return Verdict("failed" if bad else "passed", summary[:1000], {"failures": bad})
