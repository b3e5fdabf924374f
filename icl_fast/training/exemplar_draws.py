"""What exemplar models are trained on: the sequences of consecutive steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from icl_fast.data.sequences import Sequences, SequenceSampler

_FIELDS = ("classes", "exemplars", "labels", "target")
_CHUNK_BYTES = 32 * 2**20  # of integer draws; larger calls cost less per sequence
Noise = Callable[[int], Tensor]


@dataclass(frozen=True)
class Draws:
    """S consecutive steps of P members: integers `[S,P,B,...]` as in `Sequences`; `noise` of a step, if any.

    Attributes:
        noise: given 0 to S - 1, what to add to that step's features, `[P,B,n+1,F]`.
    """

    classes: Tensor
    exemplars: Tensor
    labels: Tensor
    target: Tensor
    noise: Noise | None = None

    def __len__(self) -> int:
        return len(self.target)


def steps_of(sequences: Sequences, steps: int) -> Draws:
    """Cut the sequences of P members, `[P,S*B,...]`, into steps."""
    cut = (getattr(sequences, name).unflatten(1, (steps, -1)).transpose(0, 1).contiguous() for name in _FIELDS)
    return Draws(*cut)


class Drawer:
    """Draws the steps of a run as they are asked for.

    On a GPU as many as fit are drawn at once: there a draw is some hundred launches, however long it is.
    """

    def __init__(self, sampler: SequenceSampler, batch: int, steps: int, noise: int = 0) -> None:
        """From the training sequences of P members.

        Args:
            sampler: of the members.
            batch: B, sequences of a step and member.
            steps: of the run: none after them is drawn ahead.
            noise: features of an exemplar that get noise; 0: none do.
        """
        self._sampler, self._batch, self._steps, self._noise = sampler, batch, steps, noise
        words = (sampler.members or 1) * batch * (4 * sampler.pairs + 3)
        self.most = max(1, _CHUNK_BYTES // (8 * words))  # steps at once
        self._drawn: Draws | None = None
        self._first = 0

    def __call__(self, step: int, count: int) -> Draws:
        """The steps `step` to `step + count - 1`."""
        at = step - self._first
        if self._drawn is None or not 0 <= at <= len(self._drawn) - count:
            ahead = min(self.most, self._steps - step) if self._sampler.device.type == "cuda" else 0
            many = max(count, ahead)
            sequences = self._sampler.draw(step * self._batch, many * self._batch)
            self._drawn, self._first, at = steps_of(sequences, many), step, 0
        classes, exemplars, labels, target = (getattr(self._drawn, name)[at : at + count] for name in _FIELDS)
        noise = partial(self._noise_of, step) if self._noise else None
        return Draws(classes, exemplars, labels, target, noise)

    def _noise_of(self, first: int, i: int) -> Tensor:
        return self._sampler.noise((first + i) * self._batch, self._batch, self._noise)
