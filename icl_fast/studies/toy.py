"""The toy models' studies: simulated, written as zarr stores, drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.measure import save_results
from icl_fast.measure.store import check_replaceable, held
from icl_fast.memory import check_fits
from icl_fast.report.draw.figures import save_figure
from icl_fast.report.draw.toy import coopetition_figure, diagram_figure, phase_change_figure, seeds_figure
from icl_fast.toy import (
    Setting,
    add_flow,
    diagram,
    plateaus,
    saddle,
    settings_grid,
    simulate_clamps,
    simulate_settings,
    vector_names,
)
from icl_fast.toy.coopetition import check_seeds
from icl_fast.toy.simulate import MEMORY, OnDone, check_steps

ShowDone = Callable[[str], AbstractContextManager[OnDone]]

COUNTS, SCALES = (1, 2, 3, 4, 5), (0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
SADDLE_COUNTS, EPSILONS = (2, 3, 4, 5), tuple(float(e) for e in np.geomspace(0.05, 1.0, 12))
MUS = ALPHAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
RATIOS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_SHOWN = 12


@dataclass(frozen=True)
class Written:
    """What a study found, by the ending of its store's name, and the files it wrote."""

    results: dict[str, xr.Dataset]
    stores: list[Path]
    figures: list[Path]


def phase_change_study(
    out: str | Path,
    show: ShowDone,
    *,
    dims: Sequence[int] = (20, 20, 20),
    clamps: Sequence[Sequence[str]] | None = None,
    seeds: Sequence[int] = range(12),
    steps: int = 1_000,
    every: int = 1,
    lr: float = 1.0,
    scale: float = 1.0,
    plateau_seeds: int = 40,
    plateau_steps: int = 20_000,
    device: str = "cpu",
    repair: bool = False,
) -> Written:
    """The tensor product with and without clamps, its progress measures, and the saddle at zero.

    Args:
        out: NAME.zarr; NAME_plateau.zarr and NAME_saddle.zarr, NAME.png and NAME.svg are written beside it.
        show: a context manager that shows progress (see `icl_fast.cli.progress.counting`).
        clamps: default: nothing; the last vector; the last two; ... all but the first.
        plateau_seeds, plateau_steps: of the plateau by number of vectors and initial scale.
        dims, seeds, steps, every, lr, scale, device: see `icl_fast.toy.simulate_clamps`.
        repair: whether a damaged store at `out` is replaced, rather than refused.

    Raises:
        InputError: what `simulate_clamps` and `plateaus` refuse, an `out` that holds something else, the disk full.
    """
    out, names = Path(out), vector_names(len(dims), "dims")
    with held(out):
        _check_stores(out, {"": "squared_cosine", "_plateau": "plateau", "_saddle": "predicted"}, repair)
        check_steps("plateau_steps", plateau_steps, least=2)
        runs = len(COUNTS) * len(SCALES) * plateau_seeds
        check_fits(16 * 20 * len(COUNTS) * runs, f"plateau_seeds: {plateau_seeds}")
        chosen = clamps if clamps is not None else [names[at:] for at in range(len(dims), 0, -1)]
        with show("clamps") as on_done:
            data = simulate_clamps(
                dims, chosen, seeds, steps=steps, every=every, lr=lr, scale=scale, device=device, on_done=on_done
            )
        with show("plateaus") as on_done:
            length = plateaus(
                COUNTS, SCALES, range(plateau_seeds), steps=plateau_steps, lr=lr, device=device, on_done=on_done
            )
        found = {"": data, "_plateau": length, "_saddle": saddle(SADDLE_COUNTS, EPSILONS)}
        return Written(found, _save(found, out), save_figure(phase_change_figure(*found.values()), out))


