"""`icl-fast ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from icl_fast.cli.progress import advice_on_interrupt, sweep_progress

if TYPE_CHECKING:
    from icl_fast.measure.ablation.options import Engine, Replacement


@click.command()
@click.option("--ckpt", required=True, type=click.Path(path_type=Path), help="A run folder, or one of its snapshots.")
@click.option(
    "--mode",
    default="pattern-preserving",
    show_default=True,
    help="full, pattern-preserving, value-, key-, query-preserving, direct, or a subset such as pattern+k.",
)
@click.option(
    "--heads",
    default="all",
    show_default=True,
    help="Ablations, comma-separated: all (each head alone), 0.3, 1.* (a layer), * (all together), 0.3+1.2 (a set), "
    "~0.3 (all but it), embed, or none.",
)
@click.option("--positions", default="paper", show_default=True, help="all, paper, or positions such as 50,500.")
@click.option("--snapshots", default="all", show_default=True, help="all, last, or steps such as 0,50,100.")
@click.option("--replace", "replacement", type=click.Choice(["zero", "mean"]), default="zero", show_default=True)
@click.option("--preserve-heads", help="Preserve only these heads' activations, such as 1.0+1.2; default all.")
@click.option("--icl-window", type=int, default=1, show_default=True, help="Positions averaged around the score's two.")
@click.option("--examples", type=int, help="Use the first so many evaluation examples; default all.")
@click.option("--memory", default="2GiB", show_default=True, help="Memory for activations; the weights come on top.")
@click.option(
    "--engine",
    type=click.Choice(["fast", "definition"]),
    default="fast",
    show_default=True,
    help="definition: the whole model runs again for every ablation, to check the fast engine.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    default="float32",
    show_default=True,
    help="What is computed with.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Print how it would be computed and how long, and stop.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--out", type=click.Path(path_type=Path), help="Zarr store; default RUN/results/ablation_<mode>.zarr.")
def ablate(
    ckpt: Path,
    mode: str,
    heads: str,
    positions: str,
    snapshots: str,
    replacement: Replacement,
    preserve_heads: str | None,
    icl_window: int,
    examples: int | None,
    memory: str,
    engine: Engine,
    dtype: str,
    only_plan: bool,
    device: str,
    out: Path | None,
) -> None:
    """Remove attention heads from a run's snapshots and record what that does to the losses.

    A sweep that was stopped goes on when the same command is given again, to the same bits.
    """
    from icl_fast.cli.tables import print_ablations, print_plan
    from icl_fast.measure import AblationOptions, open_results, plan_sweep, sweep

    options = AblationOptions(
        mode=mode,
        heads=heads,
        positions=positions,
        replacement=replacement,
        preserve_heads=preserve_heads,
        icl_window=icl_window,
        memory=memory,
        engine=engine,
        dtype=dtype,
    )
    if only_plan:
        print_plan(plan_sweep(ckpt, options, snapshots=snapshots, examples=examples, device=device))
        return
    with advice_on_interrupt("the same command goes on from there"), sweep_progress(ckpt.name) as update:
        store = sweep(ckpt, options, out=out, snapshots=snapshots, examples=examples, device=device, on_part=update)
    print_ablations(open_results(store))
    click.echo(f"results in {store}")
