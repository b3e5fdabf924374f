"""What Olsson et al. 2022 found and could not explain ("Additional Curiosities"), looked for: spikes and odd heads.

Not among them is how "peaky" a model's ablations are, which is no event and no head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from icl_fast.analysis.arrays import Floats, unablated
from icl_fast.analysis.heads import HeadTypes

SPIKE = 6.0  # in units of the curve's own scatter, robustly measured
LEAST_SPIKE = 0.05  # nats
_NEIGHBOURS = 5  # snapshots whose median a spike is over

Kind = Literal["loss spike", "falling head", "opposite head", "anti-copying head", "not an induction head"]


@dataclass(frozen=True)
class Curiosity:
    """One of them.

    Attributes:
        kind: what the paper calls it, or nearly.
        step: of the snapshot with the spike, or at which a falling head was highest; None: the last snapshot.
        head: (layer, head); None of a spike.
        size: what makes it odd: nats over the neighbouring snapshots; how far the prefix-matching score fell; the
            attribution in nats; the copying score.
        what: a few words with the numbers.
    """

    kind: Kind
    step: int | None
    head: tuple[int, int] | None
    size: float
    what: str


def find_curiosities(
    losses: xr.Dataset, heads: xr.Dataset, attributions: xr.Dataset, types: HeadTypes
) -> tuple[Curiosity, ...]:
    """All that a model's measurements show, by fixed rules.

    - A *loss spike*: a snapshot whose mean loss exceeds the median of the 5 around it by `LEAST_SPIKE` nats and by
      `SPIKE` standard deviations of that difference, estimated from its median ("the 6-layer MLP model shows a loss
      spike").
    - A *falling head*: its prefix-matching score, after a running median of 3, was over the threshold of the head types
      and has lost half or more.
    - An *opposite head*: an induction head without which the ICL score is lower, by more than two standard errors ("one
      lone induction head whose ablation has the opposite effect").
    - An *anti-copying head*: a prefix-matching head with a copying score under 0, or under what stands for it in narrow
      models (`Thresholds.for_width`).
    - *Not an induction head*, "and yet ablating it has an effect similar to reversing the phase change": its
      before-and-after attribution is at least half of that of the strongest induction head, and negative by more than
      two standard errors.

    The last three are of the last snapshot.

    Args:
        losses: a sweep's, with `loss` [snapshot, ablation, example].
        heads: with `prefix_matching` [snapshot, layer, head] and `copying`.
        attributions: of `attribute_heads` or `attribute_icl`.
        types: of the heads at the last snapshot.

    Raises:
        InputError: a variable that is missing.
    """
    found = _spikes(losses["snapshot"].values, unablated("losses", losses, "loss").mean("example").values)
    limit = types.thresholds.prefix_matching
    matching = heads["prefix_matching"].transpose("snapshot", "layer", "head").values
    copying = heads["copying"].isel(snapshot=-1).transpose("layer", "head").values
    found += _falling(heads["snapshot"].values, matching, limit)
    for head in _heads((matching[-1] > limit) & (copying < types.thresholds.copying)):
        what = f"matches prefixes ({matching[-1][head]:.2f}) and copies at {copying[head]:.2f}"
        found.append(Curiosity("anti-copying head", None, head, float(copying[head]), what))
    return (*found, *_odd_attributions(attributions.isel(snapshot=-1), types))


def _spikes(steps: Floats, curve: Floats) -> list[Curiosity]:
    from scipy.ndimage import median_filter  # here: most of what reads this module does without

    over = curve - median_filter(curve, size=_NEIGHBOURS, mode="nearest")
    over[steps == 0] = 0  # before training the loss is higher than anything after
    scatter = 1.4826 * np.median(np.abs(over[over != 0])) if (over != 0).any() else 0.0
    found = np.flatnonzero((over >= LEAST_SPIKE) & (over > SPIKE * scatter))
    return [
        Curiosity(
            "loss spike", int(steps[at]), None, float(over[at]), f"{over[at]:+.2f} nats over the snapshots around it"
        )
        for at in found
    ]


def _falling(steps: Floats, matching: Floats, limit: float) -> list[Curiosity]:
    from scipy.ndimage import median_filter  # as above

    smooth = median_filter(matching, size=(3, 1, 1), mode="nearest")
    highest, peaks = smooth.max(0), smooth.argmax(0)
    fell = highest - smooth[-1]
    return [
        Curiosity(
            "falling head",
            int(steps[peaks[head]]),
            head,
            float(fell[head]),
            f"prefix matching falls from {highest[head]:.2f} to {smooth[-1][head]:.2f}",
        )
        for head in _heads((highest > limit) & (fell >= highest / 2))
    ]


def _heads(where: NDArray[np.bool_]) -> list[tuple[int, int]]:
    return [(layer, head) for layer, head in np.argwhere(where).tolist()]


def _odd_attributions(last: xr.Dataset, types: HeadTypes) -> list[Curiosity]:
    where = {
        (int(la), int(he)): at for at, (la, he) in enumerate(zip(last["layer"], last["head"], strict=True)) if la >= 0
    }
    induction = {head for head in where if types.types[head] == "induction"}
    icl, icl_error = last["icl"].values, last["icl_sem"].values
    found = []
    for head, at in where.items():
        if head in induction and icl[at] < -2 * icl_error[at]:
            what = f"an induction head without which the ICL score changes by {icl[at]:+.3f}±{icl_error[at]:.3f}"
            found.append(Curiosity("opposite head", None, head, float(icl[at]), what))
    if "before_after" not in last or not induction:
        return found
    along, error = last["before_after"].values, last["before_after_sem"].values
    strongest = min(along[where[head]] for head in induction)
    for head, at in where.items():
        if head not in induction and along[at] < -2 * error[at] and along[at] <= strongest / 2:
            what = (
                f"undoes the phase change like one ({along[at]:+.2f}±{error[at]:.2f}; the strongest: {strongest:+.2f})"
            )
            found.append(Curiosity("not an induction head", None, head, float(along[at]), what))
    return found
