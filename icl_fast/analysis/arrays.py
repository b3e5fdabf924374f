"""Checks of the arrays that analyses take: the right dims and finite values, or a message that says what and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from icl_fast.errors import InputError
from icl_fast.measure.ablation import UNABLATED
from icl_fast.measure.store import json_attribute

Floats = NDArray[np.float64]
Values = NDArray[Any] | xr.DataArray

_PLAN = {
    "evaluation",
    "examples",
    "mode",
    "positions",
    "preserve",
    "preserve_heads",
    "replacement",
}  # what is read of it


def finite(name: str, values: Values, dims: Sequence[str]) -> Floats:
    """The values as float64 with these dims, in this order.

    Raises:
        InputError: other dims, nothing in it, or a value that is not finite; the message says where the first one is.
    """
    if isinstance(values, xr.DataArray):
        if set(values.dims) != set(dims):
            raise InputError(f"{name} must be [{', '.join(dims)}], got [{', '.join(map(str, values.dims))}]")
        values = values.transpose(*dims)
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != len(dims) or array.size == 0:
        raise InputError(f"{name} must be [{', '.join(dims)}] and not empty, got {list(array.shape)}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = ", ".join(_label(values, dim, int(index)) for dim, index in zip(dims, bad[0], strict=True))
        hint = "; leave out the snapshots that diverged" if "snapshot" in dims else ""
        raise InputError(f"{name}: {len(bad)} of {array.size} values are not finite, the first at {where}{hint}")
    return array


def _label(values: Values, dim: str, index: int) -> str:
    if isinstance(values, xr.DataArray) and dim in values.coords:
        return f"{dim} {values[dim].values[index]}"
    return f"{dim} index {index}"


def variable(name: str, dataset: xr.Dataset, of: str) -> xr.DataArray:
    """One variable of a sweep's Dataset.

    Raises:
        InputError: the Dataset does not have it.
    """
    if of not in dataset:
        raise InputError(f"{name}: holds no {of}; sweep with positions 'all' or 'paper'")
    return dataset[of]


def unablated(name: str, dataset: xr.Dataset, of: str) -> xr.DataArray:
    """One variable of the whole model.

    Raises:
        InputError: the Dataset has no such variable, or not the whole model.
    """
    values = variable(name, dataset, of)
    if "ablation" not in values.coords or UNABLATED not in values["ablation"].values:
        raise InputError(f"{name}: holds no ablation {UNABLATED!r}, the whole model")
    return values.sel(ablation=UNABLATED, drop=True).drop_vars(["layer", "head"], errors="ignore")


def ablated(name: str, values: xr.DataArray) -> xr.DataArray:
    """All ablations but that of nothing.

    Raises:
        InputError: there is none.
    """
    rest = values.sel(ablation=values["ablation"] != UNABLATED)
    if rest.sizes["ablation"] == 0:
        raise InputError(f"{name}: nothing was ablated")
    return rest


def icl_effects(name: str, dataset: xr.Dataset) -> Floats:
    """What each ablation does to the ICL score: ablated minus un-ablated, [snapshot, ablation], nats.

    Raises:
        InputError: the score or the whole model is missing, nothing was ablated, or a value is not finite.
    """
    whole = finite(f"{name}: icl_score of the whole model", unablated(name, dataset, "icl_score"), ["snapshot"])
    removed = ablated(name, variable(name, dataset, "icl_score"))
    return finite(f"{name}: icl_score", removed, ("snapshot", "ablation")) - whole[:, None]


def at_step(name: str, values: xr.DataArray, step: int) -> xr.DataArray:
    """The snapshot at an optimizer step.

    Raises:
        InputError: there is none.
    """
    steps = values["snapshot"].values if "snapshot" in values.coords else np.array([])
    if step not in steps:
        raise InputError(f"{name}: no snapshot at step {step}; there are {', '.join(map(str, steps)) or 'none'}")
    return values.sel(snapshot=step, drop=True)


def plan_of(name: str, dataset: xr.Dataset) -> dict[str, Any]:
    """What decided a sweep's result; empty for a Dataset that no sweep wrote.

    Raises:
        InputError: its attribute is damaged.
    """
    try:
        plan = json_attribute(dataset, "plan")
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    if plan and (lacking := sorted(_PLAN - plan.keys())):
        raise InputError(f"{name}: attribute plan lacks {', '.join(lacking)}")
    return plan
