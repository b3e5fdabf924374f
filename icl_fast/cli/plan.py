"""`icl-fast plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo, print_document, print_table, wants_json
from icl_fast.cli.parameters import COUNT, PATH, Number
from icl_fast.cli.tasks import overrides_option

if TYPE_CHECKING:
    from icl_fast.runs import TextRunConfig


@click.command(cls=Command)
@click.argument("config", type=PATH)
@overrides_option
@click.option("--gpus", type=COUNT, default=1, show_default=True, help="Ranks that train together.")
@click.option(
    "--gpu",
    type=click.Choice(["a100", "h100", "h200"]),
    default="h100",
    show_default=True,
    help="Whose peak and memory.",
)
@click.option(
    "--share",
    type=Number(1e-6, 1),
    default=0.4,
    show_default=True,
    help="Of the GPU's peak that is reached: assumed. Grattafiori et al. 2024, Table 4, report 0.38 to 0.43 on H100s "
    "for models far larger than the paper's; small ones reach less.",
)
def plan(config: Path, overrides: tuple[str, ...], gpus: int, gpu: str, share: float) -> None:
    """What the training on text that CONFIG (a YAML file, or a name that `icl-fast train --list` gives) describes will
    take, and the sweep of its snapshots.

    By arithmetic alone: nothing is trained or timed, and no GPU is needed.
    """
    from icl_fast.errors import InputError
    from icl_fast.runs import TextRunConfig, load_config

    parsed = load_config(config, overrides)
    if not isinstance(parsed, TextRunConfig):
        raise InputError(f"{config}: trains on exemplars; plan is of trainings on text")
    facts = collect(parsed, gpus, gpu, share)
    if wants_json():
        print_document(facts)
    else:
        _print(config.name, parsed, facts)


def collect(config: TextRunConfig, gpus: int = 1, gpu: str = "h100", share: float = 0.4) -> dict[str, Any]:
    """All that `plan` prints, by name; bytes, floating-point operations, hours."""
    from icl_fast.training.plan import GPUS, logit_bytes, plan_training, rank_memory

    found, device = plan_training(config, GPUS[gpu]), GPUS[gpu]
    peak = device.bfloat16 if config.training.precision == "bfloat16" else device.float32
    memory = {}
    for parallel in ("ddp", "fsdp") if gpus > 1 else ("ddp",):
        for checkpointed in (False, True):
            needed = rank_memory(config, gpus, parallel, checkpointed=checkpointed)
            kind = [parallel] * (gpus > 1) + ["checkpointed"] * checkpointed or ["plain"]
            chosen = gpus == 1 or parallel == config.training.parallel
            if chosen and checkpointed == config.training.checkpoint_activations:
                kind.append("as configured")
            memory[", ".join(kind)] = {**vars(needed), "all": needed.all}
    return {
        **vars(found),
        "flops": found.flops,
        "snapshot_bytes": found.snapshot_bytes,
        "state_bytes": found.state_bytes,
        "gpu": gpu,
        "gpus": gpus,
        "gpu_memory": device.memory,
        "peak_flops": peak,
        "assumed_share": share,
        "gpu_hours": found.flops / peak / share / 3600,
        "memory_of_a_rank": memory,
        "logit_bytes": logit_bytes(config, gpus),
    }


def _print(name: str, config: TextRunConfig, facts: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Column, Table

    from icl_fast.memory import in_units

    training, gpus, gpu, hours = config.training, facts["gpus"], facts["gpu"], facts["gpu_hours"]
    echo(
        f"{name}: {facts['parameters']:,} parameters, {facts['matrices']:,} of them in the layers' matrices\n"
        f"training: {facts['tokens']:,} tokens, {training.steps:,} steps of {training.batch} x {config.data.context}: "
        f"{facts['flops']:.3g} FLOP, 6 a token and parameter that it is multiplied by, {facts['multiplied']:,}, and "
        f"attention's {facts['attention_flops'] / facts['flops']:.0%}\n"
        f"{hours:.3g} hours of one {gpu} at {facts['assumed_share']:.0%} of its {facts['peak_flops'] / 1e12:.3g} "
        f"TFLOP/s in {training.precision} (that share is assumed, not measured: --share)"
        + (f", {hours / gpus:.3g} hours on {gpus}" if gpus > 1 else "")
        + f"\ndisk: {facts['snapshots']} snapshots of {in_units(facts['snapshot_bytes'])}, "
        f"{in_units(facts['snapshots'] * facts['snapshot_bytes'])}; {in_units(facts['state_bytes'])} to resume from"
    )
    sequences = training.batch // gpus // training.accumulate
    columns = ("weights", "gradients", "moments", "activations", "all")
    table = Table(
        "",
        *(Column(column, justify="right") for column in columns),
        box=box.SIMPLE,
        title=f"memory of each of {gpus} ranks, {sequences} sequences at a time, at least; "
        f"one {gpu} has {in_units(facts['gpu_memory'])}",
    )
    for kind, needed in facts["memory_of_a_rank"].items():
        table.add_row(kind, *(in_units(needed[column]) for column in columns))
    print_table(table)
    echo(
        f"logits are not held, which would take {in_units(facts['logit_bytes'])}\n"
        f"sweep: {facts['ablations']} heads removed, {facts['snapshots']} snapshots, {facts['examples']:,} examples: "
        f"{facts['ablations'] * facts['snapshots']:,} ablations, {facts['sweep_flops']:.3g} FLOP"
    )
