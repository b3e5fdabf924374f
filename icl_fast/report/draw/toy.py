"""Figures of the toy models, like those of Singh's thesis: 4.6a, 4.7, 5.9a, D.5, D.6; and phase diagrams."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from icl_fast.report.colours import BAND, MODELS, OTHERS
from icl_fast.report.draw.axes import label_axes, legend_beside
from icl_fast.toy import Setting

FIRST, SECOND, COMPETITION, DIVOT = MODELS[0], MODELS[2], OTHERS, BAND
CLAMPS = (MODELS[7], MODELS[0], MODELS[3], MODELS[1], MODELS[2], MODELS[4])
FRACTIONS = {
    "transient": ("mechanism 1 transient", FIRST),
    "learned_1": ("mechanism 1 learned at the end", MODELS[4]),
    "learned_2": ("mechanism 2 learned at the end", SECOND),
    "stuck": ("stuck on the plateau", COMPETITION),
    "divot": ("divot in mechanism 2", DIVOT),
}


def phase_change_figure(data: xr.Dataset, length: xr.Dataset, at_zero: xr.Dataset) -> Figure:
    """Thesis figures 4.6a and 4.7 for one seed, the loss of others faint; and the saddle (C.4).

    The seed is the first whose plateau, under the first of the clamps, ends between a fifth and a half of the steps.

    Args:
        data: of `simulate_clamps`.
        length: of `plateaus`.
        at_zero: of `saddle`.
    """
    figure = Figure(figsize=(15, 8.4), layout="constrained")
    axes = figure.subplots(2, 3)
    part = data["plateau"].isel(clamp=0).values / float(data["step"][-1])
    chosen = int(((part > 0.2) & (part < 0.5)).argmax())
    loss = data["loss"] / data["loss_at_zero"]
    for colour, clamp in zip(CLAMPS, data["clamp"].values, strict=False):
        one, name = data.isel(seed=chosen).sel(clamp=clamp), "nothing" if clamp == "none" else ", ".join(clamp)
        axes[0, 0].plot(data["step"], loss.sel(clamp=clamp).transpose("step", "seed"), color=colour, alpha=0.15, lw=0.7)
        axes[0, 0].plot(data["step"], loss.sel(clamp=clamp).isel(seed=chosen), color=colour, lw=2.5, label=name)
        style = {"lw": 2.5} if clamp == data["clamp"].values[0] else {"lw": 1.3, "ls": "--"}
        axes[0, 1].plot(data["step"], 1 - one["squared_cosine"].sel(vector="a"), color=colour, label=name, **style)
        others = one["loss_others_true"].sel(vector="a") / one["loss_at_zero"]
        axes[0, 2].plot(data["step"], others, color=colour, label=name, **style)
    if "flow_loss" in data:
        smooth = data["flow_loss"].isel(seed=chosen) / data["loss_at_zero"].isel(seed=chosen)
        lines = axes[0, 0].plot(data["step"], smooth.transpose("step", "clamp"), color="w", lw=1, ls=":")
        lines[0].set_label("white dots: gradient flow")
    seed = int(data["seed"][chosen])
    label_axes(axes[0, 0], f"Loss while learning, seed {seed} (faint: other seeds)", "steps", "loss / loss at zero")
    axes[0, 0].set_ylim(0, 1.6)
    legend_beside(axes[0, 0], title="clamped to its true value", frameon=True, facecolor="0.85", edgecolor="w")
    label_axes(axes[0, 1], f"Progress measure of a, seed {seed}: its direction", "steps", "1 - cos²(a, a*)")
    label_axes(axes[0, 2], f"Progress measure of a, seed {seed}: others set to ± true", "steps", "loss / loss at zero")
    legend_beside(axes[0, 1], title="trained with clamped")
    _scale_panel(axes[1, 0], length)
    _plateau_panel(axes[1, 1], length)
    for colour, count in zip(MODELS[1:], at_zero["vectors"].values, strict=False):
        one = at_zero.sel(vectors=count)
        for direction, marker in (("d-", "v"), ("d+", "^")):
            change, label = one.sel(direction=direction), f"{count}" if direction == "d-" else None
            axes[1, 2].plot(one["epsilon"], abs(change["predicted"]), color=colour, lw=1, label=label)
            axes[1, 2].plot(one["epsilon"], abs(change["change"]), marker, color=colour, markersize=5, mfc="none")
    axes[1, 2].set(xscale="log", yscale="log")
    legend_beside(axes[1, 2], title="vectors; lines: C.4")
    label_axes(
        axes[1, 2],
        "Leaving zero: the loss falls along d- (▽), rises along d+ (△)",
        "distance ε",
        "|change of the loss|",
    )
    return figure


def _scale_panel(axis: Axes, length: xr.Dataset) -> None:
    """The median plateau by initial scale, a line for each number of vectors."""
    middle = length["plateau"].fillna(np.inf).median("seed")
    for colour, count in zip(MODELS, length["vectors"].values, strict=False):
        line = middle.sel(vectors=count)
        if np.isfinite(line).any():
            axis.plot(length["scale"], line.where(np.isfinite(line)), "o-", color=colour, label=f"{count}")
    axis.set(xscale="log", yscale="log")
    ticks = length["scale"].values.tolist()
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.axhline(length.attrs["steps"], color="0.6", lw=1, ls=":")
    at = (ticks[-1], length.attrs["steps"])
    axis.annotate("end of the simulation", at, (0, 3), textcoords="offset points", ha="right", color="0.4", fontsize=8)
    legend_beside(axis, title="vectors")
    label_axes(
        axis, "Plateau by initial scale, median over seeds", "scale of the initial vectors", "steps on the plateau"
    )


def _plateau_panel(axis: Axes, length: xr.Dataset) -> None:
    """Every seed's plateau by number of vectors, at the largest initial scale."""
    one, steps = length["plateau"].isel(scale=-1), length.attrs["steps"]
    spread = np.random.default_rng(0).uniform(-0.25, 0.25, one.sizes["seed"])
    for colour, count in zip(MODELS, one["vectors"].values, strict=False):
        values = one.sel(vectors=count).values
        out = np.isnan(values)
        axis.plot(count + spread[~out], values[~out], ".", color=colour, markersize=4)
        axis.plot(count + spread[out], np.full(out.sum(), 1.2 * steps), "^", color=colour, markersize=4, mfc="none")
        if out.any():
            axis.annotate(f"{out.mean():.0%}", (count, 1.6 * steps), ha="center", color=colour)
    axis.set_yscale("log")
    axis.set_ylim(top=3 * steps)
    axis.set_xticks(one["vectors"].values)
    axis.axhline(steps, color="0.6", lw=1, ls=":")
    title = f"Plateau of every seed, initial scale {float(one['scale']):g} (△: still on it)"
    label_axes(axis, title, "interacting vectors", "steps on the plateau")


