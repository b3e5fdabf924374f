"""What the toy models did, as tables in the terminal."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich import box
from rich.table import Column, Table

from icl_fast.cli.console import Cell, echo, number, print_table
from icl_fast.toy.phase_change import PLATEAU_RULE
from icl_fast.toy.summary import RULES

_SHARES = {
    "mechanism 1 transient": "transient",
    "stuck on the plateau": "stuck",
    "mechanism 1 learned at the end": "learned_1",
    "mechanism 2 learned at the end": "learned_2",
    "divot": "divot",
    "diverged": "diverged",
}
_STEPS = {
    "mechanism 1 emerges": "emergence_1",
    "top of the divot": "divot_step",
    "mechanism 1 lowest": "lowest_step",
    "mechanism 2 emerges": "emergence_2",
    "takeover": "takeover",
}
_LOSSES = {
    "mechanism 1, lowest": "lowest_1",
    "mechanism 1, last": "final_1",
    "mechanism 2, last": "final_2",
    "height of the divot": "divot_size",
}
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def print_coopetition(results: xr.Dataset) -> None:
    """Fractions of seeds and quantiles over them, a table a setting; the rules; how far the gradient flow is."""
    each = [results.isel(setting=index) for index in range(results.sizes["setting"])]
    differing = [name for name in ("lr", "scale") if len(np.unique(results[name])) > 1]
    names = [", ".join(f"{field} = {float(one[field]):g}" for field in ("mu", "alpha", *differing)) for one in each]
    title = f"{results.sizes['seed']} seeds, {results.attrs['steps']} steps"
    for first in range(0, len(each), 3):
        some = slice(first, first + 3)
        table = Table("share of seeds", *_right(*names[some]), title=title, box=box.SIMPLE, pad_edge=False)
        for title_of_row, variable in _SHARES.items():
            if variable != "diverged" or bool(results[variable].any()):
                shares = [(int(one[variable].sum()), float(one[variable].mean())) for one in each[some]]
                table.add_row(title_of_row, *(Cell(f"{count} ({share:.1%})", share) for count, share in shares))
        print_table(table)
    for name, one in zip(names, each, strict=True):
        quantiles = (f"{q:.0%}" for q in _QUANTILES)
        table = Table("quantiles over", *_right("seeds", *quantiles), title=name, box=box.SIMPLE, pad_edge=False)
        for row, variable in _STEPS.items():
            _add_quantiles(table, f"step: {row}", one[variable].values, ".0f")
        for row, variable in _LOSSES.items():
            values = one[variable].values
            _add_quantiles(table, f"loss: {row}", values[values > 0] if variable == "divot_size" else values, ".4f")
        print_table(table)
    for rule in RULES:
        echo(rule)
    for name, one in zip(names, each, strict=True):
        _print_flow(name, one)


def _add_quantiles(table: Table, title: str, values: np.ndarray, form: str) -> None:
    finite = values[np.isfinite(values)]
    quantiles = np.quantile(finite, _QUANTILES) if len(finite) else np.full(len(_QUANTILES), np.nan)
    table.add_row(title, Cell(str(len(finite)), len(finite)), *(number(q, form) for q in quantiles))


def _print_flow(name: str, one: xr.Dataset) -> None:
    kept = one.isel(seed=slice(0, one.sizes["shown"]))
    earlier = abs(kept["takeover"].values - one["flow_takeover"].values)
    moved = "no takeover"
    if np.isfinite(earlier).any():
        steps = np.nanmedian(kept["takeover"]), np.nanmax(earlier)
        moved = "takeover (median: step {:.0f}) moves by at most {:.0f} steps".format(*steps)
    last = [float(abs(kept[f"final_{m}"].values - one[f"flow_final_{m}"].values).max()) for m in (1, 2)]
    echo(
        f"gradient flow instead of steps, {name}, {one.sizes['shown']} seeds: {moved}; the last relative losses differ "
        f"by at most {last[0]:.4f} (mechanism 1) and {last[1]:.4f} (mechanism 2)"
    )


def print_phase_change(results: xr.Dataset, length: xr.Dataset, at_zero: xr.Dataset) -> None:
    """How long the plateau is by clamp, by number of vectors and initial scale; what the saddle at zero is like."""
    table = Table(
        "clamped", *_right("seeds that leave it", "25%", "50%", "75%"), title="steps on the plateau", box=box.SIMPLE
    )
    for clamp in results["clamp"].values:
        values = results["plateau"].sel(clamp=clamp).values
        left = int(np.isfinite(values).sum())
        table.add_row(str(clamp), Cell(f"{left} of {len(values)}", left), *_with_stuck(values, (0.25, 0.5, 0.75)))
    print_table(table)
    title = f"median steps on the plateau, {length.sizes['seed']} seeds"
    scales = (f"{value:g}" for value in length["scale"].values)
    table = Table("vectors, by scale", *_right(*scales), title=title, box=box.SIMPLE)
    for count in length["vectors"].values:
        lines = length["plateau"].sel(vectors=count)
        table.add_row(str(count), *(_with_stuck(lines.sel(scale=s).values, (0.5,))[0] for s in length["scale"].values))
    print_table(table)
    echo(f"{PLATEAU_RULE}; -: most seeds are on it for all {length.attrs['steps']} steps")
    echo("the saddle at zero, on explicit tensors (appendix C.4):")
    for count in at_zero["vectors"].values:
        one = at_zero.sel(vectors=count)
        falls, rises = one["change"] < 0, one["change"] > 0
        verdict = "yes" if bool(falls.sel(direction="d-").all() and rises.sel(direction="d+").all()) else "NO"
        first = abs(one["change"].sel(direction="d-")).isel(epsilon=slice(0, 2)).values
        power = np.log(first[1] / first[0]) / np.log(one["epsilon"].values[1] / one["epsilon"].values[0])
        error = float(abs(one["change"] / one["predicted"] - 1).max())
        echo(
            f"  {count} vectors: falls along d-, rises along d+: {verdict}, as e^{power:.3f}, off the formula by "
            f"{error:.0e} of it or less; Hessian: largest element {float(one['largest']):.2g}, lowest eigenvalue "
            f"{float(one['lowest']):.2g}"
        )


def _right(*titles: str) -> list[Column]:
    return [Column(title, justify="right") for title in titles]


def _with_stuck(values: np.ndarray, quantiles: tuple[float, ...]) -> list[Cell]:
    """Quantiles where a run that never leaves the plateau counts as an endless one."""
    found = np.quantile(np.where(np.isnan(values), np.inf, values), quantiles, method="lower")
    return [number(value, ".0f") if np.isfinite(value) else Cell("-", None) for value in found]
