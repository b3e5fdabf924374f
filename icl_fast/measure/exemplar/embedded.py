"""An evaluator's sequences as a model reads them: exemplars embedded, in chunks that stay in a CPU's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icl_fast.arguments import shown, whole_number
from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.errors import InputError
from icl_fast.measure.of_model import as_stated
from icl_fast.models import ExemplarModel
from icl_fast.models.plain import model_of

_Noise = Callable[[int, int, int], Tensor]

# Numbers in a chunk's largest activation and in its logits, and sequences: beyond these, larger chunks are slower on a
# CPU. On a GPU a chunk costs launches, whatever its size: there they are what surely fits.
_MOST, _MOST_ON_GPU = (2**20, 2**22, 512), (2**23, 2**25, 2**14)


@dataclass(frozen=True)
class EmbeddedChunk:
    """Some sequences of an evaluator, as a model of P members reads them.

    Attributes:
        exemplars: `[P,B,n+1,C]`, after `embed_exemplar`; `[P,B,n+1,F]` before it, where that was asked for.
        labels: `[P,B,n]`.
        target: `[P,B]`.
        right: `[P,B,n]` bool: which labels in context are correct.
        correct: `[P,B,M]`: the correct outputs, the first of every repeat; -1 elsewhere.
    """

    exemplars: Tensor
    labels: Tensor
    target: Tensor
    right: Tensor
    correct: Tensor


def default_chunk(model: ExemplarModel, device: str) -> int:
    """Sequences at a time."""
    stream, logits, most = _MOST_ON_GPU if device == "cuda" else _MOST
    config, members = model.config, model.members
    fit = min(stream // (members * 4 * config.width * config.length), logits // (members * config.outputs))
    return max(32, min(most, fit))


class EmbeddedEvaluators:
    """Evaluators in chunks, exemplars embedded.

    Each different exemplar is embedded once, if on average it is shown twice or more.
    """

    def __init__(
        self,
        model: ExemplarModel,
        features: Tensor,
        evaluators: Sequence[EvaluationSequences],
        chunk: int | None = None,
    ) -> None:
        """Of a model, `[K,E,F]` features, and evaluators with fields `[P,N,...]`, or `[N,...]` for all members.

        Raises:
            InputError: features, members or pairs that do not fit the model, or a chunk below 1.
        """
        model = model_of(ExemplarModel, model)
        config = model.config
        dtype = next(model.parameters()).dtype
        wanted = f"features: must be {dtype} [K,E,F={config.features}]"
        if not isinstance(features, Tensor):
            raise InputError(f"{wanted}, got {shown(features)}")
        if features.ndim != 3 or features.shape[-1] != config.features or features.dtype != dtype:
            raise InputError(f"{wanted}, got {features.dtype} {list(features.shape)}")
        for one in evaluators:
            shape = one.sequences.labels.shape
            if shape[-1] != config.pairs or (len(shape) == 3 and shape[0] != model.members):
                raise InputError(
                    f"evaluator {one.name}: labels must be [N,{config.pairs}] or [P={model.members},N,"
                    f"{config.pairs}] for this model, got {list(shape)}"
                )
        if chunk is not None:
            whole_number("chunk", chunk, 1)
        self.chunk = chunk or default_chunk(model, features.device.type)
        self.model, self._exemplars_per_class = model, features.shape[1]
        self._features = features.flatten(0, 1)
        self._table = self._unique_table(evaluators)

    @torch.inference_mode()
    def chunks(self, evaluator: EvaluationSequences, *, embed: bool = True) -> Iterator[EmbeddedChunk]:
        """The sequences of an evaluator in order; with or without exemplars embedded."""
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
                self._exemplars(rows, start, evaluator.noise, embed),
                labels[:, part],
                target[:, part],
                (labels[:, part, :, None] == known[:, :, None]).any(-1),
                known.masked_fill(repeats(known), -1),
            )

    def _rows(self, classes: Tensor, exemplars: Tensor) -> Tensor:
        return classes * self._exemplars_per_class + exemplars

    @torch.inference_mode()
    @as_stated()
    def _unique_table(self, evaluators: Sequence[EvaluationSequences]) -> Tensor | None:
        """Every exemplar that is shown, embedded, `[P,U,C]`; where each is, is in `self._place`. None: too many."""
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

    @as_stated()
    def _exemplars(self, rows: Tensor, start: int, noise: _Noise | None, embed: bool) -> Tensor:
        if embed and noise is None and self._table is not None:
            members = torch.arange(len(rows), device=rows.device)[:, None, None]
            return self._table[members, self._place[rows]]
        features = self._features[rows]
        if noise is not None:
            features = features + _per_member(noise(start, rows.shape[1], features.shape[-1]), len(rows), 4)
        embedded: Tensor = self.model.embed_exemplar(features) if embed else features
        return embedded


def _per_member(values: Tensor, members: int, dims: int) -> Tensor:
    return values if values.ndim == dims else values.expand(members, *values.shape)


def repeats(values: Tensor) -> Tensor:
    """`[...,n]`: whether the same value is at an earlier index."""
    same = values[..., :, None] == values[..., None, :]
    return same.tril(-1).any(-1)


def _split(indices: Tensor, size: int) -> list[Tensor]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