def coopetition_figure(data: xr.Dataset) -> Figure:
    """Thesis figure 5.9a, a row a setting: one seed, its divot, quantiles over seeds, and by when what has happened.

    Args:
        data: of `simulate_settings` and `add_flow`, with `large_seed` [setting].
    """
    rows = data.sizes["setting"]
    figure = Figure(figsize=(19, 4.2 * rows), layout="constrained")
    for axes, at in zip(figure.subplots(rows, 4, squeeze=False), range(rows), strict=True):
        one = data.isel(setting=at)
        seed, name = int(one["large_seed"]), f"μ = {float(one['mu']):g}, α = {float(one['alpha']):g}"
        for axis in axes[:2]:
            _race(axis, one, seed)
            for term in ("mechanism 1", "mechanism 2"):
                label = "gradient flow" if term == "mechanism 1" else None
                axis.plot(
                    one["step"], one["flow_loss"].sel(shown=seed, term=term), color="k", lw=1, ls=":", label=label
                )
        interval = _mark_divot(axes[0], one, seed)
        label_axes(axes[0], f"{name}: seed {seed}", "steps", "half mean squared error")
        legend_beside(axes[0])
        if interval:
            _mark_divot(axes[1], one, seed)
            begin, end = interval
            axes[1].set_xlim(begin - 0.5 * (end - begin), end + 1.5 * (end - begin))
            label_axes(axes[1], f"{name}: seed {seed}, the divot", "steps", "half mean squared error")
        else:
            emerged, width = float(one["emergence_1"].sel(seed=seed)), float(one["step"][-1]) / 20
            axes[1].set_xlim(max(0.0, emerged - width), emerged + width) if emerged >= 0 else axes[1].set_visible(False)
            label_axes(axes[1], f"{name}: seed {seed}, mechanism 1 emerging", "steps", "half mean squared error")
        _quantiles(axes[2], one)
        label_axes(axes[2], f"{name}: {one.sizes['seed']} seeds (bands: 25-75%, 5-95%)", "steps", "loss / plateau")
        _events(axes[3], one)
        label_axes(axes[3], f"{name}: what has happened by then", "steps", "fraction of seeds")
        for axis in axes:
            axis.locator_params(axis="x", nbins=5)
    return figure


