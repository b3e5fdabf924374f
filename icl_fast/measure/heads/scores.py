"""Scores of attention heads from their activations: copying, prefix matching, previous token.

Each is a mean over 10 seeded sequences, for all heads of a model at once (Olsson et al. 2022, Data Collection (3);
docs/design.md, "Scores of heads", for what the paper leaves open).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.arguments import MOST_SEED, whole_number
from icl_fast.errors import InputError
from icl_fast.measure.base_pass import BaseLayer
from icl_fast.measure.heads.attribution import head_outputs, logit_directions
from icl_fast.measure.of_model import measures_model, measures_weights
from icl_fast.measure.whole_pass import run_model
from icl_fast.models import Intervention, Transformer, TransformerConfig, site
from icl_fast.models.ids import as_ids
from icl_fast.models.plain import why_not_plain

PERIOD, REPEATS, EXAMPLES = 25, 4, 10
_POSITIONS = 1024  # that go through a layer together


def repeated_random_tokens(
    vocab: int,
    bos: int | None,
    *,
    period: int = PERIOD,
    repeats: int = REPEATS,
    examples: int = EXAMPLES,
    seed: int = 0,
    ids: Tensor | None = None,
) -> Tensor:
    """Sequences of BOS and then `period` random tokens, `repeats` times over: int64 [examples, 1 + period*repeats].

    No token is twice among the `period`, so that each follows one token alone and a perfect induction head scores 1. A
    byte-level BPE numbers its tokens by age: single bytes, then merges from the commonest to the rarest. "Excluding
    the most common and the least common tokens" is therefore done by drawing from the middle 80% of the ids.

    Args:
        bos: its id; None: the sequences begin with the first repeat and are shorter by one.
        ids: [K] rising, the only ones that may be drawn: those of text in another library's tokenizer, without special
            tokens and rows of the embedding that stand for none. Default: all.

    Raises:
        InputError: a vocabulary too small to draw from.
    """
    for name, count in (("period", period), ("repeats", repeats)):
        whole_number(name, count, 1)
    once = distinct_random_tokens(vocab, length=period, examples=examples, seed=seed, ids=ids)
    tokens = once.repeat(1, repeats)
    if bos is None:
        return tokens
    return F.pad(tokens, (1, 0), value=whole_number("bos", bos, 0, vocab - 1))


def distinct_random_tokens(
    vocab: int, *, length: int = PERIOD, examples: int = EXAMPLES, seed: int = 0, ids: Tensor | None = None
) -> Tensor:
    """Sequences of random tokens, none twice in a sequence: int64 [examples,length]; drawn from the middle 80%, no BOS.

    Args:
        ids: as in `repeated_random_tokens`.

    Raises:
        InputError: a vocabulary too small to draw that many from.
    """
    for name, count in (("length", length), ("examples", examples)):
        whole_number(name, count, 1)
    middle, random = _middle(vocab, length, ids), _random(seed)
    each = [middle[torch.randperm(len(middle), generator=random, device="cpu")[:length]] for _ in range(examples)]
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
    return _copied(*_raised(pattern.sum(2, dtype=torch.float64), raised)).mean(0)


def _raised(attended: Tensor, raised: Tensor) -> tuple[Tensor, Tensor]:
    """a and s of `copying`, each [B,H], of the pattern's sums by source [B,H,T]."""
    own = (attended * raised.diagonal(dim1=2, dim2=3)).sum(-1)
    return own, (attended * raised.sum(-1)).sum(-1)


def _copied(own: Tensor, everything: Tensor) -> Tensor:
    return torch.where(everything == 0, -1.0, 4 * own / (own + everything) - 1)


