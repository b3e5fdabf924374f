"""What the measurements of claims are given: one training, and what is read off it, kept in its run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.measure import AblationOptions, evaluate, measure_strategies, open_measured, open_results, sweep
from icl_fast.measure.ablation import UNABLATED
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.measure.heads.idealised_patterns import measure_idealised
from icl_fast.runs import Run, open_series

EXAMPLES = 256  # of text
ICL_WINDOW = 13  # positions averaged around the two of the ICL score, as there are few examples
SEQUENCES = 1000  # of each evaluator
MOST_SNAPSHOTS = 51  # of text that are measured
MOST_ABLATED = 11  # of them, whose heads are removed


@dataclass(frozen=True)
class Trained:
    """One training: a run on text, or a member of a population on exemplars.

    Attributes:
        name: in legends.
        run: its folder.
        member: which of the population; None: a run on text.
        share: the part of the training, from its start, that is looked at.
    """

    name: str
    run: Run
    member: int | None = None
    share: float = 1.0

    @property
    def label(self) -> str:
        """In legends: the experiment's name and, on text, the seed."""
        return self.name if self.member is not None else f"{self.name}, {self.run.path.name}"

    @property
    def steps(self) -> list[int]:
        """Steps of the snapshots that are looked at, rising."""
        whole = self.run.snapshot_steps()
        return [step for step in whole if step <= self.share * whole[-1]]

    @property
    def last(self) -> int:
        """The step of the last of them."""
        return self.steps[-1]

    @property
    def results(self) -> Path:
        """Where measurements of it are kept."""
        return self.run.path / "results" / "reproduction"

    def cut(self, data: xr.Dataset) -> xr.Dataset:
        """Of a measurement of every snapshot, the snapshots that are looked at, and this member."""
        data = data.sel(snapshot=data["snapshot"] <= self.share * self.run.snapshot_steps()[-1])
        return data.isel(member=self.member) if self.member is not None and "member" in data.dims else data


Runs = Mapping[str, Sequence[Trained]]  # role -> one of each seed


def few(trained: Trained, most: int) -> str:
    """At most so many of a run's snapshots, evenly spaced, the first and the last among them."""
    steps = trained.run.snapshot_steps()
    chosen = np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))
    return ",".join(str(steps[index]) for index in chosen)


def losses(trained: Trained) -> xr.Dataset:
    """Losses and ICL score of a run on text, no head removed (`icl_fast.measure.sweep`)."""
    options = AblationOptions(heads=UNABLATED, positions="all", icl_window=ICL_WINDOW, memory="128MiB")
    return _sweep(trained, options, few(trained, MOST_SNAPSHOTS), "losses")


def ablations(trained: Trained, mode: str = "pattern-preserving") -> xr.Dataset:
    """The same with each head removed, at some of the snapshots."""
    options = AblationOptions(mode=mode, icl_window=ICL_WINDOW, memory="128MiB")
    return _sweep(trained, options, few(trained, MOST_ABLATED), f"ablation_{mode}")


def heads(trained: Trained) -> xr.Dataset:
    """Scores and circuits of every head of a run on text, of the same snapshots (`icl_fast.measure.evaluate`)."""
    out = trained.results / "heads.zarr"
    series = open_series(trained.run.path, few(trained, MOST_SNAPSHOTS))
    return trained.cut(open_results(evaluate(series, out=out, force=True)))


def idealised(trained: Trained) -> xr.Dataset:
    """What idealised patterns recover of each head's effect, at some snapshots (`measure_idealised`)."""
    series, out = open_series(trained.run.path, few(trained, MOST_ABLATED)), trained.results / "idealised.zarr"
    return trained.cut(open_results(measure_idealised(series, out=out, force=True)))


def _sweep(trained: Trained, options: AblationOptions, snapshots: str, name: str) -> xr.Dataset:
    series, out = open_series(trained.run.path, snapshots), trained.results / f"{name}.zarr"
    examples = min(EXAMPLES, len(series.evaluation_set().inputs))
    return trained.cut(open_results(sweep(series, options, examples=examples, out=out, force=True)))


@cache
def _curves(path: Path, changed: int) -> xr.Dataset:
    return training_curves(Run(path))


def curves(trained: Trained) -> xr.Dataset:
    """What was logged of a member of a population, as `training_curves` gives it."""
    log = trained.run.path / "log.jsonl"
    data = _curves(trained.run.path, log.stat().st_mtime_ns)
    end = trained.share * float(data["sequences"].max())
    data = data.isel(
        evaluation=np.flatnonzero(data["sequences"].values <= end),
        logged=np.flatnonzero(data["logged_sequences"].values <= max(end, float(data["logged_sequences"].values[0]))),
    )
    return data.isel(member=trained.member)


def curve(trained: Trained, evaluator: str, metric: str = "accuracy") -> tuple[np.ndarray, np.ndarray]:
    """A metric on the sequences of an evaluator over training: sequences seen `[S]`, values `[S]` (or `[S,L,H]`).

    Raises:
        InputError: the run was not evaluated on these sequences.
    """
    data = curves(trained)
    if evaluator not in data["evaluator"].values:
        raise InputError(f"{trained.name}: was not evaluated on {evaluator}")
    return data["sequences"].values.astype(float), data[metric].sel(evaluator=evaluator).values


def training_loss(trained: Trained) -> tuple[np.ndarray, np.ndarray]:
    """The training loss, in nats, a mean over the steps since the line before: sequences seen `[S]`, values `[S]`."""
    data = curves(trained)
    return data["logged_sequences"].values.astype(float), data["training_loss"].values


def strategies(trained: Trained, graft: str | None = None) -> xr.Dataset:
    """How every snapshot answers every evaluator and where it attends (`icl_fast.measure.measure_strategies`).

    Args:
        graft: what each is given first, `STEP:PARTS` such as `last:layer-2+unembed`.
    """
    out = trained.results / f"strategies{f'_{graft}'.replace(':', '_') if graft else ''}.zarr"
    measured = open_measured(trained.run.path, sequences=SEQUENCES)
    return trained.cut(open_results(measure_strategies(measured, graft=graft, out=out, force=True)))


def model(trained: Trained, step: int | None = None) -> Any:
    """The model of a snapshot, by default the last that is looked at; on exemplars that of the whole population."""
    return trained.run.load_snapshot(trained.last if step is None else step).model
