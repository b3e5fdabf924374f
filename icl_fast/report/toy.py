"""The toy models' studies: simulated, written, drawn like the figures of Singh's thesis (4.6a, 4.7, 5.9a, D.5, D.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_fast.errors import InputError
from icl_fast.measure import open_results, save_results
from icl_fast.report.figures import COLOURS, save_figure
from icl_fast.toy import Setting, diagram, flow, plateaus, saddle, settings_grid, simulate_clamps, simulate_settings
from icl_fast.toy.coopetition import OnDone
from icl_fast.toy.phase_change import SCALES, vector_names

ShowDone = Callable[[str], AbstractContextManager[OnDone]]

FIRST, SECOND, COMPETITION, DIVOT = COLOURS[0], COLOURS[2], COLOURS[6], COLOURS[4]
CLAMPS = (COLOURS[7], COLOURS[5], COLOURS[3], COLOURS[1], COLOURS[2], COLOURS[0])
MUS = ALPHAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
RATIOS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
EPSILONS = tuple(float(e) for e in np.geomspace(0.05, 1.0, 12))


@dataclass(frozen=True)
class Written:
    """What a study found, and the files it wrote."""

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
) -> Written:
    """The tensor product with and without clamps, its progress measures, and the saddle at zero.

    Args:
        out: NAME.zarr; NAME_plateau.zarr and NAME_saddle.zarr, NAME.png and NAME.svg are written beside it.
        show: a context manager that shows progress (see `icl_fast.cli.progress.counting`).
        clamps: default: nothing; the last vector; the last two; ... all but the first.
        plateau_seeds, plateau_steps: of the plateau by number of vectors and initial scale.
        dims, seeds, steps, every, lr, scale, device: see `icl_fast.toy.simulate_clamps`.

    Raises:
        InputError: what `simulate_clamps` and `plateaus` refuse, an `out` that holds something else, the disk full.
    """
    out, names = Path(out), vector_names(len(dims))
    check_out(out, "squared_cosine")
    chosen = clamps if clamps is not None else [names[at:] for at in range(len(dims), 0, -1)]
    with show("clamps") as on_done:
        options = {"steps": steps, "every": every, "lr": lr, "scale": scale}
        data = simulate_clamps(dims, chosen, seeds, device=device, on_done=on_done, **options)  # type: ignore[arg-type]
    with show("plateaus") as on_done:
        counts, many = range(1, 6), range(plateau_seeds)
        length = plateaus(counts, SCALES, many, steps=plateau_steps, lr=lr, device=device, on_done=on_done)
    found = {"": data, "_plateau": length, "_saddle": saddle((2, 3, 4, 5), EPSILONS)}
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
    memory: int = 512 * 2**20,
    device: str = "cpu",
) -> Written:
    """The coopetition model over seeds in each setting, and phase diagrams around the first one.

    Args:
        out: NAME.zarr; NAME.png and NAME.svg beside it, and NAME_seeds_<setting> with the curves of 12 seeds; with
            `diagram_seeds`, NAME_mu_alpha.zarr, NAME_ratio.zarr and NAME_diagram.png and .svg too.
        show: see `phase_change_study`.
        seed: the one drawn large; default: the first of 12 with a transient mechanism 1 and a divot, else the first.
        diagram_seeds: so many seeds a point of the phase diagrams; 0: none are drawn.
        settings, seeds, steps, every, memory, device: see `icl_fast.toy.simulate_settings`.

    Raises:
        InputError: what `simulate_settings` refuses, a `seed` whose curves are not kept, an `out` that holds something
            else, the disk full.
    """
    out = Path(out)
    check_out(out, "takeover")
    sizes: dict[str, int] = {"steps": steps, "every": every, "memory": memory}
    with show("seeds") as on_done:
        data = simulate_settings(settings, seeds, device=device, on_done=on_done, **sizes)  # type: ignore[arg-type]
    if seed is not None and seed not in data["shown"]:
        raise InputError(f"seed: the curves of {seed} are not kept, those of {data['shown'].values.tolist()} are")
    large = [choose_seed(data.isel(setting=at)) if seed is None else seed for at in range(len(settings))]
    data["flow_loss"] = (
        ("setting", "term", "step"),
        np.stack([flow(one, at, data["step"].values.astype(float)) for one, at in zip(settings, large, strict=True)]),
        {"long_name": "the gradient flow of large_seed", "units": "half mean squared error"},
    )
    data["large_seed"] = "setting", large
    found = {"": data}
    figures = save_figure(coopetition_figure(data), out)
    for at in range(len(settings)):
        one = data.isel(setting=at)
        figures += save_figure(seeds_figure(one), out.with_name(f"{out.stem}_seeds_{_short(one, at, len(settings))}"))
    if diagram_seeds:
        base, many = settings[0], range(diagram_seeds)
        a, b, c, _ = base.dims
        over = settings_grid(base, mu=MUS, alpha=ALPHAS)
        wide = settings_grid(base, dims=[(a, b, c, max(1, round(ratio * a))) for ratio in RATIOS])
        with show("phase diagram over mu and alpha") as on_done:
            grid = simulate_settings(over, many, shown=0, device=device, on_done=on_done, **sizes)  # type: ignore[arg-type]
            found["_mu_alpha"] = diagram(grid, "alpha", "mu")
        with show("phase diagram over dim(d)/dim(a)") as on_done:
            line = simulate_settings(wide, many, shown=0, device=device, on_done=on_done, **sizes)  # type: ignore[arg-type]
            found["_ratio"] = diagram(line, "dim_a", "dim_d")
        drawn = diagram_figure(found["_mu_alpha"], found["_ratio"], base)
        figures += save_figure(drawn, out.with_name(f"{out.stem}_diagram"))
    return Written(found, _save(found, out), figures)


def check_out(out: Path, mark: str) -> None:
    """Refuses a place that holds something else than such a study.

    Raises:
        InputError: not NAME.zarr, or without the variable `mark`.
    """
    if out.suffix != ".zarr":
        raise InputError(f"out: {out} must be NAME.zarr; the figures are written beside it")
    if out.exists() and not (out.is_dir() and mark in open_results(out)):
        raise InputError(f"out: {out} holds something else; choose another --out or remove it")


def choose_seed(one: xr.Dataset) -> int:
    """The first seed shown that has a transient mechanism 1 and a divot, else the first."""
    kept = one.isel(seed=slice(0, one.sizes["shown"]))
    return int(one["shown"].values[(kept["transient"] & kept["divot"]).values.argmax()])


def _save(found: dict[str, xr.Dataset], out: Path) -> list[Path]:
    stores = [out.with_name(f"{out.stem}{ending}.zarr") for ending in found]
    for data, store in zip(found.values(), stores, strict=True):
        save_results(data, store)
    return stores


def _short(one: xr.Dataset, at: int, of: int) -> str:
    name = f"mu{float(one['mu']):g}_alpha{float(one['alpha']):g}".replace(".", "p")  # a dot would end the file's stem
    return name if of < 2 else f"{at + 1}_{name}"


def phase_change_figure(data: xr.Dataset, length: xr.Dataset, at_zero: xr.Dataset) -> Figure:
    """Thesis figures 4.6a and 4.7 for the first seed, others faint; and the saddle (C.4).

    Args:
        data: of `simulate_clamps`.
        length: of `plateaus`.
        at_zero: of `saddle`.
    """
    figure = Figure(figsize=(14, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    first = data.isel(seed=0)
    for colour, clamp in zip(CLAMPS, data["clamp"].values, strict=False):
        one, name = first.sel(clamp=clamp), "none" if clamp == "none" else ", ".join(clamp)
        axes[0, 0].plot(data["step"], data["loss"].sel(clamp=clamp), color=colour, alpha=0.15, lw=0.7)
        axes[0, 0].plot(data["step"], one["loss"], color=colour, lw=2.5, label=name)
        if "flow_loss" in data:
            flow_label = "gradient flow" if clamp == data["clamp"].values[-1] else None
            axes[0, 0].plot(
                data["step"], one["flow_loss"], color=colour, lw=1, ls=(0, (4, 4)), gapcolor="w", label=flow_label
            )
        _progress(axes[0, 1], 1 - one["squared_cosine"].sel(vector="a"), colour, clamp)
        _progress(axes[0, 2], one["loss_others_true"].sel(vector="a"), colour, clamp)
    seed = int(data["seed"][0])
    _axis(axes[0, 0], f"Loss while learning, seed {seed} (faint: the other seeds)", "steps", "loss")
    axes[0, 0].set_ylim(0, 1.6 * float(data["loss_at_zero"].isel(seed=0)))
    axes[0, 0].legend(frameon=False, title="clamped to true")
    _axis(axes[0, 1], "Progress measure: 1 - cos²(a, a*)", "steps", "squared cosine distance")
    _axis(axes[0, 2], "Progress measure: loss with the others set to ± true", "steps", "loss")
    axes[0, 1].legend(frameon=False, title="clamped")
    scaling = length["plateau"].fillna(np.inf).median("seed")
    for colour, count in zip(COLOURS, length["vectors"].values, strict=False):
        line = scaling.sel(vectors=count)
        axes[1, 0].plot(length["scale"], line.where(np.isfinite(line)), "o-", color=colour, label=f"{count}")
    axes[1, 0].set(xscale="log", yscale="log")
    axes[1, 0].axhline(length.attrs["steps"], color="0.6", lw=1, ls=":")
    axes[1, 0].annotate(
        "end of the simulation", (1, length.attrs["steps"]), (0, 3), textcoords="offset points", ha="right", color="0.4"
    )
    axes[1, 0].legend(frameon=False, title="vectors", fontsize=8)
    _axis(axes[1, 0], "Median plateau by initial scale (below: left sooner)", "scale of the initial vectors", "steps")
    _plateau_panel(axes[1, 1], length)
    for colour, count in zip(COLOURS[1:], at_zero["vectors"].values, strict=False):
        one = at_zero.sel(vectors=count)
        for direction, marker in (("d-", "v"), ("d+", "^")):
            change = one.sel(direction=direction)
            label = f"{count}" if direction == "d-" else None
            axes[1, 2].plot(one["epsilon"], abs(change["predicted"]), color=colour, lw=1, label=label)
            axes[1, 2].plot(one["epsilon"], abs(change["change"]), marker, color=colour, markersize=5, mfc="none")
    axes[1, 2].set(xscale="log", yscale="log")
    axes[1, 2].legend(frameon=False, title="vectors", fontsize=8)
    _axis(
        axes[1, 2], "Leaving zero: loss falls along d- (▽), rises along d+ (△); lines: C.4", "distance ε", "|change of loss|"
    )
    return figure


def _plateau_panel(axis: Axes, length: xr.Dataset) -> None:
    """Every seed's plateau by number of vectors, at the largest initial scale."""
    one, steps = length["plateau"].isel(scale=-1), length.attrs["steps"]
    spread = np.random.default_rng(0).uniform(-0.25, 0.25, one.sizes["seed"])
    for colour, count in zip(COLOURS, one["vectors"].values, strict=False):
        values = one.sel(vectors=count).values
        out = np.isnan(values)
        axis.plot(count + spread[~out], values[~out], ".", color=colour, markersize=4)
        axis.plot(count + spread[out], np.full(out.sum(), 1.15 * steps), "^", color=colour, markersize=4, mfc="none")
        axis.annotate(f"{out.mean():.0%}", (count, 1.6 * steps), ha="center", color=colour) if out.any() else None
    axis.set_yscale("log")
    axis.set_ylim(top=3 * steps)
    axis.set_xticks(one["vectors"].values)
    axis.axhline(steps, color="0.6", lw=1, ls=":")
    scale = float(one["scale"])
    _axis(axis, f"Plateau of every seed, initial scale {scale:g} (△: still on it)", "interacting vectors", "steps")


