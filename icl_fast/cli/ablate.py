"""`icl-fast ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo_files
from icl_fast.cli.foreign import foreign_options, say_notes
from icl_fast.cli.parameters import COUNT_OR_ALL, FOLDER_TO_WRITE, INTEGER, distinct
from icl_fast.cli.progress import counting, snapshot_progress, sweep_progress
from icl_fast.cli.run_argument import run_argument
from icl_fast.cli.scale import ray_options
from icl_fast.cli.tasks import check_out, chosen_snapshots, force_option, refuse, refuse_with, repair_option

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from icl_fast.runs import ForeignOptions, Series
    from icl_fast.scale import Runner


@click.command(cls=Command)
@run_argument
@click.option(
    "--mode",
    help="full, pattern-preserving, value-, key-, query-preserving, direct, or a subset such as pattern+k; default "
    "pattern-preserving on text, all the named ones on exemplars.",
)
@click.option(
    "--heads",
    default="all",
    show_default=True,
    help="Ablations, comma-separated: all (each head alone), 0.3, 1.* (a layer), * (all together), 0.3+1.2 (a set), "
    "~0.3 (all but it), embed, or none.",
)
@click.option("--snapshots", help="all, last, or steps such as 0,50,100; default all.")
@click.option("--plan", "only_plan", is_flag=True, help="Print how it would be computed and how long, and stop.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@repair_option
@force_option
@click.option("--skip-damaged", is_flag=True, help="Skip snapshots that cannot be used, and say which.")
@click.option("--positions", help="On text: all, paper, or positions such as 50,500; default paper.")
@click.option("--replacement", type=click.Choice(["zero", "mean"]), help="On text: by what; default zero.")
@click.option("--preserve-heads", help="On text: preserve only these heads' activations, such as 1.0+1.2; default all.")
@click.option(
    "--icl-positions", metavar="EARLY,LATE", help="On text: of the ICL score; default 50,500, scaled to the context."
)
@click.option("--icl-window", type=INTEGER, help="On text: positions averaged around the score's two; default 1.")
@click.option("--examples", type=INTEGER, help="On text: use the first so many evaluation examples; default all.")
@click.option("--memory", help="On text: memory for activations, the weights come on top; default 2GiB.")
@click.option(
    "--engine",
    type=click.Choice(["fast", "definition"]),
    help="On text: definition runs the whole model again for every ablation, to check the fast one; default fast.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16-products", "bfloat16", "float16", "float64"]),
    help="On text: what is computed with; default float32. bfloat16-products: float32, but for operands of the delta "
    "form's products, which are fast on processors that multiply bfloat16. auto: that, or bfloat16 on CUDA, if it is "
    "exact on a sample of the data, else float32.",
)
@click.option(
    "--check", is_flag=True, help="On text: measure each mean effect's error on a sample, against float64, and keep it."
)
@click.option(
    "--evaluator",
    "evaluators",
    multiple=True,
    metavar="NAME",
    help="On exemplars: whose sequences (train, icl, ciwl, flip, ...); may be repeated; default all.",
)
@click.option(
    "--sequences",
    type=COUNT_OR_ALL,
    help="On exemplars: of each evaluator; default 1000; all: each that there is, of one evaluator.",
)
@click.option("--member", help="On exemplars: of a population, whose table to print; default the first.")
@click.option(
    "--out",
    type=FOLDER_TO_WRITE,
    help="Zarr store; default RUN/results/ablation_<mode>.zarr, of all modes on exemplars RUN/results/ablation.zarr; "
    "of other people's models in results/NAME.",
)
@ray_options
@foreign_options
def ablate(
    foreign: ForeignOptions | None,
    on: AbstractContextManager[Runner],
    ckpt: Path,
    mode: str | None,
    heads: str,
    snapshots: str | None,
    only_plan: bool,
    device: str,
    repair: bool,
    force: bool,
    skip_damaged: bool,
    positions: str | None,
    replacement: str | None,
    preserve_heads: str | None,
    icl_positions: str | None,
    icl_window: int | None,
    examples: int | None,
    memory: str | None,
    engine: str | None,
    dtype: str | None,
    check: bool,
    evaluators: tuple[str, ...],
    sequences: int | Literal["all"] | None,
    member: str | None,
    out: Path | None,
) -> None:
    """Remove attention heads from snapshots and record what that does.

    On text: to the losses, in one mode. On exemplars: to accuracy, probability and loss by evaluator (ICL, IWL, CIWL,
    Flip, held out), in all modes unless one is named.

    If it is stopped, the same command continues it, to the same bits.
    """
    from icl_fast.cli.left_out import say_left_out
    from icl_fast.runs import open_series

    check_out(ckpt, out)
    if heads == "none":
        refuse_with("--heads none", {"--replacement": replacement, "--preserve-heads": preserve_heads})
    if only_plan:
        refuse_with("--plan", {"--out": out, "--member": member, "--repair": repair or None, "--force": force or None})
    series = open_series(ckpt, chosen_snapshots(ckpt, snapshots, "all"), foreign)
    on_text = {
        "positions": positions,
        "replacement": replacement,
        "preserve_heads": preserve_heads,
        "icl_positions": icl_positions,
        "icl_window": icl_window,
        "memory": memory,
        "engine": engine,
        "dtype": dtype,
    }
    series = say_left_out(series, skip_damaged=skip_damaged)
    if series.task == "exemplars":
        as_typed = {f"--{key.replace('_', '-')}": value for key, value in on_text.items()}
        refuse(ckpt, "exemplars", {**as_typed, "--examples": examples, "--check": check or None})
        modes = None if mode is None else [mode]
        _ablate_exemplars(
            series, modes, heads, evaluators, sequences, member, device, only_plan, repair, force, out, on
        )
        return
    refuse(ckpt, "text", {"--evaluator": evaluators or None, "--sequences": sequences, "--member": member})
    from icl_fast.cli.exactness_table import print_exactness
    from icl_fast.cli.tables import print_ablations, print_plan
    from icl_fast.measure import AblationOptions, open_results, plan_sweep, sweep
    from icl_fast.measure.ablation.exactness import Exactness
    from icl_fast.measure.store import json_attribute

    if mode == "full":
        refuse_with("--mode full", {"--preserve-heads": preserve_heads})
    chosen = {key: value for key, value in {"mode": mode, **on_text}.items() if value is not None}
    options = AblationOptions.of(None, {"heads": heads, **chosen})
    if only_plan:
        planned = plan_sweep(series, options, examples=examples, device=device, check=check)
        print_plan(planned)
        print_exactness(planned.exactness, planned.plan.dtype, asked=dtype, every=check)
        return
    say_notes(series)
    with sweep_progress(series.name) as update, on as runner:
        store = sweep(
            series,
            options,
            out=out,
            examples=examples,
            device=device,
            repair=repair,
            force=force,
            check=check,
            runner=runner,
            on_part=update,
        )
    results = open_results(store)
    print_ablations(results)
    taken = json_attribute(results, "plan")["dtype"]
    print_exactness(Exactness.of(results), taken, asked=dtype, every=check)
    echo_files("results in", store)


def _ablate_exemplars(
    series: Series,
    modes: list[str] | None,
    heads: str,
    evaluators: tuple[str, ...],
    sequences: int | Literal["all"] | None,
    member: str | None,
    device: str,
    only_plan: bool,
    repair: bool,
    force: bool,
    out: Path | None,
    on: AbstractContextManager[Runner],
) -> None:
    from icl_fast.cli.measure_tables import check_member, print_exemplar_ablations, print_exemplar_plan
    from icl_fast.measure import measure_ablations, open_measured, open_results
    from icl_fast.measure.ablation import MODES
    from icl_fast.measure.exemplar.ablation_sweep import plan_ablations

    asked = list(MODES) if modes is None else modes
    plan = plan_ablations(series.population.config.model, modes=asked, heads=heads)  # before glyphs are rendered
    check_member(series.population.names, member)
    with counting("drawing characters") as rendering:
        measured = open_measured(
            series,
            evaluators=distinct("--evaluator", evaluators),
            sequences=1000 if sequences is None else sequences,
            device=device,
            on_exemplars=rendering,
        )
    if only_plan:
        print_exemplar_plan(measured, plan)
        return
    with snapshot_progress(series.name) as update, on as runner:
        store = measure_ablations(
            measured, modes=asked, heads=heads, out=out, repair=repair, force=force, runner=runner, on_snapshot=update
        )
    drawn_anew = series.population.config.sequences.p_icl == 1
    print_exemplar_ablations(open_results(store), member, all_outputs=drawn_anew)
    echo_files("results in", store)
