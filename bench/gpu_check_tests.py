"""The stage of gpu-check that runs the tests on the GPU, whatever a test does to its process or to the GPU."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages import LEAST, PROCESSES, REHEARSAL, ROOT, Job, Verdict, append_log, in_parallel, last_line

from icl_fast import OPS

# the ops with kernels of their own there; see _backend._arch
ON_HOPPER = (
    "cross_entropy_difference",
    "frozen_attention",
    "head_ablation_cross_entropy",
    "linear_cross_entropy",
    "smeared_attention",
)
# what else runs on a GPU; the tests of a file are those with impl "cuda" among their parameters
WORLDS = {"sequences": "data/test_sequences.py", "exemplar_loop": "training/test_exemplar_loop.py"}
WORLDS_NEED = ("hypothesis", "PIL", "safetensors", "scipy", "tokenizers", "xarray", "yaml")
STALLED = 40.0  # seconds after which a test that has not ended hangs


def tests(job: Job) -> Verdict:
    """The tests on the GPU: every op in a process of its own, and again after each test that takes the GPU away."""
    lacking = [name for name in WORLDS_NEED if find_spec(name) is None]
    suites = [(op, "") for op in (*OPS, *(() if lacking or REHEARSAL else WORLDS))]
    if job.report["device"]["capability"] == [9, 0]:
        suites += [(op, "80") for op in ON_HOPPER]
    workers = min(len(suites), os.cpu_count() or 1)
    results = in_parallel(workers, run_suite, [(job, *suite) for suite in suites])
    names = [op + (f" (kernels of sm_{arch})" if arch else "") for op, arch in suites]
    details = dict(zip(names, results, strict=True))
    bad = {name: result for name, result in details.items() if not result["ok"]}
    counts = {key: sum(result[key] for result in results) for key in ("passed", "failed", "skipped", "not_run")}
    summary = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
    summary += f", {counts['not_run']} not run" if counts["not_run"] else ""
    summary += f"; {', '.join(WORLDS)} left out for want of {', '.join(lacking)}" if lacking else ""
    summary += f"; not well: {', '.join(bad)}" if bad else ""
    return Verdict("failed" if bad else "passed", summary, details)


def run_suite(job: Job, op: str, arch: str) -> dict[str, Any]:
    """The GPU tests of one op or world. The plugin writes a line to a journal when a test begins and when it ends."""
    name = f"{op}{arch}"
    journal, log = job.scratch / f"{name}.jsonl", job.scratch / f"{name}.log"
    environment = {**job.environment, "GPU_CHECK_JOURNAL": str(journal), "GPU_CHECK_ARCH": arch}
    environment["OMP_NUM_THREADS"] = "1"  # there are as many processes as suites
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever is installed there
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "gpu_check_plugin"]
    command += [str(ROOT / "python_tests" / WORLDS.get(op, f"ops/test_{op}.py"))]
    patience = min(STALLED, job.left() / 3)
    seen = -1
    while job.left() > LEAST and seen < (seen := len(read_journal(journal))):
        code = PROCESSES.run(command, log, job.left(), environment, hangs=lambda: stalls(journal, patience))
        lines = read_journal(journal)
        started, ended = ({line["id"] for line in lines if line["event"] == event} for event in ("begin", "end"))
        for test in started - ended if job.left() > 0 else ():  # the process did not survive it
            message = "hangs" if code is None else f"the process ended with exit code {code}"
            write_line(journal, {"event": "end", "id": test, "outcome": "failed", "message": message, "seconds": None})
        if code in (0, 1) and not any(line["event"] == "lost" for line in lines[seen:]):
            break
    append_log(job.log, f"{op} {arch}".strip(), log)
    return summarise(read_journal(journal), log)


def stalls(journal: Path, patience: float) -> bool:
    """Whether a test has started and does not end."""
    lines = read_journal(journal)
    return bool(lines) and lines[-1]["event"] == "begin" and time.time() - journal.stat().st_mtime > patience


def summarise(lines: list[dict[str, Any]], log: Path) -> dict[str, Any]:
    """Numbers and failures of a suite."""
    collected = {name for line in lines if line["event"] == "collected" for name in line["ids"]}
    ended = {line["id"]: line for line in lines if line["event"] == "end"}
    outcomes = [line["outcome"] for line in ended.values()]
    failures = [{key: line[key] for key in ("id", "message")} for line in ended.values() if line["outcome"] == "failed"]
    slowest = sorted((line for line in ended.values() if line["seconds"]), key=lambda line: -line["seconds"])[:5]
    found: dict[str, Any] = {key: outcomes.count(key) for key in ("passed", "failed", "skipped")}
    found |= {"not_run": len(collected - set(ended)), "failures": failures}
    found["slowest"] = {line["id"]: round(line["seconds"], 1) for line in slowest}
    if not collected:
        found["failures"] = [{"id": "", "message": f"no test: {last_line(log)}"}]
    found["ok"] = bool(found["passed"]) and not found["failures"] and not found["not_run"]
    return found


def read_journal(journal: Path) -> list[dict[str, Any]]:
    with suppress(OSError):
        return [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    return []


def write_line(journal: Path, line: dict[str, Any]) -> None:
    with open(journal, "a") as file:
        file.write(json.dumps(line) + "\n")
