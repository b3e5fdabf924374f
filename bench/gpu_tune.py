"""Builds and times variants of an op's kernels on this machine's GPU: `make gpu-tune OP=...`, or

    python3 bench/gpu_tune.py OP [--only TEXT] [--seconds 570] [--json FILE] [--compile-only 80|90a]

The variants stand in tune_variants.py. Each becomes a small module of that op alone, several at a time; as soon as one
is there, a process of its own compares what it computes with the reference and then times it. A variant that does not
compile, fails, hangs or is wrong is a row that says so. The table comes last; results are saved after every variant.

Exit code 0: every kernel as it is was timed; 1: one was not; 2: a bad option, or no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from stages import BENCH, PROCESSES, ROOT, find_tool, last_line_of, write_json
from tune_variants import AS_IS, KERNELS, OPS, Numbers, Tuned

CSRC = ROOT / "csrc"
HOST_SOURCES = ("variant", "bindings")  # .cpp, the same in every variant
VARIANT_SECONDS = 60.0  # that checking and timing one may take
CASE_SECONDS = 1.0
LEAST_ROUNDS, MOST_ROUNDS = 5, 41

Row = dict[str, Any]


@dataclass
class Build:
    """What became of compiling a variant. `error`: one line; empty if there is a module."""

    module: Path
    error: str = ""
    seconds: float = 0.0
    numbers: dict[str, int] = field(default_factory=dict)  # of ptxas


@dataclass
class Run:
    """One call of the tuner: where it works and until when (of time.monotonic())."""

    scratch: Path
    deadline: float
    nvcc: str
    arch: str  # "80", "90a"

    def left(self) -> float:
        return self.deadline - time.monotonic()


# ---- building ----


def build_host_objects(run: Run) -> list[Path]:
    """The objects that every variant is linked with.

    Raises:
        SystemExit: they do not compile.
    """
    import pybind11

    includes = [f"-I{folder}" for folder in (pybind11.get_include(), sysconfig.get_path("include"))]
    objects = [run.scratch / f"{name}.o" for name in HOST_SOURCES]
    for name, target in zip(HOST_SOURCES, objects, strict=True):
        code, text = nvcc(run, *includes, "-c", CSRC / "cuda" / f"{name}.cpp", "-o", target)
        if code != 0:
            raise SystemExit(f"gpu-tune: csrc/cuda/{name}.cpp does not compile: {first_error(code, text)}")
    return objects


def build(run: Run, kernel: Tuned, numbers: Numbers, folder: Path, host_objects: list[Path]) -> Build:
    """Compile the kernel's sources with these numbers and link them into a module, in a folder of its own."""
    started = time.monotonic()
    folder.mkdir()
    built = Build(folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
    defines = [f"-DICL_{name}={str(value).lower()}" for name, value in numbers.items()]
    target = f"--generate-code=arch=compute_{run.arch},code=sm_{run.arch}"
    text, objects = "", []
    for source in kernel.sources:
        objects.append(folder / f"{source}.o")
        # a Hopper kernel's sources are compiled for nothing else, and the others of its op for it alone here
        compile_one = [target, "-Xptxas=-v", *defines, "-c", CSRC / "cuda" / f"{source}.cu", "-o", objects[-1]]
        code, printed = nvcc(run, *compile_one)
        text += printed
        if code != 0:
            built.error = first_error(code, printed)
            break
    else:
        code, printed = nvcc(run, "-shared", *objects, *host_objects, "-o", built.module)
        built.error = first_error(code, printed) if code != 0 else ""
    built.numbers = ptxas_numbers(text, kernel.main)
    built.seconds = time.monotonic() - started
    return built


def nvcc(run: Run, *arguments: object) -> tuple[int | None, str]:
    """Exit code (None: it took too long) and what it printed."""
    includes = (f"-I{CSRC}", f"-I{CSRC / 'ptx'}")
    fixed = ("-std=c++20", "-O3", "-DICL_CUDA", "-DICL_VARIANT", *includes, "-Xcompiler=-fPIC,-fvisibility=hidden")
    handle, name = tempfile.mkstemp(".log", dir=run.scratch)
    os.close(handle)
    log = Path(name)
    code = PROCESSES.run([run.nvcc, *fixed, *arguments], log, run.left())
    return code, log.read_text(errors="replace")


def first_error(code: int | None, text: str) -> str:
    if code is None:
        return "not compiled in time"
    return last_line_of(text.partition("\n")[2], r"\b(error|fatal)\b").replace(f"{ROOT}/", "") or f"exit code {code}"


def ptxas_numbers(text: str, main: str) -> dict[str, int]:
    """Of the instances whose name holds `main`: the most registers and static shared memory, all bytes spilled."""
    found = {"instances": 0, "registers": 0, "static_shared": 0, "spilled": 0}
    for part in re.split(r"Compiling entry function", text)[1:]:
        if main not in part.partition(" for ")[0]:
            continue
        found["instances"] += 1
        found["spilled"] += sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        for key, pattern in (("registers", r"Used (\d+) registers"), ("static_shared", r"(\d+) bytes smem")):
            found[key] = max([found[key], *map(int, re.findall(pattern, part))])
    return found if found["instances"] else {}


# ---- timing, in a process of its own ----


def load(module: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("icl_fast._C", module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def time_module(module: Path, kernel: Tuned, result: Path) -> None:
    """Time the kernel that is in this module. The results are written after each case."""
    sys.modules["icl_fast._C"] = load(module)  # before icl_fast looks for it: the machine need not have built it
    from clock import CudaClock
    from harness import Options

    from icl_fast.ops import _backend

    _backend._arch = lambda place, device: kernel.arch
    options = Options(device="cuda", compile=False, memory=False, seconds=CASE_SECONDS)
    clock, rows = CudaClock(), []
    for arguments in kernel.cases:
        rows.append(time_case(kernel.op, arguments, options, clock))
        shared = sys.modules["icl_fast._C"].most_shared()
        write_json({"cases": rows, "shared": shared}, result)


def time_case(op: str, arguments: tuple[object, ...], options: Any, clock: Any) -> Row:
    """Compare the op with its reference on one case of its bench, then time it.

    Raises:
        harness.WrongResult: they differ.
    """
    import torch
    from clock import tensors_in
    from harness import CUDA_INPUT_SETS, check, make_inputs, prepare
    from report import percentile

    case = importlib.import_module(f"bench_{op}").case(*arguments, options)
    ours, reference = (next(c for c in case.candidates if c.name == name) for name in ("ours", "reference"))
    sets = [make_inputs(case, options, seed) for seed in range(CUDA_INPUT_SETS)]
    with torch.set_grad_enabled(case.direction != "forward"):
        truth = tensors_in(prepare(case, reference, sets[0])())
        calls = [prepare(case, ours, inputs) for inputs in sets]
        check(calls[0](), truth, case.dtype)
        del truth
        once = clock.seconds(calls[0], 1)
        rounds = int(min(max(options.seconds / max(once, 1e-9), LEAST_ROUNDS), MOST_ROUNDS))
        seconds = [clock.seconds(calls[number % len(calls)], 1) for number in range(rounds)]
    low, median, high = (percentile(seconds, at) for at in (10, 50, 90))
    spread = {"q10_s": low, "median_s": median, "q90_s": high, "rounds": rounds}
    return {"case": case.name, **spread, "tflops": case.flops / median / 1e12}


def timing_command(module: Path, kernel: Tuned, result: Path) -> list[str]:
    return [sys.executable, __file__, kernel.op, "--time", str(module), str(KERNELS.index(kernel)), str(result)]


def time_variant(run: Run, kernel: Tuned, built: Build) -> Row:
    """Run `time_module` in a process of its own, which a kernel may take down."""
    result, log = built.module.with_name("times.json"), built.module.with_name("times.log")
    paths = [str(ROOT), str(BENCH), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    limit = min(VARIANT_SECONDS, run.left())
    code = PROCESSES.run(timing_command(built.module, kernel, result), log, limit, environment)
    row: Row = {"cases": [], "error": ""}
    with suppress(OSError):
        row |= json.loads(result.read_text())
    if code is None:
        row["error"] = f"not timed within {limit:.0f} s"
    elif code < 0:
        row["error"] = f"ended by signal {-code}"
    elif code != 0:
        row["error"] = last_line_of(log.read_text(errors="replace").partition("\n")[2]) or f"exit code {code}"
    return row


# ---- all of it ----


def tune(run: Run, kernels: list[Tuned], jobs: int, save: Callable[[list[Row]], None], times: bool = True) -> list[Row]:
    """Build and time all variants; `save` gets the rows so far after each."""
    rows: list[Row] = []
    host_objects = build_host_objects(run)
    wanted = [(kernel, name, numbers) for kernel in kernels for name, numbers in kernel.all_variants().items()]
    with ThreadPoolExecutor(jobs) as pool:
        builds = {}
        for kernel, _, numbers in wanted:
            key = (kernel.name, *sorted(numbers.items()))  # as it is and again is one build
            if key not in builds:
                folder = run.scratch / str(len(builds))
                builds[key] = pool.submit(build, run, kernel, numbers, folder, host_objects)
        for kernel, name, numbers in wanted:
            built = builds[(kernel.name, *sorted(numbers.items()))].result()
            row: Row = {"kernel": kernel.name, "variant": name, "numbers": numbers, "cases": [], **built.numbers}
            row |= {"build_s": round(built.seconds, 1), "error": built.error}
            if times and not built.error:
                row |= time_variant(run, kernel, built) if run.left() > 0 else {"error": "no time left"}
            rows.append(row)
            save(rows)
            print(f"{kernel.name}: {name}: {row['error'] or 'well'}", file=sys.stderr, flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """A line a variant: what the compiler made of it, and its milliseconds in each case, beside those of as-is."""
    lines = []
    for name in dict.fromkeys(row["kernel"] for row in rows):
        own = [row for row in rows if row["kernel"] == name]
        first = {case["case"]: case["median_s"] for case in own[0]["cases"]}
        cases = list(dict.fromkeys(case["case"] for row in own for case in row["cases"]))
        lines += ["", name, *(f"  case {index + 1}: {case}" for index, case in enumerate(cases))]
        cells = [["variant", "regs", "spilled", "shared KiB", *(f"case {i + 1}: ms" for i in range(len(cases)))]]
        for row in own:
            shared = row.get("static_shared", 0) + row.get("shared", 0)
            head = [row["variant"], str(row.get("registers", "")), str(row.get("spilled", ""))]
            times = {case["case"]: case["median_s"] for case in row["cases"]}
            cells.append([*head, f"{shared / 1024:.0f}", *(cell(times.get(case), first.get(case)) for case in cases)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for words, row in zip(cells, [None, *own], strict=True):
            padded = [words[0].ljust(widths[0]), *(w.rjust(n) for w, n in zip(words[1:], widths[1:], strict=True))]
            lines.append("  ".join(padded) + (f"  {row['error']}" if row and row["error"] else ""))
    return "\n".join(lines)


def cell(seconds: float | None, first: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{1e3 * seconds:.3f}" + (f" ({first / seconds:.2f}x)" if first else "")


@contextmanager
def ended_politely() -> Iterator[None]:
    """On SIGTERM and SIGINT, end what was started."""

    def leave(*_: object) -> None:
        PROCESSES.stop()
        sys.exit(1)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def find_nvcc() -> str | None:
    return os.environ.get("CUDACXX") or find_tool("nvcc")


def parsed() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(description="Builds and times variants of an op's kernels on this machine's GPU.")
    parser.add_argument("op", choices=OPS)
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name holds this text")
    parser.add_argument("--seconds", type=float, default=570.0, help="in which everything must end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: gpu-tune-OP.json in $OUT, or here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="variants that are built at a time")
    parser.add_argument("--compile-only", choices=("80", "90a"), help="time nothing; needs no GPU")
    parser.add_argument("--time", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(), parser


def main() -> int:
    started = time.monotonic()
    arguments, parser = parsed()
    if arguments.time:
        module, index, result = arguments.time
        time_module(Path(module), KERNELS[int(index)], Path(result))
        return 0
    head: Row = {"op": arguments.op, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    arch = arguments.compile_only
    if not arch:
        from gpu_check import probe

        head |= probe()
        if "problem" in head:
            print(f"gpu-tune: nothing to tune here: {head['problem']}", file=sys.stderr)
            return 2
        major, minor = head["device"]["capability"]
        arch = "90a" if major == 9 else f"{major}{minor}"
    program = find_nvcc()
    if program is None:
        parser.error("no nvcc was found: put it on PATH, or set CUDACXX or CUDA_HOME")
    kernels = [k for k in KERNELS if k.op == arguments.op and arguments.only in k.name]
    kernels = [k for k in kernels if k.arch == 80 or arch == "90a"]
    if not kernels:
        parser.error(f"no kernel of {arguments.op} for sm_{arch} has {arguments.only!r} in its name")
    target = arguments.json or Path(os.environ.get("OUT", ".")) / f"gpu-tune-{arguments.op}.json"

    def save(rows: list[Row]) -> None:
        write_json({**head, "arch": arch, "rows": rows}, target)

    with ended_politely(), tempfile.TemporaryDirectory() as scratch:
        run = Run(Path(scratch), started + arguments.seconds, program, arch)
        rows = tune(run, kernels, arguments.jobs, save, times=not arguments.compile_only)
    print(table(rows))
    print(f"\nresults in {target}")
    return int(any(row["error"] for row in rows if row["variant"] == AS_IS))


if __name__ == "__main__":
    sys.exit(main())
