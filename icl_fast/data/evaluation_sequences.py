"""Fixed sets of sequences that tell strategies apart: which answers are correct, and which are within context.

Each differs from the training sequences in what it asks, and in nothing else: exemplars, noise, matching and the
frequencies of classes are those of training. The sets follow from `split_seed`, so that runs with other data seeds
share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from icl_fast.arguments import whole_number
from icl_fast.data.every_sequence import count_every_sequence, every_sequence
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.sequences import CIWL, FLIP, ICL, IWL, KINDS, Recipe, Sequences, SequenceSampler, training_recipe
from icl_fast.data.splits import ExemplarTable, Split, split
from icl_fast.errors import InputError
from icl_fast.memory import check_fits

COMMON_CLASSES = 10  # Singh 2025, 2.3.5: "the 10 classes seen most often in training"


@dataclass(frozen=True)
class EvaluationSequences:
    """An evaluator's sequences. `*` is `[N]`, or `[P,N]` for a population.

    Attributes:
        name: one of `EVALUATORS`.
        sequences: what to show the model; `sequences.labels` are the outputs within context.
        correct: `[*,M]`: the outputs that count as correct; repeats mean nothing.
        answered: `[*]`: whether the context holds a correct label, without which accuracy within context is undefined.
        noise: given a start, a count and F, what to add to the features of those sequences, `[*,n+1,F]`; None:
            nothing.
    """

    name: str
    sequences: Sequences
    correct: torch.Tensor
    answered: torch.Tensor
    noise: Callable[[int, int, int], torch.Tensor] | None = None


def _train(recipe: Recipe, config: SequenceConfig, parts: Split) -> Recipe:
    return recipe


def _icl(recipe: Recipe, config: SequenceConfig, parts: Split) -> Recipe:
    return replace(_two_way(recipe, ICL), label_pool=2, label_pairs=None)


def _iwl(recipe: Recipe, config: SequenceConfig, parts: Split) -> Recipe:
    _check_fixed(config)
    return _only(recipe, IWL)


def _iwl_common(recipe: Recipe, config: SequenceConfig, parts: Split) -> Recipe:
    return replace(_iwl(recipe, config, parts), query_weights=_is_common(recipe, config).astype(np.float64))


def _iwl_rare(recipe: Recipe, config: SequenceConfig, parts: Split) -> Recipe:
    return replace(_iwl(recipe, config, parts), query_weights=(~_is_common(recipe, config)).astype(np.float64))


def _ciwl(recipe: Recipe, config: SequenceConfig, parts: Split) -> Recipe:
    _check_fixed(config)
    return _only(recipe, CIWL)


def _flip(recipe: Recipe, config: SequenceConfig, parts: Split) -> Recipe:
    _check_fixed(config)
    return _two_way(recipe, FLIP)


def _held_out_exemplars(recipe: Recipe, config: SequenceConfig, parts: Split) -> Recipe:
    if not config.held_out_exemplars:
        raise InputError("sequences.held_out_exemplars 0: none are held out; set it")
    return replace(recipe, exemplars=parts.held_out_exemplars)


def _held_out_classes(recipe: Recipe, config: SequenceConfig, parts: Split) -> Recipe:
    if not config.held_out_classes:
        raise InputError("sequences.held_out_classes 0: none are held out; set it")
    asked = _only(recipe, ICL) if config.p_icl else _icl(recipe, config, parts)
    if config.held_out_classes < asked.distinct_classes:
        raise InputError(
            f"sequences.held_out_classes {config.held_out_classes}: a sequence needs {asked.distinct_classes} "
            "different classes; hold out more"
        )
    weights = np.ones(config.held_out_classes)
    return replace(asked, classes=parts.held_out_classes, weights=weights, query_weights=weights)


def _held_out_label_pairs(recipe: Recipe, config: SequenceConfig, parts: Split) -> Recipe:
    if parts.held_out_label_pairs is None:
        raise InputError("sequences.held_out_label_pairs 0: none are held out; set it")
    return replace(_only(recipe, ICL), label_pairs=parts.held_out_label_pairs)


_RECIPES: dict[str, Callable[[Recipe, SequenceConfig, Split], Recipe]] = {
    "train": _train,
    "icl": _icl,
    "iwl": _iwl,
    "iwl-common": _iwl_common,
    "iwl-rare": _iwl_rare,
    "ciwl": _ciwl,
    "flip": _flip,
    "held-out-exemplars": _held_out_exemplars,
    "held-out-classes": _held_out_classes,
    "held-out-label-pairs": _held_out_label_pairs,
}

_BY_FREQUENCY = ("iwl-common", "iwl-rare")

# in this order: the place of a name is the random stream of its set, so new ones go last
EVALUATORS = {
    "train": "sequences as in training",
    "icl": "two classes equally often, their labels re-assigned to 0 and 1",
    "iwl": "different classes throughout: neither the query's class nor its label is in context",
    "iwl-common": f"iwl, the query one of the {COMMON_CLASSES} commonest classes (the first ones), each equally often",
    "iwl-rare": "iwl, the query one of all other classes, each equally often",
    "ciwl": "iwl, but one of the other classes shows the query's label",
    "flip": "two classes equally often, their labels swapped; the label in context is correct",
    "held-out-exemplars": "sequences as in training, of exemplars never trained on",
    "held-out-classes": "classes never trained on; labels drawn as in training, or 0 and 1 where those are fixed",
    "held-out-label-pairs": "pairs of labels never trained on together",
}


def evaluators(config: SequenceConfig, exemplars: ExemplarTable) -> tuple[str, ...]:
    """The evaluators that are defined for a config, in the order of `EVALUATORS`.

    Where all classes are as common as each other, those of common and rare ones are left out; they can be asked for.
    """
    parts = split(config, exemplars)
    names = []
    for name in EVALUATORS:
        if name in _BY_FREQUENCY and not config.zipf:
            continue
        try:
            _recipe(name, config, parts)
        except InputError:
            continue
        names.append(name)
    return tuple(names)


def evaluation_sequences(
    name: str,
    configs: SequenceConfig | Sequence[SequenceConfig],
    exemplars: ExemplarTable,
    count: int | Literal["all"] = 1000,
    device: torch.device | str = "cpu",
) -> EvaluationSequences:
    """The first `count` sequences of an evaluator, of one run or of P runs (Singh 2025, 2.2.3, 4.2.1, 5.2.3).

    With "all" every sequence that it could draw, once (C.1: 78,400 in chapter 4).

    Raises:
        InputError: no such evaluator, or one that is not defined for a config (the message says why), or more sequences
            than this machine can hold; "all" of what cannot be listed.
    """
    if count != "all":
        count = whole_number("count", count, 1)
    if name not in EVALUATORS:
        raise InputError(f"evaluator {name}: must be one of {', '.join(EVALUATORS)}")
    alone = isinstance(configs, SequenceConfig)
    members = [configs] if isinstance(configs, SequenceConfig) else list(configs)
    recipes = [_recipe(name, config, split(config, exemplars)) for config in members]
    sampler = SequenceSampler(recipes[0] if alone else recipes, device)
    most = max(config.labels_per_class for config in members)
    if count == "all":
        return _every(name, recipes, alone, device)
    if sampler.device.type == "cpu":
        check_fits(24 * len(members) * count * most, f"evaluator {name}: {count} sequences, labels_per_class {most}")
    sequences = sampler.draw(0, count)
    correct = _correct(sequences, recipes, device)
    answered = (sequences.labels[..., None] == correct[..., None, :]).any(-1).any(-1)
    noise = sampler.noise if any(recipe.noise for recipe in recipes) else None
    if alone:
        correct, answered = correct[0], answered[0]
    return EvaluationSequences(name, sequences, correct, answered, noise)


def _every(name: str, recipes: list[Recipe], alone: bool, device: torch.device | str) -> EvaluationSequences:
    counts = [count_every_sequence(recipe) for recipe in recipes]
    if len(set(counts)) > 1:
        raise InputError(f"sequences all: members have {min(counts)} to {max(counts)} of them; give a number")
    what = f"sequences all: {counts[0]:,} of {len(recipes)} members"
    check_fits(400 * counts[0] * len(recipes), what)
    of_each = [every_sequence(recipe) for recipe in recipes]
    columns = (torch.stack([getattr(one, field.name) for one in of_each]).to(device) for field in fields(Sequences))
    sequences = Sequences(*columns)
    correct = _correct(sequences, recipes, device)
    answered = torch.ones_like(sequences.target, dtype=torch.bool)
    if alone:
        sequences, correct, answered = sequences[0], correct[0], answered[0]
    return EvaluationSequences(name, sequences, correct, answered)


def _recipe(name: str, config: SequenceConfig, parts: Split) -> Recipe:
    recipe = replace(training_recipe(config, parts), seed=config.split_seed, stream=1 + list(EVALUATORS).index(name))
    try:
        recipe = _RECIPES[name](recipe, config, parts)
        recipe.check()
    except InputError as error:
        raise InputError(f"evaluator {name}: {error}") from None
    return recipe


def _correct(sequences: Sequences, recipes: list[Recipe], device: torch.device | str) -> torch.Tensor:
    """Every own label of the query's class where the context does not show which of them is meant; else the target."""
    most = max(recipe.labels_per_class for recipe in recipes)
    own = torch.tensor([recipe.labels_per_class for recipe in recipes], device=device)[:, None, None]
    target = sequences.target.view(len(recipes), -1, 1)
    shown = (sequences.labels.view(len(recipes), *sequences.labels.shape[-2:]) == target).any(-1, keepdim=True)
    alternatives = target - target % own + torch.arange(most, device=device) % own
    return torch.where(shown, target, alternatives)


def _only(recipe: Recipe, kind: int) -> Recipe:
    return replace(recipe, mix=tuple(float(kind == other) for other in range(len(KINDS))))


def _two_way(recipe: Recipe, kind: int) -> Recipe:
    if recipe.pairs % 2:
        raise InputError(f"sequences.pairs {recipe.pairs}: must be even, for two classes equally often")
    return replace(_only(recipe, kind), burstiness=recipe.pairs // 2)


def _check_fixed(config: SequenceConfig) -> None:
    if config.p_icl == 1:
        raise InputError("sequences.p_icl 1: classes have no labels of their own")


def _is_common(recipe: Recipe, config: SequenceConfig) -> NDArray[np.bool_]:
    if len(recipe.classes) <= COMMON_CLASSES:
        raise InputError(f"sequences.classes {len(recipe.classes)}: must be more than {COMMON_CLASSES}")
    is_common: NDArray[np.bool_] = np.arange(len(recipe.classes)) < COMMON_CLASSES
    return is_common
