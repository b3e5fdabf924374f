"""What gpu-check prints last: all that one must know, in about 60 lines. Needs the standard library alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

MOST_FAILURES, SLOWEST, WIDTH = 16, 4, 180


def summary(report: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """The lines.

    Args:
        report: that of gpu_check.py, as far as it came.
        measured: the merged report of the benches; empty where none has run.
    """
    stages, versions = report.get("stages", {}), report["versions"]
    verdict = {True: "all passed", False: "NOT all passed", None: "ended before its end"}[report.get("passed")]
    failures = list(failed(stages))
    more = [f"... and {len(failures) - MOST_FAILURES} more"] if len(failures) > MOST_FAILURES else []
    lines = [
        f"== gpu-check: {verdict}",
        f"{report['device']['name']}; {report['nvidia_smi'] or report['driver']}; {report['cores']} cores",
        f"torch {versions['torch']}, CUDA {versions['torch_cuda']}, {report['programs'].get('nvcc')}",
        f"commit {report['commit']}; {report['date']}",
        "== stages",
        *(f"{name:16} {s['verdict']:9} {s['seconds']:5.0f} s  {s['summary']}" for name, s in stages.items()),
        f"== failures: {len(failures)}",
        *failures[:MOST_FAILURES],
        *more,
        "== slowest tests",
        *slowest(stages),
        "== headlines: median; rate; fraction of what this GPU reaches; against the fastest other; targets",
        *headlines(measured),
    ]
    return [" ".join(line.splitlines())[:WIDTH] for line in lines]


def failed(stages: dict[str, Any]) -> Iterator[str]:
    """A line for each test, op under the sanitizer, and bench that is not well."""
    for name, stage in stages.items():
        for what, found in stage["details"].items() if stage["verdict"] != "skipped" else ():
            if name == "tests":
                yield from failed_tests(what, found["failures"])
                if found["not_run"]:
                    yield f"{what}: {found['not_run']} tests did not run"
            elif name.endswith("check") and what != "informational":
                yield f"{name} {what}: {'; '.join(found)}"
            elif what == "not_built":
                yield from (f"{source}.cu: {why}" for source, why in found.items())
            elif what == "failures":
                yield from (f"{name}: {bench}: {why}" for bench, why in found.items())


def failed_tests(suite: str, failures: list[dict[str, str]]) -> Iterator[str]:
    """A line for each test function and message, of which the first failure stands for all."""
    alike: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        test = failure["id"].partition("::")[2]
        alike.setdefault((test.partition("[")[0], failure["message"]), []).append(test)
    for (_, message), tests in alike.items():
        more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
        yield f"{suite}: {tests[0]}{more}: {message}"


def slowest(stages: dict[str, Any]) -> list[str]:
    """The tests that took longest."""
    found = [item for suite in stages.get("tests", {}).get("details", {}).values() for item in suite["slowest"].items()]
    ordered = sorted(found, key=lambda item: -item[1])[:SLOWEST]
    return [f"{seconds:5.1f} s  {name.partition('::')[2]}" for name, seconds in ordered]


def headlines(measured: dict[str, Any]) -> Iterator[str]:
    """A line for each headline case."""
    for bench in measured.get("benches", ()):
        for case in bench["cases"]:
            if case.get("headline"):
                targets = [t for t in measured["targets"] if (t["bench"], t["case"]) == (bench["name"], case["name"])]
                yield f"{bench['name']}, {case['name'].removesuffix(' forward')}: {numbers(case, targets)}"
    for bench, number in Counter(bench for bench, _ in measured.get("left_out", ())).items():
        yield f"{bench}: for want of time without {number} cases"


def numbers(case: dict[str, Any], targets: list[dict[str, Any]]) -> str:
    """What was measured of our candidate."""
    rows = {row["name"]: row for row in case["candidates"] if "median_s" in row}
    if "ours" not in rows:
        why = next((row["missing"] for row in case["candidates"] if row["name"] == "ours"), "")
        return why or next((error.strip().splitlines()[-1] for error in case["errors"]), "not timed")
    own, found = rows.pop("ours"), []
    found.append(f"{1e3 * own['median_s']:.3g} ms")
    found += [f"{rate:.3g} {name}" for name, rate in list(own.get("rates", {}).items())[:1]]
    if own.get("tflops"):
        found.append(f"{own['tflops']:.3g} TFLOP/s")
    if fractions := {name: own[f"of_{name}"] for name in ("matmul", "copy") if own.get(f"of_{name}")}:
        name = max(fractions, key=lambda name: fractions[name])
        found.append(f"{100 * fractions[name]:.0f}% of {name}")
    others = [row for row in rows.values() if row["compare"] and row["name"] != "reference"] or list(rows.values())
    if others:
        best = min(others, key=lambda row: row["median_s"])
        found.append(f"{best['median_s'] / own['median_s']:.2f}x {best['name']}")
    found += [f"{t['metric']} {t['direction']} {t['value']:g} {t['verdict']}" for t in targets]
    return "; ".join(found)
