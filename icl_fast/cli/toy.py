"""`icl-fast toy`."""

from __future__ import annotations

from pathlib import Path

import click

from icl_fast.cli.progress import advice_on_interrupt, counting
from icl_fast.cli.tasks import repair_option
from icl_fast.errors import InputError

_STOPPED = "each file is written whole or not at all; the same command begins again"


@click.group()
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
@click.option("--seeds", type=click.IntRange(1), default=12, show_default=True, help="How many.")
@click.option("--first-seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--steps", type=int, default=1_000, show_default=True, help="Of gradient descent.")
@click.option("--every", type=int, default=1, show_default=True, help="Record one of so many steps.")
@click.option("--lr", type=float, default=1.0, show_default=True)
@click.option("--scale", type=float, default=1.0, show_default=True, help="Of the initial vectors.")
@click.option(
    "--plateau-seeds", type=click.IntRange(1), default=40, show_default=True, help="For the plateau's length."
)
@click.option("--plateau-steps", type=int, default=20_000, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="auto, cpu or cuda.")
@repair_option
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/toy/phase_change.zarr"), show_default=True)
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
    """Learn a*⊗b*⊗c* as a⊗b⊗c: a plateau, then a phase change; with all vectors but one clamped, neither."""
    from icl_fast.cli.toy_tables import print_phase_change
    from icl_fast.runs.devices import resolve_device
    from icl_fast.studies.toy import phase_change_study

    with advice_on_interrupt(_STOPPED):
        found = phase_change_study(
            out,
            counting,
            dims=[int(value) for value in _numbers("dims", dims)],
            clamps=["" if clamp == "none" else clamp for clamp in clamps] or None,
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
    print_phase_change(*found.results.values())
    _print_files(found.stores, found.figures)


@toy.command()
@click.option("--mu", default="0.1", show_default=True, help="Preference for mechanism 2 in the end; one or more.")
@click.option("--alpha", default="0.1", show_default=True, help="Strength of the competition; one or more.")
@click.option("--dims", default="20,20,20,160", show_default=True, help="Elements of a, b, c and d.")
@click.option(
    "--clamp", default="none", show_default=True, metavar="NAMES", help="Hold these vectors at their true values."
)
@click.option("--seeds", type=click.IntRange(1), default=12, show_default=True, help="How many.")
@click.option("--first-seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--steps", type=int, default=20_000, show_default=True, help="Of gradient descent.")
@click.option("--every", type=int, default=10, show_default=True, help="Look at the losses once in so many steps.")
@click.option("--lr", default="1", show_default=True, help="Learning rate; one or more.")
@click.option("--scale", default="1", show_default=True, help="Of the initial vectors; one or more.")
@click.option("--seed", type=int, help="The one drawn large; default one with transience and a divot.")
@click.option(
    "--diagram",
    "diagram_seeds",
    type=click.IntRange(0),
    default=0,
    metavar="SEEDS",
    help="Phase diagrams over mu and alpha and over dim(d)/dim(a), with so many seeds a point.",
)
@click.option("--memory", default="512MiB", show_default=True, help="For what is recorded at a time.")
@click.option("--device", default="cpu", show_default=True, help="auto, cpu or cuda.")
@repair_option
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/toy/coopetition.zarr"), show_default=True)
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
    diagram_seeds: int,
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

    sizes = [int(value) for value in _numbers("dims", dims)]
    if len(sizes) != 4:
        raise InputError(f"dims: four are needed, of a, b, c and d; got {dims!r}")
    base = Setting(dims=(sizes[0], sizes[1], sizes[2], sizes[3]), clamped=tuple("" if clamp == "none" else clamp))
    values = {"mu": mu, "alpha": alpha, "lr": lr, "scale": scale}
    with advice_on_interrupt(_STOPPED):
        found = coopetition_study(
            out,
            counting,
            settings=settings_grid(base, **{name: _numbers(name, text) for name, text in values.items()}),
            seeds=range(first_seed, first_seed + seeds),
            steps=steps,
            every=every,
            seed=seed,
            diagram_seeds=diagram_seeds,
            memory=parse_memory(memory),
            device=str(resolve_device(device)),
            repair=repair,
        )
    print_coopetition(found.results[""])
    _print_files(found.stores, found.figures)


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name}: {text!r} must be numbers, comma-separated") from None


def _print_files(stores: list[Path], figures: list[Path]) -> None:
    click.echo(f"results in {', '.join(map(str, stores))}")
    click.echo(f"figures: {', '.join(str(figure) for figure in figures if figure.suffix == '.png')}")
