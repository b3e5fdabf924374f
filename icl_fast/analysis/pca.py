"""Trajectories of many runs in the space of per-token losses, projected onto their common principal components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from icl_fast.analysis.arrays import Floats, Values, finite, plan_of, unablated
from icl_fast.errors import InputError


@dataclass(frozen=True)
class JointPCA:
    """Every snapshot of every run in the plane of the common components.

    Attributes:
        coordinates: by run, [snapshots, components], in the order of the snapshots.
        components: [components, examples], unit vectors; the entry of largest size is positive in each.
        mean: [examples] the mean over all snapshots of all runs, which has coordinates 0.
        explained_variance: [components] nats^2, with n - 1 in the denominator.
        explained_variance_ratio: [components] the same as a share of all variance.
    """

    coordinates: dict[str, Floats]
    components: Floats
    mean: Floats
    explained_variance: Floats
    explained_variance_ratio: Floats


def joint_pca(runs: Mapping[str, Values | xr.Dataset], *, components: int = 2) -> JointPCA:
    """PCA of all snapshots of all runs of a family together.

    Olsson et al. 2022, Analyses, "PCA": "The random-token-per-example loss data for all snapshots and all models of
    each type is concatenated into a large matrix", one row a snapshot; "projected down to the first two principal
    components". The rows are centred, not scaled: all columns are nats. A component's sign means nothing, and is
    chosen so that its entry of largest size (the first of equal ones) is positive: it depends on neither the solver
    nor the order of runs and snapshots.

    Args:
        runs: by name, losses [snapshot, example] of the whole model, or what a sweep wrote. The examples must be the
            same for all, in the same order; of arrays only their number can be checked.
        components: how many.

    Raises:
        InputError: no runs, other examples, a loss that is not finite, too few snapshots, or snapshots all alike.
    """
    if not runs:
        raise InputError("runs: PCA needs at least one run")
    _check_same_examples(runs)
    losses = {
        name: finite(f"losses of {name}", _losses(name, run), ("snapshot", "example")) for name, run in runs.items()
    }
    stacked = np.concatenate(list(losses.values()))  # [snapshots, examples]
    if not 1 <= components < len(stacked) or components > stacked.shape[1]:
        raise InputError(
            f"components: {components} need more snapshots than that and as many examples, got {list(stacked.shape)}"
        )
    if (stacked == stacked[0]).all():
        raise InputError("runs: all snapshots have equal losses; there is no direction in which they differ")
    from sklearn.decomposition import PCA  # here: most of what reads this module does without

    # a full decomposition finds thousands of components to keep two; the seed makes equal input give equal output
    solver = "arpack" if components < min(stacked.shape) else "full"
    fit = PCA(components, svd_solver=solver, random_state=0).fit(stacked)
    # newer versions of scikit-learn choose the same sign, older ones another
    largest = np.abs(fit.components_).argmax(axis=1)
    signs = np.sign(fit.components_[np.arange(components), largest])
    directions = fit.components_ * signs[:, None]
    return JointPCA(
        coordinates={name: (of_run - fit.mean_) @ directions.T for name, of_run in losses.items()},
        components=directions,
        mean=fit.mean_,
        explained_variance=fit.explained_variance_,
        explained_variance_ratio=fit.explained_variance_ratio_,
    )


def _losses(name: str, run: Values | xr.Dataset) -> Values:
    return unablated(name, run, "loss") if isinstance(run, xr.Dataset) else run


def _check_same_examples(runs: Mapping[str, Values | xr.Dataset]) -> None:
    """Raises: InputError: the runs' losses are visibly not of the same examples."""
    counts = {name: _count(name, run) for name, run in runs.items()}
    digests = {name: plan_of(name, run).get("evaluation") for name, run in runs.items() if isinstance(run, xr.Dataset)}
    for what, values in ("number of examples", counts), ("evaluation set", digests):
        known = {name: value for name, value in values.items() if value is not None}
        first = next(iter(known), "")
        for name, value in known.items():
            if value != known[first]:
                raise InputError(
                    f"runs: the {what} of {name} is not that of {first} ({value}, {known[first]}); "
                    "a joint PCA needs the same examples for all"
                )


def _count(name: str, run: Values | xr.Dataset) -> int | None:
    losses = _losses(name, run)
    if isinstance(losses, xr.DataArray):
        return losses.sizes.get("example")
    return losses.shape[-1] if losses.ndim else None
