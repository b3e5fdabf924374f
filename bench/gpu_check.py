"""Proves the CUDA kernels on this machine's GPU: `make gpu-check`, or `python3 bench/gpu_check.py`. Needs no network.

Builds csrc/ in place with the machine's own Python, torch, CMake, Ninja and pybind11; runs the op tests on the GPU;
compute-sanitizer over small shapes; the command line, compared with itself on the CPU; all benches, headline cases
first. A stage that fails or takes too long does not stop the next one, nor a kernel that fails or hangs the tests of
another. Everything ends within --seconds.

Writes into --out nine files: summary.txt (what is printed last), gpu-check.json (device, versions, commit, verdicts and
failures; rewritten after every stage), bench.json and bench-compiled.json (where there was time for it), build.log,
tests.log, sanitizer.log, commands.log and bench.log.

A rehearsal where there is no GPU: GPU_CHECK_IMPL=cpu (or another of the implementations that are built here) runs the
same stages with those kernels, and the benches at tiny shapes.

Exit code 0: every stage passed; 1: one did not; 2: there is no GPU to check.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_check_benches import benches
from gpu_check_commands import commands
from gpu_check_sanitizer import sanitizer
from gpu_check_summary import summary
from gpu_check_tests import tests
from source_tree import commit, digest
from stages import (
    PROCESSES,
    REHEARSAL,
    ROOT,
    Job,
    Stage,
    Verdict,
    child,
    failure,
    find_tool,
    last_line,
    last_line_of,
    output,
    run_stages,
)

SECONDS = 340.0


def build(job: Job) -> Verdict:
    """Build csrc/ for this GPU and launch the smallest kernel of it."""
    major, minor = job.report["device"]["capability"]
    archs = {8: "80-real", 9: "90a-real"}.get(major)
    environment = {**job.environment, "ICL_FAST_CUDA": "off" if REHEARSAL else "keep-going"}
    if archs:  # one architecture takes a third of the time
        environment["ICL_FAST_CUDA_ARCHS"] = archs
    # Away from the root: an older setuptools does not understand our pyproject.toml, and need not
    command = [sys.executable, ROOT / "setup.py", "-q", "build_ext", "--build-lib", ROOT]
    code = PROCESSES.run(command, job.log, job.left(), environment, cwd=job.scratch)
    if code != 0:
        return failure(code, last_line(job.log, "error|Error"))
    result = job.scratch / "launch.json"
    code = PROCESSES.run(child("launch", str(result)), job.log, job.left(), job.environment)
    if code != 0:
        return failure(code, f"built, but the first launch failed: {last_line(job.log)}")
    info = json.loads(result.read_text())
    left_out = list(dict.fromkeys((*info["lacking"], *info["not_built"])))
    if left_out:
        return Verdict("failed", f"left out: {', '.join(left_out)}", info, usable=True)
    return Verdict("passed", f"nvcc {info['nvcc']} for {', '.join(info['cuda_archs'])} on sm_{major}{minor}", info)


BENCH_FLAGS = ("--quick",) if REHEARSAL else ("--device", "cuda")
# The limits of the first six leave a minute and a half for the benches; what those do not use goes to the benches too.
STAGES = (
    Stage("build", 100, build, "build.log"),
    Stage("tests", 70, tests, "tests.log", needs=("build",)),
    Stage("memcheck", 30, sanitizer("memcheck"), "sanitizer.log", needs=("build",)),
    Stage("racecheck", 70, sanitizer("racecheck"), "sanitizer.log", needs=("build",)),
    Stage("commands", 70, commands, "commands.log", needs=("build",)),
    Stage(
        "benches",
        SECONDS,
        benches((*BENCH_FLAGS, "--no-compile", "--seconds", "0.4"), "bench.json"),
        "bench.log",
        needs=("build",),
    ),
    # With the candidates that torch.compile makes, which takes longer than everything else together
    Stage(
        "benches, compiled",
        SECONDS,
        benches((*BENCH_FLAGS, "--seconds", "0.4"), "bench-compiled.json"),
        "bench.log",
        needs=("build",),
        extra=True,
    ),
)


def probe(seconds: float = 60) -> dict[str, Any]:
    """What torch says of the GPU, asked in another process: a driver that is broken may hang or crash it.

    Returns:
        What gpu_check_child.probe found; {"problem": one line} where there is no GPU.
    """
    try:
        done = subprocess.run(child("probe"), capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"problem": f"asking torch for the GPU took more than {seconds:.0f} s"}
    if done.returncode:
        return {"problem": last_line_of(done.stderr) or f"exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def describe() -> dict[str, Any]:
    """The programs of this machine and the sources that are checked."""
    first = {name: first_version(name) for name in ("nvcc", "g++", "cmake", "ninja", "compute-sanitizer")}
    query = "name,driver_version,power.limit,clocks.max.sm,clocks.max.mem,temperature.gpu"
    return {
        "schema": 1,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "programs": {"python": platform.python_version(), **first},
        "nvidia_smi": output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        "cores": os.cpu_count(),
        "sources": digest(),
    }


def first_version(name: str) -> str | None:
    """The line of `name --version` that has the number."""
    program = find_tool(name)
    lines = output(program, "--version").splitlines() if program else []
    return next((line for line in reversed(lines) if re.search(r"\d+\.\d+", line)), None)


def conclude(report: dict[str, Any], out: Path) -> None:
    """Print the summary and keep it."""
    bench = out / "bench.json"
    lines = summary(report, json.loads(bench.read_text()) if bench.exists() else {})
    text = "\n".join(lines) + "\n"
    (out / "summary.txt").write_text(text)
    print(text, end="", flush=True)
    for draft in out.glob(".*.draft"):  # of a write that a signal broke off
        draft.unlink()


def leave(*_: object) -> None:
    PROCESSES.stop()
    sys.exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description="Proves the CUDA kernels on this machine's GPU.")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-check-results")))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in which everything must end")
    parser.add_argument(
        "--without", default="", metavar="NAMES", help="stages to leave out, such as memcheck,racecheck"
    )
    arguments = parser.parse_args()
    started = time.monotonic()
    found = probe()
    if "problem" in found:
        print(f"gpu-check: nothing to check here: {found['problem']}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for old in (
        *arguments.out.glob("*.log"),
        *(arguments.out / name for name in ("bench.json", "bench-compiled.json")),
    ):
        old.unlink(missing_ok=True)
    report = {**describe(), **found}
    scale = arguments.seconds / SECONDS
    out = arguments.without.split(",")
    stages = [replace(stage, limit=stage.limit * scale) for stage in STAGES if stage.name not in out]
    try:
        passed = run_stages(stages, report, arguments.out, arguments.seconds - (time.monotonic() - started))
    finally:
        conclude(report, arguments.out)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
