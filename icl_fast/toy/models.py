"""The two models of Singh's thesis: losses and closed-form gradients through inner products, never the tensor.

Both are functions of two numbers a vector: `along`, its component along the true vector, and `across`, what is left of
it, in units of the true vector's length. With `squared = along^2 + across^2`, and T the outer product of the true
vectors, `|T - x ⊗ y ⊗ z|^2 = |T|^2 (1 - 2 along_x along_y along_z + squared_x squared_y squared_z)`.

Every squared norm is half the MEAN over the tensor's elements (thesis, appendix D.2: "we normalize for the size of the
tensors in each expression"; equations 5.1-5.3 leave both the mean and the half out).

Arrays are of numpy or of torch; the last dim, R, is runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from icl_fast.analysis.arrays import Floats
from icl_fast.errors import InputError
from icl_fast.toy.runs import Runs

Array = Any  # numpy.ndarray or torch.Tensor: only operators and slices that both have are used on it

MECHANISMS = ("mechanism 1", "mechanism 2")


class Slopes(Protocol):
    """A model's gradient: of vector v it is `own[v] * x_v - true[v] * x*_v`, with x, x* in units of |x*|."""

    def __call__(self, along: Array, squared: Array) -> tuple[Array, Array]:
        """along, squared [V,R] -> own, true [V,R]; each call may overwrite what the last one returned."""


class Model(Protocol):
    """What is simulated."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the vectors, in the order in which they are stored."""

    @property
    def terms(self) -> tuple[str, ...]:
        """Of what `losses` gives; the first is the loss itself."""

    def slopes(self, runs: Runs, like: Array) -> Slopes:
        """The gradient for these runs, with arrays of the library and on the device of `like`."""

    def losses(self, runs: Runs, along: Floats, across: Floats) -> Floats:
        """along, across [...,V,R] -> [...,terms,R]."""

    def part(self, runs: slice) -> Model:
        """The same for some of the runs."""


def mismatch(along: Floats, across: Floats) -> Floats:
    """`|T - x ⊗ y ⊗ ...|^2 / |T|^2` from along and across [...,V,R] of the vectors: [...,R].

    A sum of terms that are not negative, so that it is right to the last digits where the vectors are nearly learned.
    """
    found: Floats = (1.0 - np.prod(along, axis=-2)) ** 2
    squared = along**2 + across**2
    for v in range(along.shape[-2]):
        before, after = np.prod(squared[..., :v, :], axis=-2), np.prod(along[..., v + 1 :, :] ** 2, axis=-2)
        found = found + before * across[..., v, :] ** 2 * after
    return found


@dataclass(frozen=True)
class TensorProduct:
    """`L = 1/2 mean (a* ⊗ b* ⊗ ... - a ⊗ b ⊗ ...)^2` of any number of vectors (thesis, 4.4.2).

    Attributes:
        names: of the vectors.
    """

    names: tuple[str, ...] = ("a", "b", "c")
    terms: tuple[str, ...] = ("loss",)

    def slopes(self, runs: Runs, like: Array) -> Slopes:
        """See `Model`."""
        size = to_like(np.prod(runs.power, axis=0), like)
        factors = to_like(np.ones((2, *runs.rate.shape)), like)
        result = to_like(np.ones((2, *runs.rate.shape)), like)
        last = len(self.names) - 1

        def slopes(along: Array, squared: Array) -> tuple[Array, Array]:
            factors[0], factors[1] = squared, along
            running: Array = size
            for v in range(last + 1):  # of all before v, then of all after it: no division by what may be zero
                result[:, v] = running
                running = running * factors[:, v]
            running = factors[:, last]
            for v in range(last - 1, -1, -1):
                result[:, v] *= running
                running = running * factors[:, v]
            return result[0], result[1]

        return slopes

    def losses(self, runs: Runs, along: Floats, across: Floats) -> Floats:
        """See `Model`."""
        found: Floats = 0.5 * np.prod(runs.power, axis=0) * mismatch(along, across)
        return found[..., None, :]

    def part(self, runs: slice) -> TensorProduct:
        """See `Model`."""
        return self


