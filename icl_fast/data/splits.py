"""What of the exemplars, classes and pairs of labels is trained on, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.errors import InputError

# one random stream per purpose, so that holding out more of one never shifts another
_BASES, _CLASSES, _EXEMPLARS, _LABEL_PAIRS = range(4)

Integers = NDArray[np.int64]


class ExemplarTable(Protocol):
    """What sampling needs to know of the exemplars: how many there are, and which classes share a character."""

    @property
    def features(self) -> torch.Tensor:
        """`[K,E,...]`: classes, exemplars of a class."""

    @property
    def base(self) -> torch.Tensor | Integers:
        """`[K]`: the character of which a class is a rotation or reflection."""


@dataclass(frozen=True)
class Split:
    """The parts of a data set; train and held-out never overlap.

    Attributes:
        train_classes: `[C]`, commonest first: the place in it is a class's rank, and its label.
        held_out_classes: `[held_out_classes]`; shares no base character with `train_classes`.
        train_exemplars: `[K,E]`: exemplars of each class, in a random order of its own.
        held_out_exemplars: `[K, held_out_exemplars]`.
        train_label_pairs: `[M,2]` unordered pairs of pool labels; None if any pair may be drawn.
        held_out_label_pairs: `[M', 2]`; None likewise.
    """

    train_classes: Integers
    held_out_classes: Integers
    train_exemplars: Integers
    held_out_exemplars: Integers
    train_label_pairs: Integers | None
    held_out_label_pairs: Integers | None


def split(config: SequenceConfig, exemplars: ExemplarTable) -> Split:
    """Divide the exemplars as `config` says, by `split_seed`.

    Classes are held out by base character (Singh 2025, 2.3.4: "the holdout set did not include transformed versions of
    train images"), whole characters until there are `held_out_classes`. More classes or exemplars trained on include
    those of fewer. Of the pairs of labels a fixed fraction is held out; every label is still trained on (4.2.1).

    Raises:
        InputError: there are not as many classes or exemplars, or the pairs left lack a label.
    """
    total, per_class = exemplars.features.shape[:2]
    base = torch.as_tensor(exemplars.base).numpy(force=True)
    if base.shape != (total,):
        raise InputError(f"exemplars.base: must give the character of each of {total} classes, got {base.shape}")
    classes, held_out_classes = _split_classes(config, base)
    train, held_out = _count_exemplars(config, per_class)
    order = _random(config, _EXEMPLARS).permuted(np.tile(np.arange(per_class), (total, 1)), axis=1)
    pairs, held_out_pairs = _split_label_pairs(config)
    return Split(classes, held_out_classes, order[:, :train], order[:, per_class - held_out :], pairs, held_out_pairs)


def _split_classes(config: SequenceConfig, base: Integers) -> tuple[Integers, Integers]:
    character = np.unique(base, return_inverse=True)[1]
    sizes = np.bincount(character)
    queue = _random(config, _BASES).permutation(len(sizes))
    before = np.cumsum(sizes[queue]) - sizes[queue]
    held_out_characters = queue[before < config.held_out_classes]
    order = _random(config, _CLASSES).permutation(len(base))
    is_held_out = np.isin(character[order], held_out_characters)
    held_out, free = order[is_held_out], order[~is_held_out]
    if len(held_out) < config.held_out_classes:
        raise InputError(f"sequences.held_out_classes {config.held_out_classes}: there are {len(base)} classes in all")
    wanted = config.classes or len(free)
    if not 0 < wanted <= len(free):
        kept = ""
        if len(held_out):
            kept = f" of characters that are not held out (held_out_classes {config.held_out_classes})"
        raise InputError(f"sequences.classes {wanted}: the exemplars have {len(free)} classes{kept}; lower it")
    return free[:wanted], held_out[: config.held_out_classes]


def _count_exemplars(config: SequenceConfig, available: int) -> tuple[int, int]:
    held_out = config.held_out_exemplars
    train = config.exemplars or available - held_out
    if train < 1 or train + held_out > available:
        raise InputError(
            f"sequences.exemplars {train} and held_out_exemplars {held_out}: a class has {available}; lower one of them"
        )
    return train, held_out


def _split_label_pairs(config: SequenceConfig) -> tuple[Integers | None, Integers | None]:
    if not config.held_out_label_pairs:
        return None, None
    pairs = np.stack(np.triu_indices(config.label_pool, k=1), axis=1)
    count = max(1, round(config.held_out_label_pairs * len(pairs)))
    order = _random(config, _LABEL_PAIRS).permutation(len(pairs))
    kept = pairs[np.sort(order[count:])]
    if len(np.unique(kept)) < config.label_pool:
        raise InputError(
            f"sequences.held_out_label_pairs {config.held_out_label_pairs}: holds out every pair of some label of "
            f"label_pool {config.label_pool}; hold out fewer, or take another split_seed"
        )
    return kept, pairs[np.sort(order[:count])]


def _random(config: SequenceConfig, purpose: int) -> np.random.Generator:
    return np.random.default_rng((purpose, config.split_seed))
