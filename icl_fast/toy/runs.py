"""What a simulation starts from: many runs of some vectors, each with its true value, as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np

from icl_fast.analysis.arrays import Floats
from icl_fast.errors import InputError
from icl_fast.memory import check_fits


@dataclass(frozen=True)
class Runs:
    """R runs of V vectors in K coordinates, in units of each true vector's length.

    Every gradient of both models is a combination of the vector itself and its true value, so a vector never leaves the
    plane of the two that it starts in. In that plane (K = 2) a run is exactly the same: the first coordinate is along
    the true vector, the second across. The number of elements is then only in `rate`.

    Attributes:
        names: of the vectors.
        start: [K,V,R].
        true: [K,V,R], unit vectors.
        rate: [V,R], learning rate over the squared length of the true vector; 0 for a clamped vector.
        power: [V,R], mean square of the true vector's elements.
        seeds: [R].
    """

    names: tuple[str, ...]
    start: Floats
    true: Floats
    rate: Floats
    power: Floats
    seeds: np.ndarray

    def __len__(self) -> int:
        return int(self.rate.shape[-1])

    def part(self, runs: slice) -> Runs:
        """Some of the runs."""
        return replace(
            self,
            start=self.start[..., runs],
            true=self.true[..., runs],
            rate=self.rate[:, runs],
            power=self.power[:, runs],
            seeds=self.seeds[runs],
        )


def draw_runs(
    names: Sequence[str],
    dims: Sequence[int],
    seeds: Sequence[int],
    *,
    lr: float = 1.0,
    scale: float = 1.0,
    clamped: Sequence[str] = (),
    plane: bool = True,
) -> Runs:
    """One run a seed, every element from N(0, 1) (thesis, appendix D.2).

    A seed gives a vector the same values whatever the others' dims are, if those before it in alphabetical order keep
    theirs, and whatever is clamped.

    Args:
        names: of the vectors, single letters.
        dims: number of elements of each vector.
        seeds: one a run.
        lr: step size of gradient descent.
        scale: the elements of the starting vectors (not of the true ones) are multiplied by this.
        clamped: vectors that are, and stay, their true value.
        plane: reduce each vector to two coordinates; else keep all, padded with zeros to the largest of `dims`.

    Raises:
        InputError: names and dims that do not fit, no seed, a clamp of no such vector, a size or rate that is not
            positive, more than the memory holds.
    """
    _check(names, dims, seeds, lr, scale, clamped)
    order = sorted(range(len(names)), key=lambda index: names[index])
    drawn = np.zeros((2, max(dims), len(names), len(seeds)))
    for run, seed in enumerate(seeds):
        generator = np.random.default_rng(seed)
        for index in order:
            drawn[:, : dims[index], index, run] = generator.standard_normal((2, dims[index]))
    true, start = drawn[0], scale * drawn[1]
    if not np.isfinite(np.square(start).sum()):
        raise InputError(f"scale: vectors at {scale:g} are too long to compute with; lower it")
    fixed = [name in clamped for name in names]
    start[:, fixed] = true[:, fixed]
    squared = (true**2).sum(0)
    start, true = start / np.sqrt(squared), true / np.sqrt(squared)
    if plane:
        along = (start * true).sum(0)
        across = np.sqrt(((start - along * true) ** 2).sum(0))
        across[fixed] = 0.0
        along[fixed] = 1.0
        start = np.stack([along, across])
        true = np.stack([np.ones_like(along), np.zeros_like(across)])
    rate = lr / squared
    rate[fixed] = 0.0
    return Runs(tuple(names), start, true, rate, squared / np.array(dims)[:, None], np.array(seeds))


def join_runs(parts: Sequence[Runs]) -> Runs:
    """One batch of several: of other dims, other clamps, even fewer vectors.

    A vector that a part lacks is there as one clamped to a true value of length 1, which changes nothing of the tensor
    product model; coordinates that a part lacks are zero, which changes nothing either.

    Raises:
        InputError: the names of one part are not the first of those of another.
    """
    names = max((part.names for part in parts), key=len, default=())
    if not names or any(part.names != names[: len(part.names)] for part in parts):
        raise InputError(f"parts: runs of {', '.join(''.join(part.names) for part in parts) or 'nothing'} do not join")
    deep = max(part.start.shape[0] for part in parts)

    def whole(part: Runs, values: Floats, fill: float) -> Floats:
        missing = (len(names) - len(part.names), len(part))
        if values.ndim == 2:
            return np.concatenate([values, np.full(missing, fill)])
        unit = np.zeros((deep, *missing))
        unit[0] = 1.0
        padded = np.pad(values, ((0, deep - len(values)), (0, 0), (0, 0)))
        return np.concatenate([padded, unit], axis=1)

    return Runs(
        names,
        np.concatenate([whole(part, part.start, 1.0) for part in parts], axis=-1),
        np.concatenate([whole(part, part.true, 1.0) for part in parts], axis=-1),
        np.concatenate([whole(part, part.rate, 0.0) for part in parts], axis=-1),
        np.concatenate([whole(part, part.power, 1.0) for part in parts], axis=-1),
        np.concatenate([part.seeds for part in parts]),
    )


def _check(
    names: Sequence[str], dims: Sequence[int], seeds: Sequence[int], lr: float, scale: float, clamped: Sequence[str]
) -> None:
    if not names or len(set(names)) != len(names) or len(dims) != len(names):
        raise InputError(f"dims: one for each of the vectors {', '.join(names)} is needed, got {list(dims)}")
    if min(dims) < 1:
        raise InputError(f"dims: must be 1 or more, got {list(dims)}")
    # what is drawn, and as much again for its lengths and products
    check_fits(2 * 16 * max(dims) * len(names) * len(seeds), f"dims: {list(dims)} and {len(seeds)} seeds")
    if not len(seeds) or min(seeds) < 0 or max(seeds) >= 2**63:
        raise InputError("seeds: one or more are needed, from 0 to 2^63 - 1")
    if unknown := sorted(set(clamped) - set(names)):
        raise InputError(f"clamp: there is no vector {', '.join(unknown)}; there are {', '.join(names)}")
    if set(clamped) >= set(names):
        raise InputError(f"clamp: {''.join(clamped)} must leave a vector to learn")
    for name, value in (("lr", lr), ("scale", scale)):
        if not (isfinite(value) and value > 0):
            raise InputError(f"{name}: must be positive, got {value}")
