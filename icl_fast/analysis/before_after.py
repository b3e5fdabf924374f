"""How much each head contributes to the phase change: its ablation compared with the change itself."""

from __future__ import annotations

import numpy as np
import xarray as xr

from icl_fast.analysis.arrays import Floats, Values, ablated, at_step, finite, icl_effects, unablated, variable
from icl_fast.arguments import whole_number
from icl_fast.errors import InputError


def before_after_vector(before: Values, after: Values) -> Floats:
    """The direction in token-loss space in which the phase change moved a model: `after - before`, to unit length.

    Olsson et al. 2022, Analyses, "Ablation attribution to phase change": "the delta of the random-token-per-example
    loss data for the 'phase change end' snapshot, minus the 'phase change start' snapshot".

    Args:
        before: [example] losses of the whole model at the start of the phase change.
        after: [example] at its end.

    Raises:
        InputError: other shapes, a loss that is not finite, or the two alike.
    """
    first, last = finite("losses before", before, ["example"]), finite("losses after", after, ["example"])
    if first.shape != last.shape:
        raise InputError(f"losses before and after must be of the same examples, got {len(first)} and {len(last)}")
    change = last - first
    length = np.linalg.norm(change)
    if length == 0:
        raise InputError("losses before and after are equal: there is no change to attribute")
    vector: Floats = change / length
    return vector


def before_after_attribution(vector: Values, whole: Values, without: Values) -> tuple[Floats, Floats]:
    """How far removing a head moves the model along the before-and-after vector: dot(without - whole, vector).

    Negative for induction heads: "removing induction heads is like undoing the changes" (Olsson et al. 2022,
    Analyses). In nats; a sum over examples, which grows with the square root of their number.

    Args:
        vector: [example] unit vector.
        whole: [snapshot, example] losses of the whole model.
        without: [snapshot, ablation, example] losses with each head removed.

    Returns:
        The attributions [snapshot, ablation] and their standard errors, paired by example, the vector held fixed; NaN
        for a single example.

    Raises:
        InputError: shapes that disagree, or a value that is not finite.
    """
    direction = finite("vector", vector, ["example"])
    base = finite("losses of the whole model", whole, ("snapshot", "example"))
    removed = finite("losses without heads", without, ("snapshot", "ablation", "example"))
    if not base.shape[1:] == removed.shape[2:] == direction.shape or len(base) != len(removed):
        raise InputError(
            f"vector [example], whole [snapshot, example] and without [snapshot, ablation, example] disagree: "
            f"{list(direction.shape)}, {list(base.shape)}, {list(removed.shape)}"
        )
    along = (removed - base[:, None]) * direction  # [snapshot, ablation, example]
    count = len(direction)
    error = np.sqrt(count) * along.std(-1, ddof=1) if count > 1 else np.full(along.shape[:2], np.nan)
    return along.sum(-1), error


def attribute_icl(dataset: xr.Dataset) -> xr.Dataset:
    """The Model Analysis Table's last row, from what a sweep wrote: the change of the in-context-learning score.

    Olsson et al. 2022, Analyses: ablated minus un-ablated, positive for induction heads, without which the model gains
    less from its context. (The paper is of two minds about the score's sign: Argument 1 has "the 50th token loss minus
    the 500th", the table's captions "how much better the model is at predicting the 500th token than the 50th", both
    positive for a model that uses its context. Key Concepts and Analyses have 500th minus 50th, followed here.)

    Args:
        dataset: of one run, swept with positions `all` or `paper`.

    Returns:
        Dataset with dims (snapshot, ablation), and the sweep's coords, without ablation "none": `icl` and its standard
        error paired by example, `icl_sem`, in nats.

    Raises:
        InputError: a missing variable, or a value that is not finite.
    """
    error = ablated("sweep", variable("sweep", dataset, "icl_effect_sem"))
    dims, nats = ("snapshot", "ablation"), {"units": "nats"}
    return xr.Dataset(
        {
            "icl": (
                dims,
                icl_effects("sweep", dataset),
                nats | {"long_name": "change of the in-context-learning score"},
            ),
            "icl_sem": (dims, error.transpose(*dims).values, nats),
        },
        coords=error.coords,
        attrs={"source": "Olsson et al. 2022, Analyses"},
    )


def attribute_heads(dataset: xr.Dataset, start: int, end: int) -> xr.Dataset:
    """Both attributions of the Model Analysis Table's last two rows (see `before_after_attribution`, `attribute_icl`).

    Args:
        dataset: of one run, swept with positions `all` or `paper`.
        start: optimizer step of the snapshot at which the phase change starts (see `find_phase_change`, which gives
            indices).
        end: of that at which it ends.

    Returns:
        What `attribute_icl` gives, with `before_after` and its standard error paired by example, `before_after_sem`,
        in nats; and `vector` [example].

    Raises:
        InputError: a missing snapshot or variable, or a value that is not finite.
    """
    start, end = whole_number("start", start), whole_number("end", end)
    if start == end:
        raise InputError(f"start and end are both step {start}: the phase change must take some time")
    whole = unablated("sweep", dataset, "loss")
    vector = before_after_vector(at_step("sweep", whole, start), at_step("sweep", whole, end))
    value, error = before_after_attribution(vector, whole, ablated("sweep", dataset["loss"]))
    dims, nats = ("snapshot", "ablation"), {"units": "nats"}
    result = attribute_icl(dataset).assign(
        before_after=(dims, value, nats | {"long_name": "dot product with the before-and-after vector"}),
        before_after_sem=(dims, error, nats),
        vector=("example", vector, {"long_name": f"losses at step {end} minus at step {start}, unit length"}),
    )
    return result.assign_attrs(start=start, end=end)
