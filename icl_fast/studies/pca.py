"""Joint PCA of some runs: measures the losses that are missing, projects, writes and draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import xarray as xr

from icl_fast.analysis import JointPCA, joint_pca
from icl_fast.errors import InputError
from icl_fast.measure import AblationOptions, OtherResults, open_results, save_results, sweep
from icl_fast.measure.ablation import UNABLATED, SweepProgress
from icl_fast.measure.store import check_replaceable, held, json_attribute
from icl_fast.report.draw.figures import pca_figure, save_figure
from icl_fast.runs import Series

ShowSweep = Callable[[str], AbstractContextManager[Callable[[SweepProgress], None]]]


def pca_of_runs(
    runs: Mapping[str, Series],
    out: str | Path,
    show_sweep: ShowSweep,
    *,
    components: int = 2,
    examples: int | None = None,
    memory: str | int = "2GiB",
    device: str = "auto",
    repair: bool = False,
    force: bool = False,
) -> tuple[JointPCA, list[Path]]:
    """Where all snapshots of all runs lie in their common principal components (see `icl_fast.analysis.joint_pca`).

    Args:
        runs: series by name (see `icl_fast.runs.open_all`), evaluated on the same examples. What their `losses.zarr`
            hold is kept.
        out: a zarr store, `NAME.zarr`: `coordinates` [point, component], a point a snapshot of a run, with coords
            `run`, `snapshot` (optimizer steps) and `tokens` (seen); `components` [component, example]; `mean`
            [example]; `explained_variance` and `explained_variance_ratio` [component]. An earlier one is replaced.
        show_sweep: a context manager that shows progress (see `icl_fast.cli.progress`).
        components: how many, 2 or more.
        examples, memory, device, repair, force: see `icl_fast.measure.sweep`.

    Returns:
        The PCA, by name of the run; and the files of the
        figure, `NAME.png` and `NAME.svg`.

    Raises:
        DamagedResults: losses that are not as they were written.
        InputError: an `out` that holds something else, runs that `joint_pca` or `sweep` refuse, losses that were
            measured with other arguments, the disk full.
    """
    out = Path(out)
    if components < 2:
        raise InputError(f"components: must be 2 or more, which the figure shows; got {components}")
    with held(out):
        check_replaceable(
            out, "explained_variance_ratio", what=" than a PCA", beside="NAME.png and NAME.svg", repair=repair
        )
        points = sum(len(series.steps) for series in runs.values())
        if components >= points:  # before losses are measured, which takes long
            raise InputError(f"components: {components} need more snapshots than that, there are {points}")
        _check_one_text(runs)
        losses, ablation = {}, AblationOptions(heads=UNABLATED, memory=memory)
        for name, series in runs.items():
            with show_sweep(name) as on_part:
                try:
                    store = sweep(
                        series,
                        ablation,
                        out=series.results / "losses.zarr",
                        examples=examples,
                        device=device,
                        repair=repair,
                        force=force,
                        on_part=on_part,
                    )
                except OtherResults as error:  # its advice is about an --out that means something else here
                    raise InputError(
                        f"runs: {error.where} belongs to {error.what}; --force measures again in its place, or "
                        "ask for what it holds"
                    ) from None
            losses[name] = open_results(store)
        found = joint_pca(losses, components=components)
        save_results(_dataset(found, losses), out)
        return found, save_figure(pca_figure(found), out)


def _check_one_text(named: Mapping[str, Series]) -> None:
    """Refuse models whose losses have no plane in common, before they are measured."""
    digests = {name: series.evaluation_set().digest for name, series in named.items()}
    first = next(iter(named))
    if other := next((name for name in named if digests[name] != digests[first]), None):
        raise InputError(
            f"runs: {other} is evaluated on other examples (of {named[other].corpus}) than {first} (of "
            f"{named[first].corpus}), they have no plane in common; give those of one text at a time, or draw a plane "
            "for each with `icl-fast report`"
        )


def _dataset(found: JointPCA, losses: dict[str, xr.Dataset]) -> xr.Dataset:
    def of_all(coord: str) -> np.ndarray:
        return np.concatenate([data[coord].values for data in losses.values()])

    names = [name for name, path in found.coordinates.items() for _ in path]
    sweeps = {name: json_attribute(data, "sweep") for name, data in losses.items()}  # what decided the losses
    nats, squared = {"units": "nats per token"}, {"units": "(nats per token)^2"}
    return xr.Dataset(
        {
            "coordinates": (("point", "component"), np.concatenate([*found.coordinates.values()]), nats),
            "components": (("component", "example"), found.components, {"units": "1", "long_name": "unit vectors"}),
            "mean": ("example", found.mean, nats | {"long_name": "mean loss over all points"}),
            "explained_variance": ("component", found.explained_variance, squared),
            "explained_variance_ratio": ("component", found.explained_variance_ratio, {"units": "1"}),
        },
        coords={
            "run": ("point", names),
            "snapshot": ("point", of_all("snapshot"), {"long_name": "optimizer step"}),
            "tokens": ("point", of_all("tokens"), {"long_name": "training tokens seen"}),
            "component": np.arange(1, len(found.components) + 1),
        },
        attrs={"source": "Olsson et al. 2022, Analyses, PCA", "sweeps": json.dumps(sweeps)},
    )
