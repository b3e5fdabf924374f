"""What `icl-fast ablate` says of the dtype that it took and of its errors."""

from __future__ import annotations

from rich import box
from rich.table import Column, Table

from icl_fast.cli.console import echo, number, print_table
from icl_fast.measure.ablation.exactness import Exactness


def print_exactness(found: Exactness | None, taken: str, *, asked: str | None, every: bool) -> None:
    """What was taken for `auto`, and what was measured.

    Args:
        found: the errors; None: nothing was measured.
        taken: the dtype of the sweep.
        asked: that of the command line.
        every: whether those of each ablation are shown.
    """
    if asked == "auto":
        why = "" if found or taken != "float32" else ", as nothing here is faster in less"
        echo(f"dtype auto: {taken}{why}", facts={"dtype": taken})
    if found is None:
        return
    if every:
        columns = ("mean effect", "standard error", "error", "of the effect", "of the standard error")
        table = Table(
            "ablation",
            *(Column(name, justify="right") for name in columns),
            box=box.SIMPLE,
            title=f"{found.dtype} against float64, nats per token",
        )
        for name, effect in found.effect.items():
            error, sem = found.error[name], found.sem[name]
            shares = (number(abs(error / size) if size else float("nan"), ".3%") for size in (effect, sem))
            table.add_row(name, number(effect, "+.2e"), number(sem, ".1e"), number(error, "+.1e"), *shares)
        print_table(table)
    facts = {"error of effects": found.of_effects, "error of standard errors": found.of_sems}
    echo(str(found), facts=facts)
