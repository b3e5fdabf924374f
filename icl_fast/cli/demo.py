"""`icl-fast demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo, echo_files
from icl_fast.cli.parameters import COUNT, FOLDER_TO_WRITE, PATH
from icl_fast.cli.progress import sweep_progress, training_progress
from icl_fast.cli.tasks import repair_option

if TYPE_CHECKING:
    from icl_fast.studies.demo import DemoResult


@click.command(cls=Command)
@click.option("--seeds", type=COUNT, default=1, show_default=True, help="Repeat with this many seeds.")
@click.option(
    "--out", type=FOLDER_TO_WRITE, default=Path("runs/demo"), show_default=True, help="Folder of runs and figure."
)
@click.option("--configs", type=PATH, help="Folder of the models' configs; default those that come with icl_fast.")
@repair_option
def demo(seeds: int, out: Path, configs: Path | None, repair: bool) -> None:
    """Train three small models on this machine's Python library and watch in-context learning form, or not.

    A 1-layer, a 2-layer and a 1-layer smeared-key attention-only model are trained and snapshotted; every head of the
    2-layer model is knocked out in every snapshot. What is printed is what was found: the rule that says "phase change"
    is fixed in icl_fast/analysis/phase_change.py. If it is stopped, the same command continues.
    """
    from icl_fast.cli.tables import print_demo
    from icl_fast.shipped_configs import folder
    from icl_fast.studies.demo import run_demo

    started = time.monotonic()
    results: list[DemoResult] = []
    for seed in range(seeds):
        result = run_demo(configs or folder() / "demo", out, seed, training_progress, sweep_progress, repair=repair)
        print_demo(result)
        echo_files("figure:", result.figure[0])
        results.append(result)
    if seeds > 1:
        for name in results[0].changes:
            changed = sum(change is not None and change.happened for change in (r.changes[name] for r in results))
            echo(f"{name}: phase change in {changed} of {seeds} seeds", facts={f"phase changes of {name}": changed})
    echo(f"{time.monotonic() - started:.0f} s in all")
