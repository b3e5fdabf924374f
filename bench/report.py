"""What stands in a report beside the measurements: where they were made, the targets and verdicts, the tables."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

import numpy
import torch
from source_tree import ROOT, commit

from icl_fast import __version__
from icl_fast.files import to_json
from icl_fast.ops import _backend

TARGETS = ROOT / "bench" / "targets.toml"
SCHEMA = 1


def percentile(values: list[float], at: float) -> float:
    return float(numpy.percentile(values, at))


def read_targets(path: Path = TARGETS) -> list[dict[str, Any]]:
    """The [[target]] tables of a TOML file."""
    targets: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["target"]
    return targets


def judge(target: dict[str, Any], measured: float | None) -> str:
    """ "holds", "falls short by x%" (of the target), or "not measured"."""
    if measured is None:
        return "not measured"
    value = float(target["value"])
    short = (value - measured) / value if target["direction"] == "at least" else (measured - value) / value
    return "holds" if short <= 0 else f"falls short by {100 * short:.1f}%"


def finish(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the targets of its benches and device, each with what was measured and the verdict.

    A quick report has no targets: its shapes are tiny.
    """
    if report["options"]["quick"]:
        return {**report, "targets": []}
    measured = {
        (bench["name"], case["name"], metric): value
        for bench in report["benches"]
        for case in bench["cases"]
        for metric, value in case["metrics"].items()
    }
    ran = {bench["name"] for bench in report["benches"]}
    own_isa = _backend.isas()[-1] if _backend.compiled() else None
    targets = []
    for target in read_targets():
        meant = target["device"] == report["options"]["device"] and target.get("isa", own_isa) == own_isa
        if target["bench"] in ran and meant:
            value = measured.get((target["bench"], target["case"], target["metric"]))
            targets.append({**target, "measured": value, "verdict": judge(target, value)})
    return {**report, "targets": targets}


def failed(bench: dict[str, Any]) -> bool:
    return bool(bench["error"]) or any(case["errors"] for case in bench["cases"])


def environment(options: dict[str, Any]) -> dict[str, Any]:
    """When, where, of which commit and by which command line."""
    packages = (
        "torch",
        "numpy",
        "triton",
        "cut_cross_entropy",
        "liger_kernel",
        "transformer_lens",
        "transformers",
        "jax",
    )
    machine: dict[str, Any] = {
        "cpu": _first_match("/proc/cpuinfo", r"model name\s*: (.+)") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isas": list(_backend.isas()),
    }
    if options["device"] == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "cuda_device": properties.name,
            "capability": f"sm_{properties.major}{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": _first_match("/proc/driver/nvidia/version", r"(\d+\.\d+(?:\.\d+)?)"),
            "l2_mb": round(getattr(properties, "L2_cache_size", 0) / 1e6, 1),
        }
    return {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "command": command_line(sys.argv),
        "options": options,
        "machine": machine,
        "versions": {
            "icl_fast": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
            "cuda": torch.version.cuda,
            "compiler": _backend.build_info().get("compiler"),
            "nvcc": _backend.build_info().get("nvcc"),
        },
    }


def command_line(arguments: list[str]) -> str:
    """As it was typed, without the folders of this machine."""
    program, *others = (Path(part).name if part.startswith("/") else part for part in arguments)
    return " ".join(["icl-fast" if program == "__main__.py" else program, *others])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _first_match(file: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(file).read_text())
    except OSError:
        return None
    return found[1].strip() if found else None


def write_json(report: dict[str, Any], where: str) -> None:
    """Write a report to a file, all of it or nothing; "-" is standard output."""
    text = to_json(report, indent=1) + "\n"
    # The samples of a candidate in one line; inside a JSON string there is no newline
    text = re.sub(r"\[\n([-\d.e,\s]+)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    if where == "-":
        sys.stdout.write(text)
        return
    path = Path(where)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    draft.replace(path)


COLUMNS = ("", "median ms", "10-90%", "TFLOP/s", "of matmul", "GB/s", "peak MB", "ours is", "rate")


def print_bench(bench: dict[str, Any], targets: list[dict[str, Any]]) -> None:
    """The table of a bench: a row a candidate; then its targets, each beside what was measured."""
    rows: list[tuple[str, ...]] = []
    for case in bench["cases"]:
        rounds = f" ({case['rounds']} round{'s' * (case['rounds'] > 1)})" if case.get("rounds") else ""
        rows.append((case["name"] + rounds,))
        rows += [_candidate_row(row, case["metrics"]) for row in case["candidates"]]
        rows += [(f"  FAILED {error.strip().splitlines()[-1]}",) for error in case["errors"]]
    if bench["error"]:
        rows.append((f"FAILED {bench['error'].strip().splitlines()[-1]}",))
    print_table(f"{bench['name']} on {bench['device']}", COLUMNS, rows)
    own = [target for target in targets if target["bench"] == bench["name"]]
    if own:
        verdicts: list[tuple[str, ...]] = [
            (t["case"], t["metric"], f"{t['direction']} {t['value']:g}", _number(t["measured"]), t["verdict"])
            for t in own
        ]
        print_table(f"{bench['name']}: targets", ("case", "metric", "target", "measured", "verdict"), verdicts)


def _candidate_row(row: dict[str, Any], metrics: dict[str, float]) -> tuple[str, ...]:
    if row["missing"] or "median_s" not in row:
        return (f"  {row['name']}: {row['missing'] or 'not timed, as there is nothing to compare it with'}",)
    ratio = metrics.get(f"speed vs {row['name']}")
    fraction = row.get("of_matmul")
    return (
        f"  {row['name']}",
        _number(1e3 * row["median_s"]),
        f"{_number(1e3 * row['q10_s'])}-{_number(1e3 * row['q90_s'])}",
        _number(row.get("tflops")),
        "" if fraction is None else f"{100 * fraction:.0f}%",
        _number(row.get("gbps")),
        _number(row.get("peak_mb")),
        "" if ratio is None else f"{ratio:.2f}x",
        ", ".join(f"{_number(rate)} {name}" for name, rate in row.get("rates", {}).items()),
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_summary(targets: list[dict[str, Any]]) -> None:
    """How many targets hold, and which do not."""
    if not targets:
        return
    reached = sum(target["verdict"] == "holds" for target in targets)
    print(f"targets: {reached} of {len(targets)} hold")
    for target in targets:
        if target["verdict"] != "holds":
            print(f"  {target['bench']}, {target['case']}: {target['metric']}: {target['verdict']}")


def print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table; a row of one cell is a heading or a remark. With rich where it is installed."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print_plain_table(title, columns, rows)
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        if index == 0:
            table.add_column(name, overflow="fold", max_width=64)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        style = "bold" if len(row) == 1 and not row[0].startswith(" ") else ""
        style = "yellow" if row[-1].startswith("falls short") else "red" if "FAILED" in row[0] else style
        table.add_row(*map(Text, row), style=style)
    console = Console()
    if not console.is_terminal:  # a file has no width to keep to
        console = Console(width=200)
    console.print(table)


def print_plain_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    full = [row for row in (columns, *rows) if len(row) > 1]
    widths = [max(len(row[index]) for row in full) for index in range(len(columns))]
    print(title, "-" * len(title), sep="\n")
    for row in (columns, *rows):
        if len(row) > 1:
            first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join([row[0].ljust(len(first)), *others]).rstrip())
        else:
            print(row[0])
    print()
