"""The coopetition model over seeds and settings: curves, what each run did, phase diagrams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.memory import check_fits
from icl_fast.toy.models import MECHANISMS, Coopetition
from icl_fast.toy.runs import Runs, draw_runs, join_runs
from icl_fast.toy.simulate import MEMORY, OnDone, Trajectory, gradient_flow, record_at, simulate_parts
from icl_fast.toy.summary import RULES, summarise

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_POINTS = 200  # of the quantile curves


@dataclass(frozen=True)
class Setting:
    """One setting of the coopetition model; the defaults are the thesis'.

    Attributes:
        mu, alpha: see `Coopetition`.
        dims: numbers of elements of a, b, c and d.
        lr, scale, clamped: see `draw_runs`.
    """

    mu: float = 0.1
    alpha: float = 0.1
    dims: tuple[int, int, int, int] = (20, 20, 20, 160)
    lr: float = 1.0
    scale: float = 1.0
    clamped: tuple[str, ...] = ()

    def runs(self, seeds: Sequence[int]) -> Runs:
        """The runs of these seeds, in the plane."""
        a, b, c, d = self.dims
        return draw_runs(Coopetition().names, (a, d, b, c), seeds, lr=self.lr, scale=self.scale, clamped=self.clamped)


def settings_grid(base: Setting, **values: Sequence[object]) -> list[Setting]:
    """All combinations of some fields' values, the last one varying fastest, the other fields as in `base`."""
    found = [base]
    for name, choices in values.items():
        found = [replace(setting, **{name: choice}) for setting in found for choice in choices]  # type: ignore[arg-type]
    return found


def simulate_settings(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    *,
    steps: int = 20_000,
    every: int = 10,
    shown: int = 12,
    memory: int = MEMORY,
    device: str = "cpu",
    on_done: OnDone = lambda done, of, text: None,
) -> xr.Dataset:
    """Run every seed in every setting as one batch, and keep what can be kept of any number of them.

    Args:
        settings: all with the same initial vectors for the same seed and dims.
        seeds: each setting has one run of each.
        steps: of gradient descent.
        every: how many steps apart losses are looked at.
        shown: of so many seeds (the first) whole curves are kept.
        memory: bytes for what is recorded at a time; more runs than fit are simulated one part after another.
        device: see `simulate`.
        on_done: called with how many steps of how many are done (of all parts), and which part that is.

    Returns:
        What `summarise` says, [setting, seed]; `loss` [setting, term, step, shown]; `quantiles` over seeds of the
        relative losses, [setting, quantile, mechanism, coarse_step].

    Raises:
        InputError: no settings, or what `simulate` and `draw_runs` refuse; all runs diverged.
    """
    if not settings:
        raise InputError("settings: one or more are needed")
    check_seeds(len(settings), len(seeds))
    at = record_at(
        steps, every, kept=32 * len(settings) * min(shown, len(seeds)) + 6 * 64
    )  # whole curves, a run at work
    points = np.unique(np.linspace(0, len(at) - 1, _POINTS + 1).astype(int))
    summaries: list[dict[str, np.ndarray]] = []
    coarse: list[np.ndarray] = []
    curves = np.empty((len(settings), 4, len(at), min(shown, len(seeds))))
    first = 0
    for part in _parts(settings, seeds, at, memory, device, on_done):
        losses = part.losses()
        relative = losses[:, 1:3] / Coopetition().sizes(part.runs)
        summaries.append(summarise(part.steps, relative))
        coarse.append(relative[points].astype(np.float32))
        for run in range(losses.shape[-1]):
            setting, seed = divmod(first + run, len(seeds))
            if seed < curves.shape[-1]:
                curves[setting, :, :, seed] = losses[:, :, run].T
        first += losses.shape[-1]
    shape = (len(settings), len(seeds))
    if np.concatenate([one["diverged"] for one in summaries]).all():
        raise InputError("lr: all runs diverged; lower it, or scale, mu or alpha")
    of_all = np.concatenate(coarse, axis=-1).reshape(len(points), 2, *shape)
    dataset = xr.Dataset(
        {
            name: (("setting", "seed"), np.concatenate([one[name] for one in summaries]).reshape(shape))
            for name in summaries[0]
        }
        | {
            "loss": (("setting", "term", "step", "shown"), curves, {"units": "half mean squared error"}),
            "quantiles": (
                ("setting", "quantile", "mechanism", "coarse_step"),
                np.nanquantile(of_all, QUANTILES, axis=-1).transpose(3, 0, 2, 1),
                {"long_name": "relative loss over seeds", "units": "of the plateau"},
            ),
        },
        coords={
            "seed": np.asarray(seeds),
            "shown": np.asarray(seeds)[: curves.shape[-1]],
            "step": at,
            "coarse_step": at[points],
            "quantile": list(QUANTILES),
            "term": list(Coopetition().terms),
            "mechanism": list(MECHANISMS),
        }
        | _coordinates(settings),
        attrs={"source": "Singh 2025, 5.7 and D.2", "rules": "\n".join(RULES), "steps": steps, "every": every},
    )
    return dataset


