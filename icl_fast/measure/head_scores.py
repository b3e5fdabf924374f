"""Scores of attention heads from their activations (Olsson et al. 2022, Data Collection (3)): prefix matching."""

from __future__ import annotations

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import Transformer, site

PERIOD, REPEATS, EXAMPLES = 25, 4, 10


def repeated_random_tokens(
    vocab: int, bos: int, *, period: int = PERIOD, repeats: int = REPEATS, examples: int = EXAMPLES, seed: int = 0
) -> Tensor:
    """Sequences of BOS and then `period` random tokens, `repeats` times over: int64 [examples, 1 + period*repeats].

    A byte-level BPE numbers its tokens by age: single bytes, then merges from the commonest to the rarest. "Excluding
    the most common and the least common tokens" is therefore done by drawing from the middle 80% of the ids.

    Raises:
        InputError: a vocabulary too small to draw from.
    """
    low, high = vocab // 10, vocab - vocab // 10
    if high - low < 2:
        raise InputError(f"vocab: {vocab} tokens are too few to draw random ones from")
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(low, high, (examples, period), generator=generator)
    return torch.cat((torch.full((examples, 1), bos), tokens.repeat(1, repeats)), dim=1)


def prefix_matching(pattern: Tensor, *, period: int = PERIOD, repeats: int = REPEATS) -> Tensor:
    """How much a head attends to the token that followed the present one in earlier repeats.

    For a destination i in repeat 2 or later, the pattern summed over the positions `i - period*r + 1` of every earlier
    repeat r (what induction says comes next); the mean over those destinations and over examples. A perfect induction
    head scores 1. (The paper's sentence says "tokens that preceded"; its change log, its figures and its definition of
    an induction head mean the token that follows the earlier copy.)

    Args:
        pattern: [B,H,T,T] on `repeated_random_tokens`, T = 1 + period*repeats.

    Returns:
        [H] scores in [0, 1].

    Raises:
        InputError: a pattern of another length.
    """
    length = 1 + period * repeats
    if pattern.shape[-2:] != (length, length):
        raise InputError(f"pattern must be [B,H,{length},{length}], got {list(pattern.shape)}")
    total = torch.zeros(pattern.shape[:2], dtype=torch.float64, device=pattern.device)
    for r in range(1, repeats):
        destinations = torch.arange(1 + period * r, length, device=pattern.device)
        # destinations of repeat r+1 and later have an r-th earlier repeat
        total += pattern[:, :, destinations, destinations - period * r + 1].sum(-1)
    return total.mean(0) / (period * (repeats - 1))


def prefix_matching_scores(model: Transformer, *, bos: int = 0, seed: int = 0) -> Tensor:
    """Prefix-matching score of every head of a model, [layers, heads], over 10 seeded sequences.

    Where the model's position table is too short for 4 repeats of 25 tokens, the period is shortened to fit.

    Raises:
        InputError: a context under 9, or a vocabulary too small.
    """
    config = model.config
    period = PERIOD
    if config.position in ("learned", "shortformer"):
        period = min(PERIOD, (config.context - 1) // REPEATS)
    if period < 2:
        raise InputError(f"context: {config.context} positions are too few for {REPEATS} repeats of 2 tokens")
    tokens = repeated_random_tokens(config.vocab, bos, period=period, seed=seed).to(model.embed.weight.device)
    with torch.no_grad():
        _, sites = model.hidden(tokens, record=[site("pattern", layer) for layer in range(config.layers)])
    patterns = [sites[site("pattern", layer)] for layer in range(config.layers)]
    return torch.stack([prefix_matching(pattern, period=period) for pattern in patterns])