def _progress(axis: Axes, values: xr.DataArray, colour: str, clamp: str) -> None:
    standard = clamp == "none"
    label = "none" if standard else ", ".join(clamp)
    axis.plot(values["step"], values, color=colour, lw=2.5 if standard else 1.2, ls="-" if standard else "--", label=label)


def coopetition_figure(data: xr.Dataset) -> Figure:
    """Thesis figure 5.9a, a row a setting: one seed, quantiles over seeds, and by when what has happened.

    Args:
        data: of `simulate_settings`, with `flow_loss` and `large_seed`.
    """
    rows = data.sizes["setting"]
    figure = Figure(figsize=(15, 4.2 * rows), layout="constrained")
    for axes, at in zip(figure.subplots(rows, 3, squeeze=False), range(rows), strict=True):
        one = data.isel(setting=at)
        seed = int(one["large_seed"])
        name, many = f"μ = {float(one['mu']):g}, α = {float(one['alpha']):g}", f"{one.sizes['seed']} seeds"
        _race(axes[0], one, seed)
        smooth = one["flow_loss"]
        for term in ("mechanism 1", "mechanism 2"):
            label = "gradient flow" if term == "mechanism 1" else None
            axes[0].plot(one["step"], smooth.sel(term=term), color="k", lw=0.8, ls=":", label=label)
        _mark_divot(axes[0], one, seed)
        axes[0].legend(frameon=False, fontsize=8)
        _axis(axes[0], f"{name}: seed {seed}", "steps", "half mean squared error")
        for colour, mechanism in ((FIRST, "mechanism 1"), (SECOND, "mechanism 2")):
            band = one["quantiles"].sel(mechanism=mechanism)
            for low, high, alpha in ((0.05, 0.95, 0.12), (0.25, 0.75, 0.22)):
                low_line, high_line = band.sel(quantile=low), band.sel(quantile=high)
                axes[1].fill_between(one["coarse_step"], low_line, high_line, color=colour, alpha=alpha, lw=0)
            axes[1].plot(one["coarse_step"], band.sel(quantile=0.5), color=colour, label=f"{mechanism}: median")
        axes[1].set_ylim(0, min(3.0, 1.05 * float(one["quantiles"].max())))
        axes[1].axhline(1, color="0.7", lw=0.8, zorder=0)
        axes[1].legend(frameon=False, fontsize=8)
        _axis(axes[1], f"{name}: {many} (bands: 25-75%, 5-95%)", "steps", "loss / plateau")
        events = (
            ("mechanism 1 emerged", "emergence_1", FIRST, "-"),
            ("mechanism 2 emerged", "emergence_2", SECOND, "-"),
            ("mechanism 2 took over", "takeover", SECOND, "--"),
            ("divot's top", "divot_step", DIVOT, "-"),
        )
        for label, variable, colour, style in events:
            happened = np.sort(one[variable].values)[None] <= one["coarse_step"].values[:, None]
            axes[2].plot(one["coarse_step"], happened.mean(1), color=colour, ls=style, label=label)
        axes[2].axhline(1 - float(one["stuck"].mean()), color="0.6", lw=1, ls=":", label="not stuck on the plateau")
        axes[2].set_ylim(-0.02, 1.02)
        axes[2].legend(frameon=False, fontsize=8)
        _axis(axes[2], f"{name}: has happened by then in", "steps", "fraction of seeds")
    return figure


