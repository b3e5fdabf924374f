"""In-context learning as loss by context position: the score, its variants, derivatives, and models side by side.

Positions are 1-based: the loss of the 500th token is at position 500. What comes without positions begins at 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from icl_fast.analysis.arrays import Floats, Values, finite, unablated
from icl_fast.arguments import whole_number, whole_numbers
from icl_fast.errors import InputError

Losses = Values | xr.Dataset


def loss_heatmap(losses: Losses) -> xr.DataArray:
    """Loss(n_train, i_ctx): the mean loss at each context position of each snapshot, checked.

    Olsson et al. 2022, Analyses, "2D in-context learning plot".

    Args:
        losses: [snapshot, position] of the whole model, or what a sweep wrote (positions `all`).

    Returns:
        DataArray [snapshot, position], with the coords that `losses` has, and `position` from 1 where it has none.

    Raises:
        InputError: other dims, or a loss that is not finite.
    """
    return _by_position("losses", losses, ("snapshot", "position"))


def icl_score(losses: Losses, early: int | Sequence[int] = 50, late: int | Sequence[int] = 500) -> Floats:
    """Mean loss at position `late` minus that at position `early`, [snapshot].

    Olsson et al. 2022, Analyses, "In-context learning score": "the average loss of the 500th token minus the average
    loss of the 50th token (for a length-512 context)". (Its Argument 1 once has it the other way round.) Of several
    positions the losses are averaged; `icl_fast.data.positions.icl_positions` gives those of a shorter context.

    Args:
        losses: as in `loss_heatmap`.
        early, late: 1-based positions, each one or several.

    Raises:
        InputError: as `loss_heatmap`, or a position that the losses do not have.
    """
    by_position = loss_heatmap(losses)
    score: Floats = _mean_at(by_position, late) - _mean_at(by_position, early)
    return score


def icl_score_variants(losses: Losses, pairs: Sequence[tuple[int, int]]) -> Floats:
    """The score for other index pairs: [snapshot, pair].

    Olsson et al. 2022, Unexplained Curiosities, "Seemingly Constant In-Context Learning Score": "varies if we define it
    instead as the difference between the loss at the final token in the context (8192) and other indices"; those are
    the pairs `(i, 8192)`.

    Args:
        losses: as in `loss_heatmap`.
        pairs: of 1-based positions (early, late).

    Raises:
        InputError: as `icl_score`, or no pairs.
    """
    if not pairs:
        raise InputError("pairs: give at least one pair of positions (early, late)")
    by_position = loss_heatmap(losses)
    return np.stack([_mean_at(by_position, late) - _mean_at(by_position, early) for early, late in pairs], axis=1)


def loss_by_log_position(losses: Losses, *, bins: int | None = None) -> xr.DataArray:
    """d loss / d ln(position): [snapshot, position], nats; how much the loss falls "by seeing e% more context".

    Olsson et al. 2022, Analyses, "2D loss derivative plot". The paper does not say which differences it takes. Here:
    finite differences on the axis ln(position), central of second order for unequal steps (`numpy.gradient`), and
    one-sided of first order at the first and last position. Exact for a loss linear in ln(position); inside, for a
    quadratic one.

    Neighbours at position i lie 1/i apart, and so the noise of a mean over few examples grows with i. With `bins`,
    positions are put together first, in bins equally wide in ln(position), whose mean losses lie at their mean
    ln(position): still exact for a loss linear in it.

    Args:
        losses: as in `loss_heatmap`.
        bins: how many at most (those that hold no position are left out); None: every position for itself. The coord
            `position` is then exp of the mean ln(position) of each bin.

    Raises:
        InputError: as `loss_heatmap`, fewer than 2 positions, or bins.
    """
    by_position = loss_heatmap(losses)
    if bins is None:
        return _log_derivative(by_position, "position", by_position["position"].values)
    member = _bins(np.log(by_position["position"].values), bins)
    centres = np.exp(member @ np.log(by_position["position"].values))
    binned = xr.DataArray(
        by_position.transpose("snapshot", "position").values @ member.T,
        dims=("snapshot", "position"),
        coords=by_position.drop_vars("position").coords | {"position": centres},
    )
    return _log_derivative(binned, "position", centres)


def loss_by_log_tokens(losses: Losses, tokens: Sequence[int] | None = None, *, bins: int | None = None) -> xr.DataArray:
    """d loss / d ln(training tokens): [snapshot, ...], nats, by the differences of `loss_by_log_position`.

    Olsson et al. 2022, Unexplained Curiosities, "Phase Change Effect on Loss Derivatives": "the derivative of loss with
    respect to the log of elapsed tokens". A snapshot before any training has no ln(tokens) and is left out.

    Args:
        losses: [snapshot] a loss curve, [snapshot, position], or what a sweep wrote: then the mean over examples of the
            whole model's `loss`, which is the paper's loss curve.
        tokens: seen at each snapshot, rising; default the coord `tokens` of `losses`.
        bins: as in `loss_by_log_position`, of snapshots: equally spaced ones lie ever closer in ln(tokens).

    Returns:
        DataArray of the snapshots after 0 tokens, or of their bins, with a coord `tokens`.

    Raises:
        InputError: no tokens, or not one a snapshot, not rising; a loss that is not finite; fewer than 2 snapshots, or
            bins.
    """
    if isinstance(losses, xr.Dataset):
        whole = unablated("losses", losses, "loss")
        curve = whole.isel(example=0, drop=True).copy(data=finite("losses", whole, ("snapshot", "example")).mean(1))
    elif losses.ndim == 1:
        curve = _labelled("losses", losses, ("snapshot",))
    else:
        curve = loss_heatmap(losses)
    if tokens is None:
        if "tokens" not in curve.coords:
            raise InputError("tokens: the losses do not say how many were seen; give one number a snapshot")
        tokens = curve["tokens"].values.tolist()
    seen = finite("tokens", np.asarray(tokens), ["snapshot"])
    if len(seen) != curve.sizes["snapshot"] or (np.diff(seen) <= 0).any() or seen[0] < 0:
        raise InputError(
            f"tokens must rise from 0 or more, one number a snapshot: got {len(seen)} for {curve.sizes['snapshot']}"
        )
    trained = seen > 0
    curve, seen = curve.assign_coords(tokens=("snapshot", np.asarray(tokens))).isel(snapshot=trained), seen[trained]
    if bins is not None:
        member = _bins(np.log(seen), bins)
        seen = np.exp(member @ np.log(seen))
        curve = xr.DataArray(
            np.tensordot(member, curve.transpose("snapshot", ...).values, 1),
            dims=("snapshot", *(dim for dim in curve.dims if dim != "snapshot")),
            coords={name: of for name, of in curve.coords.items() if "snapshot" not in of.dims}
            | {"tokens": ("snapshot", seen)},
        )
    return _log_derivative(curve, "snapshot", seen)


def compare_by_position(models: Mapping[str, Losses], baseline: str, *, first: int = 10) -> xr.Dataset:
    """Loss by context position of several models beside one of them, and where in the context the difference forms.

    Olsson et al. 2022, Unexplained Curiosities, "Seemingly Constant In-Context Learning Score": "large models gain all
    their advantage over small models very early in the context. In fact, the majority of the difference forms in the
    first ten tokens". A majority formed there means that the difference at position 10 is more than half of that at the
    last position: `formed`. `summed` answers the other reading, how much of the difference over the whole context is
    added up in its first tokens; of two models a constant apart, it is 10 in T.

    Args:
        models: by name, losses [position] of one snapshot, or one snapshot of what a sweep wrote (positions `all`, such
            as `open_results(path).isel(snapshot=-1)`). All have the same positions.
        baseline: the name of the one that the others are compared with.
        first: the position up to which.

    Returns:
        Dataset with dims (model, position), the baseline left out: `difference` (model minus baseline, nats), `formed`
        [model] and `summed` [model]. From sweeps also `difference_sem_at_most`: the sum of the two standard errors,
        which that of the difference cannot exceed however the models' losses are correlated (a sweep keeps sums over
        examples, not what their pairing needs).

    Raises:
        InputError: no such baseline, nothing to compare, other positions, a loss that is not finite, or a difference
            of exactly 0 to take a share of.
    """
    first = whole_number("first", first)
    if baseline not in models or len(models) < 2:
        raise InputError(f"baseline: {baseline!r} must be one of two models or more, got {', '.join(models) or 'none'}")
    losses = {name: _by_position(f"losses of {name}", of_one, ("position",)) for name, of_one in models.items()}
    positions = losses[baseline]["position"].values
    for name, of_one in losses.items():
        if not np.array_equal(of_one["position"].values, positions):
            raise InputError(f"losses of {name}: their positions are not those of {baseline}")
    others = [name for name in models if name != baseline]
    difference = np.stack([losses[name].values - losses[baseline].values for name in others])  # [model, position]
    begin, total = np.flatnonzero(positions == first), difference.sum(1)
    if len(begin) == 0:
        raise InputError(f"first: no loss at position {first}; there are {positions[0]} to {positions[-1]}")
    for name, last, whole in zip(others, difference[:, -1], total, strict=True):
        if last == 0 or whole == 0:
            raise InputError(f"losses of {name} do not differ from those of {baseline}: no share can be taken")
    nats = {"units": "nats per token"}
    result = xr.Dataset(
        {
            "difference": (("model", "position"), difference, nats | {"long_name": f"loss minus that of {baseline}"}),
            "formed": ("model", difference[:, begin[0]] / difference[:, -1]),
            "summed": ("model", difference[:, positions <= first].sum(1) / total),
        },
        coords={"model": others, "position": positions},
        attrs={"baseline": baseline, "first": first, "source": "Olsson et al. 2022, Unexplained Curiosities"},
    )
    errors = {
        name: unablated(f"losses of {name}", of_one, "position_loss_sem").values
        for name, of_one in models.items()
        if isinstance(of_one, xr.Dataset)
    }
    if len(errors) == len(models):
        bound = np.stack([errors[name] + errors[baseline] for name in others])
        result["difference_sem_at_most"] = (("model", "position"), bound, nats)
    return result


def _by_position(name: str, losses: Losses, dims: Sequence[str]) -> xr.DataArray:
    if isinstance(losses, xr.Dataset):
        losses = unablated(name, losses, "position_loss")
    labelled = _labelled(name, losses, dims)
    if "position" not in labelled.coords:
        labelled = labelled.assign_coords(position=np.arange(1, labelled.sizes["position"] + 1))
    positions = labelled["position"].values
    if positions[0] < 1 or (np.diff(positions) <= 0).any():
        raise InputError(f"{name}: positions must rise from 1 or more")
    return labelled


def _labelled(name: str, values: Values, dims: Sequence[str]) -> xr.DataArray:
    """The values, checked, with what coords they have."""
    coords = values.coords if isinstance(values, xr.DataArray) else None
    return xr.DataArray(finite(name, values, dims), dims=dims, coords=coords)


def _mean_at(by_position: xr.DataArray, at: int | Sequence[int]) -> Floats:
    positions = by_position["position"].values
    wanted = whole_numbers("early and late", np.ravel(np.array(at, dtype=object)))
    if not wanted:
        raise InputError("early and late: give at least one position each")
    if missing := [position for position in wanted if position not in positions]:
        raise InputError(
            f"position {missing[0]}: no loss there; there are {len(positions)} from {positions[0]} to {positions[-1]}"
        )
    mean: Floats = by_position.sel(position=wanted).mean("position").values
    return mean


def _bins(at: Floats, count: int) -> Floats:
    """[bin, point] that takes the mean over the points in each of the equally wide bins that hold any; `at` rises.

    A point between two bins is the later one's, whichever way its logarithm was rounded.
    """
    if count < 2:
        raise InputError(f"bins: a derivative needs 2 or more, got {count}")
    edges = np.linspace(at[0], at[-1], count + 1) if len(at) else np.zeros(count + 1)
    _, bin_of, points = np.unique(np.digitize(at, edges[1:-1] - 1e-9), return_inverse=True, return_counts=True)
    member: Floats = (bin_of == np.arange(len(points))[:, None]) / points[:, None]
    return member


def _log_derivative(values: xr.DataArray, dim: str, at: Floats) -> xr.DataArray:
    if len(at) < 2:
        raise InputError(f"losses: a derivative needs 2 or more, got {len(at)} by {dim}")
    slopes = np.gradient(values.values, np.log(at), axis=values.get_axis_num(dim))
    return values.copy(data=slopes)
