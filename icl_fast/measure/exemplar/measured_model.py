"""A model with the exemplars, the sequences and the clamps it is measured under: what all its measurements share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from icl_fast.arguments import whole_number
from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.answers import (
    Answers,
    AttentionMetrics,
    RunningMeans,
    StrategyMetrics,
    join_answers,
    score_answers,
    stack_answers,
)
from icl_fast.measure.exemplar.embedded import EmbeddedChunk, EmbeddedEvaluators
from icl_fast.measure.of_model import as_stated, require_plain
from icl_fast.models import (
    Clamps,
    ExemplarModel,
    ExemplarShape,
    ExemplarTransformer,
    Intervention,
    Preservable,
    no_clamps,
    site,
)
from icl_fast.models.clamps import Head, check_heads
from icl_fast.models.exemplar_inference import Activations, ExemplarInference
from icl_fast.models.plain import model_of, why_not_plain


@dataclass(frozen=True)
class SecondPass:
    """What differs from the first pass; nothing by default (Singh 2025, Fig 4.2: pattern-preserving ablation).

    Attributes:
        heads: `[L,H]`, or `[P,L,H]`: what the heads' outputs are multiplied by, on top of what the clamps say.
        embedding: what the stream before the first layer is multiplied by.
        preserve: what attention takes from the first pass, in every layer and head.
        query_pattern: from the first pass and its sequences, `[P,H,T,B]`: where the query attends in the last layer.
    """

    heads: Tensor | None = None
    embedding: float = 1.0
    preserve: tuple[Preservable, ...] = ()
    query_pattern: Callable[[Activations, EmbeddedChunk], Tensor] | None = None


def without_heads(shape: ExemplarShape, heads: Iterable[Head]) -> Tensor:
    """`[L,H]`, 0 at these heads, 1 elsewhere.

    Raises:
        InputError: a head that such a model does not have.
    """
    removed = list(heads)
    check_heads(shape, removed)
    kept = torch.ones(shape.layers, shape.heads, dtype=torch.float32, device="cpu")
    for layer, head in removed:
        kept[layer, head] = 0
    return kept


def only_head(shape: ExemplarShape, layer: int, head: int) -> Tensor:
    """`[L,H]`, 0 at all other heads of this head's layer, 1 elsewhere; a negative layer counts from the last.

    Raises:
        InputError: a layer that such a model does not have.
    """
    layer = whole_number("layer", layer, -shape.layers, shape.layers - 1) % shape.layers
    return without_heads(shape, [(layer, other) for other in range(shape.heads) if other != head])


class MeasuredModel:
    """A model of P members, the exemplars it is shown, an evaluator's N sequences of them, and what is forced in it.

    Attributes:
        features: `[K,E,F]`.
        evaluator: with fields `[P,N,...]`, or `[N,...]` for all members.
        clamps: what is forced in every pass; None: nothing.
    """

    def __init__(
        self,
        model: ExemplarModel,
        features: Tensor,
        evaluator: EvaluationSequences,
        clamps: Clamps | None = None,
        *,
        chunk: int | None = None,
        embedded: EmbeddedEvaluators | None = None,
    ) -> None:
        """Of a model and what it is measured under.

        Args:
            chunk: sequences at a time; by default as many as stay in cache.
            embedded: the evaluator's sequences among others, embedded already (see `on_each`).

        Raises:
            InputError: features, members, pairs or clamps that do not fit the model, or a chunk below 1.
        """
        self.model = model_of(ExemplarModel, model)
        self.features, self.evaluator, self.clamps = features, evaluator, clamps
        self._embedded = EmbeddedEvaluators(model, features, [evaluator], chunk) if embedded is None else embedded
        if clamps is not None:
            self.model.check_clamps(clamps)

    @cached_property
    def _inference(self) -> ExemplarInference:
        assert isinstance(self.model, ExemplarTransformer)  # `first_passes` has refused others
        return ExemplarInference(self.model, self.clamps)

    @classmethod
    def on_each(
        cls,
        model: ExemplarModel,
        features: Tensor,
        evaluators: Sequence[EvaluationSequences],
        clamps: Clamps | None = None,
        *,
        chunk: int | None = None,
    ) -> list[MeasuredModel]:
        """One model on each of some evaluators, in order; exemplars are embedded once for all of them.

        Raises:
            InputError: as for a single one.
        """
        embedded = EmbeddedEvaluators(model, features, evaluators, chunk)
        return [cls(model, features, one, clamps, embedded=embedded) for one in evaluators]

    def with_clamps(self, clamps: Clamps | None) -> MeasuredModel:
        """The same with something else forced.

        Raises:
            InputError: clamps that do not fit the model.
        """
        return MeasuredModel(self.model, self.features, self.evaluator, clamps, embedded=self._embedded)

    def with_match(self) -> MeasuredModel:
        """The same with the patterns of perfect induction heads in all heads of the last layer (the clamp `match`)."""
        forced = no_clamps(self.model.config, self.model.members) if self.clamps is None else self.clamps
        return self.with_clamps(replace(forced, match=torch.ones_like(forced.match)))

    def chunks(self) -> Iterator[EmbeddedChunk]:
        """The sequences in order, exemplars embedded."""
        return self._embedded.chunks(self.evaluator)

    @torch.inference_mode()
    def first_passes(self, *, all_rows: bool = False) -> Iterator[tuple[EmbeddedChunk, Activations]]:
        """A pass over every chunk.

        Args:
            all_rows: keep the last layer's patterns of all positions, not of the query alone.

        Raises:
            InputError: a model without attention, or one with hooks or other changes, which these passes would leave
                out.
        """
        self.model.config.check_attention("this measurement")
        require_plain(self.model, "this measurement")
        for part in self.chunks():
            yield part, self._first(part, all_rows)

    @torch.inference_mode()
    def second_passes(self, passes: Sequence[SecondPass]) -> Iterator[Answers]:
        """How A second passes answer every chunk, `[A,P,B]` (`answered` is `[P,B]`); a first pass serves them all.

        Neighbours that differ in the last layer's heads alone share all the rest.

        Raises:
            InputError: no pass, or as `first_passes`.
        """
        if not passes:
            raise InputError("passes: none given")
        for part, base in self.first_passes():
            yield self._second(part, base, passes)

    def second_pass_answers(self, passes: Sequence[SecondPass]) -> Answers:
        """How A second passes answer the sequences: `[A,P,N]` each; `answered` is `[P,N]`.

        Raises:
            InputError: no pass.
        """
        return join_answers(list(self.second_passes(passes)))

    def second_pass_means(self, passes: Sequence[SecondPass]) -> StrategyMetrics:
        """The means of `second_pass_answers` over the sequences, `[A,P]` each, in the memory of a chunk.

        Raises:
            InputError: no pass.
        """
        means = RunningMeans()
        for answers in self.second_passes(passes):
            means.add_answers(answers)
        return means.metrics

    @torch.inference_mode()
    def means(self, *, attention: bool = False, interventions: Sequence[Intervention] = ()) -> StrategyMetrics:
        """The means of a single pass over the sequences, `[P]` each.

        Args:
            attention: whether to measure where heads attend.
            interventions: what is forced besides the clamps, in every chunk, members folded into the examples: zeros
                and functions of the value.
        """
        means = RunningMeans()
        for part, logits, patterns in self._passes(attention, interventions):
            means.add_answers(score_answers(logits, part))
            if attention:
                means.add_attention(torch.stack(patterns, dim=1), part)
        if not attention:
            return means.metrics
        attended = AttentionMetrics(*(means[field.name] for field in fields(AttentionMetrics)))
        return replace(means.metrics, attention=attended)

    @as_stated()
    def _first(self, part: EmbeddedChunk, all_rows: bool) -> Activations:
        return self._inference.first(part.exemplars, part.labels, part.target, all_rows=all_rows)

    @as_stated()
    def _second(self, part: EmbeddedChunk, base: Activations, passes: Sequence[SecondPass]) -> Answers:
        run, scored, shared, ending = self._inference, [], None, None
        for one in passes:
            heads = run.clamps.heads if one.heads is None else run.clamps.heads * one.heads.to(run.clamps.heads)
            key = heads[:, :-1].cpu().numpy().tobytes(), one.embedding, one.preserve, one.query_pattern
            if ending is None or key != shared:
                pattern = None if one.query_pattern is None else one.query_pattern(base, part)
                shared, ending = key, run.ending(base, heads, one.embedding, one.preserve, pattern)
            scored.append(score_answers(run.output(base, ending, heads), part))
        return stack_answers(scored)

    def _passes(
        self, attention: bool, interventions: Sequence[Intervention]
    ) -> Iterator[tuple[EmbeddedChunk, Tensor, list[Tensor]]]:
        """Of every chunk the logits `[P,B,V]` and, where `attention`, each layer's patterns `[P,H,T,T,B]`."""
        if attention:
            self.model.config.check_attention("attention")
        changed = why_not_plain(self.model) is not None
        if isinstance(self.model, ExemplarTransformer) and not interventions and not changed:
            for part, whole in self.first_passes(all_rows=attention):
                yield part, whole.logits, [layer.pattern for layer in whole.layers]
            return
        # of a changed model only a call runs all of it
        run = self.model if changed else self.model.from_embedded
        for part in self._embedded.chunks(self.evaluator, embed=not changed):
            logits, sites = self._run(run, part, interventions, attention)
            shape = part.target.shape
            yield part, logits, [pattern.view(*shape, *pattern.shape[1:]).movedim(1, -1) for pattern in sites.values()]

    @as_stated()
    def _run(
        self,
        run: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        part: EmbeddedChunk,
        interventions: Sequence[Intervention],
        attention: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        record = [site("pattern", layer) for layer in range(self.model.config.layers if attention else 0)]
        return run(
            part.exemplars, part.labels, part.target, clamps=self.clamps, record=record, interventions=interventions
        )
