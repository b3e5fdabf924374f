"""`icl-fast reproduce`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icl_fast.cli.commands import Command, stopped
from icl_fast.cli.console import Cell, echo, print_table
from icl_fast.cli.parameters import COUNT, FOLDER_TO_WRITE, PATH, parse_list
from icl_fast.cli.progress import counting, population_progress, training_progress
from icl_fast.errors import InputError

if TYPE_CHECKING:
    from icl_fast.runs import RunConfig
    from icl_fast.studies.reproduction.reproduce import Reproduction, Row


@click.command(cls=Command)
@click.argument("work", type=click.Choice(["olsson", "singh"]))
@click.option(
    "--scale",
    type=click.Choice(["tiny", "small", "paper"]),
    default="tiny",
    show_default=True,
    help="Of the trainings: tiny is for a CPU, the others for GPUs.",
)
@click.option("--claims", metavar="NAME,NAME", help="Only these claims, and the trainings that they need; default all.")
@click.option(
    "--part", type=COUNT, help="Train only this part of the plan; judge what is trained by then; default all."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Change a config key of every training; default none."
)
@click.option(
    "--public", type=PATH, help="Other people's models, for claims about them: as RUN of `ablate`; default none."
)
@click.option("--plan", "plan_only", is_flag=True, help="Print the claims, the parts and their cost; do nothing.")
@click.option("--again", is_flag=True, help="Measure claims again (what their run folders keep stays).")
@click.option("--static/--no-static", default=True, show_default=True, help="Draw every figure as PNG and SVG too.")
@click.option(
    "--out", type=FOLDER_TO_WRITE, default=Path("runs/reproduction"), show_default=True, help="Folder of all of it."
)
@click.option("--configs", type=PATH, help="Folder of configs; default those that come with icl_fast.")
def reproduce(
    work: str,
    scale: str,
    claims: str | None,
    part: int | None,
    overrides: tuple[str, ...],
    public: Path | None,
    plan_only: bool,
    again: bool,
    static: bool,
    out: Path,
    configs: Path | None,
) -> None:
    """Test what WORK (olsson: Olsson et al. 2022; singh: Singh 2025) says, claim by claim.

    Trains what the claims need, measures, and decides by rules that were fixed beforehand: holds, does not hold, or
    cannot be tested at this scale. Each rule is applied to trainings that lack the effect too, where it must fail. It
    goes in parts that can be run apart, several at a time in processes of their own; if it is stopped, the same command
    continues.
    """
    from icl_fast.shipped_configs import folder
    from icl_fast.studies.reproduction.reproduce import Reproduction
    from icl_fast.studies.reproduction.table import counted, write_table

    names = parse_list("--claims", claims) if claims is not None else []
    wanted = Reproduction(work, scale, out, configs or folder(), names, public, overrides)  # type: ignore[arg-type]
    parts = wanted.parts()
    if part is not None and part > len(parts):
        raise InputError(f"--part: there are {len(parts)} of them; --plan shows what is in each")
    _print_plan(wanted)
    if plan_only:
        return
    try:
        wanted.train([one for of_part in (parts if part is None else [parts[part - 1]]) for one in of_part], _training)
        with counting("measuring claims") as show:
            rows = wanted.judge(show, again=again)
    except KeyboardInterrupt as error:
        raise stopped(error) from error
    with counting("drawing") as show:
        page = write_table(wanted, rows, static=static, on_figure=lambda done, of: show(done, of, "figures"))
    _print_rows(rows)
    echo(f"{len(rows)} claims: {counted(rows)}")
    echo(f"{page}, {page.parent / 'claims.md'}", files=[page, page.parent / "claims.md"])


def _training(name: str, config: RunConfig) -> AbstractContextManager[Any]:
    progress = training_progress if config.task == "text" else population_progress
    return progress(name, config.training.steps)


def _print_plan(wanted: Reproduction) -> None:
    from rich.table import Table

    from icl_fast.studies.reproduction.cost import FLOPS, gpu_hours

    tiny = wanted.scale == "tiny"
    table = Table(
        "part", "experiment", "minutes" if tiny else "GPU-hours", "trained", "claims", box=None, pad_edge=False
    )
    costs, left = 0.0, 0.0
    for number, part in enumerate(wanted.parts(), start=1):
        for one in part:
            of = sum(one.name in claim.experiments for claim in wanted.testable())
            cost = one.minutes or 0.0 if tiny else gpu_hours(list(one.runs.values()))
            done = one.finished()
            costs, left = costs + cost, left + cost * (not done)
            shown = f"{cost:.2g}" if cost else "not measured"
            trained, claims = Cell("yes" if done else "no", done), Cell(str(of), of)
            table.add_row(Cell(str(number), number), one.name, Cell(shown, cost or None), trained, claims)
    print_table(table)
    untested = len(wanted.claims) - len(list(wanted.testable()))
    least = "at least " if tiny and any(one.minutes is None for one in wanted.experiments.values()) else ""
    unit = "minutes of one core" if tiny else f"GPU-hours at {FLOPS / 1e12:.0f} TFLOP/s, by arithmetic alone"
    echo(
        f"{len(wanted.claims)} claims, of which {untested} cannot be tested at this scale; training takes "
        f"{least}{costs:.3g} {unit}, {left:.3g} of them to come; then measuring"
    )


def _print_rows(rows: list[Row]) -> None:
    from rich.table import Table

    from icl_fast.studies.reproduction.table import found

    table = Table("claim", "source", "rule", "found", "verdict", "rule fails without", box=None, pad_edge=False)
    for row in rows:
        measured = Cell(row.why, row.why)
        if row.measured is not None:
            measured = Cell(found(row.measured.quantities) or row.why, row.measured.quantities)
        fails = Cell({None: "", True: "yes", False: "NO"}[row.control_fails], row.control_fails)
        table.add_row(row.claim.name, row.claim.source, row.claim.rule, measured, row.verdict, fails)
    print_table(table)
