"""Figures of what the heads of one snapshot do, like Figures 4.5a, 5.3, 5.4, C.1 and C.3 of Singh's thesis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.measure.exemplar.ablation import composition, cut_output_connections, embedding_path, keep_one_head
from icl_fast.measure.exemplar.ablation import knock_out_each_head as knock_out
from icl_fast.measure.exemplar.measured_run import MeasuredRun
from icl_fast.measure.exemplar.single_heads import attention_weight_curve, residual_heads, single_heads
from icl_fast.measure.exemplar.strategies import StrategyMetrics, evaluate_strategies
from icl_fast.measure.exemplar.superposition import attention_deltas, temperature_curves
from icl_fast.models import Clamps, ExemplarTransformer
from icl_fast.report.draw.figures import COLOURS, save_figure

_WEIGHTS = tuple(np.linspace(0, 1, 11))
_TEMPERATURES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
_MOST_LABELS = 20  # that a panel of labels has room for
_MOST_POINTS = 2000

Floats = NDArray[np.float64]
Given = tuple[ExemplarTransformer, Tensor, EvaluationSequences, Clamps]


def draw_wiring(found: xr.Dataset, member: int, path: Path) -> list[Path]:
    """Draw `measure_wiring` of one member as PNG and SVG (Fig C.3).

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    one = found.isel(member=member)
    figure = Figure(figsize=(14, 7.6), layout="constrained")
    figure.suptitle(f"Wiring at step {one.attrs['step']}, {one.attrs['evaluator']} sequences")
    axes = figure.subplots(2, 3)
    for row, preserve in zip(axes, one["preserve"].values, strict=True):
        accuracy = one["accuracy"].sel(preserve=preserve)
        change = accuracy.sel(kind="single") - one["accuracy_alone"]
        way = "patterns (values preserved)" if preserve == "value-preserving" else "values (patterns preserved)"
        most = float(np.abs(change).max()) or 1.0
        _map(row[0], change, f"Change of accuracy without it, by way of {way}", "RdBu", (-most, most))
        _map(row[1], accuracy.sel(kind="single-pair"), f"Accuracy with it alone, by way of {way}", "viridis", (0, 1))
    for axis, matrix in zip(axes[:, 2], ("k", "v"), strict=True):
        scores = one["composition"].sel(matrix=matrix)
        limits = float(scores.min()), float(scores.max())
        _map(axis, scores, f"Composition score with {matrix.upper()}", "viridis", limits)
    return save_figure(figure, path)