@measures_weights
def copying_scores(model: Transformer, *, seed: int = 0, ids: Tensor | None = None) -> Tensor:
    """Copying score of every head of a model, [layers,heads]: does it raise the logit of the token it attends to?

    On 25 distinct random tokens without BOS (the paper regrets leaving it out, but its numbers are without it; that the
    tokens are distinct it does not say). Source j raises the logits by its value through OV, the final norm's gain and
    the unembedding, less the mean over the vocabulary, through a ReLU. The final norm's scale, one number per
    destination, is left out, so that every destination weighs the same; so is that of a norm after attention. Where
    the model's position table is shorter, so are the sequences.

    Args:
        seed: of the tokens.
        ids: as in `repeated_random_tokens`.

    Raises:
        InputError: a context under 2, or a vocabulary too small; a model with hooks or other changes, which its weights
            say nothing of.
    """
    longest = _longest(model.config)
    length = PERIOD if longest is None else min(PERIOD, longest)
    if length < 2:
        raise InputError(f"context: {length} position is too few to tell the attended token from others")
    tokens = distinct_random_tokens(model.config.vocab, length=length, seed=seed, ids=ids).to(model.device)
    directions = logit_directions(model, tokens)  # [B,T,C]
    own, everything = (directions.new_zeros(model.config.layers, *tokens.shape[:1], model.config.heads) for _ in "ab")
    for examples, base in _layers(model, tokens):
        attended = directions.new_zeros(*base.resid.shape[:1], base.heads, length)
        for some, rows, pattern in base.pattern_tiles():
            attended[some, :, : rows.stop] += pattern.sum(2, dtype=torch.float64)
        raised = torch.einsum(
            "bhjd,hdc,bkc->bhjk", base.qkv[2].double(), head_outputs(base.block), directions[examples]
        ).relu()
        own[base.layer, examples], everything[base.layer, examples] = _raised(attended, raised)
    return _copied(own, everything).mean(1)


def prefix_matching(pattern: Tensor, *, period: int = PERIOD, repeats: int = REPEATS) -> Tensor:
    """How much a head attends to the token that followed the present one in earlier repeats.

    For a destination i in repeat 2 or later, the pattern summed over the positions `i - period*r + 1` of every earlier
    repeat r (what induction says comes next); the mean over those destinations and over examples. A perfect induction
    head scores 1. (The paper's sentence says "tokens that preceded"; its change log, its figures and its definition of
    an induction head mean the token that follows the earlier copy.)

    Args:
        pattern: [B,H,T,T] on `repeated_random_tokens`, T = 1 + period*repeats, or period*repeats without BOS.

    Returns:
        [H] scores in [0, 1].

    Raises:
        InputError: a pattern of another length.
    """
    length = period * repeats
    if pattern.shape[-2:] not in ((length, length), (length + 1, length + 1)):
        raise InputError(f"pattern must be [B,H,{length + 1},{length + 1}], got {list(pattern.shape)}")
    keys = _followers(pattern.shape[-1], period, repeats).to(pattern.device)
    return _attention_to(keys, pattern) / (len(pattern) * period * (repeats - 1))


def _followers(length: int, period: int, repeats: int) -> Tensor:
    """What followed the earlier copies of each position's token: 0-based positions [T,repeats-1], -1 for none."""
    position, earlier = torch.arange(length, device="cpu")[:, None], torch.arange(1, repeats, device="cpu")
    first = length - period * repeats  # 1 after BOS
    keys = position - period * earlier + 1
    return keys.masked_fill(keys <= first, -1)


