"""Loss spikes and odd heads in measurements that have them, and none in those that do not."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from icl_fast.analysis import Curiosity, Thresholds, find_curiosities, head_types

STEPS = np.arange(0, 201, 10)
RISE = 1 / (1 + np.exp(-(STEPS - 100) / 10))


def measured(
    *, spike: float = 0.0, noise: float = 0.005, matching: np.ndarray | None = None, copying: float = 0.6
) -> tuple[xr.Dataset, xr.Dataset]:
    """The losses of a model with two layers of two heads, of which 1.0 is an induction head."""
    random = np.random.default_rng(0)
    curve = 3 + 3 * np.exp(-STEPS / 30) + random.normal(0, noise, len(STEPS))
    curve[15] += spike
    losses = xr.Dataset(
        {"loss": (("snapshot", "ablation", "example"), curve[:, None, None] + random.normal(0, 1, (1, 1, 9)))},
        coords={"snapshot": STEPS, "ablation": ["none"]},
    )
    if matching is None:
        matching = np.zeros((len(STEPS), 2, 2))
        matching[:, 1, 0] = 0.8 * RISE
    copies = np.zeros((len(STEPS), 2, 2))
    copies[:, 1, 0] = copying
    dims = ("snapshot", "layer", "head")
    heads = xr.Dataset({"prefix_matching": (dims, matching), "copying": (dims, copies)}, coords={"snapshot": STEPS})
    return losses, heads


def attributed(icl: dict[str, float] | None = None, along: dict[str, float] | None = None) -> xr.Dataset:
    names = ["0.0", "0.1", "1.0", "1.1"]
    by_head = {"icl": {"1.0": 0.3} | (icl or {}), "before_after": {"1.0": -4.0} | (along or {})}
    dims = ("snapshot", "ablation")
    values = {
        name: (dims, np.tile([of.get(head, 0.0) for head in names], (len(STEPS), 1))) for name, of in by_head.items()
    }
    errors = {f"{name}_sem": (dims, np.full((len(STEPS), 4), 0.05)) for name in by_head}
    pairs = [tuple(map(int, name.split("."))) for name in names]
    coords = {"layer": ("ablation", [la for la, _ in pairs]), "head": ("ablation", [he for _, he in pairs])}
    return xr.Dataset(values | errors, coords=coords | {"snapshot": STEPS, "ablation": names})


def found(
    losses: xr.Dataset, heads: xr.Dataset, attributions: xr.Dataset, limits: Thresholds | None = None
) -> tuple[Curiosity, ...]:
    last = heads.isel(snapshot=-1)
    types = head_types(np.zeros((2, 2)), last["prefix_matching"].values, last["copying"].values, limits)
    return find_curiosities(losses, heads, attributions, types)


def test_an_ordinary_model_has_none() -> None:
    assert found(*measured(), attributed()) == ()
    assert found(*measured(), attributed().drop_vars(["before_after", "before_after_sem"])) == ()
    assert found(*measured(noise=0.1), attributed()) == ()  # all of it noise


def test_a_loss_spike() -> None:
    (one,) = found(*measured(spike=0.4), attributed())
    assert (one.kind, one.step, one.head) == ("loss spike", 150, None)
    assert one.size == pytest.approx(0.4, abs=0.03)
    assert found(*measured(spike=0.04, noise=0.0), attributed()) == ()  # too small
    assert found(*measured(spike=-0.4), attributed()) == ()


def test_a_head_that_falls_after_it_rose() -> None:
    matching = np.zeros((len(STEPS), 2, 2))
    matching[:, 1, 0] = 0.8 * RISE
    matching[:, 1, 1] = 0.7 * np.exp(-(((STEPS - 100) / 40) ** 2))
    matching[:, 0, 0] = 0.15 * np.exp(-(((STEPS - 100) / 40) ** 2))  # never over the threshold
    matching[4, 0, 1] = 0.9  # once
    (one,) = found(*measured(matching=matching), attributed())
    assert (one.kind, one.head) == ("falling head", (1, 1))
    assert one.step in (90, 100, 110)  # a median of 3 is flat at the top
    assert one.size == pytest.approx(0.7 - 0.7 * np.exp(-((100 / 40) ** 2)), abs=0.05)
    matching[:, 1, 1] = np.maximum(matching[:, 1, 1], 0.45 * (STEPS > 100))  # keeps more than half
    assert found(*measured(matching=matching), attributed()) == ()


def test_a_head_that_matches_prefixes_and_does_the_opposite_of_copying() -> None:
    (one,) = found(*measured(copying=-0.3), attributed())
    assert (one.kind, one.head, one.size) == ("anti-copying head", (1, 0), -0.3)
    assert "0.80" in one.what


def test_an_induction_head_whose_removal_does_the_opposite() -> None:
    (one,) = found(*measured(), attributed(icl={"1.0": -0.2}))
    assert (one.kind, one.head, one.size) == ("opposite head", (1, 0), -0.2)
    assert found(*measured(), attributed(icl={"1.0": -0.08})) == ()  # within two standard errors
    assert found(*measured(), attributed(icl={"0.1": -0.2})) == ()  # no induction head


def test_another_head_whose_removal_undoes_the_change() -> None:
    (one,) = found(*measured(), attributed(along={"0.1": -2.5}))
    assert (one.kind, one.head, one.size) == ("not an induction head", (0, 1), -2.5)
    assert found(*measured(), attributed(along={"0.1": -1.9})) == ()  # less than half of the strongest induction head's
