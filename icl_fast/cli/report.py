"""`icl-fast report`."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo
from icl_fast.cli.foreign import foreign_options
from icl_fast.cli.parameters import FOLDER_TO_WRITE, INTEGER, NUMBER, PATH, distinct, parse_list
from icl_fast.cli.progress import counting
from icl_fast.cli.run_argument import RUN
from icl_fast.cli.scale import ray_options
from icl_fast.cli.tasks import check_out, refuse, repair_option
from icl_fast.errors import InputError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from icl_fast.runs import ForeignOptions
    from icl_fast.scale import Runner


@click.command(cls=Command)
@click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN...")
@click.option("--out", required=True, type=FOLDER_TO_WRITE, help="Folder for index.html and figures/.")
@click.option("--snapshots", default="all", show_default=True, help="all, or steps such as 0,50,100.")
@click.option("--claims", type=PATH, help="JSON list of claim, source, verdict, evidence; default none.")
@click.option("--title", default="In-context learning over training", show_default=True, help="Of the page.")
@click.option("--static/--no-static", default=True, show_default=True, help="Draw every figure as PNG and SVG too.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@repair_option
@click.option(
    "--passage",
    "passages",
    multiple=True,
    type=PATH,
    help="On text: a file for models to read, beside ours; may be repeated; default ours alone.",
)
@click.option("--examples", type=INTEGER, help="On text: evaluate on at most so many examples; default 512.")
@click.option(
    "--icl-positions", metavar="EARLY,LATE", help="On text: of the ICL score; default 50,500, scaled to the context."
)
@click.option("--icl-window", type=INTEGER, help="On text: positions averaged around the score's two; default 1.")
@click.option(
    "--modes",
    help="On text: ablations to measure, without full it is faster; default pattern-preserving,full.",
)
@click.option(
    "--interval",
    "intervals",
    multiple=True,
    metavar="RUN=START:END",
    help="On text: phase change by hand, in steps; may be repeated; default as it is found.",
)
@click.option("--prefix-matching", type=NUMBER, help="On text: induction heads score more, default 0.2, ...")
@click.option(
    "--copying", type=NUMBER, help="... and more than this on copying; default 0, of a model under 512 wide -0.6."
)
@click.option("--previous-token", type=NUMBER, help="On text: previous-token heads score more; default 0.5.")
@click.option("--memory", help="On text: memory for activations, the weights come on top; default 2GiB.")
@click.option("--sequences", type=INTEGER, help="On exemplars: of each evaluator; default 1000.")
@ray_options
@foreign_options
def report(
    foreign: ForeignOptions | None,
    on: AbstractContextManager[Runner],
    runs: tuple[Path, ...],
    out: Path,
    snapshots: str,
    claims: Path | None,
    title: str,
    static: bool,
    device: str,
    repair: bool,
    passages: tuple[Path, ...],
    examples: int | None,
    icl_positions: str | None,
    icl_window: int | None,
    modes: str | None,
    intervals: tuple[str, ...],
    prefix_matching: float | None,
    copying: float | None,
    previous_token: float | None,
    memory: str | None,
    sequences: int | None,
) -> None:
    """Measure RUNS where that is not yet done, and write one HTML page with everything that was found.

    Of runs on text the Model Analysis Table, which has a column a model and the paper's rows, from the PCA of token
    losses to the ablation of every head (Olsson et al. 2022), and further figures; other people's models may stand
    beside them, grouped by what they are evaluated on. Of runs on exemplars a section each:
    training curves, strategies, attention, wiring, ablations (Singh 2025).

    The page is one file that needs no network. If it is stopped, the same command continues; snapshots that are missing
    or damaged are left out, and the page says so.
    """
    from icl_fast.analysis import Thresholds
    from icl_fast.cli.tables import print_study
    from icl_fast.data import default_texts, read_texts
    from icl_fast.report.write import write_report
    from icl_fast.runs import open_all
    from icl_fast.studies.collect import MODES, Options, collect, read_claims

    for run in runs:
        check_out(run, out)
    first = {series.task: series.path for series in reversed(open_all(runs, "all", foreign).values())}
    thresholds = {"prefix_matching": prefix_matching, "copying": copying, "previous_token": previous_token}
    on_text = {
        "examples": examples,
        "icl_positions": icl_positions,
        "icl_window": icl_window,
        "memory": memory,
    }
    if "text" not in first:
        both = {f"--{name.replace('_', '-')}": value for name, value in {**on_text, **thresholds}.items()}
        more = {"--passage": passages or None, "--modes": modes, "--interval": intervals or None}
        refuse(first["exemplars"], "exemplars", {**more, **both})
    if "exemplars" not in first:
        refuse(first["text"], "text", {"--sequences": sequences})
    started = time.monotonic()
    chosen: dict[str, Any] = {
        name: value for name, value in {**on_text, "sequences": sequences}.items() if value is not None
    }
    options = Options(
        snapshots=snapshots,
        modes=MODES if modes is None else tuple(parse_list("--modes", modes)),
        intervals=_intervals(intervals),
        thresholds=Thresholds(**{name: value for name, value in thresholds.items() if value is not None}),
        device=device,
        repair=repair,
        foreign=foreign,
        **chosen,
    )
    found = read_claims(claims) if claims is not None else []
    reading = [*read_texts(distinct("--passage", passages)), *default_texts()]
    with on as runner:
        study = collect(runs, reading, replace(options, runner=runner), counting, title=title, claims=found)
    measured = time.monotonic()
    with counting("drawing") as show:
        page = write_report(study, out, static=static, on_figure=lambda done, of: show(done, of, "figures"))
    print_study(study)
    echo(
        f"{page}: {page.stat().st_size / 1e6:.1f} MB; measured in {measured - started:.0f} s, "
        f"drawn in {time.monotonic() - measured:.0f} s",
        files=[page],
    )


def _intervals(texts: Sequence[str]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for text in texts:
        match = re.fullmatch(r"(.+)=([0-9]{1,18}):([0-9]{1,18})", text, re.DOTALL)
        if match is None or int(match[2]) >= int(match[3]):
            raise InputError(
                f"--interval: {text!r} is not RUN=START:END with steps START < END, such as two_layer=600:1200"
            )
        if match[1] in found:
            raise InputError(f"--interval: {match[1]} is given twice; once is enough")
        found[match[1]] = int(match[2]), int(match[3])
    return found