def seeds_figure(one: xr.Dataset) -> Figure:
    """Thesis figures D.5 and D.6: both mechanisms and the competition of some seeds, a panel each.

    Args:
        one: a single setting of `simulate_settings`.
    """
    rows = -(-one.sizes["shown"] // 4)
    figure = Figure(figsize=(14, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False, sharex=True).ravel()
    for axis, seed in zip(axes, one["shown"].values, strict=False):
        _race(axis, one, int(seed))
        _mark_divot(axis, one, int(seed))
        said = one.sel(seed=seed)
        words = [name for name in ("transient", "divot", "stuck", "diverged") if bool(said[name])]
        _axis(axis, f"seed {seed}{': ' if words else ''}{', '.join(words)}", "steps", "loss")
    for axis in axes[one.sizes["shown"] :]:
        axis.set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    dims = ", ".join(f"dim({name}) = {int(one[f'dim_{name}'])}" for name in "abcd")
    figure.suptitle(f"μ = {float(one['mu']):g}, α = {float(one['alpha']):g}, {dims}")
    return figure


def _race(axis: Axes, one: xr.Dataset, seed: int) -> None:
    curves = one["loss"].sel(shown=seed)
    for term, colour in (("competition", COMPETITION), ("mechanism 1", FIRST), ("mechanism 2", SECOND)):
        axis.plot(one["step"], curves.sel(term=term), color=colour, lw=1.8, label=term)
    mechanisms = curves.sel(term=["mechanism 1", "mechanism 2"]).values
    # the random start is often far above everything that follows, for a few dozen steps
    axis.set_ylim(0, 1.15 * float(np.nanmax(mechanisms[:, len(one["step"]) // 20 :])))


def _mark_divot(axis: Axes, one: xr.Dataset, seed: int) -> None:
    said = one.sel(seed=seed)
    if bool(said["divot"]):
        curve, steps = one["loss"].sel(shown=seed, term="mechanism 2").values, one["step"].values
        top = int(np.searchsorted(steps, float(said["divot_step"])))
        low = curve[: top + 1].min()
        begin, end = int(curve[: top + 1].argmin()), top + int((curve[top:] < low).argmax())
        axis.plot(steps[begin : end + 1], curve[begin : end + 1], color=DIVOT, lw=3.5, label="divot", zorder=3)


def diagram_figure(grid: xr.Dataset, ratio: xr.Dataset, base: Setting) -> Figure:
    """What becomes of the mechanisms over mu and alpha, and over dim(d)/dim(a).

    Args:
        grid: of `diagram` over alpha and mu.
        ratio: of `diagram` over dim_a and dim_d.
        base: the setting around which they are drawn.
    """
    figure = Figure(figsize=(14, 8.4), layout="constrained")
    axes = figure.subplots(2, 3)
    titles = {
        "transient": "mechanism 1 transient",
        "learned_1": "mechanism 1 learned at the end",
        "learned_2": "mechanism 2 learned at the end",
        "stuck": "stuck on the plateau",
        "divot": "divot in mechanism 2",
    }
    for axis, (name, title) in zip(axes.flat, titles.items(), strict=False):
        image = axis.imshow(grid[name], origin="lower", vmin=0, vmax=1, cmap="viridis")
        for (row, column), value in np.ndenumerate(grid[name].values):
            axis.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if value < 0.6 else "k"
            )
        axis.set_xticks(range(grid.sizes["mu"]), [f"{value:g}" for value in grid["mu"].values])
        axis.set_yticks(range(grid.sizes["alpha"]), [f"{value:g}" for value in grid["alpha"].values])
        axis.set(title=f"fraction of seeds: {title}", xlabel="μ", ylabel="α")
        axis.title.set_fontsize(10)
    figure.colorbar(image, ax=axes[:, :2].ravel().tolist(), location="bottom", shrink=0.4, label="fraction of seeds")
    last, line = axes[1, 2], ratio.isel(dim_a=0)
    at = line["dim_d"] / float(line["dim_a"])
    colours = {"transient": FIRST, "learned_1": COLOURS[5], "learned_2": SECOND, "stuck": COMPETITION, "divot": DIVOT}
    for name, title in titles.items():
        last.plot(at, line[name], "o-", color=colours[name], label=title)
    last.set_xscale("log", base=2)
    last.set_ylim(-0.02, 1.02)
    last.legend(frameon=False, fontsize=8)
    seeds = grid.attrs["seeds"]
    _axis(last, f"the same, μ = {base.mu:g}, α = {base.alpha:g}", "dim(d) / dim(a)", "fraction of seeds")
    figure.suptitle(f"{seeds} seeds a point, {grid.attrs['steps']:,} steps".replace(",", "\u2009"))
    return figure


def _axis(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)


