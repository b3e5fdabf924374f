"""The stages of gpu-check that run benches: what they have measured is kept, however they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from stages import BENCH, LEAST, PROCESSES, Job, Verdict, write_json

START = 8.0  # seconds until a bench has imported torch and begins to count
ATTEMPTS = 3  # at a bench that loses the GPU
NOTHING: dict[str, Any] = {"benches": [], "targets": []}


def benches(flags: tuple[str, ...], file: str, names: Sequence[str]) -> Callable[[Job], Verdict]:
    """A stage: benches one after the other, each with its share of what time is left.

    A bench that has used up its share begins no other case; one that does not end half a share later is ended. Results
    are added to what `file` holds already, after every bench.
    """

    def measure(job: Job) -> Verdict:
        written = job.out / file
        before = json.loads(written.read_text()) if written.exists() else NOTHING
        found = NOTHING
        for index, name in enumerate(names):
            if job.left() > LEAST:
                share = max(job.left() / (len(names) - index), LEAST)
                found = merged(found, run_bench(job, name, flags, share))
                write_json(merged(before, found), written)
        return bench_verdict(found, names)

    return measure


def run_bench(job: Job, name: str, flags: Sequence[str], share: float) -> dict[str, Any]:
    """The report of one bench, started again after a case that took the process or the GPU away."""
    others, report = job.left() - share, NOTHING  # others: the seconds that are not ours
    failed, done = "", 0  # cases, of this call
    for attempt in range(ATTEMPTS):
        left = job.left() - others
        limit = min(1.5 * left, job.left())
        result = job.scratch / f"{name}-{attempt}.json"
        command = [sys.executable, BENCH / f"bench_{name}.py", *flags, "--begin", done, "--json", result]
        command += ["--budget", f"{max(left - START, left / 2):.1f}"]
        code = PROCESSES.run(command, job.log, limit, job.environment)
        part = NOTHING
        with suppress(OSError):
            part = json.loads(result.read_text())
        report = merged(report, part)
        here = part["benches"][0] if part["benches"] else {"cases": [], "lost": ""}
        if part["benches"] and code in (0, 1) and not here["lost"]:
            break
        done += len(here["cases"])
        if code is None:
            failed = f"ended after {limit:.0f} s, {done} cases were done"
            break
        failed = here["lost"] or f"exit code {code}, {done} cases were done"
        done += not here["lost"]  # the case that it did not survive
        if not part["benches"] or job.left() - others < START:
            break
    if failed:
        report = merged(report, {**NOTHING, "benches": [{"name": name, "error": failed, "cases": []}]})
    return report


def merged(report: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Both reports in one: the cases of a bench together, and of a target that both have the one that was measured."""
    found = {bench["name"]: bench for bench in report["benches"]}
    for bench in more["benches"]:
        old = found.get(bench["name"], {"error": "", "cases": [], "left_out": []})
        joined = {key: [*old.get(key, ()), *bench.get(key, ())] for key in ("cases", "left_out")}
        joined["error"] = "; ".join(filter(None, (old["error"], bench["error"])))
        found[bench["name"]] = {**old, **bench, **joined}
    targets = {(t["bench"], t["case"], t["metric"]): t for t in report["targets"]}
    for target in more["targets"]:
        key = target["bench"], target["case"], target["metric"]
        if target["measured"] is not None or key not in targets:
            targets[key] = target
    return {**more, **report, "benches": list(found.values()), "targets": list(targets.values())}


def bench_verdict(report: dict[str, Any], names: Sequence[str]) -> Verdict:
    """Failed where a bench of these was not started, has an error or a wrong result; targets do not count."""
    bad = {}
    for bench in report["benches"]:
        wrong = [
            f"{case['name']}: {error.strip().splitlines()[-1]}" for case in bench["cases"] for error in case["errors"]
        ]
        if why := "; ".join(filter(None, (bench["error"], *wrong))):
            bad[bench["name"]] = why
    started = {bench["name"] for bench in report["benches"]}
    if late := [name for name in names if name not in started]:
        bad["no time for"] = ", ".join(late)
    targets = [target["verdict"] for target in report["targets"] if target["measured"] is not None]
    cases, out = (sum(len(bench.get(key, ())) for bench in report["benches"]) for key in ("cases", "left_out"))
    summary = (
        f"{cases} cases, {out} left out for want of time; targets: {targets.count('holds')} of {len(targets)} hold"
    )
    summary += "".join(f"; {name}: {why}" for name, why in bad.items())
    return Verdict("failed" if bad else "passed", summary[:1000], {"failures": bad})
