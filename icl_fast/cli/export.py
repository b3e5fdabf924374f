"""`icl-fast export`."""

from __future__ import annotations

from pathlib import Path

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo
from icl_fast.cli.parameters import FOLDER_TO_WRITE, STEP
from icl_fast.cli.run_argument import run_argument
from icl_fast.cli.tasks import check_out, chosen_snapshots
from icl_fast.errors import InputError


@click.command(cls=Command)
@run_argument
@click.option(
    "--to",
    required=True,
    type=click.Choice(["hf", "transformer-lens", "safetensors"]),
    help="hf: a folder for transformers, of the family that has all the model's options; transformer-lens: the state "
    "dict and config of a HookedTransformer; safetensors: our own names and config.",
)
@click.option("--out", required=True, type=FOLDER_TO_WRITE, help="The folder to write; it must not exist, or be empty.")
@click.option("--snapshot", type=STEP, help="Which snapshot, by its step; default the last.")
def export(ckpt: Path, to: str, out: Path, snapshot: int | None) -> None:
    """Write a model on text as other programs read it: config.json, model.safetensors and its tokenizer.json.

    The logits are the same. A model that no other program can hold is refused, with the option that it lacks.
    """
    from icl_fast.models.foreign import export_model
    from icl_fast.runs import open_series

    check_out(ckpt, out)
    step = None if snapshot is None else str(snapshot)
    series = open_series(ckpt, chosen_snapshots(ckpt, step, "last", "--snapshot"))
    if series.task == "exemplars":
        raise InputError(
            f"ckpt: {ckpt} was trained on exemplars, and other programs have no such models; `icl-fast evaluate RUN` "
            "measures it here"
        )
    (found,) = series
    try:
        tokenizer = series.tokenizer().to_str()
    except InputError as error:
        tokenizer = None
        echo(f"without a tokenizer: {error}", err=True)
    what = export_model(found.model, to, out, tokenizer=tokenizer, bos=series.bos)  # type: ignore[arg-type]
    echo(f"{what}: snapshot {found.step} of {series.name} in {out}", files=[out])
