"""How well single heads of an exemplar model's last layer copy labels to the output (Singh 2025, C.2, 5.5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icl_fast.arguments import finite_numbers, whole_numbers
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.answers import StrategyMetrics
from icl_fast.measure.exemplar.embedded import EmbeddedChunk
from icl_fast.measure.exemplar.measured_model import MeasuredModel, SecondPass, only_head
from icl_fast.models.exemplar_inference import Activations


@dataclass(frozen=True)
class SingleHeads:
    """Each head of the last layer, all others of that layer removed.

    Attributes:
        correct: `[P,H,N]` bool: whether it answers each sequence, over all outputs.
        target: `[P,N]`: the sequences' labels.
        outputs: V.
    """

    correct: Tensor
    target: Tensor
    outputs: int

    @property
    def accuracy(self) -> Tensor:
        """`[P,H]` (Fig 4.5a, circles; with perfect patterns Fig C.1a, squares)."""
        return self.correct.mean(-1, dtype=torch.float64)

    @property
    def label_accuracy(self) -> Tensor:
        """`[P,H,V]`: accuracy on the sequences of each label (Fig C.1c); NaN for a label that none has."""
        return self._by_label(self.correct) / self._by_label(torch.ones_like(self.correct))

    @property
    def label_mistakes(self) -> Tensor:
        """`[P,H,V]`: the label's share of all the head's mistakes (Fig C.1b); NaN for a head that makes none."""
        mistakes = self._by_label(~self.correct)
        return mistakes / mistakes.sum(-1, keepdim=True)

    def _by_label(self, values: Tensor) -> Tensor:
        total = values.new_zeros(*values.shape[:2], self.outputs, dtype=torch.float64)
        where = self.target[:, None].expand(values.shape)
        return total.scatter_add(-1, where, values.to(torch.float64))


@dataclass(frozen=True)
class ResidualHeads:
    """Whether other heads answer what one head gets wrong: tables C.1 and, with perfect patterns, C.2.

    Attributes:
        reference: `[P]` int64: the head whose mistakes are looked at.
        mistakes: `[P]` int64: how many sequences it gets wrong.
        on_mistakes: `[P,H]`: accuracy of each head on those; NaN if there is none, 0 for the reference itself.
        overall: `[P,H]`: accuracy of each head on all sequences.
    """

    reference: Tensor
    mistakes: Tensor
    on_mistakes: Tensor
    overall: Tensor


def single_heads(measured: MeasuredModel, *, perfect: bool = False) -> SingleHeads:
    """Each head of the last layer alone.

    Args:
        perfect: with the patterns of perfect induction heads (the clamp `match`), so that only copying can fail.

    Raises:
        InputError: logits that are not finite.
    """
    config = measured.model.config
    passes = [SecondPass(only_head(config, -1, head)) for head in range(config.heads)]
    answers = (measured.with_match() if perfect else measured).second_pass_answers(passes)
    if bool(answers.correct.isnan().any()):
        raise InputError("model: its logits are NaN or infinite, so that it answers nothing")
    target = measured.evaluator.sequences.target
    target = target if target.ndim == 2 else target.expand(measured.model.members, -1)
    return SingleHeads(answers.correct.movedim(0, 1) == 1, target, config.outputs)


def residual_heads(heads: SingleHeads, reference: int | Sequence[int] | None = None) -> ResidualHeads:
    """Accuracy of every head on what the reference head gets wrong.

    Args:
        reference: the head, for all members or each; None: that of the highest accuracy.

    Raises:
        InputError: a head that the model does not have, or another number of them than members.
    """
    members, count, _ = heads.correct.shape
    if reference is None:
        chosen = heads.accuracy.argmax(-1)
    else:
        given = reference if isinstance(reference, Iterable) else [reference] * members
        references = whole_numbers("reference", given)
        if len(references) != members or not all(0 <= head < count for head in references):
            raise InputError(
                f"reference {reference}: must be a head 0 to {count - 1}, one for each of {members} members"
            )
        chosen = torch.tensor(references, device=heads.correct.device)
    wrong = ~heads.correct[torch.arange(members, device=chosen.device), chosen]  # [P,N]
    answered = (heads.correct & wrong[:, None]).sum(-1)
    return ResidualHeads(chosen, wrong.sum(-1), answered / wrong.sum(-1, keepdim=True).double(), heads.accuracy)


def attention_weight_curve(measured: MeasuredModel, weights: Sequence[float]) -> StrategyMetrics:
    """Each last-layer head alone, its query made to attend to labels so much (Fig 5.3c): `[W,H,P]`.

    A weight w is that on the right labels together, 1 - w is on the wrong ones; each half is even over its labels. A
    sequence without labels of one kind has the whole weight on none of that kind: what is left of it is not attended.

    Raises:
        InputError: no weight, or one outside 0 to 1.
    """
    weights = finite_numbers("weights", weights, 0, 1)
    config = measured.model.config
    passes = [
        SecondPass(only_head(config, -1, head), query_pattern=_ClampedWeight(weight))
        for weight in weights
        for head in range(config.heads)
    ]
    means = measured.second_pass_means(passes)
    return means.mapped(lambda values: values.view(len(weights), config.heads, -1))


@dataclass(frozen=True)
class _ClampedWeight:
    weight: float

    def __call__(self, base: Activations, part: EmbeddedChunk) -> Tensor:
        pattern = torch.zeros_like(base.layers[-1].pattern[:, :, -1])  # [P,H,T,B]
        right = part.right.to(pattern.dtype)
        for kind, weight in ((right, self.weight), (1 - right, 1 - self.weight)):
            share = weight * kind / kind.sum(-1, keepdim=True).clamp_min(1)
            pattern[:, :, 1::2] += share.mT[:, None]
        return pattern