@dataclass(frozen=True)
class Coopetition:
    """`L = (L1 + mu) L2 + alpha C` (thesis, 5.7): two mechanisms that share b and c, and compete through a and d.

    `L1 = 1/2 mean (a*⊗b*⊗c* - a⊗b⊗c)^2`, `L2 = 1/2 mean (d*⊗b*⊗c* - d⊗b⊗c)^2`, `C = 1/2 mean (a⊗d)^2`.

    Attributes:
        mu: how much mechanism 2 is preferred in the end; a number, or one a run [R].
        alpha: strength of the competition; likewise.
    """

    mu: float | Floats = 0.1
    alpha: float | Floats = 0.1
    names: tuple[str, ...] = ("a", "d", "b", "c")
    terms: tuple[str, ...] = ("loss", *MECHANISMS, "competition")

    def __post_init__(self) -> None:
        for name, value in (("mu", self.mu), ("alpha", self.alpha)):
            values = np.atleast_1d(value)
            if (wrong := ~(np.isfinite(values) & (values >= 0))).any():
                raise InputError(f"{name}: must be 0 or more, got {values[wrong][0]}")

    def sizes(self, runs: Runs) -> Floats:
        """Half the mean square of each mechanism's true tensor, its loss where it predicts nothing: [2,R]."""
        found: Floats = 0.5 * runs.power[:2] * runs.power[2] * runs.power[3]
        return found

    def slopes(self, runs: Runs, like: Array) -> Slopes:
        """See `Model`."""
        shape = (2, len(runs))
        sizes = self.sizes(runs)
        half, twice = to_like(sizes, like), to_like(2 * sizes, like)
        # the other mechanism's loss is what a mechanism's gradient is weighted with: mu comes into that of mechanism 2
        offset = to_like(np.stack(np.broadcast_arrays(np.zeros(len(runs)), self.mu)), like)
        competition = to_like(np.broadcast_to(self.alpha * runs.power[0] * runs.power[1], shape).copy(), like)
        own, true = (to_like(np.zeros((4, len(runs))), like) for _ in range(2))
        other = [1, 0]

        def slopes(along: Array, squared: Array) -> tuple[Array, Array]:
            shared_along, shared_squared = along[2] * along[3], squared[2] * squared[3]
            loss = half * (1.0 - 2.0 * (along[:2] * shared_along) + squared[:2] * shared_squared)
            weight = (loss[other] + offset) * twice
            own[:2] = weight * shared_squared + competition * squared[:2][other]
            true[:2] = weight * shared_along
            by_squared, by_along = weight * squared[:2], weight * along[:2]
            own[2:] = (by_squared[0] + by_squared[1]) * squared[2:][other]
            true[2:] = (by_along[0] + by_along[1]) * along[2:][other]
            return own, true

        return slopes

    def losses(self, runs: Runs, along: Floats, across: Floats) -> Floats:
        """See `Model`."""
        first, second = (
            0.5 * np.prod(runs.power[chosen], axis=0) * mismatch(along[..., chosen, :], across[..., chosen, :])
            for chosen in ([0, 2, 3], [1, 2, 3])
        )
        squared = along[..., :2, :] ** 2 + across[..., :2, :] ** 2
        competition = 0.5 * np.prod(runs.power[:2], axis=0) * np.prod(squared, axis=-2)
        loss = (first + self.mu) * second + self.alpha * competition
        return np.stack([loss, first, second, competition], axis=-2)

    def part(self, runs: slice) -> Coopetition:
        """See `Model`."""
        mu, alpha = (value[runs] if isinstance(value, np.ndarray) else value for value in (self.mu, self.alpha))
        return Coopetition(mu, alpha)


def to_like(values: Floats, like: Array) -> Array:
    """The values as an array of the library and on the device of another."""
    if isinstance(like, np.ndarray):
        return np.ascontiguousarray(values)
    import torch

    return torch.tensor(values, dtype=like.dtype, device=like.device)


def explicit_loss(model: Model, vectors: Sequence[Array], true: Sequence[Array]) -> Array:
    """The loss of one run on the whole tensors, with torch, as written in the thesis: the slow definition.

    Args:
        model: with a single mu and alpha, or with one a run.
        vectors, true: tensors [dim], or [R, dim] for R runs, which gives [R]; in the order of the model's names.
    """
    import torch

    def outer(parts: Sequence[Array]) -> Array:
        letters = "ijklmnopq"[: len(parts)]
        return torch.einsum(",".join("..." + letter for letter in letters) + f"->...{letters}", *parts)

    def half_mean(chosen: Sequence[int]) -> Array:
        error = outer([true[v] for v in chosen]) - outer([vectors[v] for v in chosen])
        return 0.5 * error.square().sum([-k - 1 for k in range(len(chosen))]) / prod(true[v].shape[-1] for v in chosen)

    if isinstance(model, TensorProduct):
        return half_mean(range(len(true)))
    assert isinstance(model, Coopetition)
    both = outer(vectors[:2]).square().mean([-2, -1]) / 2
    return (half_mean([0, 2, 3]) + model.mu) * half_mean([1, 2, 3]) + model.alpha * both
