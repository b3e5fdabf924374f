"""Proves the CUDA kernels on this machine's GPU: `make gpu-check`, or `python3 bench/gpu_check.py`. Needs no network.

Builds csrc/ in place with the machine's own Python, torch, CMake, Ninja and pybind11; runs the op tests on the GPU;
compute-sanitizer over small shapes; all benches. A stage that fails or takes too long does not stop the next one, nor a
kernel that fails or hangs the tests of another. Everything ends within --seconds.

Writes into --out: gpu-check.json (device, versions, commit, verdicts, failures, medians, what the machine reaches at
best; rewritten after every stage), bench.json, bench-compiled.json, and logs.

Exit code 0: every stage passed; 1: one did not; 2: there is no GPU to check.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages import (
    BENCH,
    LEAST,
    PROCESSES,
    ROOT,
    Job,
    Stage,
    Verdict,
    append_log,
    failure,
    in_parallel,
    last_line,
    last_line_of,
    run_stages,
    write_json,
)

CHILD = BENCH / "gpu_check_child.py"
OPS = (
    "cross_entropy_difference",
    "frozen_attention",
    "gelu_difference",
    "head_ablation_cross_entropy",
    "layer_norm_difference",
    "linear_cross_entropy",
    "smeared_attention",
)
# what else runs on a GPU; the tests of a file are those with impl "cuda" among their parameters
WORLDS = {"sequences": "data/test_sequences.py", "exemplar_loop": "training/test_exemplar_loop.py"}
WORLDS_NEED = ("hypothesis", "PIL", "pydantic", "safetensors", "tokenizers", "xarray", "yaml")
BENCHES = tuple(sorted(path.stem.removeprefix("bench_") for path in BENCH.glob("bench_*.py")))
DTYPES = ("float32", "bfloat16", "float16")
ON_HOPPER = ("frozen_attention", "linear_cross_entropy")  # the ops with kernels of their own there; see _backend._arch
STALLED = 40.0  # seconds after which a test that has not ended hangs


def build(job: Job) -> Verdict:
    """Build csrc/ for this GPU and launch the smallest kernel of it."""
    major, minor = job.report["device"]["capability"]
    archs = {8: "80-real", 9: "90a-real"}.get(major)
    environment = {**job.environment, "ICL_FAST_CUDA": "on"}
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
    return Verdict("passed", f"nvcc {info['nvcc']} for {', '.join(info['cuda_archs'])} on sm_{major}{minor}", info)


def tests(job: Job) -> Verdict:
    """The tests on the GPU: every op in a process of its own, and again after each test that takes the GPU away."""
    lacking = [name for name in WORLDS_NEED if find_spec(name) is None]
    suites = [(op, "") for op in (*OPS, *(() if lacking else WORLDS))]
    if job.report["device"]["capability"] == [9, 0]:
        suites += [(op, "80") for op in ON_HOPPER]
    results = in_parallel(len(suites), run_suite, [(job, *suite) for suite in suites])
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
    """The GPU tests of one op or world. The child writes a line to a journal when a test begins and when it ends."""
    name = f"{op}{arch}"
    journal, log = job.scratch / f"{name}.jsonl", job.scratch / f"{name}.log"
    environment = {**job.environment, "GPU_CHECK_JOURNAL": str(journal), "GPU_CHECK_ARCH": arch}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "gpu_check_child"]
    command += [str(ROOT / "python_tests" / WORLDS.get(op, f"ops/test_{op}.py"))]
    seen = -1
    while job.left() > LEAST and seen < (seen := len(read_journal(journal))):
        code = PROCESSES.run(command, log, job.left(), environment, hangs=lambda: stalls(journal))
        lines = read_journal(journal)
        begun, ended = ({line["id"] for line in lines if line["event"] == event} for event in ("begin", "end"))
        for test in begun - ended if job.left() > 0 else ():  # the process did not survive it
            message = "hangs" if code is None else f"the process ended with exit code {code}"
            write_line(journal, {"event": "end", "id": test, "outcome": "failed", "message": message, "seconds": None})
        if code in (0, 1) and not any(line["event"] == "lost" for line in lines[seen:]):
            break
    append_log(job.log, f"{op} {arch}".strip(), log)
    return summarise(read_journal(journal), log)


def stalls(journal: Path) -> bool:
    """Whether a test has begun and does not end."""
    lines = read_journal(journal)
    return bool(lines) and lines[-1]["event"] == "begin" and time.time() - journal.stat().st_mtime > STALLED


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


def sanitizer(tool: str) -> Callable[[Job], Verdict]:
    """A stage: one tool of compute-sanitizer over every op and dtype, each in a process of its own."""

    def check(job: Job) -> Verdict:
        program = find_tool("compute-sanitizer")
        if program is None:
            return Verdict("skipped", "compute-sanitizer is not on this machine")
        cases = [(op, dtype, "") for op in OPS for dtype in DTYPES]
        if job.report["device"]["capability"] == [9, 0]:
            cases += [(op, dtype, "80") for op in ON_HOPPER for dtype in DTYPES[1:]]

        def one(op: str, dtype: str, arch: str) -> list[str]:
            log = job.scratch / f"{tool}-{op}-{dtype}-{arch}.log"
            # torch's cached blocks would hide what lies beyond a tensor; its probing of the driver is no error of ours
            environment = {**job.environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "GPU_CHECK_ARCH": arch}
            command = [program, "--tool", tool, "--report-api-errors=no", "--error-exitcode=86", "--launch-timeout=0"]
            code = PROCESSES.run([*command, *child("op", op, dtype)], log, job.left(), environment)
            append_log(job.log, f"{op} {dtype} {arch}".strip(), log)
            return sanitizer_findings(code, log.read_text(errors="replace") if log.exists() else "")

        found = in_parallel(min(16, os.cpu_count() or 1), one, cases)
        names = [" ".join(case).strip() for case in cases]
        bad = {name: findings for name, findings in zip(names, found, strict=True) if findings}
        summary = f"{len(cases) - len(bad)} of {len(cases)} clean"
        summary += "".join(f"; {name}: {findings[0]}" for name, findings in list(bad.items())[:3])
        return Verdict("failed" if bad else "passed", summary, bad)

    return check


def sanitizer_findings(code: int | None, text: str) -> list[str]:
    """What is wrong, each thing once; empty if the program ended well and the tool found nothing."""
    heads = re.findall(r"^========= (?! |COMPUTE-SANITIZER|ERROR SUMMARY|RACECHECK SUMMARY)(.+)$", text, re.MULTILINE)
    findings = list(dict.fromkeys(re.sub(r"0x[0-9a-f]+", "0x…", head) for head in heads))[:10]
    clean = re.search(r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards", text)
    if code == 0 and clean:
        return []
    if code is None:
        findings.append("it took too long")
    elif not findings:
        findings.append(f"exit code {code}: {last_line_of(text)}")
    labels = re.findall(r"^run (.+)$", text, re.MULTILINE)
    return [*findings, f"last call: {labels[-1]}"] if labels else findings


def ceilings(job: Job) -> Verdict:
    """What this GPU reaches at best, by torch: a large copy and large matrix products."""
    result = job.scratch / "ceilings.json"
    code = PROCESSES.run(child("ceilings", str(result)), job.log, job.left(), job.environment)
    if code != 0:
        return failure(code, last_line(job.log))
    found = json.loads(result.read_text())
    copy, bf16 = found["copy"] / 1e12, found["matmul bfloat16"] / 1e12
    return Verdict("passed", f"copy {copy:.2f} TB/s, bfloat16 products {bf16:.0f} TFLOP/s", found)


def benches(flags: tuple[str, ...], file: str, names: tuple[str, ...] = BENCHES) -> Callable[[Job], Verdict]:
    """A stage: benches, one after the other, each with its share of what time is left; their results in one file."""

    def measure(job: Job) -> Verdict:
        merged: dict[str, Any] = {}
        for index, name in enumerate(names):
            share = job.left() / (len(names) - index) - 2
            result = job.scratch / f"{name}-{file}"
            command = [sys.executable, BENCH / "run.py", name, *flags]
            PROCESSES.run(
                [*command, "--timeout", f"{share:.0f}", "--json", result], job.log, share + 2, job.environment
            )
            if result.exists():
                one = json.loads(result.read_text())
                for key in ("benches", "targets"):
                    one[key] = [*merged.get(key, ()), *one[key]]
                merged = one
                write_json(merged, job.out / file)
        return bench_verdict(merged, names)

    return measure


def bench_verdict(report: dict[str, Any], names: Sequence[str]) -> Verdict:
    there = {bench["name"]: bench for bench in report.get("benches", ())}
    bad = {name: "no result" for name in names if name not in there}
    bad |= {name: bench["error"].strip().splitlines()[-1] for name, bench in there.items() if bench["error"]}
    for name, bench in there.items():
        wrong = [
            f"{case['name']}: {error.strip().splitlines()[-1]}" for case in bench["cases"] for error in case["errors"]
        ]
        if wrong:
            bad[name] = "; ".join(filter(None, [bad.get(name), *wrong]))
    targets = report.get("targets", [])
    holds = sum(target["verdict"] == "holds" for target in targets)
    summary = f"targets: {holds} of {len(targets)} hold" + "".join(f"; {name}: {why}" for name, why in bad.items())
    details = {"failures": bad, "medians": medians(report), "targets": targets}
    return Verdict("failed" if bad else "passed", summary[:1000], details)


def medians(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per case and candidate: its median, and its part of what the machine reaches."""
    keys = ("name", "missing", "median_s", "tflops", "gbps", "of_matmul", "of_copy", "peak_mb")
    return [
        {"bench": bench["name"], "case": case["name"], **{key: row[key] for key in keys if row.get(key) is not None}}
        for bench in report.get("benches", ())
        for case in bench["cases"]
        for row in case["candidates"]
    ]


