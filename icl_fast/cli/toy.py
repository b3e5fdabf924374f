"""`icl-fast toy`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from icl_fast.cli.commands import Commands, stopped
from icl_fast.cli.console import echo_files
from icl_fast.cli.parameters import (
    COUNT,
    NUMBER,
    STEP,
    PathType,
    WholeNumber,
    distinct,
    parse_letters,
    parse_numbers,
    parse_sizes,
)
from icl_fast.cli.progress import counting
from icl_fast.cli.tasks import repair_option
from icl_fast.errors import InputError

_STOPPED = "each file is written whole or not at all; the same command begins again"


_STORE = PathType("folder", ".zarr")


def _out_option(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--out",
        type=_STORE,
        default=Path(f"runs/toy/{name}.zarr"),
        show_default=True,
        help="Zarr store, NAME.zarr; others and the figures beside.",
    )


@click.group(cls=Commands)
def toy() -> None:
    """Vectors learned through their outer products: the minimal models of Singh's thesis."""


@toy.command("phase-change")
@click.option("--dims", default="20,20,20", show_default=True, help="Elements of the vectors a, b, c, ...")
@click.option(
    "--clamp",
    "clamps",
    multiple=True,
    metavar="NAMES",
    help="Hold these vectors at their true values, such as bc; none for none; may be repeated.  "
    "[default: none, then from the last vector on all but a]",
)
@click.option("--seeds", type=COUNT, default=12, show_default=True, help="How many.")
@click.option("--first-seed", type=STEP, default=0, show_default=True, help="The first of them.")
@click.option("--steps", type=COUNT, default=1_000, show_default=True, help="Of gradient descent.")
@click.option("--every", type=COUNT, default=1, show_default=True, help="Record one of so many steps.")
@click.option("--lr", type=NUMBER, default=1.0, show_default=True, help="Learning rate.")
@click.option("--scale", type=NUMBER, default=1.0, show_default=True, help="Of the initial vectors.")
@click.option("--plateau-seeds", type=COUNT, default=40, show_default=True, help="For the plateau's length.")
@click.option(
    "--plateau-steps", type=WholeNumber(2), default=20_000, show_default=True, help="Steps of those, at most."
)
@click.option("--device", default="cpu", show_default=True, help="auto, cpu or cuda.")
@repair_option
@_out_option("phase_change")
def phase_change(
    dims: str,
    clamps: tuple[str, ...],
    seeds: int,
    first_seed: int,
    steps: int,
    every: int,
    lr: float,
    scale: float,
    plateau_seeds: int,
    plateau_steps: int,
    device: str,
    repair: bool,
    out: Path,
) -> None:
    """Learn the outer product of a*, b* and c* as that of a, b and c: a plateau, then a phase change; with all vectors
    but one clamped, neither."""
    from icl_fast.cli.toy_tables import print_phase_change
    from icl_fast.runs.devices import resolve_device
    from icl_fast.studies.toy import phase_change_study

    held = [parse_letters("--clamp", clamp) for clamp in clamps]
    distinct("--clamp", [letters or "none" for letters in held])
    try:
        found = phase_change_study(
            out,
            counting,
            dims=parse_sizes("--dims", dims),
            clamps=held or None,
            seeds=range(first_seed, first_seed + seeds),
            steps=steps,
            every=every,
            lr=lr,
            scale=scale,
            plateau_seeds=plateau_seeds,
            plateau_steps=plateau_steps,
            device=str(resolve_device(device)),
            repair=repair,
        )
    except KeyboardInterrupt as error:
        raise stopped(error, _STOPPED) from error
    print_phase_change(*found.results.values())
    _print_files(found.stores, found.figures)


@toy.command()
@click.option("--mu", default="0.1", show_default=True, help="Preference for mechanism 2 in the end; one or more.")
@click.option("--alpha", default="0.1", show_default=True, help="Strength of the competition; one or more.")
@click.option("--dims", default="20,20,20,160", show_default=True, help="Elements of a, b, c and d.")
@click.option(
    "--clamp", default="none", show_default=True, metavar="NAMES", help="Hold these vectors at their true values."
)
@click.option("--seeds", type=COUNT, default=12, show_default=True, help="How many.")
@click.option("--first-seed", type=STEP, default=0, show_default=True, help="The first of them.")
@click.option("--steps", type=COUNT, default=20_000, show_default=True, help="Of gradient descent.")
@click.option("--every", type=COUNT, default=10, show_default=True, help="Look at the losses once in so many steps.")
@click.option("--lr", default="1", show_default=True, help="Learning rate; one or more.")
@click.option("--scale", default="1", show_default=True, help="Of the initial vectors; one or more.")
@click.option("--seed", type=STEP, help="The one drawn large; default one with transience and a divot.")
@click.option(
    "--diagram",
    "diagram_seeds",
    type=COUNT,
    metavar="SEEDS",
    help="Phase diagrams over mu and alpha and over dim(d)/dim(a), with so many seeds a point; default not drawn.",
)
@click.option("--memory", default="512MiB", show_default=True, help="For what is recorded at a time.")
@click.option("--device", default="cpu", show_default=True, help="auto, cpu or cuda.")
@repair_option
@_out_option("coopetition")
def coopetition(
    mu: str,
    alpha: str,
    dims: str,
    clamp: str,
    seeds: int,
    first_seed: int,
    steps: int,
    every: int,
    lr: str,
    scale: str,
    seed: int | None,
    diagram_seeds: int | None,
    memory: str,
    device: str,
    repair: bool,
    out: Path,
) -> None:
    """Two mechanisms race, compete and share b and c: the first is learned soon, then lost to the second.

    --mu, --alpha, --lr and --scale take several values, comma-separated: every combination is simulated, with the same
    seeds. How each verdict is reached is printed below the table.
    """
    from icl_fast.cli.toy_tables import print_coopetition
    from icl_fast.measure.ablation.memory import parse_memory
    from icl_fast.runs.devices import resolve_device
    from icl_fast.studies.toy import coopetition_study
    from icl_fast.toy import Setting, settings_grid

    sizes = parse_sizes("--dims", dims)
    if len(sizes) != 4:
        raise InputError(f"--dims: four are needed, of a, b, c and d; got {dims!r}")
    clamped = tuple(parse_letters("--clamp", clamp))
    base = Setting(dims=(sizes[0], sizes[1], sizes[2], sizes[3]), clamped=clamped)
    grid = {"mu": mu, "alpha": alpha, "lr": lr, "scale": scale}
    values = {name: parse_numbers(f"--{name}", text) for name, text in grid.items()}
    try:
        found = coopetition_study(
            out,
            counting,
            settings=settings_grid(base, **values),
            seeds=range(first_seed, first_seed + seeds),
            steps=steps,
            every=every,
            seed=seed,
            diagram_seeds=diagram_seeds or 0,
            memory=parse_memory(memory),
            device=str(resolve_device(device)),
            repair=repair,
        )
    except KeyboardInterrupt as error:
        raise stopped(error, _STOPPED) from error
    print_coopetition(found.results[""])
    _print_files(found.stores, found.figures)


def _print_files(stores: list[Path], figures: list[Path]) -> None:
    echo_files("results in", *stores)
    echo_files("figures:", *(figure for figure in figures if figure.suffix == ".png"))
