"""The tensor-product model over clamps, seeds and initial scales, and the saddle at zero."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.toy.models import TensorProduct, explicit_loss
from icl_fast.toy.runs import draw_runs, join_runs
from icl_fast.toy.simulate import (
    MEMORY,
    OnDone,
    Trajectory,
    check_steps,
    gradient_flow,
    record_at,
    simulate,
    simulate_parts,
)
from icl_fast.toy.summary import LEARNED, plateau_length

ALPHABET = "abcdefghijklmnop"
PLATEAU_RULE = f"plateau: the steps until the loss is under {LEARNED} of the loss at zero"


def vector_names(count: int, argument: str = "vectors") -> tuple[str, ...]:
    """a, b, c, ...

    Args:
        argument: what messages call the number.

    Raises:
        InputError: below 1, or more than there are letters.
    """
    if not 1 <= count <= len(ALPHABET):
        raise InputError(f"{argument}: must be 1 to {len(ALPHABET)}, got {count}")
    return tuple(ALPHABET[:count])


def simulate_clamps(
    dims: Sequence[int],
    clamps: Sequence[Sequence[str]],
    seeds: Sequence[int],
    *,
    steps: int = 1_000,
    every: int = 1,
    lr: float = 1.0,
    scale: float = 1.0,
    device: str = "cpu",
    flow: bool = True,
    on_done: OnDone = lambda done, of, text: None,
) -> xr.Dataset:
    """Learn the tensor product with each of some sets of vectors clamped, every seed from the same vectors.

    Args:
        dims: of the vectors a, b, c, ...
        clamps: names of the clamped vectors; an empty one is standard training.
        seeds, steps, every, lr, scale, device: see `draw_runs` and `simulate`.
        flow: follow the gradient flow of every run too.
        on_done: see `simulate_settings`.

    Returns:
        `loss` [clamp, step, seed]; `loss_at_zero` [seed]; `squared_cosine` and `loss_others_true` (progress measures,
        thesis 4.4.3) [clamp, vector, step, seed]; `plateau` [clamp, seed]; with `flow`, `flow_loss`
        [clamp, step, seed].

    Raises:
        InputError: what `draw_runs` and `simulate` refuse, no clamps, or a run that diverged.
    """
    names = vector_names(len(dims), "dims")
    if not clamps:
        raise InputError("clamps: one or more sets are needed")
    parts = [draw_runs(names, dims, seeds, lr=lr, scale=scale, clamped=clamp) for clamp in clamps]
    runs, model, shape = join_runs(parts), TensorProduct(names), (len(clamps), len(seeds))
    at = record_at(steps, every, kept=4 * 16 * runs.rate.size)  # the record, its losses and measures
    found = simulate(model, runs, at, device=device, on_steps=lambda done: on_done(done, int(at[-1]), ""))
    _check_converged(found, lr, [scale])
    losses, zero = found.losses()[:, 0], 0.5 * np.prod(runs.power, axis=0)
    time, mse = len(found.steps), {"units": "half mean squared error"}
    by_vector = ("clamp", "vector", "step", "seed")

    def measure(values: np.ndarray) -> np.ndarray:
        return values.reshape(time, len(names), *shape).transpose(2, 1, 0, 3)

    data = {
        "loss": (("clamp", "step", "seed"), losses.reshape(time, *shape).transpose(1, 0, 2), mse),
        "loss_at_zero": ("seed", zero[: len(seeds)], mse),
        "squared_cosine": (by_vector, measure(found.squared_cosine()), {"units": "1"}),
        "loss_others_true": (by_vector, measure(found.loss_others_true()), mse),
        "plateau": (("clamp", "seed"), plateau_length(found.steps, losses, zero).reshape(shape), {"units": "steps"}),
    }
    if flow:
        smooth = gradient_flow(model, runs, found.steps.astype(float)).losses()[:, 0]
        data["flow_loss"] = (("clamp", "step", "seed"), smooth.reshape(time, *shape).transpose(1, 0, 2), mse)
    return xr.Dataset(
        data,
        coords={
            "clamp": ["".join(clamp) or "none" for clamp in clamps],
            "step": found.steps,
            "seed": np.asarray(seeds),
            "vector": list(names),
        },
        attrs={"source": "Singh 2025, 4.4.2 and 4.4.3", "dims": list(dims), "lr": lr, "scale": scale},
    )


def plateaus(
    counts: Sequence[int],
    scales: Sequence[float],
    seeds: Sequence[int],
    *,
    dim: int = 20,
    steps: int = 20_000,
    lr: float = 1.0,
    memory: int = MEMORY,
    device: str = "cpu",
    on_done: OnDone = lambda done, of, text: None,
) -> xr.Dataset:
    """How long the plateau near the saddle at zero is, by the number of vectors and by the initial scale.

    Near zero every vector grows at the rate of the product of the others, so that the plateau should not depend on the
    scale for 1 vector, grow with its logarithm for 2, and as `scale^-(vectors - 2)` for more (thesis, C.4.2: "harder to
    escape").

    Args:
        counts: numbers of vectors, each of `dim` elements.
        scales: see `draw_runs`.
        seeds, steps, lr, memory, device, on_done: see `simulate_settings`.

    Returns:
        `plateau` [vectors, scale, seed], steps, by `plateau_length`; NaN where it outlasts the simulation.

    Raises:
        InputError: what `draw_runs` refuses, steps below 2, or a run that diverged.
    """
    check_steps("steps", steps, least=2)
    model = TensorProduct(vector_names(max(counts)))
    runs = join_runs(
        [
            draw_runs(vector_names(count), [dim] * count, seeds, lr=lr, scale=scale)
            for count in counts
            for scale in scales
        ]
    )
    # a step apart, then a hundredth: the plateaus of few vectors are a few steps long, those of many thousands
    at = np.unique(np.append(0, np.geomspace(1, steps, max(2, int(100 * np.log(steps)))).astype(int)))
    found = []
    for part in simulate_parts(model, runs, at, memory=memory, device=device, on_done=on_done):
        _check_converged(part, lr, scales)
        zero = 0.5 * np.prod(part.runs.power, axis=0)
        found.append(plateau_length(part.steps, part.losses()[:, 0], zero))
    lengths = np.concatenate(found).reshape(len(counts), len(scales), len(seeds))
    return xr.Dataset(
        {"plateau": (("vectors", "scale", "seed"), lengths, {"units": "steps"})},
        coords={"vectors": list(counts), "scale": list(scales), "seed": np.asarray(seeds)},
        attrs={"source": "Singh 2025, C.4", "rule": PLATEAU_RULE, "dim": dim, "steps": steps, "lr": lr},
    )


def _check_converged(found: Trajectory, lr: float, scales: Sequence[float]) -> None:
    if count := int(found.diverged().sum()):
        of = ", ".join(f"{scale:g}" for scale in scales)
        raise InputError(f"lr: {count} of {len(found.runs)} runs diverged at lr {lr:g}, scale {of}; lower it")


def saddle(counts: Sequence[int], epsilons: Sequence[float], *, dim: int = 4, seed: int = 0) -> xr.Dataset:
    """The saddle at zero on the explicit tensors: how the loss changes along C.4's two directions, and the Hessian.

    The direction d- has one element of each true vector, d+ the same with a's negated; C.4 finds a change of
    `1/2 p^2 (e^(2N) ∓ 2 e^N)` at a distance e, with p the product of the N elements (here over the number of the
    tensor's elements, as the loss is a mean).

    Args:
        counts: numbers N of vectors, each of `dim` elements.
        epsilons: the distances e.

    Returns:
        `change` and `predicted` [vectors, direction, epsilon]; `largest` and `lowest` [vectors], the largest absolute
        element and the lowest eigenvalue of the Hessian at zero.
    """
    import torch

    shape = (len(counts), 2, len(epsilons))
    change, predicted = np.empty(shape), np.empty(shape)
    largest, lowest = np.empty(len(counts)), np.empty(len(counts))
    for row, count in enumerate(counts):
        names = vector_names(count)
        generator = np.random.default_rng(seed)
        true = [torch.tensor(generator.standard_normal(dim)) for _ in names]
        model, chosen = TensorProduct(names), [int(vector.abs().argmax()) for vector in true]

        def loss(flat: torch.Tensor, model: TensorProduct = model, true: list[torch.Tensor] = true) -> torch.Tensor:
            found: torch.Tensor = explicit_loss(model, list(flat.reshape(len(true), dim)), true)
            return found

        zero = torch.zeros(count * dim, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(loss, zero)  # type: ignore[no-untyped-call]
        largest[row] = float(hessian.abs().max())
        lowest[row] = float(torch.linalg.eigvalsh(hessian)[0])
        elements = [float(vector[at]) for vector, at in zip(true, chosen, strict=True)]
        squared = prod(elements) ** 2 / dim**count
        for column, sign in enumerate((1.0, -1.0)):
            direction = torch.zeros(count, dim, dtype=torch.float64)
            for v, (at, element) in enumerate(zip(chosen, elements, strict=True)):
                direction[v, at] = sign * element if v == 0 else element
            for at, e in enumerate(epsilons):
                change[row, column, at] = float(loss(e * direction.ravel()) - loss(zero))
                predicted[row, column, at] = 0.5 * squared * (e ** (2 * count) - 2 * sign * e**count)
    along = ("vectors", "direction", "epsilon")
    return xr.Dataset(
        {
            "change": (along, change),
            "predicted": (along, predicted),
            "largest": ("vectors", largest),
            "lowest": ("vectors", lowest),
        },
        coords={"vectors": list(counts), "direction": ["d-", "d+"], "epsilon": list(epsilons)},
        attrs={"source": "Singh 2025, C.4", "dim": dim},
    )