def draw_heads(measured: MeasuredRun, member: int, path: Path) -> list[Path]:
    """Measure the heads of one member's last chosen snapshot on the first chosen evaluator, and draw what they do.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    evaluator, snapshot = measured.evaluators[0], measured.snapshot(measured.series.steps[-1])
    model = snapshot.model
    given: Given = (model, measured.features, evaluator, measured.clamps)
    metrics = evaluate_strategies(model, measured.features, [evaluator], measured.clamps, attention=True)
    attention = metrics[evaluator.name].attention
    assert attention is not None
    figure = Figure(figsize=(15, 12.4), layout="constrained")
    name = measured.series.population.names[member]
    figure.suptitle(f"{name}: heads of the last layer after {snapshot.seen:,} sequences, on {evaluator.name}")
    axes = figure.subplots(3, 3)
    strength = attention.induction[member, -1].cpu().numpy()
    _strength_panel(axes[0, 0], given, member, strength)
    _residual_panel(axes[0, 1], given, member)
    _label_panel(axes[0, 2], given, member)
    curve = attention_weight_curve(*given[:3], _WEIGHTS, measured.clamps)
    _curves(axes[1, 0], np.array(_WEIGHTS), _accuracy(curve)[..., member])
    _axis(axes[1, 0], "Each head alone, its attention forced", "attention to the right label", "accuracy in context")
    temperatures = temperature_curves(*given[:3], _TEMPERATURES, measured.clamps)
    for axis, answers, what in (
        (axes[1, 1], temperatures.alone, "Each head alone"),
        (axes[1, 2], temperatures.among_all, "One head among all"),
    ):
        _curves(axis, np.array(_TEMPERATURES), _accuracy(answers)[..., member])
        axis.set_xscale("log", base=2)
        _axis(axis, f"{what}, attending to labels only", "temperature", "accuracy in context")
    _query_panel(axes[2, 0], attention.query[member, -1].cpu().numpy())
    _delta_panel(axes[2, 1], attention_deltas(*given)[member].cpu().numpy(), strength)
    _path_panel(axes[2, 2], given, member)
    return save_figure(figure, path)


def _accuracy(metrics: StrategyMetrics) -> Floats:
    values: Floats = metrics.accuracy_in_context.cpu().numpy()
    return values


def _strength_panel(axis: Axes, given: Given, member: int, strength: Floats) -> None:
    without = _accuracy(knock_out(*given))[-1, :, member]
    alone = _accuracy(keep_one_head(*given))[:, member]
    model, features, evaluator, clamps = given
    matched = replace(clamps, match=torch.ones_like(clamps.match))
    perfect = _accuracy(keep_one_head(model, features, evaluator, matched))[:, member]
    for head in range(len(strength)):
        for value, marker in ((without[head], "^"), (alone[head], "o"), (perfect[head], "s")):
            face = COLOURS[head % 8] if marker != "s" else "none"
            axis.plot(strength[head], value, marker, color=COLOURS[head % 8], markerfacecolor=face, markersize=6)
        axis.annotate(f"{head}", (strength[head], alone[head]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    for marker, face, label in (
        ("^", "0.4", "without it"),
        ("o", "0.4", "it alone"),
        ("s", "none", "alone, perfect pattern"),
    ):
        axis.plot([], [], marker, color="0.4", markerfacecolor=face, label=label)
    _axis(axis, "Heads removed, kept alone, made perfect", "induction strength", "accuracy in context")
    axis.set_ylim(-0.02, 1.04)
    axis.legend(frameon=False, fontsize=8)


def _residual_panel(axis: Axes, given: Given, member: int) -> None:
    """Tables C.1 and C.2 as bars: on what the best head gets wrong, and on everything."""
    heads = np.arange(given[0].config.heads)
    title = []
    for number, perfect in enumerate((False, True)):
        table = residual_heads(single_heads(*given, perfect=perfect))
        best = int(table.reference[member])
        for values, alpha in ((table.overall, 0.35), (table.on_mistakes, 1.0)):
            shown = values[member].cpu().numpy()
            label = f"{'perfect patterns' if perfect else 'as it is'}, {'on its mistakes' if alpha == 1 else 'on all'}"
            place = heads + (number - 0.5) * 0.4
            axis.bar(place, shown, 0.36, color=COLOURS[number], alpha=alpha, label=label)
        title.append(f"head {best}, {int(table.mistakes[member]):,}")
    _axis(axis, f"The best head's mistakes ({title[0]}; perfect: {title[1]})", "head alone", "accuracy, all outputs")
    axis.set_xticks(heads)
    axis.set_ylim(0, 1.3)
    axis.legend(frameon=False, fontsize=7, ncols=2, loc="upper center")


def _label_panel(axis: Axes, given: Given, member: int) -> None:
    heads = single_heads(*given, perfect=True)
    if heads.outputs > _MOST_LABELS:
        axis.set_axis_off()
        axis.annotate(f"{heads.outputs:,} labels: no panel by label", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    accuracy = heads.label_accuracy[member].cpu().numpy()
    image = axis.imshow(accuracy, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axis.set_title("Perfect patterns: accuracy by label", fontsize=10)
    axis.set_xlabel("label")
    axis.set_ylabel("head alone")
    axis.get_figure().colorbar(image, ax=axis)  # type: ignore[union-attr]


def _query_panel(axis: Axes, query: Floats) -> None:
    """Mean attention of the query by position, `[H, n, T]`; a group of lines for each place of the right label."""
    for place in range(query.shape[1]):
        for head in range(len(query)):
            label = f"right label at {2 * place + 2}" if head == 0 else None
            style = ("-", "--", ":", "-.")[place % 4]
            axis.plot(range(1, query.shape[-1] + 1), query[head, place], style, color=COLOURS[head % 8], label=label)
    _axis(axis, "Attention of the query", "position", "attention")
    axis.legend(frameon=False, fontsize=8)


def _delta_panel(axis: Axes, deltas: Floats, strength: Floats) -> None:
    first, second = (int(head) for head in np.argsort(-strength)[:2])
    x, y = deltas[first, :_MOST_POINTS], deltas[second, :_MOST_POINTS]
    axis.plot(x, y, ".", markersize=2, alpha=0.4, color=COLOURS[0])
    known = np.isfinite(x) & np.isfinite(y)
    correlation = np.corrcoef(x[known], y[known])[0, 1] if known.sum() > 2 else np.nan
    _axis(axis, f"Right less wrong labels, by sequence (r = {correlation:.2f})", f"head {first}", f"head {second}")


def _path_panel(axis: Axes, given: Given, member: int) -> None:
    """Bars of accuracy: connections to the output cut (4.3), compositions (5.5.3), the embedding's own path (5.4)."""
    bars: dict[str, float] = {}
    cut = _accuracy(cut_output_connections(*given))[:, member]
    bars |= {f"layer {layer} to output cut": float(value) for layer, value in enumerate(cut)}
    if given[0].config.layers > 1:
        read = composition(*given)
        bars |= {f"layer 0 to {name} cut": float(_accuracy(read[f"all but {name}"])[member]) for name in "qkv"}
    path = embedding_path(*given)
    bars |= {"embedding to output alone": float(_accuracy(path["alone"])[member])}
    bars |= {"embedding to output removed": float(_accuracy(path["removed"])[member])}
    bars |= {"nothing removed": float(_accuracy(path["whole"])[member])}
    axis.barh(list(bars), list(bars.values()), color=COLOURS[0])
    for number, value in enumerate(bars.values()):
        axis.annotate(f"{value:.3f}", (value, number), xytext=(3, -3), textcoords="offset points", fontsize=8)
    axis.axvline(1 / given[0].config.pairs, color="0.6", lw=0.8, ls=":")
    _axis(axis, "Paths", "accuracy in context", "")
    axis.set_xlim(0, 1.15)


def _curves(axis: Axes, x: Floats, values: Floats) -> None:
    for head in range(values.shape[1]):
        axis.plot(x, values[:, head], color=COLOURS[head % 8], label=str(head))
    axis.legend(frameon=False, fontsize=8, ncols=2, title="head")
    axis.set_ylim(-0.02, 1.04)


def _map(axis: Axes, values: xr.DataArray, title: str, colours: str, limits: tuple[float, float]) -> None:
    shown = values.transpose("writer", "reader").values
    image = axis.imshow(shown, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    axis.set_title(title, fontsize=9)
    axis.set_xticks(range(shown.shape[1]), [str(name) for name in values["reader"].values])
    axis.set_yticks(range(shown.shape[0]), [str(name) for name in values["writer"].values])
    axis.set_xlabel("reader")
    axis.set_ylabel("writer")
    axis.get_figure().colorbar(image, ax=axis)  # type: ignore[union-attr]


def _axis(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
