"""The reports of `bench/results/` as tables of the performance page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# the part of a report's name that says where or of what it was made, and what that is called
MACHINES = {"cpu": "", "bfloat16": ", in bfloat16", "amx": ", in bfloat16 on AMX", "h100": ", on an H100"}


def sections() -> str:
    """A section for each report that `bench/run.py` wrote, the newest of each bench and kind of machine; and one for
    the rest.
    """
    newest: dict[tuple[str, str], tuple[Path, dict[str, Any]]] = {}
    others, parts = [], []
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "stages" in report:  # of gpu-check, which docs/gpu.md tells of
            continue
        if "benches" not in report:
            others.append((path, report))
            continue
        for bench in report["benches"]:
            newest[bench["name"], path.name.split("-")[3]] = path, report
    for (name, machine), (path, report) in sorted(newest.items()):
        bench = next(one for one in report["benches"] if one["name"] == name)
        parts.append(f"## {name}{MACHINES[machine]}\n\n{_made(path, report)}\n\n{_cases(bench['cases'])}")
        if targets := [target for target in report["targets"] if target["bench"] == name and target["measured"]]:
            parts.append(f'??? info "Against the targets"\n\n{_indented(_targets(targets))}')
    listed = "\n".join(f"- {_made(path, report['environment'])}" for path, report in others)
    return "\n\n".join([*parts, "## Others", "Reports of single programs, each with its command:", listed])


def _made(path: Path, report: dict[str, Any]) -> str:
    machine, versions = report["machine"], report["versions"]
    return (
        f"`{path.name}`: {machine['cpu']}, {machine['cores']} cores ({', '.join(machine['isas'])}), "
        f"torch {versions['torch']}, commit {report['commit'][:7]}, {report['date'][:10]}: `{report['command']}`"
    )


def _cases(cases: list[dict[str, Any]]) -> str:
    """A row a case: our time, our peak memory, and how many times as long each other candidate takes."""
    rivals = list(
        dict.fromkeys(
            metric.removeprefix("speed vs ")
            for case in cases
            for metric in case["metrics"]
            if metric.startswith("speed vs ")
        )
    )
    rows = [["case", "ours, ms", "peak, MB", *(f"{rival}, times as long" for rival in rivals)]]
    for case in cases:
        metrics = case["metrics"]
        rows.append(
            [
                case["name"],
                _number(metrics.get("microseconds", float("nan")) / 1000),
                _number(metrics.get("peak MB")),
                *(_number(metrics.get(f"speed vs {rival}")) for rival in rivals),
            ]
        )
    return _table(rows)


def _targets(targets: list[dict[str, Any]]) -> str:
    rows = [["case", "metric", "target", "measured", ""]]
    for target in targets:
        wanted = f"{target['direction']} {target['value']:g}"
        rows.append([target["case"], target["metric"], wanted, _number(target["measured"]), target["verdict"]])
    return _table(rows)


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
