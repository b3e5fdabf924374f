"""Runs benches, each in a process of its own: one that crashes or hangs stops no other.

    python bench/run.py [NAMES] [--device cpu|cuda] [--threads 2] [--quick] [--json FILE|-]

Exit code 0: all ran (targets may fall short); 1: something failed or was wrong; 2: a bad option.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from catalog import NAMES
from harness import BENCH
from harness_options import Options, add_options, option_flags, parsed_options, require_device
from report import environment, failed, finish, print_bench, print_summary, write_json

from icl_fast.errors import InputError
from icl_fast.files import check_place


def select(names: Sequence[str]) -> list[str]:
    """The benches of these names, all of them for none.

    Raises:
        InputError: a name is not a bench.
    """
    for name in names:
        if name not in NAMES:
            raise InputError(f"names: {name!r} is no bench; there are {', '.join(NAMES)}")
    return [name for name in NAMES if name in names or not names]


def run(
    names: Sequence[str],
    options: Options,
    where: str | None = None,
    timeout: float = 1800.0,
    show: Callable[[dict[str, Any], list[dict[str, Any]]], None] | None = None,
) -> dict[str, Any]:
    """Run benches and return the report.

    Args:
        names: see `select`.
        where: a file that is written after every bench, or "-" for standard output at the end.
        timeout: seconds a bench may take.
        show: called with each bench that is done and its targets.

    Raises:
        InputError: a name is not a bench, the device is not there, or the file cannot be written.
    """
    chosen = select(names)
    require_device(options)
    if where and where != "-":
        check_place(where)
    report = finish({**environment(asdict(options)), "benches": []})
    for name in chosen:
        bench = run_process(name, BENCH / f"bench_{name}.py", options, timeout)
        report = finish({**report, "benches": [*report["benches"], bench]})
        if show:
            show(bench, report["targets"])
        if where and where != "-":
            write_json(report, where)
    if where == "-":
        write_json(report, where)
    return report


def run_process(name: str, file: Path, options: Options, timeout: float) -> dict[str, Any]:
    """One bench in its own process: its results, with `error` if it did not end well."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [sys.executable, str(file), *option_flags(options), "--json", str(results)]
        # Its own group, so that what it started ends with it
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        overdue = threading.Event()

        def end_it() -> None:
            overdue.set()
            _end(process)

        timer = threading.Timer(timeout, end_it)
        timer.start()
        try:
            tail = deque(_echo(process), maxlen=40)
            code = process.wait()
        finally:
            timer.cancel()
            _end(process)
        bench: dict[str, Any] = {"name": name, "device": options.device, "error": "", "ceilings": {}, "cases": []}
        with suppress(OSError):
            bench = json.loads(results.read_text())["benches"][0]
        if overdue.is_set():
            bench["error"] = f"ended after {timeout:.0f} s\n"
        elif code not in (0, 1) or not bench["cases"]:
            bench["error"] = f"{''.join(tail)}exit code {code}\n"
        return bench


def _echo(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)
        yield line


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the benches.")
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"of {', '.join(NAMES)}; all of them by default")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that one bench may take")
    add_options(parser)
    arguments = parser.parse_args()
    show = None if arguments.json == "-" else print_bench
    try:
        report = run(arguments.names, parsed_options(arguments), arguments.json, arguments.timeout, show)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if show:
        print_summary(report["targets"])
    return int(any(map(failed, report["benches"])))


if __name__ == "__main__":
    sys.exit(main())
