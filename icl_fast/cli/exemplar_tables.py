"""Tables of the exemplar world in the terminal."""

from __future__ import annotations

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from icl_fast.training.exemplar_run import ExemplarRun


def show_run(run: ExemplarRun, *, most: int = 40) -> None:
    """The members at the end of training: loss, and each evaluator's accuracy (within context / among all outputs)."""
    curves = run.curves()
    end = curves.isel(evaluation=-1)
    steps = f"after {int(end['sequences']):,} sequences; accuracy within context / among all outputs"
    table = Table("member", title=f"{escape(run.path.name)}, {steps}", box=box.SIMPLE_HEAD)
    table.add_column("loss", justify="right")
    for name in end["evaluator"].values:
        table.add_column(str(name), justify="right")
    for member in end["member"].values[:most]:
        one = end.sel(member=member)
        loss = float(curves["training_loss"].sel(member=member)[-1])
        cells = [
            f"{_share(float(one['accuracy_in_context'].sel(evaluator=name)))} / "
            f"{_share(float(one['accuracy'].sel(evaluator=name)))}"
            for name in end["evaluator"].values
        ]
        table.add_row(escape(str(member)), f"{loss:.4f}", *cells)
    console = Console()
    console.print(table)
    if (more := end.sizes["member"] - most) > 0:
        console.print(f"and {more} more members")


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
