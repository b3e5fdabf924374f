"""What every bench is told, and the command line that says it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import source_tree  # noqa: F401 - before icl_fast
import torch

from icl_fast.errors import InputError


@dataclass(frozen=True)
class Options:
    """What every bench is told.

    Attributes:
        device: "cpu" or "cuda".
        threads: torch threads on CPU.
        quick: tiny shapes and two rounds: says whether the benches work, nothing about speed.
        cold: on CPU, sweep the caches before every sample (on CUDA they always are).
        compile: time torch.compile of the definition too.
        memory: measure peak memory too.
        seconds: how long the rounds of one case should take (at least five rounds all the same, or `Case.rounds`).
        only: a text that the name of a case must hold.
    """

    device: str = "cpu"
    threads: int = 2
    quick: bool = False
    cold: bool = False
    compile: bool = True
    memory: bool = True
    seconds: float = 12.0
    only: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on CPU")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: do the benches work at all?")
    parser.add_argument("--cold", action="store_true", help="sweep the CPU's caches before every sample")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long the rounds of a case should take")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this text")
    parser.add_argument("--json", metavar="FILE|-", help="write the results; - is standard output, without the table")


def parsed_options(arguments: argparse.Namespace) -> Options:
    return Options(
        device=arguments.device,
        threads=arguments.threads,
        quick=arguments.quick,
        cold=arguments.cold,
        compile=not (arguments.no_compile or arguments.quick),
        memory=not (arguments.no_memory or arguments.quick),
        seconds=arguments.seconds,
        only=arguments.only,
    )


def option_flags(options: Options) -> list[str]:
    """The command line that `parsed_options` makes the same options of."""
    switches = {"quick": options.quick, "cold": options.cold}
    switches |= {"no-compile": not options.compile, "no-memory": not options.memory}
    values = {"device": options.device, "threads": options.threads, "seconds": options.seconds}
    values |= {"only": options.only} if options.only else {}
    flags = [f"--{name}" for name, on in switches.items() if on]
    return flags + [part for name, value in values.items() for part in (f"--{name}", str(value))]


def require_device(options: Options) -> None:
    """Raises InputError where there is no such device."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda: torch finds no CUDA device here; use cpu")
