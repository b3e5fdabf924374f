"""How sequences are answered and where heads attend, and the means of both over an evaluator's sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from icl_fast.measure.exemplar.embedded import EmbeddedChunk, repeats

METRICS = ("accuracy", "accuracy_in_context", "probability", "probability_in_context", "loss")


@dataclass(frozen=True)
class Answers:
    """How each of N sequences is answered by each of P members; all `[*,P,N]` (Singh 2025, 2.2.3, 4.3, 5.2.3).

    `*` is nothing, or the A second passes of `icl_fast.measure.exemplar.measured_model`.

    Attributes:
        correct: 1 where the largest of all outputs is a correct one, else 0; NaN where logits are not finite.
        correct_in_context: 1 where the largest output of those in context is a correct one, else 0.
        probability: of the correct outputs together.
        probability_in_context: the same among the outputs in context.
        loss: cross-entropy of the target, nats.
        answered: `[P,N]` bool: whether an output in context is correct; where none is, what is in context means
            nothing.
    """

    correct: Tensor
    correct_in_context: Tensor
    probability: Tensor
    probability_in_context: Tensor
    loss: Tensor
    answered: Tensor


@dataclass(frozen=True)
class AttentionMetrics:
    """Where P members attend, mean over an evaluator's sequences. NaN where no sequence counts.

    Attributes:
        induction: `[P,L,H]`: attention of the query to right labels minus that to wrong ones, over the sequences that
            hold a right one ("induction strength", Singh 2025, 4.3; Fig 5.6a).
        previous_token: `[P,L,H]`: attention of labels to the exemplar before them (Fig 5.7, top).
        own: `[P,L,H]`: attention of labels to themselves (Fig 5.7, bottom).
        query: `[P,L,H,n,T]`: attention of the query to every position, over the sequences with a right label at
            the j-th place; one with several right labels counts at each of their places (Fig 5.3a, b).
    """

    induction: Tensor
    previous_token: Tensor
    own: Tensor
    query: Tensor


@dataclass(frozen=True)
class StrategyMetrics:
    """What P members make of an evaluator: means of `Answers` over its sequences, `[*,P]` float64.

    Attributes:
        accuracy: over all outputs; any correct output counts.
        accuracy_in_context: over the outputs in context, of the sequences that have a correct one there; NaN if none.
        probability: of the correct outputs.
        probability_in_context: the same among the outputs in context; NaN if no sequence has a correct one there.
        loss: cross-entropy of the target, nats.
        attention: where asked for.
    """

    accuracy: Tensor
    accuracy_in_context: Tensor
    probability: Tensor
    probability_in_context: Tensor
    loss: Tensor
    attention: AttentionMetrics | None = None

    def mapped(self, function: Callable[[Tensor], Tensor]) -> StrategyMetrics:
        """A function of every metric, without attention."""
        return replace(self, attention=None, **{name: function(getattr(self, name)) for name in METRICS})


def score_answers(logits: Tensor, chunk: EmbeddedChunk) -> Answers:
    """How sequences are answered, given the logits `[P,B,V]`."""
    total = logits.logsumexp(-1)
    defined = total.isfinite()  # a model that diverged answers nothing: what is largest among NaN is no answer
    known = chunk.correct >= 0
    correct_logits = logits.gather(-1, chunk.correct.clamp_min(0)).masked_fill(~known, -torch.inf)
    best = logits.argmax(-1, keepdim=True)
    shown = logits.gather(-1, chunk.labels)  # [P,B,n]
    first = ~repeats(chunk.labels)
    among = shown.masked_fill(~first, -torch.inf).softmax(-1)
    best_shown = chunk.right.gather(-1, shown.argmax(-1, keepdim=True))[..., 0]
    return Answers(
        correct=(chunk.correct == best).any(-1).to(logits.dtype).masked_fill(~defined, torch.nan),
        correct_in_context=best_shown.to(logits.dtype).masked_fill(~defined, torch.nan),
        probability=(correct_logits.logsumexp(-1) - total).exp(),
        probability_in_context=(among * chunk.right).sum(-1),
        loss=total - logits.gather(-1, chunk.target[..., None])[..., 0],
        answered=chunk.right.any(-1),
    )


def stack_answers(passes: Sequence[Answers]) -> Answers:
    """Several passes over the same sequences, `[A,P,N]` each; `answered` stays `[P,N]`."""
    values = {field.name: torch.stack([getattr(one, field.name) for one in passes]) for field in fields(Answers)}
    return Answers(**{**values, "answered": passes[0].answered})


def join_answers(parts: Sequence[Answers]) -> Answers:
    """Chunks one after the other."""
    return Answers(*(torch.cat([getattr(part, field.name) for part in parts], dim=-1) for field in fields(Answers)))


class RunningMeans:
    """Means over the last dimension, the sequences, of the values that count, by name; added up in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, values: Tensor, counted: Tensor) -> None:
        """More values, and whether each counts."""
        # not times 0, which would leave NaN
        total, count = torch.where(counted, values, 0).sum(-1, dtype=torch.float64), counted.sum(-1)
        if name in self._sums:
            total, count = total + self._sums[name][0], count + self._sums[name][1]
        self._sums[name] = total, count

    def add_answers(self, answers: Answers) -> None:
        """The answers to more sequences."""
        for name, field in zip(METRICS, fields(answers), strict=False):  # both in this order
            counted = answers.answered if name.endswith("in_context") else torch.ones_like(answers.answered)
            self.add(name, getattr(answers, field.name), counted)

    def add_attention(self, patterns: Tensor, part: EmbeddedChunk) -> None:
        """Where heads attend in more sequences: patterns `[P,L,H,T,T,B]`."""
        query, right = patterns[..., -1, :, :], part.right.mT[:, None, None]  # [P,L,H,T,B], [P,1,1,n,B]
        labels = patterns[..., 1::2, :, :]  # [P,L,H,n,T,B]
        sign = 2 * right.to(query.dtype) - 1
        self.add("induction", (query[..., 1::2, :] * sign).sum(-2), right.any(-2))
        always = torch.ones_like(right.any(-2))
        self.add("previous_token", labels[..., 0:-1:2, :].diagonal(dim1=-3, dim2=-2).mean(-1), always)
        self.add("own", labels[..., 1::2, :].diagonal(dim1=-3, dim2=-2).mean(-1), always)
        self.add("query", query[..., None, :, :], right[..., None, :])

    @property
    def metrics(self) -> StrategyMetrics:
        """The means of the answers."""
        accuracy, within, probability, probability_within, loss = (self[name] for name in METRICS)
        return StrategyMetrics(accuracy, within, probability, probability_within, loss)

    def __getitem__(self, name: str) -> Tensor:
        total, count = self._sums[name]
        return total / count
