"""The cases of all benches in one process, for gpu-check: to start one takes longer than most cases.

    python bench/gpu_check_cases.py --begin N --json FILE [options of the benches]

Headline cases come first, and benches take turns, so that where time ends each has had as many as another. The report
is written before each case, and says what is `running` and what is `left_out` so far: the process may end at any time.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import zip_longest
from typing import Any, TypeVar

import harness
import torch
from catalog import NAMES
from clock import Clock, CpuClock, CudaClock, ceilings
from gpu_check_benches import NOTHING, merged
from harness import Case
from harness_options import Options, add_options, parsed_options
from report import environment, finish, print_bench, write_json

T = TypeVar("T")
LAST = ("head_scores",)  # to make its model takes as long as twenty cases of others


@dataclass(frozen=True)
class Turn:
    """A case, and the bench that it is of."""

    bench: str
    case: Case
    file: str


def in_turns(several: Sequence[Sequence[T]]) -> Iterator[T]:
    """The first of each, then the second of each, and so on."""
    return (one for together in zip_longest(*several) for one in together if one is not None)


def all_turns(options: Options, names: Sequence[str] = NAMES) -> list[Turn]:
    """The cases of these benches in the order in which they run."""
    modules = {name: import_module(f"bench_{name}") for name in names}
    turns = [[Turn(name, case, str(m.__file__)) for case in m.cases(options)] for name, m in modules.items()]
    parts = ([[turn for turn in one if turn.case.headline == part] for one in turns] for part in (True, False))
    found = [turn for part in parts for turn in in_turns(part)]
    return sorted(found, key=lambda turn: turn.bench in LAST)


def measure(turns: Sequence[Turn], options: Options, head: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Run the cases until one loses the GPU. Returns the report."""
    clock: Clock = CudaClock() if options.device == "cuda" else CpuClock()
    dtypes = {turn.case.dtype for turn in turns if turn.case.flops}
    found = ceilings(options.device, dtypes, clock, options.quick)
    report: dict[str, Any] = {**head, **NOTHING}
    for index, turn in enumerate(turns):
        save(report, turns[index:], where)
        done = harness.run_bench(turn.bench, [turn.case], options, turn.file, lambda so_far: None, found)
        print_bench(done, [])
        report = merged(report, {**NOTHING, "benches": [done]})
        gc.collect()
        if options.device == "cuda" and not done["lost"]:
            torch.cuda.empty_cache()
        if done["lost"]:
            break
    return save(report, turns[index + 1 :], where, running=False)


def save(report: dict[str, Any], left: Sequence[Turn], where: str, running: bool = True) -> dict[str, Any]:
    """Write and return the report with its targets and the cases that are left; the first of them is running."""
    names = [(turn.bench, turn.case.name) for turn in left]
    whole = finish({**report, "running": names[:1] if running else [], "left_out": names})
    write_json(whole, where)
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(description="All benches in one process.")
    add_options(parser)
    parser.add_argument("--begin", type=int, default=0, metavar="N", help="leave out the first N cases")
    arguments = parser.parse_args()
    options = parsed_options(arguments)
    turns = all_turns(options)[arguments.begin :]
    report = measure(turns, options, environment(asdict(options)), arguments.json)
    return int(any(bench["lost"] for bench in report["benches"]))


if __name__ == "__main__":
    sys.exit(main())
