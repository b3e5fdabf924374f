"""The one harness of all benchmarks.

A bench is a list of cases; a case is one computation at one shape and dtype, and the candidates that compute it:
"ours", "reference" (the op's definition in torch) and what else a user would write today. Results are compared with the
reference before anything is timed. Then the candidates take turns in every round, and a ratio is the median over rounds
of the ratios within a round: the speed of a machine drifts, and what runs side by side drifts together.

Needs torch and numpy only.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from clock import Clock, CpuClock, CudaClock, ceilings, cpu_peak, cuda_peak, dtype_name, tensors_in
from harness_options import Options, add_options, option_flags, parsed_options, require_device
from report import environment, failed, finish, percentile, print_bench, write_json
from source_tree import ROOT
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.ops import available_impls

BENCH = ROOT / "bench"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
CUDA_INPUT_SETS = 3
LEAST_ROUNDS, MOST_ROUNDS = 5, 41
SLOW, SLOW_ROUNDS = 5.0, 3  # on CUDA, where times are steady, a candidate so many times slower than ours has few rounds
LONG = {"cpu": 10.0, "cuda": 1.0}  # seconds; a call as long as this needs no warm-up in a case with `rounds`

Inputs = SimpleNamespace


class Maker:
    """Makes inputs on a device in a dtype, the same ones for the same seed."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        wide = torch.randn(*shape, generator=self._generator, device=self.device)
        return wide.mul_(scale).to(self.dtype)

    def below(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=self._generator, device=self.device)


@dataclass
class Candidate:
    """One way to compute a case.

    Attributes:
        call: inputs -> tensor, or tuple or list of tensors.
        unpack: what `call` returned -> the same in the form the reference has; not timed.
        compare: False for what computes something else, a yardstick such as the product alone.
        memory: False where the peak memory of a first call means nothing (a compiler runs in it).
        family: several of one family also count as one, the fastest of them in each round.
        missing: why it cannot run here; empty if it can.
    """

    name: str
    call: Callable[[Inputs], Any]
    unpack: Callable[[Any], Any] = lambda result: result
    compare: bool = True
    memory: bool = True
    family: str = ""
    missing: str = ""


@dataclass
class Case:
    """One computation at one shape and dtype.

    Attributes:
        shape: as printed, "N=2048 C=768".
        make: makes the inputs.
        flops: the necessary floating-point operations, for every candidate the same.
        bytes: the necessary traffic: inputs read once, results written once.
        direction: "forward", "backward" or "forward+backward".
        gradients: inputs to differentiate by; the inputs' `grad` is the gradient of the (single) result.
        threads: torch threads, instead of those of the options.
        host: time the host and not the device, for call overhead.
        rounds: the least number of rounds, instead of five, for calls of a minute; then the first round is what
            `compare` timed: of long calls the one whose result was compared.
        counts: what else a call makes, such as {"steps": 50.0}; so many a second become a rate of every candidate and
            the metric "steps/s" of ours.
        headline: one of those that matter most, which run before the others.
        tolerance: instead of that of the dtype.
        sets: of inputs, which on CUDA take turns; 1 where candidates go on from call to call, or the weights alone
            are larger than any cache.
    """

    shape: str
    dtype: torch.dtype
    make: Callable[[Maker], Inputs]
    candidates: list[Candidate]
    flops: float
    bytes: float
    direction: str = "forward"
    gradients: tuple[str, ...] = ()
    threads: int | None = None
    host: bool = False
    rounds: int | None = None
    counts: dict[str, float] = field(default_factory=dict)
    headline: bool = False
    tolerance: float | None = None
    sets: int = CUDA_INPUT_SETS

    @property
    def name(self) -> str:
        return f"{dtype_name(self.dtype)} {self.shape} {self.direction}"


class WrongResult(Exception):
    """A candidate computes something else than the reference."""


def ours(op: str, call: Callable[[Inputs, str], Any], device: str) -> Candidate:
    """The candidate that this package is: its kernel for the device; `call` gets its impl name."""
    return Candidate("ours", lambda x: call(x, device), missing=not_built(op, device))


def not_built(op: str, device: str) -> str:
    """Why the op's kernel for the device cannot run here; empty if it can."""
    built = available_impls()[op]
    return "" if device in built else f"impl={device!r} is not built here (built: {', '.join(built)})"


def prepare(case: Case, candidate: Candidate, inputs: Inputs) -> Callable[[], Any]:
    """The call to be timed; it returns the result, the gradients, or (forward+backward) both."""
    if case.direction == "forward":
        return lambda: candidate.call(inputs)
    leaves = [getattr(inputs, name) for name in case.gradients]

    def differentiate(result: Any, keep: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, leaves, inputs.grad, retain_graph=keep)

    if case.direction == "backward":
        result = candidate.call(inputs)
        return lambda: differentiate(result, True)

    def both() -> tuple[Tensor, ...]:
        result = candidate.call(inputs)
        return result.detach(), *differentiate(result, False)

    return both


