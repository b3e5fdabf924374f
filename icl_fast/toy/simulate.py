"""Gradient descent with fixed steps on a batch of runs, and the gradient flow it follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

from icl_fast.analysis.arrays import Floats
from icl_fast.arguments import finite_number, finite_numbers
from icl_fast.errors import InputError
from icl_fast.memory import check_fits
from icl_fast.toy.models import Array, Model, to_like
from icl_fast.toy.runs import Runs

OnSteps = Callable[[int], None]
OnDone = Callable[[int, int, str], None]
MEMORY = 512 * 2**20
_AT_ONCE = 4096  # runs; more are no faster
_MOST_STEPS = 10**9  # some hours for one run, at a microsecond an operation


@dataclass(frozen=True)
class Trajectory:
    """What was recorded of some runs; losses and progress measures follow from it.

    Attributes:
        model, runs: of which.
        steps: [T], steps of gradient descent taken.
        along, across: [T,V,R], each vector's component along its true value, and the length of the rest, in units of
            the true vector's length.
    """

    model: Model
    runs: Runs
    steps: np.ndarray
    along: Floats
    across: Floats

    def diverged(self) -> np.ndarray:
        """Which runs left the numbers, [R]."""
        return np.asarray(~np.isfinite(self.along + self.across).all(axis=(0, 1)))

    def losses(self) -> Floats:
        """The model's terms, [T, terms, R]."""
        return self.model.losses(self.runs, self.along, self.across)

    def squared_cosine(self) -> Floats:
        """Of every vector with its true value, whatever its sign (thesis, 4.4.3), [T,V,R]; 0 for a zero vector."""
        squared = self.along**2 + self.across**2
        return np.divide(self.along**2, squared, out=np.zeros_like(squared), where=squared > 0)

    def loss_others_true(self) -> Floats:
        """The tensor product's loss with all other vectors set true, up to the sign that suits (thesis, note 18).

        Returns:
            [T,V,R].
        """
        size = np.prod(self.runs.power, axis=0)
        found: Floats = 0.5 * size * ((1 - np.abs(self.along)) ** 2 + self.across**2)
        return found


def record_at(steps: int, every: int, *, kept: int = 8) -> np.ndarray:
    """0, every, 2 every, ... up to `steps`.

    Args:
        kept: bytes that are needed for each of them.

    Raises:
        InputError: either below 1, no step to record after the first, more of them than the memory holds.
    """
    check_steps("steps", steps, least=1)
    if not 1 <= every <= steps:
        raise InputError(f"every: must be from 1 to {steps}, the steps; got {every}")
    check_fits(kept * (1 + steps / every), f"steps: {steps}, recorded every {every}")
    return np.arange(0, steps + 1, every)


def check_steps(name: str, steps: int, least: int) -> None:
    """Refuse a number of steps that is too small, or that nobody can wait for.

    Raises:
        InputError: it is one of the two.
    """
    if not least <= steps <= _MOST_STEPS:
        raise InputError(f"{name}: must be from {least} to {_MOST_STEPS}, got {steps}")


def simulate(
    model: Model,
    runs: Runs,
    at: Sequence[int] | np.ndarray,
    *,
    device: str = "cpu",
    on_steps: OnSteps = lambda done: None,
) -> Trajectory:
    """Gradient descent with fixed steps; the states after some of them are recorded.

    Costs O(K) a vector, run and step; the record takes `16 V R len(at)` bytes. A run whose steps are too large diverges
    to values that are not finite (see `Trajectory.diverged`), alone.

    Args:
        model: whose names are those of `runs`.
        at: numbers of steps, rising from 0 (see `record_at`); the last is how many are taken.
        device: "cpu" (numpy), or a device of torch.
        on_steps: called at each of them.

    Raises:
        InputError: an `at` that does not begin with 0 or does not rise, a model of other vectors, or a record that the
            memory does not hold.
    """
    when = np.asarray(at, dtype=np.int64)
    check_fits(16 * runs.rate.size * len(when), f"at: {len(when)} records of {len(runs)} runs")
    if when.ndim != 1 or not len(when) or when[0] != 0 or (np.diff(when) < 1).any():
        raise InputError("at: must be numbers of steps that rise from 0")
    if model.names != runs.names:
        raise InputError(f"runs: are of {', '.join(runs.names)}, the model is of {', '.join(model.names)}")
    x: Array = runs.start.copy()
    if device != "cpu":
        import torch

        x = torch.tensor(x, device=device)
    true, rate = to_like(runs.true, x), to_like(runs.rate, x)
    slopes = model.slopes(runs, x)
    record = to_like(np.empty((len(when), 2, *runs.rate.shape)), x)
    done = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for row, step in enumerate(when.tolist()):
            for _ in range(step - done):
                own, towards = slopes((x * true).sum(0), (x * x).sum(0))
                x = x * (1.0 - rate * own) + (rate * towards) * true
            done = step
            along = (x * true).sum(0)
            record[row, 0] = along
            record[row, 1] = ((x - along * true) ** 2).sum(0) ** 0.5
            on_steps(done)
    kept = record if isinstance(record, np.ndarray) else record.cpu().numpy()
    return Trajectory(model, runs, when, kept[:, 0], kept[:, 1])


def simulate_parts(
    model: Model,
    runs: Runs,
    at: np.ndarray,
    *,
    memory: int,
    device: str = "cpu",
    on_done: OnDone = lambda done, of, text: None,
) -> Iterator[Trajectory]:
    """As `simulate`, as many runs at a time as the memory takes, so that any number of them fits.

    Args:
        memory: bytes for a part's record and what is computed from it.
        on_done: called with how many steps of how many are taken, those of all parts together, and which part that is.
    """
    each = 6 * 16 * len(runs.names) * len(at)  # the record, and five times as much for losses
    size = max(1, min(memory // each, _AT_ONCE))
    slices = [slice(first, min(first + size, len(runs))) for first in range(0, len(runs), size)]
    steps = int(at[-1])
    for index, part in enumerate(slices):
        text = f"part {index + 1} of {len(slices)}" if len(slices) > 1 else ""

        def on_steps(done: int, before: int = index * steps, text: str = text) -> None:
            on_done(before + done, len(slices) * steps, text)

        yield simulate(model.part(part), runs.part(part), at, device=device, on_steps=on_steps)


def gradient_flow(model: Model, runs: Runs, times: Floats, *, rtol: float = 1e-9, atol: float = 1e-12) -> Trajectory:
    """The same runs with steps so small that their size does not matter: `dx/dt = -lr dL/dx`, by scipy's LSODA.

    Args:
        runs: in the plane (see `Runs`).
        times: rising, the first 0, in steps of gradient descent.

    Raises:
        InputError: runs that are not in the plane, or a flow that cannot be followed.
    """
    if len(runs.start) != 2:
        raise InputError("runs: gradient_flow needs them in the plane; draw them with plane=True")
    times = np.array(finite_numbers("times", times, 0.0))
    if times[0] != 0 or (np.diff(times) <= 0).any():
        raise InputError("times: must rise from 0")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        finite_number(name, tolerance, 0.0)
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

        flow = solve_ivp(velocity, (times[0], times[-1]), one.start.ravel(), "LSODA", times, rtol=rtol, atol=atol)
        if not flow.success:
            raise InputError(f"runs: the gradient flow of seed {one.seeds[0]} cannot be followed ({flow.message})")
        found[..., run] = flow.y.T.reshape(len(times), *shape)[..., 0]
    return Trajectory(model, runs, np.asarray(times), found[:, 0], np.abs(found[:, 1]))
