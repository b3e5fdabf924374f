"""The stages of gpu-check that run compute-sanitizer over the ops' kernels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial

from gpu_check_tests import ON_HOPPER
from stages import PROCESSES, Job, Verdict, append_log, child, find_tool, in_parallel, last_line_of, output

from icl_fast import OPS

# What is passed where this compute-sanitizer knows it. torch's probing of the driver is no error of ours; a process
# that waits for its turn on 16 cores is not lost.
WISHES = ("--report-api-errors=no", "--launch-timeout=0")


def sanitizer(tool: str) -> Callable[[Job], Verdict]:
    """A stage: one tool of compute-sanitizer over every op in all dtypes, each op in a process of its own.

    What racecheck says of Hopper's own kernels is told and does not count: it does not follow the asynchronous proxy
    through which wgmma and the bulk copies reach shared memory.
    """

    def check(job: Job) -> Verdict:
        program = find_tool("compute-sanitizer")
        if program is None:
            return Verdict("skipped", "compute-sanitizer is not on this machine")
        cases = [(op, "") for op in OPS]
        informational = set()
        if job.report["device"]["capability"] == [9, 0]:
            cases += [(op, "80") for op in ON_HOPPER]
            informational = set(ON_HOPPER) if tool == "racecheck" else set()
        known = output(program, "--help")
        command = [program, "--tool", tool, "--error-exitcode=86"]
        command += [wish for wish in WISHES if wish.partition("=")[0] in known]
        found = in_parallel(min(16, os.cpu_count() or 1), partial(run_op, job, command), cases)
        results = {" ".join(case).strip(): findings for case, findings in zip(cases, found, strict=True)}
        bad = {name: findings for name, findings in results.items() if findings}
        failed = {name: findings for name, findings in bad.items() if name not in informational}
        summary = f"{len(cases) - len(bad)} of {len(cases)} clean"
        summary += "".join(f"; {name}: {findings[0]}" for name, findings in list(failed.items())[:3])
        told = {name: findings for name, findings in bad.items() if name not in failed}
        summary += f"; informational: {', '.join(told)}" if told else ""
        details = failed | ({"informational": told} if told else {})
        return Verdict("failed" if failed else "passed", summary, details)

    return check


def run_op(job: Job, command: list[str], op: str, arch: str) -> list[str]:
    """The findings of one op's calls."""
    tool = command[2]
    log = job.scratch / f"{tool}-{op}-{arch}.log"
    environment = {**job.environment, "GPU_CHECK_ARCH": arch, "OMP_NUM_THREADS": "1"}
    environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # cached blocks would hide what lies beyond a tensor
    code = PROCESSES.run([*command, *child("op", op)], log, job.left(), environment)
    append_log(job.log, f"{tool} {op} {arch}".strip(), log)
    return sanitizer_findings(code, log.read_text(errors="replace") if log.exists() else "")


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
    last = [found[-1] for word in ("dtype", "run") if (found := re.findall(rf"^{word} (.+)$", text, re.MULTILINE))]
    return [*findings, f"last call: {', '.join(last)}"] if last else findings
