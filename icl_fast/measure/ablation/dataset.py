"""The Dataset of a sweep, from the sums of its snapshots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.measure.ablation.names import UNABLATED, Ablation
from icl_fast.measure.ablation.plan import SweepPlan
from icl_fast.measure.ablation.sums import LossSums

_DIMS = ("snapshot", "ablation", "position")


def ablation_coords(ablations: Sequence[Ablation]) -> dict[str, tuple[str, list[Any], dict[str, str]]]:
    """The coords along `ablation`, of which the whole model is the first: its names, and the `layer` and `head` of each
    that removes a single head."""
    names = [UNABLATED, *(one.name for one in ablations)]
    single = [(-1, -1), *(one.heads[0] if len(one.heads) == 1 and not one.embed else (-1, -1) for one in ablations)]
    not_one = {"long_name": "-1: not a single head"}
    return {
        "ablation": ("ablation", names, {"long_name": f"what was removed; {UNABLATED!r}: nothing"}),
        "layer": ("ablation", [layer for layer, _ in single], not_one),
        "head": ("ablation", [head for _, head in single], not_one),
    }


def _tokens(positions: Sequence[int]) -> str:
    """What is said of neighbouring context positions."""
    return f"token {positions[0]}" if len(positions) == 1 else f"tokens {positions[0]} to {positions[-1]}"


def sweep_variables(plan: SweepPlan) -> dict[str, tuple[str, ...]]:
    """Name -> dims of what `sweep_dataset` gives, but for what stores of before lack: `icl_effect`,
    `example_icl_score`."""
    names: dict[str, tuple[str, ...]] = {name: _DIMS for name in ("position_loss", "position_loss_sem", "effect_sem")}
    if plan.positions.example:
        names["loss"] = (*_DIMS[:2], "example")
    if plan.positions.has_score:
        names |= {name: _DIMS[:2] for name in ("icl_score", "icl_score_sem", "icl_effect_sem")}
    names |= {name: (name,) for name in _DIMS}
    return {**names, "tokens": ("snapshot",), "layer": ("ablation",), "head": ("ablation",)}


def sweep_dataset(
    snapshots: Sequence[LossSums], plan: SweepPlan, steps: Sequence[int], seen: Sequence[int]
) -> xr.Dataset:
    """One Dataset of all snapshots (see `ablate` for what it holds).

    Args:
        snapshots: the sums over all examples, of each snapshot.
        plan: what was done.
        steps: of the snapshots, rising.
        seen: training tokens by then.
    """

    def stacked(name: str) -> np.ndarray:
        return np.stack([getattr(snapshot, name) for snapshot in snapshots])

    count = plan.examples
    mean = stacked("sums") / count
    effect = mean - mean[:, :1]

    def standard_error(squares: np.ndarray, means: np.ndarray) -> np.ndarray:
        scatter = np.clip(squares / count - means**2, 0, None)
        return np.sqrt(scatter / (count - 1)) if count > 1 else np.full_like(scatter, np.nan)

    nats, paired = {"units": "nats per token"}, f"that of ablation {UNABLATED!r}, paired by example"
    dataset = xr.Dataset(
        {
            "position_loss": (_DIMS, mean, nats | {"long_name": "mean loss by context position"}),
            "position_loss_sem": (_DIMS, standard_error(stacked("squares"), mean), nats),
            "effect_sem": (
                _DIMS,
                standard_error(stacked("effect_squares"), effect),
                nats | {"long_name": f"standard error of position_loss minus {paired}"},
            ),
        },
        coords={
            "snapshot": ("snapshot", np.asarray(steps, dtype=np.int64), {"long_name": "optimizer step"}),
            "tokens": ("snapshot", np.asarray(seen, dtype=np.int64), {"long_name": "training tokens seen"}),
            **ablation_coords(plan.ablations),
            "position": ("position", np.asarray(plan.positions.listed), {"long_name": "context position, 1-based"}),
        },
        attrs={"plan": json.dumps(plan.as_json()), "source": "Olsson et al. 2022, Data Collection (2)"},
    )
    if plan.positions.example:
        loss = stacked("example_loss")
        dataset["loss"] = (
            ("snapshot", "ablation", "example"),
            loss,
            nats | {"long_name": "loss at one random position per example"},
        )
    if plan.positions.has_score:
        early, late = (
            dataset["position_loss"].sel(position=list(at)).mean("position") for at in plan.positions.of_score
        )
        score = (late - early).values
        definition = f"mean loss of {_tokens(plan.positions.late)} minus {_tokens(plan.positions.early)}"
        dataset["icl_score"] = (_DIMS[:2], score, nats | {"long_name": definition})
        dataset["icl_score_sem"] = (_DIMS[:2], standard_error(stacked("score_squares"), score), nats)
        effect = score - score[:, :1]
        of_effect = nats | {"long_name": f"icl_score minus {paired.partition(',')[0]}"}
        dataset["icl_effect"] = (_DIMS[:2], effect, of_effect)
        dataset["icl_effect_sem"] = (
            _DIMS[:2],
            standard_error(stacked("score_effect_squares"), effect),
            nats | {"long_name": f"standard error of icl_score minus {paired}"},
        )
        if all(len(snapshot.example_score) == count for snapshot in snapshots):  # else parts of before are among them
            dataset["example_icl_score"] = (
                ("snapshot", "example"),
                stacked("example_score"),
                nats | {"long_name": f"{definition}, of each example, of the whole model"},
            )
    return dataset