def _quantiles(axis: Axes, one: xr.Dataset) -> None:
    for colour, mechanism in ((FIRST, "mechanism 1"), (SECOND, "mechanism 2")):
        band = one["quantiles"].sel(mechanism=mechanism)
        for low, high, alpha in ((0.05, 0.95, 0.12), (0.25, 0.75, 0.22)):
            edges = band.sel(quantile=low), band.sel(quantile=high)
            axis.fill_between(one["coarse_step"], *edges, color=colour, alpha=alpha, lw=0)
        axis.plot(one["coarse_step"], band.sel(quantile=0.5), color=colour, label=f"{mechanism}: median")
    # the random start is far above everything that follows, for a few dozen steps
    late = one["quantiles"].isel(coarse_step=slice(one.sizes["coarse_step"] // 20, None))
    axis.set_ylim(0, 1.1 * float(late.max()))
    axis.axhline(1, color="0.7", lw=0.8, zorder=0)
    legend_beside(axis)


def _events(axis: Axes, one: xr.Dataset) -> None:
    events = (
        ("mechanism 1 emerged", "emergence_1", FIRST, "-"),
        ("mechanism 2 emerged", "emergence_2", SECOND, "-"),
        ("mechanism 2 took over", "takeover", SECOND, "--"),
        ("top of the divot", "divot_step", DIVOT, "-"),
    )
    for label, variable, colour, style in events:
        happened = one[variable].values[None] <= one["coarse_step"].values[:, None]
        axis.plot(one["coarse_step"], happened.mean(1), color=colour, ls=style, label=label)
    axis.axhline(1 - float(one["stuck"].mean()), color="0.6", lw=1, ls=":", label="all that leave the plateau")
    axis.set_ylim(-0.02, 1.02)
    legend_beside(axis)


def seeds_figure(one: xr.Dataset) -> Figure:
    """Thesis figures D.5 and D.6: both mechanisms and the competition of some seeds, a panel each.

    Args:
        one: a single setting of `simulate_settings`.
    """
    rows = -(-one.sizes["shown"] // 4)
    figure = Figure(figsize=(14, 2.8 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False, sharex=True).ravel()
    for index, (axis, seed) in enumerate(zip(axes, one["shown"].values, strict=False)):
        _race(axis, one, int(seed))
        _mark_divot(axis, one, int(seed))
        said = one.sel(seed=seed)
        words = [name for name in ("transient", "divot", "stuck", "diverged") if bool(said[name])]
        last = index + 4 >= one.sizes["shown"]
        label_axes(axis, f"seed {seed}{': ' if words else ''}{', '.join(words)}", "steps" if last else "", "loss")
    for axis in axes[one.sizes["shown"] :]:
        axis.set_visible(False)
    legend_beside(axes[0])
    dims = ", ".join(f"dim({name}) = {int(one[f'dim_{name}'])}" for name in "abcd")
    figure.suptitle(f"μ = {float(one['mu']):g}, α = {float(one['alpha']):g}, {dims}")
    return figure


def _race(axis: Axes, one: xr.Dataset, seed: int) -> None:
    curves = one["loss"].sel(shown=seed)
    for term, colour in (("competition", COMPETITION), ("mechanism 1", FIRST), ("mechanism 2", SECOND)):
        axis.plot(one["step"], curves.sel(term=term), color=colour, lw=1.8, label=term)
    late = curves.sel(term=["mechanism 1", "mechanism 2"]).isel(step=slice(one.sizes["step"] // 20, None))
    divot = float(curves.sel(term="mechanism 2", step=one["divot_step"].sel(seed=seed))) if _has_divot(one, seed) else 0
    axis.set_ylim(0, 1.15 * max(float(late.max()), divot))


def _has_divot(one: xr.Dataset, seed: int) -> bool:
    return bool(one["divot"].sel(seed=seed))


def _mark_divot(axis: Axes, one: xr.Dataset, seed: int) -> tuple[float, float] | None:
    """Colours mechanism 2's curve from where the rise begins to where it is undone; returns these steps."""
    if not _has_divot(one, seed):
        return None
    curve, steps = one["loss"].sel(shown=seed, term="mechanism 2").values, one["step"].values
    top = int(np.searchsorted(steps, float(one["divot_step"].sel(seed=seed))))
    low = curve[: top + 1].min()
    end = top + int((curve[top:] < low).argmax())
    risen = curve[: top + 1] > low + 0.02 * (curve[top] - low)  # a plateau before it is no part of it
    begin = top - int((~risen[::-1]).argmax())
    axis.plot(steps[begin : end + 1], curve[begin : end + 1], color=DIVOT, lw=2.6, label="divot", zorder=3)
    return float(steps[begin]), float(steps[end])


def diagram_figure(grid: xr.Dataset, ratio: xr.Dataset, base: Setting) -> Figure:
    """What becomes of the mechanisms over mu and alpha, and over dim(d)/dim(a).

    Args:
        grid: of `diagram` over alpha and mu.
        ratio: of `diagram` over dim_a and dim_d.
        base: the setting around which they are drawn.
    """
    figure = Figure(figsize=(14, 8.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (name, (title, _)) in zip(axes.flat, FRACTIONS.items(), strict=False):
        axis.imshow(grid[name], origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(grid[name].values):
            colour = "w" if value < 0.6 else "k"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_xticks(range(grid.sizes["mu"]), [f"{value:g}" for value in grid["mu"].values])
        axis.set_yticks(range(grid.sizes["alpha"]), [f"{value:g}" for value in grid["alpha"].values])
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="μ (preference for mechanism 2)", ylabel="α (competition)")
    last, line = axes[1, 2], ratio.isel(dim_a=0)
    at = line["dim_d"] / float(line["dim_a"])
    for name, (title, colour) in FRACTIONS.items():
        last.plot(at, line[name], "o-", color=colour, label=title)
    last.set_xscale("log", base=2)
    last.xaxis.set_major_locator(FixedLocator(at.values.tolist()))
    last.xaxis.set_minor_locator(NullLocator())
    last.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    last.set_ylim(-0.02, 1.02)
    legend_beside(last)
    label_axes(last, f"all of these at μ = {base.mu:g}, α = {base.alpha:g}", "dim(d) / dim(a)", "fraction of seeds")
    steps = f"{grid.attrs['steps']:,}"
    figure.suptitle(f"Fraction of {grid.attrs['seeds']} seeds in which, after {steps} steps, ...")
    return figure
