"""`icl-fast wiring`."""

from __future__ import annotations

from pathlib import Path

import click

from icl_fast.cli.progress import counting
from icl_fast.cli.tasks import require
from icl_fast.errors import InputError


@click.command()
@click.option("--ckpt", required=True, type=click.Path(path_type=Path), help="A run folder on exemplars.")
@click.option("--snapshot", default="last", show_default=True, help="A step, or last.")
@click.option("--evaluator", default="train", show_default=True, help="Whose sequences: train, icl, ciwl, flip, ...")
@click.option("--sequences", type=int, default=1000, show_default=True, help="How many of them.")
@click.option("--member", help="Of a population: whose tables to print; by default the first.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--out", type=click.Path(path_type=Path), help="Write all arrays, of all members, to this .npz file.")
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Draw the map, and what each head of the last layer does, as PNG and SVG.",
)
def wiring(
    ckpt: Path,
    snapshot: str,
    evaluator: str,
    sequences: int,
    member: str | None,
    device: str,
    out: Path | None,
    figures: Path | None,
) -> None:
    """Which heads of the first layer which heads of the last one read, and whether for patterns or for values.

    Accuracy with one head of each layer, or without one of the first layer, patterns or values as in the whole model;
    beside it composition scores, and what removing all previous-token heads does (Singh 2025, Fig C.3, table C.3).
    """
    from icl_fast.cli.measure_tables import check_member, print_wiring
    from icl_fast.measure.exemplar.measured_run import measure_wiring, open_measured
    from icl_fast.measure.exemplar.wiring import save_wiring

    require("exemplars", ckpt, "wiring", "`icl-fast evaluate --ckpt RUN` has the composition of its heads")
    with counting("rendering glyphs") as rendering:
        measured = open_measured(
            ckpt,
            snapshots=snapshot,
            evaluators=[evaluator],
            sequences=sequences,
            device=device,
            on_exemplars=rendering,
        )
    if len(measured.series.steps) != 1:
        raise InputError(f"snapshot: {snapshot} means {len(measured.series.steps)} of them; name one step, or last")
    check_member(measured.series.population.names, member)
    found = measure_wiring(measured)
    print_wiring(found, member)
    if out is not None:
        click.echo(f"arrays in {save_wiring(found, out)}")
    if figures is not None:
        from icl_fast.report.draw.exemplar_heads import draw_heads, draw_wiring
        from icl_fast.studies.exemplar_heads import measure_heads

        number = 0 if member is None else measured.series.population.names.index(member)
        drawn = draw_wiring(found, number, figures / "wiring")
        drawn += draw_heads(measure_heads(measured), number, figures / "heads")
        click.echo(f"figures in {', '.join(str(path) for path in drawn if path.suffix == '.png')}")
