"""How well models answer the evaluators' sequences, and where they attend: which strategy they follow.

Sequences are evaluated in chunks that stay in cache; sums over them are kept in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.errors import InputError
from icl_fast.models import Clamps, ExemplarTransformer, Intervention, site
from icl_fast.models.exemplar_inference import ExemplarInference

METRICS = ("accuracy", "accuracy_in_context", "probability", "probability_in_context", "loss")
# numbers in a chunk's largest activation and in its logits: beyond these, larger chunks are slower
_STREAM_NUMBERS, _LOGIT_NUMBERS = 2**20, 2**22


@dataclass(frozen=True)
class Answers:
    """How each of N sequences is answered by each of P members; all `[*, P, N]` (Singh 2025, 2.2.3, 4.3, 5.2.3).

    `*` is nothing, or the passes of `icl_fast.measure.exemplar.passes`.

    Attributes:
        correct: 1 where the largest of all outputs is a correct one, else 0.
        correct_in_context: 1 where the largest output of those in context is a correct one, else 0.
        probability: of the correct outputs together.
        probability_in_context: the same among the outputs in context.
        loss: cross-entropy of the target, nats.
        answered: `[P, N]` bool: whether an output in context is correct; where none is, what is in context means
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
        induction: `[P, L, H]`: attention of the query to right labels minus that to wrong ones, over the sequences that
            hold a right one ("induction strength", Singh 2025, 4.3; Fig 5.6a).
        previous_token: `[P, L, H]`: attention of labels to the exemplar before them (Fig 5.7, top).
        own: `[P, L, H]`: attention of labels to themselves (Fig 5.7, bottom).
        query: `[P, L, H, n, T]`: attention of the query to every position, over the sequences with a right label at
            the j-th place; one with several right labels counts at each of their places (Fig 5.3a, b).
    """

    induction: Tensor
    previous_token: Tensor
    own: Tensor
    query: Tensor


@dataclass(frozen=True)
class StrategyMetrics:
    """What P members make of an evaluator: means of `Answers` over its sequences, `[*, P]` float64.

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


@dataclass(frozen=True)
class EmbeddedChunk:
    """Some sequences of an evaluator, as a model of P members reads them.

    Attributes:
        exemplars: `[P, B, n + 1, C]`, after `embed_exemplar`.
        labels: `[P, B, n]`.
        target: `[P, B]`.
        right: `[P, B, n]` bool: which labels in context are correct.
        correct: `[P, B, M]`: the correct outputs, the first of every repeat; -1 elsewhere.
    """

    exemplars: Tensor
    labels: Tensor
    target: Tensor
    right: Tensor
    correct: Tensor


