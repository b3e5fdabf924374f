"""Scores of attention heads from their activations: copying, prefix matching, previous token.

Each is a mean over 10 seeded sequences, for all heads of a model at once (Olsson et al. 2022, Data Collection (3);
docs/design.md, "Scores of heads", for what the paper leaves open).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.arguments import MOST_SEED, whole_number
from icl_fast.errors import InputError
from icl_fast.measure.base_pass import base_layers
from icl_fast.measure.heads.attribution import head_outputs, logit_directions
from icl_fast.measure.of_model import measures_model, measures_weights
from icl_fast.measure.whole_pass import run_model
from icl_fast.models import Intervention, Transformer, TransformerConfig, site
from icl_fast.models.ids import as_ids
from icl_fast.models.plain import why_not_plain
from icl_fast.ops._attention import SCORES_AT_A_TIME

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
    for name, count in (("period", period), ("repeats", repeats), ("examples", examples)):
        whole_number(name, count, 1)
    low, high = _middle(vocab, 2)
    whole_number("bos", bos, 0, vocab - 1)
    tokens = torch.randint(low, high, (examples, period), generator=_random(seed), device="cpu")
    return F.pad(tokens.repeat(1, repeats), (1, 0), value=bos)


def distinct_random_tokens(vocab: int, *, length: int = PERIOD, examples: int = EXAMPLES, seed: int = 0) -> Tensor:
    """Sequences of random tokens, none twice in a sequence: int64 [examples,length]; drawn from the middle 80%, no BOS.

    Raises:
        InputError: a vocabulary too small to draw that many from.
    """
    for name, count in (("length", length), ("examples", examples)):
        whole_number(name, count, 1)
    low, high = _middle(vocab, length)
    random = _random(seed)
    each = [torch.randperm(high - low, generator=random, device="cpu")[:length] + low for _ in range(examples)]
    return torch.stack(each)


def copying(pattern: Tensor, raised: Tensor) -> Tensor:
    """Of what a head raises among the logits of a sequence's tokens, how much goes to the token attended to.

    With `a = sum_ij A_ij l_j[t_j]` and `s = sum_ij A_ij sum_k l_j[t_k]`, A the pattern and l_j what source j raises,
    `r = a / (a + s)` in [0, 0.5], and the score `4r - 1`: 1 where nothing but the attended token is raised, -1 where
    it never is. Nothing raised at all, 0/0, is -1.

    Args:
        pattern: [B,H,T,T].
        raised: [B,H,T,T], at [j,k] what source j raises the logit of token t_k by: not negative.

    Returns:
        [H] float64, the mean over sequences.

    Raises:
        InputError: two shapes, or something negative in `raised`.
    """
    if pattern.ndim != 4 or pattern.shape != raised.shape or pattern.shape[2] != pattern.shape[3]:
        raise InputError(f"pattern and raised must both be [B,H,T,T], got {[*pattern.shape]} and {[*raised.shape]}")
    if (raised < 0).any():
        raise InputError("raised: must not be negative; what lowers a logit counts as 0")
    attended = pattern.double().sum(2)  # [B,H,T], by source
    own = (attended * raised.diagonal(dim1=2, dim2=3)).sum(-1)
    everything = (attended * raised.sum(-1)).sum(-1)
    ratio = own / (own + everything)
    return torch.where(everything == 0, -1.0, 4 * ratio - 1).mean(0)


@measures_weights
def copying_scores(model: Transformer, *, seed: int = 0) -> Tensor:
    """Copying score of every head of a model, [layers,heads]: does it raise the logit of the token it attends to?

    On 25 distinct random tokens without BOS (the paper regrets leaving it out, but its numbers are without it; that the
    tokens are distinct it does not say). Source j raises the logits by its value through OV, the final norm's gain and
    the unembedding, less the mean over the vocabulary, through a ReLU. The final norm's scale, one number per
    destination, is left out, so that every destination weighs the same. Where the model's position table is shorter, so
    are the sequences.

    Raises:
        InputError: a context under 2, or a vocabulary too small; a model with hooks or other changes, which its weights
            say nothing of.
    """
    longest = _longest(model.config)
    length = PERIOD if longest is None else min(PERIOD, longest)
    if length < 2:
        raise InputError(f"context: {length} position is too few to tell the attended token from others")
    tokens = distinct_random_tokens(model.config.vocab, length=length, seed=seed).to(model.device)
    directions = logit_directions(model, tokens)  # [B,T,C]

    def score(layer: int, v: Tensor, pattern: Tensor) -> Tensor:
        raised = torch.einsum("bhjd,hdc,bkc->bhjk", v.double(), head_outputs(model, layer), directions).relu()
        return copying(pattern, raised)

    return _by_layer(model, tokens, score)


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


@measures_model
def prefix_matching_scores(model: Transformer, *, bos: int = 0, seed: int = 0) -> Tensor:
    """Prefix-matching score of every head of a model, [layers,heads], over 10 seeded sequences.

    Where the model's position table is too short for 4 repeats of 25 tokens, the period is shortened to fit.

    Raises:
        InputError: a context under 9, or a vocabulary too small.
    """
    config = model.config
    longest = _longest(config)
    period = PERIOD if longest is None else min(PERIOD, (longest - 1) // REPEATS)
    if period < 2:
        raise InputError(f"context: {config.context} positions are too few for {REPEATS} repeats of 2 tokens")
    tokens = repeated_random_tokens(config.vocab, bos, period=period, seed=seed).to(model.device)
    return _by_layer(model, tokens, lambda _layer, _v, pattern: prefix_matching(pattern, period=period))


def previous_token(pattern: Tensor) -> Tensor:
    """Mean attention from a position to the one before it, over examples and all positions that have one.

    Args:
        pattern: [B,H,T,T], T of 2 or more.

    Returns:
        [H] float64 scores in [0, 1].

    Raises:
        InputError: no two positions.
    """
    if pattern.ndim != 4 or pattern.shape[-1] < 2:
        raise InputError(f"pattern must be [B,H,T,T] with 2 positions or more, got {list(pattern.shape)}")
    return pattern.diagonal(-1, dim1=2, dim2=3).double().mean((0, 2))


@measures_model
def previous_token_scores(model: Transformer, text: Tensor, *, examples: int = EXAMPLES, seed: int = 0) -> Tensor:
    """Previous-token score of every head of a model, [layers,heads], over seeded examples of real text.

    Args:
        text: integers [N,T], windows of text as the model was trained on, N of `examples` or more.
        examples: how many of them, drawn without replacement, are run; one after the other, and of one layer's patterns
            a tile of rows at a time.

    Raises:
        InputError: too few windows or positions, or tokens that the model refuses.
    """
    text = as_ids("text", text, model.config.vocab, "N,T")
    if text.shape[1] < 2:
        raise InputError(f"text must be [N,T] with 2 positions or more, got {list(text.shape)}")
    if not 1 <= whole_number("examples", examples) <= len(text):
        raise InputError(f"examples: {examples} asked for, text has {len(text)}; give more text or ask for 1 or more")
    chosen = torch.randperm(len(text), generator=_random(seed), device="cpu")[:examples]
    windows = text[chosen.to(text.device)].to(model.device)
    if why_not_plain(model) is not None:  # run as it is, at the price of a layer's patterns in memory
        return torch.stack([_by_layer(model, window[None], _previous_token) for window in windows]).mean(0)
    length = text.shape[1]
    later = torch.arange(1, length, device=windows.device)  # the positions that have one before them
    total = torch.zeros(model.config.layers, model.config.heads, dtype=torch.float64, device=windows.device)
    for window in windows:
        resid, position = model.embedded(window[None])
        for base in base_layers(model, resid, position, None):
            for rows in torch.split(later, max(1, SCORES_AT_A_TIME // (model.config.heads * length))):
                pattern = base.pattern_at(rows[None])  # [1,H,R,T]
                before = (rows - 1)[None, None, :, None].expand(1, model.config.heads, -1, 1)
                total[base.layer] += pattern.gather(3, before).double().sum((0, 2, 3))
    return total / (examples * (length - 1))


def _previous_token(layer: int, v: Tensor, pattern: Tensor) -> Tensor:
    return previous_token(pattern)


def _by_layer(model: Transformer, tokens: Tensor, score: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
    """Run the model once and stack `score(layer, v, pattern)`, [H], of each layer's values [B,H,T,D] and patterns
    [B,H,T,T]. Recording would hold the patterns of all layers at once; here each is scored while its layer runs."""
    values: list[Tensor] = []
    scores: list[Tensor] = []

    def keep_values(v: Tensor) -> Tensor:
        values.append(v)
        return v

    def score_pattern(pattern: Tensor) -> Tensor:
        scores.append(score(len(scores), values.pop(), pattern))
        return pattern

    interventions = []
    for layer in range(model.config.layers):
        interventions.append(Intervention.apply(site("v", layer), keep_values))
        interventions.append(Intervention.apply(site("pattern", layer), score_pattern))
    run_model(model, tokens, interventions=interventions)
    return torch.stack(scores)


def _longest(config: TransformerConfig) -> int | None:
    """The longest sequence that the model has positions for; None: any."""
    return config.context if config.position in ("learned", "shortformer") else None


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(whole_number("seed", seed, 0, MOST_SEED))


def _middle(vocab: int, least: int) -> tuple[int, int]:
    """Bounds of the middle 80% of the ids, at least so many."""
    whole_number("vocab", vocab, 1)
    low, high = vocab // 10, vocab - vocab // 10
    if high - low < least:
        raise InputError(f"vocab: {vocab} tokens are too few to draw random ones from")
    return low, high
