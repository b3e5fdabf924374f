"""From a run on exemplars to its part of a report: measure what is missing, keep what is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import xarray as xr

from icl_fast.measure import measure_ablations, measure_strategies, open_measured, open_results
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.measure.exemplar.measured_run import WIRING_VARIABLES, MeasuredRun, measure_wiring
from icl_fast.measure.store import Workspace
from icl_fast.report.study import ExemplarStudy
from icl_fast.runs import Run, Series
from icl_fast.scale import HERE, Runner

Progress = Callable[[int, int, str], None]  # done, of how many, at what
Show = Callable[[str], AbstractContextManager[Progress]]


def study_exemplars(
    name: str,
    series: Series,
    left_out: Mapping[int, str],
    show: Show,
    *,
    sequences: int = 1000,
    device: str = "auto",
    repair: bool = False,
    runner: Runner = HERE,
) -> ExemplarStudy:
    """Measure a run on exemplars, in `RUN/results/report/`, and put together what a report shows of it.

    What is there from an equal measurement is kept; what was stopped goes on. Every head, and every layer's together,
    is removed from every snapshot (a second or so each): a strategy may be gone by the last one (Singh 2025, 5.9.2).

    Args:
        name: of the run in the report.
        series: one snapshot or more.
        left_out: its snapshots that cannot be used: step -> why.
        show: makes, for a title, a context manager that shows progress.
        sequences: of each evaluator.
        device: as in `open_measured`.
        repair: whether damaged results are measured again, rather than refused.
        runner: what measures the snapshots.

    Raises:
        InputError: nothing logged, exemplars that cannot be had, an option not understood, the disk full.
    """
    curves, population = training_curves(Run(series.path)), series.population
    with show(f"{name}: drawing characters") as rendering:
        measured = open_measured(series, sequences=sequences, device=device, on_exemplars=rendering)
    results = series.path / "results" / "report"

    def strategies() -> Path:
        with show(f"{name}: strategies") as on:
            return measure_strategies(
                measured,
                out=results / "strategies.zarr",
                repair=repair,
                force=True,
                runner=runner,
                on_snapshot=lambda at: on(at.done, at.snapshots, at.text),
            )

    def ablations() -> Path:
        with show(f"{name}: every head removed") as on:
            return measure_ablations(
                measured,
                heads=["all", *(f"{layer}.*" for layer in range(population.config.model.layers))],
                out=results / "ablation.zarr",
                repair=repair,
                force=True,
                runner=runner,
                on_snapshot=lambda at: on(at.done, at.snapshots, at.text),
            )

    shape = population.config.model
    attends = shape.architecture == "transformer"
    return ExemplarStudy(
        name=name,
        config=population.config,
        of_seeds=population.of_seeds,
        left_out=dict(left_out),
        curves=curves,
        strategies=open_results(strategies()),
        ablations=open_results(ablations()) if attends else None,
        wiring=_wiring(measured, results / "wiring.zarr", repair) if attends and shape.layers > 1 else None,
    )


def _wiring(measured: MeasuredRun, out: Path, repair: bool) -> xr.Dataset:
    """`measure_wiring` of the last snapshot on sequences as in training, kept."""
    last = measured.series.steps[-1]
    one = replace(
        measured,
        series=measured.series.at([last]),
        evaluators=[of for of in measured.evaluators if of.name == "train"],
    )
    identity = {
        "measured": "wiring, 2",  # raise the number when what is measured changes
        "sequences": one.count,
        "snapshots": one.series.hashes(),
        "features": one.features_hash,
        "device": one.device.type,
    }

    work = Workspace(out, identity, "measurement", variables=WIRING_VARIABLES, repair=repair, force=True)
    if not work.finished():
        with work.begin():
            work.finish(measure_wiring(one))
    return open_results(out)