class EmbeddedEvaluators:
    """Evaluators in chunks, exemplars embedded.

    Each different exemplar is embedded once, if on average it is shown twice or more.
    """

    def __init__(
        self,
        model: ExemplarTransformer,
        features: Tensor,
        evaluators: Sequence[EvaluationSequences],
        chunk: int | None = None,
    ) -> None:
        """Of a model, `[K, E, F]` features, and evaluators with fields `[P, N, ...]`, or `[N, ...]` for all members.

        Raises:
            InputError: features, members or pairs that do not fit the model, or a chunk below 1.
        """
        config = model.config
        if features.ndim != 3 or features.shape[-1] != config.features:
            raise InputError(f"features: must be [K, E, F={config.features}], got {list(features.shape)}")
        for one in evaluators:
            shape = one.sequences.labels.shape
            if shape[-1] != config.pairs or (len(shape) == 3 and shape[0] != model.members):
                raise InputError(
                    f"evaluator {one.name}: labels must be [N, {config.pairs}] or [P={model.members}, N, "
                    f"{config.pairs}] for this model, got {list(shape)}"
                )
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk: must be 1 or more, got {chunk}")
        stream, logits = 4 * config.width * config.length, config.outputs
        fit = min(_STREAM_NUMBERS // (model.members * stream), _LOGIT_NUMBERS // (model.members * logits))
        self.chunk = chunk or max(32, min(512, fit))
        self.model, self._exemplars_per_class = model, features.shape[1]
        self._features = features.flatten(0, 1)
        self._table = self._unique_table(evaluators)

    def chunks(self, evaluator: EvaluationSequences) -> Iterator[EmbeddedChunk]:
        """The sequences of an evaluator in order."""
        members, sequences = self.model.members, evaluator.sequences
        classes, exemplars, labels, target = (
            _per_member(part, members, dims)
            for part, dims in (
                (sequences.classes, 3),
                (sequences.exemplars, 3),
                (sequences.labels, 3),
                (sequences.target, 2),
            )
        )
        correct = _per_member(evaluator.correct, members, 3)
        for start in range(0, target.shape[1], self.chunk):
            part = slice(start, start + self.chunk)
            known = correct[:, part]
            rows = self._rows(classes[:, part], exemplars[:, part])
            yield EmbeddedChunk(
                self._embedded(rows) if evaluator.noise is None else self._noisy(rows, start, evaluator.noise),
                labels[:, part],
                target[:, part],
                (labels[:, part, :, None] == known[:, :, None]).any(-1),
                known.masked_fill(_repeats(known), -1),
            )

    def _rows(self, classes: Tensor, exemplars: Tensor) -> Tensor:
        return classes * self._exemplars_per_class + exemplars

    def _unique_table(self, evaluators: Sequence[EvaluationSequences]) -> Tensor | None:
        """Every exemplar that is shown, embedded, `[P, U, C]`; where each is, is in `self._place`. None: too many."""
        shown = torch.zeros(len(self._features), dtype=torch.bool, device=self._features.device)
        slots = 0
        for one in evaluators:
            rows = self._rows(one.sequences.classes, one.sequences.exemplars)
            shown[rows] = True
            slots += rows.shape[-1] * rows.shape[-2]
        unique = shown.nonzero()[:, 0]
        if 2 * len(unique) > slots:
            return None
        self._place = shown.cumsum(0) - 1
        members = self.model.members
        parts = [self.model.embed_exemplar(self._features[i].expand(members, -1, -1)) for i in _split(unique, 4096)]
        return torch.cat(parts, dim=1)

    def _noisy(self, rows: Tensor, start: int, noise: Callable[[int, int, int], Tensor]) -> Tensor:
        added = _per_member(noise(start, rows.shape[1], self._features.shape[-1]), len(rows), 4)
        embedded: Tensor = self.model.embed_exemplar(self._features[rows] + added)
        return embedded

    def _embedded(self, rows: Tensor) -> Tensor:
        if self._table is None:
            embedded: Tensor = self.model.embed_exemplar(self._features[rows])
            return embedded
        members = torch.arange(len(rows), device=rows.device)[:, None, None]
        return self._table[members, self._place[rows]]


def score_answers(logits: Tensor, chunk: EmbeddedChunk) -> Answers:
    """How sequences are answered, given the logits `[P, B, V]`."""
    total = logits.logsumexp(-1)
    known = chunk.correct >= 0
    correct_logits = logits.gather(-1, chunk.correct.clamp_min(0)).masked_fill(~known, -torch.inf)
    best = logits.argmax(-1, keepdim=True)
    shown = logits.gather(-1, chunk.labels)  # [P, B, n]
    first = ~_repeats(chunk.labels)
    among = shown.masked_fill(~first, -torch.inf).softmax(-1)
    best_shown = chunk.right.gather(-1, shown.argmax(-1, keepdim=True))[..., 0]
    return Answers(
        correct=(chunk.correct == best).any(-1).to(logits.dtype),
        correct_in_context=best_shown.to(logits.dtype),
        probability=(correct_logits.logsumexp(-1) - total).exp(),
        probability_in_context=(among * chunk.right).sum(-1),
        loss=total - logits.gather(-1, chunk.target[..., None])[..., 0],
        answered=chunk.right.any(-1),
    )


def join_answers(parts: Sequence[Answers]) -> Answers:
    """Chunks one after the other."""
    return Answers(*(torch.cat([getattr(part, field.name) for part in parts], dim=-1) for field in fields(Answers)))


@torch.inference_mode()
def evaluate_strategies(
    model: ExemplarTransformer,
    features: Tensor,
    evaluators: Sequence[EvaluationSequences],
    clamps: Clamps | None = None,
    *,
    interventions: Sequence[Intervention] = (),
    attention: bool = False,
    chunk: int | None = None,
) -> dict[str, StrategyMetrics]:
    """Metrics of every evaluator, by its name; a forward pass a chunk gives all (Singh 2025, 2.2.3, 4.3, 5.2.3).

    Args:
        features: `[K, E, F]`, shown as they are (no noise is added).
        evaluators: with fields `[P, N, ...]`, or `[N, ...]` for all members.
        clamps: what is forced in each member.
        interventions: what is forced besides, in every chunk, members folded into the examples: zeros and functions of
            the value.
        attention: whether to measure where heads attend.
        chunk: sequences a pass; by default as many as stay in cache.

    Raises:
        InputError: features, members or pairs that do not fit the model.
    """
    embedded = EmbeddedEvaluators(model, features, evaluators, chunk)
    fast = None if interventions else ExemplarInference(model, clamps)
    found = {}
    for evaluator in evaluators:
        means = RunningMeans()
        for part in embedded.chunks(evaluator):
            if fast is not None:
                whole = fast.first(part.exemplars, part.labels, part.target, all_rows=attention)
                logits, patterns = whole.logits, [layer.pattern for layer in whole.layers]
            else:
                logits, patterns = _by_definition(model, part, clamps, interventions)
            means.add_answers(score_answers(logits, part))
            if attention:
                _add_attention(means, torch.stack(patterns, dim=1), part)
        metrics = means.metrics
        if attention:
            where = AttentionMetrics(*(means[field.name] for field in fields(AttentionMetrics)))
            metrics = replace(metrics, attention=where)
        found[evaluator.name] = metrics
    return found


def _by_definition(
    model: ExemplarTransformer, part: EmbeddedChunk, clamps: Clamps | None, interventions: Sequence[Intervention]
) -> tuple[Tensor, list[Tensor]]:
    """Logits `[P, B, V]` and each layer's patterns `[P, H, T, T, B]`."""
    record = [site("pattern", layer) for layer in range(model.config.layers)]
    logits, sites = model.from_embedded(
        part.exemplars, part.labels, part.target, clamps=clamps, record=record, interventions=interventions
    )
    patterns = [sites[name].view(*part.target.shape, *sites[name].shape[1:]).movedim(1, -1) for name in record]
    return logits, patterns


def _add_attention(means: RunningMeans, patterns: Tensor, part: EmbeddedChunk) -> None:
    """Patterns `[P, L, H, T, T, B]`."""
    query, right = patterns[..., -1, :, :], part.right.mT[:, None, None]  # [P, L, H, T, B], [P, 1, 1, n, B]
    labels = patterns[..., 1::2, :, :]  # [P, L, H, n, T, B]
    sign = 2 * right.to(query.dtype) - 1
    means.add("induction", (query[..., 1::2, :] * sign).sum(-2), right.any(-2))
    always = torch.ones_like(right.any(-2))
    means.add("previous_token", labels[..., 0:-1:2, :].diagonal(dim1=-3, dim2=-2).mean(-1), always)
    means.add("own", labels[..., 1::2, :].diagonal(dim1=-3, dim2=-2).mean(-1), always)
    means.add("query", query[..., None, :, :], right[..., None, :])


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

    @property
    def metrics(self) -> StrategyMetrics:
        """The means of the answers."""
        accuracy, within, probability, probability_within, loss = (self[name] for name in METRICS)
        return StrategyMetrics(accuracy, within, probability, probability_within, loss)

    def __getitem__(self, name: str) -> Tensor:
        total, count = self._sums[name]
        return total / count


def _per_member(values: Tensor, members: int, dims: int) -> Tensor:
    return values if values.ndim == dims else values.expand(members, *values.shape)


def _repeats(values: Tensor) -> Tensor:
    """`[..., n]`: whether the same value is at an earlier index."""
    same = values[..., :, None] == values[..., None, :]
    return same.tril(-1).any(-1)


def _split(indices: Tensor, size: int) -> list[Tensor]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
