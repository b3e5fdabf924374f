"""Tables of the exemplar world in the terminal."""

from __future__ import annotations

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from icl_fast.training.exemplar_run import ExemplarRun


def show_run(run: ExemplarRun, *, most: int = 40) -> None:
    """The members at the end of training: loss, and accuracy by evaluator.

    Accuracy is that among the labels in context; with a star among all outputs, where no label in context is right.
    """
    curves = run.curves()
    end = curves.isel(evaluation=-1)
    title = f"{escape(run.path.name)} after {int(end['sequences']):,} sequences: accuracy among the labels in context"
    table = Table(Column("member", no_wrap=True), title=title, caption="* among all outputs", box=box.SIMPLE_HEAD)
    table.add_column("loss", justify="right")
    names = end["evaluator"].values
    for name in names:
        table.add_column(str(name).replace("-", " "), justify="right")
    for member in end["member"].values[:most]:
        one = end.sel(member=member)
        loss = float(curves["training_loss"].sel(member=member)[-1])
        cells = []
        for name in names:
            within, among = (float(one[key].sel(evaluator=name)) for key in ("accuracy_in_context", "accuracy"))
            cells.append(f"{among:.3f}*" if np.isnan(within) else f"{within:.3f}")
        table.add_row(escape(str(member)), f"{loss:.4f}", *cells)
    console = Console()
    console.print(table)
    if (more := end.sizes["member"] - most) > 0:
        console.print(f"and {more} more members")