def make_inputs(case: Case, options: Options, seed: int = 0) -> Inputs:
    inputs = case.make(Maker(options.device, case.dtype, seed))
    for name in case.gradients:
        getattr(inputs, name).requires_grad_(True)
    return inputs


def check(result: Any, truth: list[Tensor], dtype: torch.dtype, tolerance: float | None = None) -> None:
    """Compare a result with the reference's, as a whole and at its worst element.

    Args:
        tolerance: of errors relative to the values, instead of that of the dtype.

    Raises:
        WrongResult: another shape, something not finite, or too far away.
    """
    tolerance, found = tolerance or TOLERANCE[dtype], tensors_in(result)
    if [t.shape for t in found] != [t.shape for t in truth]:
        raise WrongResult(f"shapes {[list(t.shape) for t in found]}, not {[list(t.shape) for t in truth]}")
    for index, (tensor, right) in enumerate(zip(found, truth, strict=True)):
        right = right.float()
        error = tensor.detach().float() - right
        for what, size, whole in (
            ("root mean square", error.square().mean().sqrt(), right.square().mean().sqrt()),
            ("largest", error.abs().max(), right.abs().max()),
        ):
            if not size <= tolerance * whole:  # also when it is nan
                raise WrongResult(
                    f"result {index}: the {what} error is {float(size):.3g} where the {what} value is "
                    f"{float(whole):.3g}; at most {tolerance} of it is allowed"
                )


def run_case(case: Case, options: Options, clock: Clock, found: dict[str, float]) -> dict[str, Any]:
    """Compare and time the candidates of a case.

    One that fails is not timed; if it is ours or the reference, or its result is wrong, the case has an error too.

    Args:
        found: the ceilings; a product alone that is faster raises its ceiling.
    """
    if options.compile:
        torch.compiler.reset()  # else the ninth shape of one definition would silently run uncompiled
    sets = [make_inputs(case, options, seed) for seed in range(case.sets if options.device == "cuda" else 1)]
    with torch.set_grad_enabled(case.direction != "forward"):
        rows, first, errors = compare(case, options, sets[0], clock)
        able = [] if rows["reference"]["missing"] else [c for c in case.candidates if not rows[c.name]["missing"]]
        samples = time_rounds(case, able, first, sets, options, clock)
    for name, seconds in samples.items():
        low, median, high = (percentile(seconds, at) for at in (10, 50, 90))
        rows[name] |= {"median_s": median, "q10_s": low, "q90_s": high, "seconds": seconds}
    key = f"matmul {dtype_name(case.dtype)}"
    if "product alone" in samples:
        found[key] = max(found.get(key, 0.0), case.flops / percentile(samples["product alone"], 50))
    return {
        "name": case.name,
        "headline": case.headline,
        "dtype": dtype_name(case.dtype),
        "direction": case.direction,
        "flops": case.flops,
        "bytes": case.bytes,
        "counts": case.counts,
        "rounds": max(map(len, samples.values()), default=0),
        "metrics": ratios(samples, able),
        "errors": errors,
        "candidates": list(rows.values()),
    }


