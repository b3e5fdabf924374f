"""What is kept of the losses of a chunk of examples: sums by position, from which means and standard errors follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from icl_fast.data import EvaluationSet
from icl_fast.errors import InputError
from icl_fast.measure.ablation.definition import ablated_losses
from icl_fast.measure.ablation.engine import ablation_effects
from icl_fast.measure.ablation.means import mean_activations, replacement_sites
from icl_fast.measure.ablation.plan import SweepPlan
from icl_fast.measure.ablation.products import Products
from icl_fast.measure.of_model import as_stated
from icl_fast.models import Transformer
from icl_fast.models.plain import why_not_plain


@dataclass
class LossSums:
    """The sums of some examples of one snapshot. Index 0 of A+1 is the whole model, P are the listed positions.

    Attributes:
        sums: float64 [A+1,P] of the losses.
        squares: float64 [A+1,P] of the squared losses.
        effect_squares: float64 [A+1,P] of the squared differences to the losses of the whole model.
        score_squares: float64 [A+1] of the examples' squared ICL scores, 0 without the score's positions.
        score_effect_squares: float64 [A+1] of their squared differences to those of the whole model.
        example_loss: float32 [A+1,n] at each example's random position, or [A+1,0].
        example_score: float32 [n] the examples' ICL scores under the whole model; [0] without the score's positions,
            and in parts that an earlier version wrote.
    """

    sums: np.ndarray
    squares: np.ndarray
    effect_squares: np.ndarray
    score_squares: np.ndarray
    score_effect_squares: np.ndarray
    example_loss: np.ndarray
    example_score: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))

    @classmethod
    def total(cls, parts: Sequence[LossSums]) -> LossSums:
        """Those of several parts together, added in their order."""
        sums: dict[str, np.ndarray] = {
            of.name: np.sum([getattr(part, of.name) for part in parts], axis=0)
            for of in fields(cls)
            if not of.name.startswith("example_")
        }
        return cls(
            **sums,
            example_loss=np.concatenate([part.example_loss for part in parts], axis=1),
            example_score=np.concatenate([part.example_score for part in parts]),
        )


class PartSums:
    """The sums of the parts of a plan for one snapshot.

    Raises:
        InputError: a model that the plan's engine cannot measure.
    """

    def __init__(self, model: Transformer, evaluation: EvaluationSet, plan: SweepPlan) -> None:
        if plan.engine == "fast" and (reason := why_not_plain(model)):
            raise InputError(
                f"engine: {reason}, which the fast one would leave out; take engine definition, which runs all of it"
            )
        self._model, self._evaluation, self._plan = model, evaluation, plan
        self._means = None
        if plan.replacement == "mean":
            device = model.device
            pieces = (evaluation.inputs[chunk].to(device) for chunk in _chunks(slice(0, plan.examples), plan.chunk))
            self._means = mean_activations(model, pieces, replacement_sites(plan.ablations))
        context = evaluation.inputs.shape[1]
        self._schedule = plan.schedule(model.config, context) if plan.engine == "fast" else None
        self._products = Products(model, rounded=plan.rounds_products)

    def of(self, index: int) -> LossSums:
        """Those of one part.

        Raises:
            InputError: losses that are not finite.
        """
        chunks = _chunks(self._plan.parts[index], self._plan.chunk)
        return LossSums.total([self._chunk_sums(chunk) for chunk in chunks])

    @as_stated()
    def effects(self, examples: slice, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the whole model [n,R] and what each ablation adds to them [A,n,R], in nats, float64.

        Args:
            examples: of the evaluation set.
            rows: 0-based positions [n,R].

        Raises:
            InputError: losses that are not finite.
        """
        model, plan, device = self._model, self._plan, self._model.device
        inputs, targets = (x[examples].to(device) for x in (self._evaluation.inputs, self._evaluation.targets))
        asked = inputs, targets, rows.to(device), plan.ablations, plan.ablation_mode, self._means
        if self._schedule is not None:
            found = ablation_effects(model, *asked, schedule=self._schedule, products=self._products)
            base, effects = [x.double().cpu() for x in found]
        else:
            base, *ablated = [losses.double().cpu() for losses in ablated_losses(model, *asked)]
            effects = torch.stack(ablated) - base if ablated else base.new_empty(0, *base.shape)
        losses = torch.cat((base[None], base + effects))
        if not bool(losses.isfinite().all()):
            raise _not_finite(model, plan, losses)
        return base, effects

    def _chunk_sums(self, chunk: slice) -> LossSums:
        positions = self._plan.positions
        base, effects = self.effects(chunk, positions.rows(self._evaluation.random_position[chunk]))
        effects = torch.cat((base.new_zeros(1, *base.shape), effects))  # [A+1,n,R]
        losses, listed = base + effects, len(positions.listed)
        scores, score_effects = (
            torch.stack([positions.scores(of_one[:, :listed]) for of_one in x]) for x in (losses, effects)
        )
        return LossSums(
            sums=losses[:, :, :listed].sum(1).numpy(),
            squares=losses[:, :, :listed].square().sum(1).numpy(),
            effect_squares=effects[:, :, :listed].square().sum(1).numpy(),
            score_squares=scores.square().sum(1).numpy(),
            score_effect_squares=score_effects.square().sum(1).numpy(),
            example_loss=(losses[:, :, -1] if positions.example else losses[:, :0, 0]).float().numpy(),
            example_score=(scores[0] if positions.has_score else scores[0, :0]).float().numpy(),
        )


def _chunks(examples: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, examples.stop)) for start in range(examples.start, examples.stop, size)]


def _not_finite(model: Transformer, plan: SweepPlan, losses: Tensor) -> InputError:
    """The error of losses [A+1,n,R], some of which are NaN or infinite."""
    for name, weight in _weights(model):
        if not bool(weight.isfinite().all()):
            return InputError(f"model: {name} holds NaN or infinity in {plan.dtype}; nothing can be measured of it")
    bad = int((~losses.isfinite()).flatten(1).any(1).nonzero()[0])
    what = "the whole model" if bad == 0 else f"the model without {plan.ablations[bad - 1].name}"
    return InputError(f"dtype: in {plan.dtype} losses of {what} are NaN or infinite; take a wider one, such as float64")


def _weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Its weights by name, those of a layer while they are there (see `icl_fast.models.layer_stream`)."""
    yield from ((name, weight) for name, weight in model.named_parameters() if not name.startswith("blocks."))
    for layer, block in enumerate(model.blocks):
        yield from ((f"blocks.{layer}.{name}", weight) for name, weight in block.named_parameters())