@measures_model
def prefix_matching_scores(
    model: Transformer, *, bos: int | None = 0, seed: int = 0, ids: Tensor | None = None
) -> Tensor:
    """Prefix-matching score of every head of a model, [layers,heads], over 10 seeded sequences.

    Where the model's position table is too short for 4 repeats of 25 tokens, or its vocabulary too small for 25
    different ones, the period is shortened to fit.

    Args:
        bos: id of the token before the first repeat; None: there is none.
        seed: of the tokens.
        ids: as in `repeated_random_tokens`.

    Raises:
        InputError: a context under 9, or a vocabulary too small.
    """
    config = model.config
    longest, first = _longest(config), 0 if bos is None else 1
    period = min(PERIOD, len(_middle(config.vocab, 2, ids)))
    if longest is not None:
        period = min(period, (longest - first) // REPEATS)
    if period < 2:
        raise InputError(f"context: {config.context} positions are too few for {REPEATS} repeats of 2 tokens")
    tokens = repeated_random_tokens(config.vocab, bos, period=period, seed=seed, ids=ids).to(model.device)
    attention = _attention_in(model, tokens, _followers(tokens.shape[1], period, REPEATS))
    return attention / (len(tokens) * period * (REPEATS - 1))


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
    keys = torch.arange(-1, pattern.shape[-1] - 1, device=pattern.device)[:, None]
    return _attention_to(keys, pattern) / (len(pattern) * (pattern.shape[-1] - 1))


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
    windows, length = text[chosen.to(text.device)].to(model.device), text.shape[1]
    keys = torch.arange(-1, length - 1, device=windows.device)[:, None]
    return _attention_in(model, windows, keys) / (examples * (length - 1))


def _attention_in(model: Transformer, tokens: Tensor, keys: Tensor) -> Tensor:
    """Attention of every head of a model from each position to given ones, summed over these and the examples.

    Patterns are there tile by tile; those of a model that was changed, which is run as it is, layer by layer.

    Args:
        tokens: [B,T] ids.
        keys: 0-based positions [T,K]; -1: none.

    Returns:
        [layers,H] float64.
    """
    config, keys = model.config, keys.to(tokens.device)
    total = torch.zeros(config.layers, config.heads, dtype=torch.float64, device=tokens.device)
    if why_not_plain(model) is None:
        first = int((keys >= 0).any(1).nonzero()[0])
        for _, base in _layers(model, tokens):
            for _, rows, pattern in base.pattern_tiles(first):
                total[base.layer] += _attention_to(keys[rows], pattern)
        return total

    def reading(layer: int) -> Intervention:
        def read(pattern: Tensor) -> Tensor:
            total[layer] += _attention_to(keys, pattern)
            return pattern

        return Intervention.apply(site("pattern", layer), read)

    for piece in _pieces(tokens):
        run_model(model, piece, interventions=[reading(layer) for layer in range(config.layers)])
    return total


def _attention_to(keys: Tensor, pattern: Tensor) -> Tensor:
    """Attention from each row to some positions, summed over them, the rows and the examples: [H] float64.

    Args:
        keys: 0-based positions [R,K]; -1: none.
        pattern: [B,H,R,T].
    """
    index = keys.clamp_min(0).expand(*pattern.shape[:2], -1, -1)
    return pattern.gather(3, index).double().masked_fill(keys < 0, 0).sum((0, 2, 3))


def _layers(model: Transformer, tokens: Tensor) -> Iterator[tuple[slice, BaseLayer]]:
    """Each layer at some of the examples [B,T] after the other: which, and the layer there.

    Only the residual streams of all of them are held, and a layer's weights are needed once.
    """
    resid, positions = model.embedded(tokens)
    streams, last = _pieces(resid), model.config.layers - 1
    for layer, block in enumerate(model.blocks):
        start = 0
        for index, stream in enumerate(streams):
            base = BaseLayer(layer, block, stream, positions, None)
            yield slice(start, start + len(stream)), base
            start += len(stream)
            if layer < last:
                streams[index] = base.post


def _pieces(examples: Tensor) -> list[Tensor]:
    """Examples [B,T,...] as few at a time as keep a processor busy."""
    return list(torch.split(examples, max(1, _POSITIONS // examples.shape[1])))


def _longest(config: TransformerConfig) -> int | None:
    """The longest sequence that the model has positions for; None: any."""
    return config.context if config.position in ("learned", "shortformer") else None


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(whole_number("seed", seed, 0, MOST_SEED))


def _middle(vocab: int, least: int, ids: Tensor | None) -> Tensor:
    """The middle 80% of the ids, at least so many; of `ids`, those among the middle 80% up to the last of them."""
    whole_number("vocab", vocab, 1)
    if ids is not None:
        ids = as_ids("ids", ids, vocab, "K").cpu()
        vocab = int(ids.max()) + 1 if len(ids) else 0
    low, high = vocab // 10, vocab - vocab // 10
    middle = torch.arange(low, high, device="cpu") if ids is None else ids[(ids >= low) & (ids < high)]
    if len(middle) < least:
        raise InputError(f"vocab: {vocab} tokens are too few to draw random ones from")
    return middle
