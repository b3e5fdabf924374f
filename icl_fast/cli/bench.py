"""`icl-fast bench`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click

import icl_fast
from icl_fast.cli.commands import Command
from icl_fast.cli.console import is_quiet
from icl_fast.cli.parameters import Number, PathType, WholeNumber, distinct
from icl_fast.cli.tasks import refuse_with
from icl_fast.errors import InputError

HELP = f"""Measure the fused ops and the sweep against plain torch and what else a user would write today.

NAMES are {", ".join(icl_fast.OPS)}, call_overhead, sweep (every head of a model ablated; against TransformerLens too
where it is installed), toy (the coopetition model) and exemplar_training (steps and evaluation of exemplar models;
against JAX too where it is installed); all of them by default. Each ratio stands beside its target from
bench/targets.toml. Exit code 1: a bench failed or a result was wrong; a target that is not reached is no failure.
"""


@click.command(cls=Command, help=HELP)
@click.argument("names", nargs=-1, metavar="[NAMES]...")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="What computes.")
@click.option("--threads", type=WholeNumber(1, 4096), default=2, show_default=True, help="torch threads on CPU.")
@click.option("--quick", is_flag=True, help="Tiny shapes: do the benches work at all?")
@click.option("--cold", is_flag=True, help="Sweep the CPU's caches before every sample (on CUDA always).")
@click.option("--compile/--no-compile", "with_compile", default=None, help="Time torch.compile too.  [default: yes]")
@click.option("--memory/--no-memory", default=None, help="Measure peak memory too.  [default: yes]")
@click.option("--seconds", type=Number(0), help="For the rounds of one case; default 12.")
@click.option("--only", default="", metavar="TEXT", help="Cases whose name holds this text; default all.")
@click.option("--timeout", type=Number(1, 1e9), default=1800.0, show_default=True, help="Seconds for one bench.")
@click.option(
    "--json",
    "where",
    is_flag=False,
    flag_value="-",
    type=PathType("file"),
    metavar="[FILE]",
    help="Print one JSON document of the results and nothing else; or write it to FILE, beside the tables; default the "
    "tables alone.",
)
def bench(
    names: tuple[str, ...],
    device: str,
    threads: int,
    quick: bool,
    cold: bool,
    with_compile: bool | None,
    memory: bool | None,
    seconds: float | None,
    timeout: float,
    only: str,
    where: Path | None,
) -> None:
    distinct("names", names)
    if quick:
        flags = {"--compile": with_compile or None, "--memory": memory or None}
        refuse_with("--quick", {**flags, "--seconds": seconds})
    benches = _benches()
    options = benches.Options(
        device=device,
        threads=threads,
        quick=quick,
        cold=cold,
        compile=with_compile is not False and not quick,
        memory=memory is not False and not quick,
        seconds=12.0 if seconds is None else seconds,
        only=only,
    )
    target = None if where is None else str(where)
    show = None if target == "-" or is_quiet() else benches.print_bench
    report = benches.run(names, options, target, timeout, show)
    # a bench that has nothing to do ends well and leaves nothing, which the report calls an error
    idle = [bench.get("cases") == [] and bench["error"].strip() == "exit code 0" for bench in report["benches"]]
    if only and all(idle):
        raise InputError(f"--only: no case has {only!r} in its name; leave it out to see what there is")
    if show:
        benches.print_summary(report["targets"])
    if any(map(benches.failed, report["benches"])):
        raise SystemExit(1)


def _benches() -> ModuleType:
    """bench/run.py, which is beside the package in its source tree and not part of it."""
    folder = Path(icl_fast.__file__).resolve().parents[1] / "bench"
    if not (folder / "run.py").is_file():
        raise InputError("bench: the benches are in the source tree of icl_fast, and this is an installed copy without")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: its plain names must hide nobody's module
    return import_module("run")