def compare(
    case: Case, options: Options, inputs: Inputs, clock: Clock
) -> tuple[dict[str, dict[str, Any]], dict[str, float], list[str]]:
    """Check every candidate against the reference.

    Returns:
        A row per candidate, with why it is `missing` if it cannot run or is wrong; the seconds that a call takes of
        those that are right; the tracebacks that matter.
    """
    rows: dict[str, dict[str, Any]] = {
        c.name: {"name": c.name, "missing": c.missing, "compare": c.compare} for c in case.candidates
    }
    first: dict[str, float] = {}
    errors: list[str] = []
    truth: list[Tensor] | None = None
    peaks = options.device == "cuda" and options.memory and not case.host

    def measured(once: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        return cuda_peak(once) if peaks else (once(), {})

    for candidate in sorted(case.candidates, key=lambda c: c.name != "reference"):
        if candidate.missing:
            continue
        try:
            once = partial(timed, prepare(case, candidate, inputs), clock)
            (result, seconds), peak = measured(once)
            if case.direction == "forward":
                result = candidate.unpack(result)
            if candidate.name == "reference":
                truth = tensors_in(result)
            elif candidate.compare and truth is not None:
                check(result, truth, case.dtype, case.tolerance)
            del result
            # where a compiler may run in the first call, however long it was, it says nothing
            if not (case.rounds and seconds > LONG[options.device]):
                (result, seconds), peak = measured(once)
                del result
            rows[candidate.name] |= peak
            first[candidate.name] = seconds
        except Exception as error:
            first_line = next(iter(str(error).strip().splitlines()), "")
            rows[candidate.name]["missing"] = f"{type(error).__name__}: {first_line}"
            if candidate.name.startswith(("ours", "reference")) or isinstance(error, WrongResult):
                errors.append(f"{candidate.name}: {plain_traceback()}")
    return rows, first, errors


def timed(call: Callable[[], Any], clock: Clock) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    kept: list[Any] = []
    seconds = clock.seconds(lambda: kept.append(call()), 1)
    return kept[0], seconds


def time_rounds(
    case: Case,
    candidates: list[Candidate],
    first: dict[str, float],
    sets: list[Inputs],
    options: Options,
    clock: Clock,
) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, of slow ones on CUDA in the first few.

    Args:
        first: what a call took, of a case with `rounds` the first round.
    """
    calls = {c.name: [prepare(case, c, inputs) for inputs in sets] for c in candidates}
    repeats = {name: clock.repeat(first[name]) for name in calls}
    most = SLOW * first.get("ours", math.inf) if options.device == "cuda" else math.inf
    round_seconds = sum(first[name] * repeats[name] for name in calls if first[name] <= most)
    rounds = 2 if options.quick else LEAST_ROUNDS
    if not options.quick and round_seconds > 0:
        rounds = int(min(max(options.seconds / round_seconds, case.rounds or LEAST_ROUNDS), MOST_ROUNDS))
    few = min(SLOW_ROUNDS, case.rounds or SLOW_ROUNDS)
    samples = {name: [first[name]] if case.rounds else [] for name in calls}
    order = list(calls)
    gc.collect()
    gc.disable()
    try:
        for number in range(1 if case.rounds else 0, rounds):
            for name in order if number < few else [name for name in order if first[name] <= most]:
                call = calls[name][number % len(sets)]
                samples[name].append(clock.seconds(call, repeats[name]))
            order = order[1:] + order[:1]  # nobody always goes first, when the processor is coolest
    finally:
        gc.enable()
    return samples


def ratios(samples: dict[str, list[float]], candidates: list[Candidate]) -> dict[str, float]:
    """Medians over rounds: "speed vs X" is the time of X over ours, "time vs X" ours over that of X.

    A candidate that is slow may have fewer rounds than ours; then they are the first ones.
    """
    if "ours" not in samples:
        return {}
    others = {name: seconds for name, seconds in samples.items() if name != "ours"}
    for family in sorted({c.family for c in candidates} - {""}):
        members = [samples[c.name] for c in candidates if c.family == family]
        others[f"fastest {family}"] = [min(times) for times in zip_longest(*members, fillvalue=math.inf)]
    own = samples["ours"]
    found = {"microseconds": 1e6 * percentile(own, 50)}
    for name, seconds in others.items():
        found[f"speed vs {name}"] = percentile([b / a for a, b in zip(own, seconds, strict=False)], 50)
        found[f"time vs {name}"] = percentile([a / b for a, b in zip(own, seconds, strict=False)], 50)
    return found


def add_rates(result: dict[str, Any], found: dict[str, float]) -> None:
    """Rates of every candidate, and their fraction of what the machine reaches; then the metrics of ours."""
    ceiling = found.get(f"matmul {result['dtype']}")
    rows = {row["name"]: row for row in result["candidates"]}
    for row in rows.values():
        if "median_s" in row and result["flops"]:
            row["tflops"] = result["flops"] / row["median_s"] / 1e12
            row["gbps"] = result["bytes"] / row["median_s"] / 1e9
            row["of_matmul"] = row["tflops"] * 1e12 / ceiling if ceiling else None
            row["of_copy"] = row["gbps"] * 1e9 / found["copy"] if "copy" in found else None
            # the least time that its operations, and its traffic, take at what the machine reaches
            row["of_roofline"] = max((row[key] for key in ("of_matmul", "of_copy") if row[key]), default=None)
        if "median_s" in row and result["counts"]:
            row["rates"] = {f"{name}/s": count / row["median_s"] for name, count in result["counts"].items()}
    own, metrics = rows.get("ours", {}), result["metrics"]
    metrics |= own.get("rates", {})
    for key, metric in (
        ("of_matmul", "of matmul"),
        ("of_roofline", "of roofline"),
        ("peak_mb", "peak MB"),
        ("workspace_mb", "workspace MB"),
        ("resident_mb", "resident MB"),
    ):
        if own.get(key) is not None:
            metrics[metric] = own[key]
    for name, row in rows.items():
        if name != "ours" and row.get("peak_mb") and "peak_mb" in own:
            metrics[f"peak vs {name}"] = own["peak_mb"] / row["peak_mb"]


def plain_traceback() -> str:
    """The exception being handled, without this machine's paths."""
    return traceback.format_exc().replace(f"{ROOT}/", "").replace(str(Path.home()), "~")


def run_bench(
    name: str,
    cases: list[Case],
    options: Options,
    file: str,
    save: Callable[[Any], None],
    found: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Run the cases. One that raises does not stop the others, unless the GPU is lost to this process with it.

    Args:
        save: called with the results so far after each case, rates and metrics included.
        found: the ceilings, where they are known.

    Returns:
        The results; `lost`: why no case after the last can run.
    """
    started = time.monotonic()
    on_cuda = options.device == "cuda"
    clock: Clock = CudaClock() if on_cuda else CpuClock(options.cold)
    host_clock = CpuClock(drain=torch.cuda.synchronize if on_cuda else None)
    if found is None:
        dtypes = {case.dtype for case in cases if case.flops}
        found = ceilings(options.device, dtypes, clock, options.quick) if dtypes else {}
    done: dict[str, Any] = {"name": name, "device": options.device, "error": "", "ceilings": found, "cases": []}
    done["lost"] = ""
    for index, case in enumerate(cases):
        print(f"{name} {index + 1}/{len(cases)}: {case.name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        if not on_cuda:
            torch.set_num_threads(case.threads or options.threads)
        try:
            result = run_case(case, options, host_clock if case.host else clock, found)
            if options.memory and not on_cuda and not case.host:
                add_cpu_peaks(result, case, options, file)
        except Exception:
            result = {"name": case.name, "errors": [plain_traceback()], "metrics": {}, "candidates": []}
        result["took_s"] = round(time.monotonic() - began, 1)
        done["cases"].append(result)
        done["lost"] = gpu_lost() if on_cuda and result["errors"] else ""
        done["seconds"] = round(time.monotonic() - started, 1)
        for earlier in done["cases"]:  # those before too: the best product may be the newest
            if earlier["candidates"]:
                add_rates(earlier, found)
        save(done)
        if done["lost"]:
            break
    return done


def gpu_lost() -> str:
    """Why nothing can run on the GPU any more in this process, as after an illegal access; empty if something can."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"the GPU is lost to this process: {str(error).strip().splitlines()[0]}"
    return ""


def selected(cases: list[Case], options: Options) -> list[Case]:
    """The cases that the options ask for, headline cases first."""
    return sorted((case for case in cases if options.only in case.name), key=lambda case: not case.headline)


def add_cpu_peaks(result: dict[str, Any], case: Case, options: Options, file: str) -> None:
    """Peak memory of each candidate, in a process of its own that runs nothing else."""
    for candidate, row in zip(case.candidates, result["candidates"], strict=True):
        if candidate.memory and not row["missing"]:
            flags = option_flags(options)
            command = [sys.executable, file, *flags, "--peak", f"{candidate.name}: {case.name}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                result["errors"].append(f"{candidate.name}: peak memory: {done.stderr[-2000:]}")
            else:
                row |= json.loads(done.stdout) or {}


def print_cpu_peak(cases: Callable[[Options], list[Case]], options: Options, which: str) -> None:
    """In the child: the peak memory of one candidate, after a tiny call that loads what is loaded once."""
    name, _, wanted = which.partition(": ")
    torch.set_num_threads(options.threads)
    index = [case.name for case in cases(options)].index(wanted)
    for chosen in dict.fromkeys((replace(options, quick=True), options)):
        case = cases(chosen)[index]
        (candidate,) = (c for c in case.candidates if c.name == name)
        inputs = make_inputs(case, chosen)
        with torch.set_grad_enabled(case.direction != "forward"):
            peak = cpu_peak(prepare(case, candidate, inputs))
    print(json.dumps(peak))


def main(name: str, cases: Callable[[Options], list[Case]], file: str) -> int:
    """The command line of one bench file. Exit code 0: ran; 1: something failed or was wrong; 2: bad option."""
    parser = argparse.ArgumentParser(description=f"Benchmark of {name}.")
    add_options(parser)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    options = parsed_options(arguments)
    try:
        require_device(options)
    except InputError as error:
        parser.error(str(error))
    if arguments.peak:
        print_cpu_peak(cases, options, arguments.peak)
        return 0
    head = environment(asdict(options))

    def save(done: dict[str, Any]) -> None:
        if arguments.json and arguments.json != "-":
            write_json(finish({**head, "benches": [done]}), arguments.json)

    done = run_bench(name, selected(cases(options), options), options, file, save)
    report = finish({**head, "benches": [done]})
    if arguments.json:
        write_json(report, arguments.json)
    if arguments.json != "-":
        print_bench(done, report["targets"])
    return int(failed(done))