def check_seeds(settings: int, seeds: int, argument: str = "seeds") -> None:
    """Refuse more runs than the memory holds: of each some points of its curves, its summary and its vectors.

    Args:
        argument: what messages call the number of seeds.

    Raises:
        InputError: it holds fewer.
    """
    check_fits(settings * seeds * (8 * _POINTS + 800), f"{argument}: {seeds} in each of {settings} settings")


def diagram(results: xr.Dataset, rows: str, columns: str) -> xr.Dataset:
    """Fractions of seeds over two of the settings' coordinates, and the median takeover: [rows, columns].

    Args:
        results: of `simulate_settings`, with one setting for each pair of values.

    Raises:
        InputError: settings that are no such grid.
    """
    x, y = (np.unique(results[name].values) for name in (columns, rows))
    if results.sizes["setting"] != len(x) * len(y):
        raise InputError(
            f"results: {results.sizes['setting']} settings are no grid of {len(y)} {rows} x {len(x)} {columns}"
        )
    order = np.lexsort((results[columns].values, results[rows].values))
    ordered = results.isel(setting=order)

    def grid(values: xr.DataArray) -> tuple[tuple[str, str], np.ndarray]:
        return (rows, columns), values.values.reshape(len(y), len(x))

    names = ("transient", "stuck", "divot", "learned_1", "learned_2", "diverged")
    found = {name: grid(ordered[name].mean("seed")) for name in names}
    found["takeover"] = grid(ordered["takeover"].median("seed"))
    return xr.Dataset(found, coords={rows: y, columns: x}, attrs=results.attrs | {"seeds": results.sizes["seed"]})


def add_flow(results: xr.Dataset, settings: Sequence[Setting]) -> xr.Dataset:
    """What `simulate_settings` found, with the gradient flow of the seeds whose curves are kept.

    Returns:
        The same with `flow_loss` [setting, term, step, shown], and `flow_takeover`, `flow_final_1` and `flow_final_2`
        [setting, shown], as `summarise` says of the flow.
    """
    curves, said = [], []
    for setting in settings:
        runs = setting.runs(results["shown"].values.tolist())
        model = Coopetition(setting.mu, setting.alpha)
        losses = gradient_flow(model, runs, results["step"].values.astype(float)).losses()
        curves.append(losses.transpose(1, 0, 2))
        said.append(summarise(results["step"].values, losses[:, 1:3] / model.sizes(runs)))
    found: dict[str, Any] = {
        f"flow_{name}": (("setting", "shown"), np.stack([one[name] for one in said]))
        for name in ("takeover", "final_1", "final_2")
    }
    found["flow_loss"] = ("setting", "term", "step", "shown"), np.stack(curves), results["loss"].attrs
    return results.assign(found)


def _coordinates(settings: Sequence[Setting]) -> dict[str, tuple[str, list[object]]]:
    fields = [asdict(setting) for setting in settings]
    found: dict[str, tuple[str, list[object]]] = {
        name: ("setting", [one[name] for one in fields]) for name in ("mu", "alpha", "lr", "scale")
    }
    found["clamped"] = ("setting", ["".join(one["clamped"]) for one in fields])
    for index, name in enumerate("abcd"):
        found[f"dim_{name}"] = ("setting", [one["dims"][index] for one in fields])
    return found


def _parts(
    settings: Sequence[Setting], seeds: Sequence[int], at: np.ndarray, memory: int, device: str, on_done: OnDone
) -> Iterator[Trajectory]:
    """All runs, setting after setting, as many at a time as the memory takes."""
    drawn: dict[Setting, Runs] = {}
    plain = [replace(setting, mu=0.0, alpha=0.0) for setting in settings]  # neither decides the vectors
    for setting in plain:
        if setting not in drawn:
            drawn[setting] = setting.runs(seeds)
    runs = join_runs([drawn[setting] for setting in plain])
    mu, alpha = (np.repeat([getattr(s, name) for s in settings], len(seeds)) for name in ("mu", "alpha"))
    return simulate_parts(Coopetition(mu, alpha), runs, at, memory=memory, device=device, on_done=on_done)
