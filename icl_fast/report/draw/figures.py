"""Static figures (matplotlib), as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_fast.analysis import JointPCA, PhaseChange
from icl_fast.files import atomic_write
from icl_fast.measure.ablation import UNABLATED
from icl_fast.report.colours import MODELS
from icl_fast.report.draw.axes import label_axes, legend_beside, plain

_TOKENS = "training tokens (millions)"
_NAMED = 6  # heads that a legend names


def phase_change_figure(
    models: Mapping[str, xr.Dataset], changes: Mapping[str, PhaseChange | None], ablated: str
) -> Figure:
    """Loss, ICL score and prefix matching of some models over training, and what one model's heads do to the score.

    Bands are one standard error over examples; shaded intervals are phase changes.

    Args:
        models: by name, a Dataset over `snapshot` with coord `tokens` and, as `icl_fast.measure` gives them, `loss`,
            `icl_score`, and `prefix_matching` (snapshot, layer_, head_).
        changes: the verdict on each model, None where there are too few snapshots; its interval is shaded where the
            change happened.
        ablated: the model whose ablations the fourth panel shows.
    """
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    for colour, (name, data) in zip(MODELS, models.items(), strict=False):
        tokens = data["tokens"] / 1e6
        whole = data.sel(ablation=UNABLATED)
        best = data["prefix_matching"].max(("layer_", "head_"))
        score, spread = whole["icl_score"], whole["icl_score_sem"]
        axes[0, 1].fill_between(tokens, score - spread, score + spread, color=colour, alpha=0.15, lw=0)
        for axis, values in zip(axes.flat, (whole["loss"].mean("example"), score, best), strict=False):
            axis.plot(tokens, values, color=colour, label=name, marker=".", markersize=4)
            change = changes[name]
            if change is not None and change.happened and change.start is not None and change.end is not None:
                axis.axvspan(float(tokens[change.start]), float(tokens[change.end]), color=colour, alpha=0.1, lw=0)
    label_axes(axes[0, 0], "Loss", _TOKENS, "nats per token")
    score_title = "In-context-learning score ± SE (lower: more in-context learning)"
    label_axes(axes[0, 1], score_title, _TOKENS, "nats per token")
    label_axes(axes[1, 0], "Best head's prefix-matching score (1: a perfect induction head)", _TOKENS, "attention")
    for axis in (axes[0, 1], axes[1, 0], axes[1, 1]):
        axis.axhline(0, color="0.7", lw=0.8, zorder=0)
    axes[1, 0].set_ylim(-0.02, 1.02)
    legend_beside(axes[0, 1])
    _ablation_panel(axes[1, 1], models[ablated], ablated)
    return figure


def _ablation_panel(axis: Axes, data: xr.Dataset, name: str) -> None:
    tokens = data["tokens"] / 1e6
    layers = sorted(set(data["layer"].values.tolist()) - {-1})
    base = data["icl_score"].sel(ablation=UNABLATED)
    for position in np.flatnonzero(data["layer"].values >= 0):
        one = data.isel(ablation=int(position))
        layer, head = int(one["layer"]), int(one["head"])
        effect, spread = one["icl_score"] - base, one["icl_effect_sem"]
        colour = MODELS[layers.index(layer) % len(MODELS)]
        axis.fill_between(tokens, effect - spread, effect + spread, color=colour, alpha=0.1, lw=0)
        axis.plot(
            tokens,
            effect,
            color=colour,
            linestyle=("-", "--", ":", "-.")[head % 4],
            label=f"head {layer}.{head}",
        )
    label_axes(axis, f"{name}: ablating a head changes the ICL score by (± SE)", _TOKENS, "nats per token")
    legend_beside(axis)


def pca_figure(pca: JointPCA) -> Figure:
    """Each run's path over training in the plane of the first two principal components (Olsson et al. 2022, Analyses).

    Args:
        pca: of 2 components or more.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    axis = figure.subplots()
    for number, (name, path) in enumerate(pca.coordinates.items()):
        colour, style = MODELS[number % len(MODELS)], ("-", "--", ":", "-.")[number // len(MODELS) % 4]
        axis.plot(path[:, 0], path[:, 1], color=colour, linestyle=style, marker=".", markersize=4, label=plain(name))
        for (x, y), marker, fill in ((path[0, :2], "o", "white"), (path[-1, :2], "s", colour)):
            axis.plot(x, y, marker, color=colour, markerfacecolor=fill, markersize=8)
    labels = [
        f"component {k + 1} (nats), {part:.1%} of variance" for k, part in enumerate(pca.explained_variance_ratio)
    ]
    label_axes(axis, "Losses of all snapshots of all runs, projected (○ first, ■ last snapshot)", *labels[:2])
    legend_beside(axis)
    return figure


def idealised_figure(results: xr.Dataset, title: str) -> Figure:
    """What idealised patterns keep of what the heads do, over training: an axis a pattern, a line a head.

    Coloured are the heads that do most for the loss at the last snapshot; bands are one standard error.

    Args:
        results: of `icl_fast.measure.measure_idealised`.
        title: over the figure.
    """
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    figure.suptitle(plain(title))
    axes = figure.subplots(1, results.sizes["pattern"], sharey=True, squeeze=False)[0]
    effect = results["effect"].isel(snapshot=-1).values
    named = {int(number): MODELS[rank] for rank, number in enumerate(np.argsort(-effect, axis=None)[:_NAMED])}
    seen = results["tokens"].values / 1e6
    for axis, pattern in zip(axes, results["pattern"].values, strict=True):
        for number, (layer, head) in enumerate(np.ndindex(*effect.shape)):
            of = results.sel(pattern=pattern).isel(layer=layer, head=head)
            share, sem = of["recovered"].values, of["recovered_sem"].values
            if number not in named:
                axis.plot(seen, share, color="0.75", lw=0.6, zorder=1)
                continue
            axis.plot(seen, share, color=named[number], label=f"head {layer}.{head}", marker=".")
            axis.fill_between(seen, share - sem, share + sem, color=named[number], alpha=0.15, lw=0)
        for level in (0, 1):
            axis.axhline(level, color="0.6", lw=0.8, ls=":")
        axis.set_ylim(-1.5, 2)
        label_axes(axis, f"Pattern: {pattern}", _TOKENS, "share of the head's effect kept")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return figure


def save_figure(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as PNG and SVG; `path` is given without an ending. Returns both paths.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    written = []
    with matplotlib.rc_context({"svg.hashsalt": "icl_fast"}):
        for ending in ("png", "svg"):
            target = Path(path).with_suffix(f".{ending}")
            with atomic_write(target) as temporary:
                figure.savefig(temporary, format=ending, dpi=150, metadata={"Date": None} if ending == "svg" else None)
            written.append(target)
    return written