# The limits of the first four leave a minute for the benches; what those do not use goes to the benches too.
STAGES = (
    Stage("build", 200, build),
    Stage("tests", 120, tests, needs=("build",)),
    Stage("memcheck", 80, sanitizer("memcheck"), needs=("build",)),
    Stage("racecheck", 80, sanitizer("racecheck"), needs=("build",)),
    Stage("bench ceilings", 20, ceilings),
    Stage(
        "bench", 570, benches(("--device", "cuda", "--no-compile", "--seconds", "1"), "bench.json"), needs=("build",)
    ),
    # With the candidates that torch.compile makes, which takes longer than everything else together
    Stage(
        "bench compiled",
        570,
        benches(("--device", "cuda", "--seconds", "0.5"), "bench-compiled.json"),
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
        command = [sys.executable, str(CHILD), "probe"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
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
        "commit": output("git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None,
        "programs": {"python": platform.python_version(), **first},
        "nvidia_smi": output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        "cores": os.cpu_count(),
        "sources": sources_hash(),
    }


def sources_hash() -> str:
    """SHA-256 of csrc/ and the ops: what was checked, where there is no repository around it."""
    files = sorted(path for folder in ("csrc", "icl_fast/ops") for path in (ROOT / folder).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for file in files:
        if "__pycache__" not in file.parts:
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def first_version(name: str) -> str | None:
    """The line of `name --version` that has the number."""
    program = find_tool(name)
    lines = output(program, "--version").splitlines() if program else []
    return next((line for line in reversed(lines) if re.search(r"\d+\.\d+", line)), None)


def child(*arguments: str) -> list[str]:
    return [sys.executable, str(CHILD), *arguments]


def find_tool(name: str) -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(name, path=f"{home}/bin")


def output(*command: object) -> str:
    with suppress(OSError, subprocess.TimeoutExpired):
        words = [str(word) for word in command]
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    return ""


def leave(*_: object) -> None:
    PROCESSES.stop()
    sys.exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description="Proves the CUDA kernels on this machine's GPU.")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-check-results")))
    parser.add_argument("--seconds", type=float, default=570, help="in which everything must end")
    arguments = parser.parse_args()
    begun = time.monotonic()
    found = probe()
    if "problem" in found:
        print(f"gpu-check: nothing to check here: {found['problem']}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for old in arguments.out.glob("*.log"):
        old.unlink()
    report = {**describe(), **found}
    print(f"{found['device']['name']}, driver {found['driver']}, torch {found['versions']['torch']}", flush=True)
    passed = run_stages(STAGES, report, arguments.out, arguments.seconds - (time.monotonic() - begun))
    print(f"{'all passed' if passed else 'NOT all passed'}; results in {arguments.out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
