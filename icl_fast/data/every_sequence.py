"""All sequences that an evaluator could draw, where they can be listed (Singh 2025, C.1)."""

from __future__ import annotations

import numpy as np
import torch

from icl_fast.data.sequences import ICL, Recipe, Sequences
from icl_fast.errors import InputError


def count_every_sequence(recipe: Recipe) -> int:
    """How many different sequences a recipe draws from: 2 F E^3 C (C - 1) L (L - 1) in the words of C.1.

    Raises:
        InputError: sequences whose labels are not drawn anew, or that are not equally likely, or of another shape than
            two pairs of two classes.
    """
    for wrong, what in (
        (recipe.mix[ICL] != 1, "sequences.p_icl: must be 1, so that labels are drawn anew in all"),
        ((recipe.pairs, recipe.burstiness) != (2, 1), f"sequences.pairs {recipe.pairs}: must be 2, with burstiness 1"),
        (bool(np.ptp(recipe.weights)) or bool(np.ptp(recipe.query_weights)), "sequences.zipf: must be 0"),
        (recipe.matched, "sequences.matched: must be false"),
        (bool(recipe.noise), f"sequences.noise {recipe.noise}: must be 0"),
    ):
        if wrong:
            raise InputError(f"sequences all: {what}; give a number of sequences")
    classes, exemplars = len(recipe.classes), recipe.exemplars.shape[1]
    return int(classes * (classes - 1) * exemplars**3 * len(_ordered_pairs(recipe)) * 2)


def every_sequence(recipe: Recipe) -> Sequences:
    """Every one of them once: classes slowest, then exemplars, labels, and which class is asked for.

    Raises:
        InputError: as `count_every_sequence`.
    """
    count_every_sequence(recipe)
    places = np.arange(len(recipe.classes))
    ranks = np.stack(np.meshgrid(places, places, indexing="ij"), -1).reshape(-1, 2)
    ranks = ranks[ranks[:, 0] != ranks[:, 1]]
    labels, exemplars = _ordered_pairs(recipe), np.arange(recipe.exemplars.shape[1])
    axes = (len(ranks), len(exemplars), len(exemplars), len(exemplars), len(labels), 2)
    of_ranks, first, second, of_query, of_labels, asked = (index.ravel() for index in np.indices(axes))
    in_context = recipe.classes[ranks[of_ranks]]  # [N,2]
    each = np.arange(len(asked))
    classes = np.concatenate([in_context, in_context[each, asked][:, None]], 1)
    chosen = recipe.exemplars[classes, np.stack([first, second, of_query], 1)]
    shown = labels[of_labels]
    columns = (classes, chosen, shown, shown[each, asked], np.full(len(asked), ICL))
    return Sequences(*(torch.as_tensor(column, dtype=torch.int64) for column in columns))


def _ordered_pairs(recipe: Recipe) -> np.ndarray:
    """`[M,2]`: the pairs of labels, in both orders."""
    pairs = recipe.label_pairs
    if pairs is None:
        pairs = np.stack(np.triu_indices(recipe.label_pool, k=1), axis=1)
    return np.concatenate([pairs, pairs[:, ::-1]])
