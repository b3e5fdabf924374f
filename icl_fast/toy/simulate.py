"""Gradient descent with fixed steps on a batch of runs, and the gradient flow it follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

from icl_fast.analysis.arrays import Floats
from icl_fast.errors import InputError
from icl_fast.toy.models import Model, to_like
from icl_fast.toy.runs import Runs

OnSteps = Callable[[int], None]


@dataclass(frozen=True)
class Trajectory:
    """What was recorded of some runs; losses and progress measures follow from it.

    Attributes:
        model, runs: of which.
        steps: [T], steps of gradient descent taken.
        along, across: [T, V, R], each vector's component along its true value, and the length of the rest, in units of
            the true vector's length.
    """

    model: Model
    runs: Runs
    steps: np.ndarray
    along: Floats
    across: Floats

    def diverged(self) -> np.ndarray:
        """Which runs left the numbers, [R]."""
        found: np.ndarray = ~np.isfinite(self.along + self.across).all((0, 1))
        return found

    def losses(self) -> Floats:
        """The model's terms, [T, terms, R]."""
        return self.model.losses(self.runs, self.along, self.across)

    def squared_cosine(self) -> Floats:
        """Of every vector with its true value, whatever its sign (thesis, 4.4.3), [T, V, R]; 0 for a zero vector."""
        squared = self.along**2 + self.across**2
        return np.divide(self.along**2, squared, out=np.zeros_like(squared), where=squared > 0)

    def loss_others_true(self) -> Floats:
        """The tensor product's loss with all other vectors set true, up to the sign that suits (thesis, note 18).

        Returns:
            [T, V, R].
        """
        size = np.prod(self.runs.power, axis=0)
        return 0.5 * size * ((1 - np.abs(self.along)) ** 2 + self.across**2)


def simulate(
    model: Model,
    runs: Runs,
    steps: int,
    *,
    every: int = 1,
    device: str = "cpu",
    on_steps: OnSteps = lambda done: None,
) -> Trajectory:
    """Take so many steps of gradient descent, recording the first state and one of every `every` steps.

    Costs O(K) a vector, run and step; the record takes `16 V R (steps / every + 1)` bytes.

    Args:
        model: whose names are those of `runs`.
        device: "cpu" (numpy), or a device of torch.
        on_steps: called now and then with the number of steps taken.

    A run whose steps are too large diverges to values that are not finite (see `Trajectory.diverged`), alone.

    Raises:
        InputError: steps or every below 1, or a model of other vectors.
    """
    if min(steps, every) < 1:
        raise InputError(f"steps, every: must be 1 or more, got {steps} and {every}")
    if model.names != runs.names:
        raise InputError(f"runs: are of {', '.join(runs.names)}, the model is of {', '.join(model.names)}")
    x = runs.start.copy()
    if device != "cpu":
        import torch

        x = torch.tensor(x, device=device)
    true, rate = to_like(runs.true, x), to_like(runs.rate, x)
    slopes = model.slopes(runs, x)
    record = to_like(np.empty((steps // every + 1, 2, *runs.rate.shape)), x)

    def note(row: int) -> None:
        along = (x * true).sum(0)
        record[row, 0] = along
        record[row, 1] = ((x - along * true) ** 2).sum(0) ** 0.5

    note(0)
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(1, steps + 1):
            own, towards = slopes((x * true).sum(0), (x * x).sum(0))
            x = x * (1.0 - rate * own) + (rate * towards) * true
            if step % every == 0:
                note(step // every)
                on_steps(step)
    kept = record if isinstance(record, np.ndarray) else record.cpu().numpy()
    return Trajectory(model, runs, np.arange(0, steps + 1, every), kept[:, 0], kept[:, 1])


def gradient_flow(model: Model, runs: Runs, times: Floats, *, rtol: float = 1e-9, atol: float = 1e-12) -> Trajectory:
    """The same runs with steps so small that their size does not matter: `dx/dt = -lr dL/dx`, by scipy's DOP853.

    Args:
        runs: in the plane (see `Runs`).
        times: rising, the first 0, in steps of gradient descent.

    Raises:
        InputError: runs that are not in the plane, or a flow that cannot be followed.
    """
    if len(runs.start) != 2:
        raise InputError("runs: gradient_flow needs them in the plane; draw them with plane=True")
    found = np.empty((len(times), 2, *runs.rate.shape))
    for run in range(len(runs)):
        at = slice(run, run + 1)
        one, shape = runs.part(at), (2, len(runs.names), 1)
        slopes = model.part(at).slopes(one, one.start)

        def velocity(
            time: float, flat: Floats, one: Runs = one, shape: tuple[int, ...] = shape, slopes: object = slopes
        ) -> Floats:
            x = flat.reshape(shape)
            own, towards = slopes(x[0], (x * x).sum(0))  # type: ignore[operator]
            result: Floats = (one.rate * (towards * one.true - own * x)).ravel()
            return result

        flow = solve_ivp(velocity, (times[0], times[-1]), one.start.ravel(), "DOP853", times, rtol=rtol, atol=atol)
        if not flow.success:
            raise InputError(f"runs: the gradient flow of seed {one.seeds[0]} cannot be followed ({flow.message})")
        found[..., run] = flow.y.T.reshape(len(times), *shape)[..., 0]
    return Trajectory(model, runs, np.asarray(times), found[:, 0], np.abs(found[:, 1]))

