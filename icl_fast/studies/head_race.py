"""Do heads that learn fast when alone become the strong ones? (Singh 2025, 4.3.2, C.6, Fig C.6)"""

from __future__ import annotations

import numpy as np
import xarray as xr

from icl_fast.analysis.learning import learning_time
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.ablation import keep_one_head
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.measure.exemplar.measured_run import MeasuredRun
from icl_fast.runs import Run

AGAINST = {  # what strengths are held against -> what it is
    "accuracy": "accuracy with it alone",
    "loss": "loss with it alone (nats)",
    "learning_time": "sequences until it has learned, alone from the start",
}


def measure_race(measured: MeasuredRun, alone: Run) -> xr.Dataset:
    """Strengths of the last layer's heads, what each does alone, and how long it takes to learn alone.

    Args:
        measured: a run with all heads: its last chosen snapshot, on the first chosen evaluator. Members are known by
            their seed.
        alone: a population in which each member has one head of the last layer from the start (`only_heads`), of the
            same seeds.

    Returns:
        `induction`, `accuracy` (over all outputs), `loss` and `learning_time` (sequences; NaN: not learned)
        `[seed, head]`; `pearson` and `spearman` `[against]`: correlations of the strength with each of the others, over
        all heads of all seeds, NaN among fewer than three.

    Raises:
        InputError: `alone` has no head of a seed that the run has.
    """
    population = measured.series.population
    layer, heads = population.config.model.layers - 1, population.config.model.heads
    seeds = [member.config.training.seed for member in population.all]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{measured.series.name}: members share seeds, by which they are told apart")
    model = measured.on_each(measured.snapshot(measured.series.steps[-1]).model)[0]
    attention, kept = model.means(attention=True).attention, keep_one_head(model)
    assert attention is not None
    dims = ("seed", "head")
    found = xr.Dataset(coords={"seed": seeds, "against": list(AGAINST)})
    found["induction"] = dims, attention.induction[:, -1].cpu().numpy()
    found["accuracy"], found["loss"] = (dims, kept.accuracy.T.cpu().numpy()), (dims, kept.loss.T.cpu().numpy())
    times = _learning_times(alone, layer)
    if missing := [(seed, head) for seed in seeds for head in range(heads) if (seed, head) not in times]:
        seed, head = missing[0]
        raise InputError(f"{alone.path}: no member with seed {seed} has head {layer}.{head} alone (only_heads)")
    found["learning_time"] = dims, np.array([[times[seed, head] for head in range(heads)] for seed in seeds])
    strength = found["induction"].values.ravel()
    pairs = [_correlations(strength, found[name].values.ravel()) for name in AGAINST]
    found["pearson"], found["spearman"] = (("against", list(values)) for values in zip(*pairs, strict=True))
    return found


def _learning_times(alone: Run, layer: int) -> dict[tuple[int, int], float]:
    """Sequences by seed and head."""
    curves = training_curves(alone)
    times = learning_time(curves["logged_sequences"].values, curves["training_loss"].values)
    found = {}
    for member, time in zip(alone.population.all, times, strict=True):
        only = [head for head in member.config.interventions.only_heads if head.startswith(f"{layer}.")]
        if len(only) == 1:
            found[member.config.training.seed, int(only[0].partition(".")[2])] = float(time)
    return found


def _correlations(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    from scipy.stats import pearsonr, spearmanr  # here: tables of other commands read this module

    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 3:
        return np.nan, np.nan
    return float(pearsonr(x[known], y[known])[0]), float(spearmanr(x[known], y[known])[0])