def coopetition_study(
    out: str | Path,
    show: ShowDone,
    *,
    settings: Sequence[Setting] = (Setting(),),
    seeds: Sequence[int] = range(12),
    steps: int = 20_000,
    every: int = 10,
    seed: int | None = None,
    diagram_seeds: int = 0,
    memory: int = MEMORY,
    device: str = "cpu",
    repair: bool = False,
) -> Written:
    """The coopetition model over seeds in each setting, and phase diagrams around the first one.

    Args:
        out: NAME.zarr; NAME.png and NAME.svg beside it, and NAME_seeds_<setting> with the curves of 12 seeds; with
            `diagram_seeds`, NAME_mu_alpha.zarr, NAME_ratio.zarr and NAME_diagram.png and .svg too.
        show: see `phase_change_study`.
        seed: the one drawn large; default: the first of 12 with a transient mechanism 1, a divot, and a takeover in the
            first 30% of the steps; where there is none, the first.
        diagram_seeds: so many seeds a point of the phase diagrams; 0: none are drawn.
        settings, seeds, steps, every, memory, device: see `icl_fast.toy.simulate_settings`.
        repair: see `phase_change_study`.

    Raises:
        InputError: what `simulate_settings` refuses, a `seed` whose curves are not kept, an `out` that holds something
            else, the disk full.
    """
    out = Path(out)
    endings = ("", "_mu_alpha", "_ratio") if diagram_seeds else ("",)
    with held(out):
        _check_stores(out, dict.fromkeys(endings, "takeover"), repair)
        check_seeds(len(MUS) * len(ALPHAS), diagram_seeds, "diagram_seeds")

        def simulated(title: str, over: Sequence[Setting], many: Sequence[int], shown: int) -> xr.Dataset:
            with show(title) as on_done:
                return simulate_settings(
                    over, many, steps=steps, every=every, shown=shown, memory=memory, device=device, on_done=on_done
                )

        if seed is not None and seed not in seeds[:_SHOWN]:
            kept = ", ".join(map(str, seeds[:_SHOWN]))
            raise InputError(f"seed: must be one of those whose curves are kept, {kept}; got {seed}")
        data = simulated("seeds", settings, seeds, _SHOWN)
        large = [_large_seed(data.isel(setting=at)) if seed is None else seed for at in range(len(settings))]
        data = add_flow(data, settings).assign(large_seed=("setting", large))
        found, base = {"": data}, settings[0]
        if diagram_seeds:
            a, b, c, _ = base.dims
            over = settings_grid(base, mu=MUS, alpha=ALPHAS)
            wide = settings_grid(base, dims=[(a, b, c, max(1, round(ratio * a))) for ratio in RATIOS])
            many = range(diagram_seeds)
            found["_mu_alpha"] = diagram(simulated("mu and alpha", over, many, 0), "alpha", "mu")
            found["_ratio"] = diagram(simulated("dim(d)/dim(a)", wide, many, 0), "dim_a", "dim_d")
        stores = _save(found, out)
        figures = save_figure(coopetition_figure(data), out)
        for at in range(len(settings)):
            one = data.isel(setting=at)
            figures += save_figure(
                seeds_figure(one), out.with_name(f"{out.stem}_seeds_{_short(one, at, len(settings))}")
            )
        if diagram_seeds:
            drawn = diagram_figure(found["_mu_alpha"], found["_ratio"], base)
            figures += save_figure(drawn, out.with_name(f"{out.stem}_diagram"))
        return Written(found, stores, figures)


def _large_seed(one: xr.Dataset) -> int:
    kept = one.isel(seed=slice(0, one.sizes["shown"]))
    clear = kept["transient"] & kept["divot"] & (kept["takeover"] < 0.3 * float(one["step"][-1]))
    return int(one["shown"].values[clear.values.argmax()])


def _check_stores(out: Path, marks: Mapping[str, str], repair: bool) -> None:
    """Whether every store may be written; `marks`: the ending of its name -> a variable that an earlier one has."""
    for ending, mark in marks.items():
        store = out.with_name(f"{out.stem}{ending}.zarr") if ending else out
        check_replaceable(store, mark, what="", beside="the figures", repair=repair)


def _save(found: dict[str, xr.Dataset], out: Path) -> list[Path]:
    stores = [out.with_name(f"{out.stem}{ending}.zarr") for ending in found]
    for data, store in zip(found.values(), stores, strict=True):
        save_results(data, store)
    return stores


def _short(one: xr.Dataset, at: int, of: int) -> str:
    name = f"mu{float(one['mu']):g}_alpha{float(one['alpha']):g}".replace(".", "p")  # a dot would end the file's stem
    return name if of < 2 else f"{at + 1}_{name}"
