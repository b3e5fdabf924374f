"""What heads could do with each other's results, from weights alone (Olsson et al. 2022, Data Collection (4) and
Appendix, "Validating head activation evaluators"; Elhage et al. 2021 for the circuits; docs/design.md, "Circuits").

Tokens are rows: `W_E [V,C]`, of each head `W_Q, W_K, W_V [C,D]` and `W_O [D,C]`, `W_U [V,C]`. Folded in is what is
linear in a norm: a LayerNorm centres what it reads over the width C, and all multiply by their gain; norms after
attention and of queries and keys too. Left out is what depends on the text or adds a constant (the norm's scale and
bias, biases of attention), and the scores' factor 1 / sqrt(D). Positions are ignored wherever they enter (vectors,
ALiBi, smeared keys, windows), and so are MLPs. `why_undefined` says where a circuit is no product of weights.

Circuits over tokens are V x V; their traces and eigenvalues are taken from C x C and D x D matrices, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from icl_fast.arguments import shown
from icl_fast.errors import InputError
from icl_fast.measure.heads.attribution import head_outputs
from icl_fast.measure.of_model import measures_weights
from icl_fast.models import ModelShape, Transformer
from icl_fast.models.blocks import Block, gain

_VOCAB_ROWS = 8192  # tokens whose embeddings are held in float64 at a time
_GRAM_NUMBERS = 2**21  # of Gram matrices at a time


UNDEFINED_UNDER = {  # what makes a measure undefined; the first reason that a config gives is told
    "qkv_clip": "queries, keys and values are clipped, which is not linear",
    "rotary": "rotary positions turn queries and keys by their distance, so that no one matrix matches tokens",
    "qk_norm": "queries and keys are normed, each by a scale of its own that depends on the token",
    "after": "what heads write is normed, so that layers have no common scale",
}


def why_undefined(config: ModelShape) -> dict[str, str]:
    """Circuits that an architecture does not define: name in the Dataset of `evaluate` to why, in a few words.

    Scores from activations (prefix matching, copying, previous token) and logit attributions are always defined.
    """
    found = {
        "qkv_clip": config.qkv_clip is not None,
        "rotary": config.position == "rotary",
        "qk_norm": config.qk_norm != "none",
        "after": config.norm != "none" and config.norm_place != "before",
    }
    linear = ["ov_copying", "composition_q", "composition_k", "composition_v"]
    undefined = {name: UNDEFINED_UNDER["qkv_clip"] for name in linear if found["qkv_clip"]}
    reasons = [reason for name, reason in UNDEFINED_UNDER.items() if found[name]]
    return ({"qk_trace": reasons[0]} if reasons else {}) | undefined


def _require_defined(model: Transformer, measure: str, name: str) -> None:
    if reason := why_undefined(model.config).get(name):
        raise InputError(f"{measure}: undefined because {reason}")


@dataclass(frozen=True)
class LayerWeights:
    """One layer's heads, float64, norms folded in.

    Attributes:
        q: [H,C,D].
        k, v: [KV,C,D], of groups of heads.
        o: [H,D,C], as a reader has it: centred where it does so.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


@measures_weights
def qk_trace(model: Transformer, previous_token: Tensor) -> Tensor:
    """Trace of the previous-token QK circuit: does a head match tokens against what previous-token heads wrote?

    For a head, over the heads k of earlier layers with weights w_k, their previous-token scores:

        tr( W_E W_Q W_K^T (sum_k w_k W_V^k W_O^k)^T W_E^T ) = sum( (W_E^T W_E W_Q) * (sum_k w_k W_V^k W_O^k W_K) )

    The paper (Olsson et al. 2022, Data Collection (4)) takes its w_k from one example text; here it is the score, a
    mean over ten.

    Args:
        previous_token: [layers,H], of `previous_token_scores`.

    Returns:
        [layers,H] float64; NaN in layer 0, before which there are no heads.

    Raises:
        InputError: scores of another shape; it is undefined (see `why_undefined`).
    """
    config = model.config
    _require_defined(model, "qk_trace", "qk_trace")
    if np.shape(previous_token) != (config.layers, config.heads):
        raise InputError(
            f"previous_token must be [layers,heads], {[config.layers, config.heads]}, got {shown(previous_token)}"
        )
    embed = model.embed.weight
    weights = torch.as_tensor(previous_token, dtype=torch.float64, device=embed.device)
    seen = _product(embed, embed).mul_(config.embed_scale**2)  # [C,C]; its centring is in W_Q and W_V
    written = torch.zeros_like(seen)
    traces = torch.full_like(weights, torch.nan)
    for layer, heads in enumerate(_layers(model)):
        if layer:
            traces[layer] = ((seen @ heads.q) * (written @ _of_each(heads.k, heads.q))).sum((1, 2))
        written += torch.einsum("h,hcd,hde->ce", weights[layer], _of_each(heads.v, heads.q), heads.o)
    return traces


@measures_weights
def copying_eigenvalues(model: Transformer) -> Tensor:
    """Eigenvalues of the OV circuits: does attending to a token raise its own logit?

    `W_E W_V W_O W_U^T`, final norm's gain folded into W_U, is V x V of rank D at most; the eigenvalues of
    `W_O (W_U^T W_E) W_V`, D x D, are those that are not 0, and 0 for the rest. Logits are as they are: no mean over the
    vocabulary is subtracted, unlike in the copying score.

    Returns:
        [layers,H,D] complex128; NaN where weights are not finite.

    Raises:
        InputError: they are undefined (see `why_undefined`).
    """
    _require_defined(model, "copying_eigenvalues", "ov_copying")
    through = _product(model.unembed.weight, model.embed.weight)  # [C,C], from the embedding to the left
    if (gained := gain(model.final_norm)) is not None:
        through = gained.double()[:, None] * through
    if isinstance(model.final_norm, nn.LayerNorm) and model.config.norm_place == "after":  # else W_O is centred
        through = through - through.mean(0)
    if model.config.embed_scale != 1.0:
        through = through * model.config.embed_scale
    circuits = torch.stack([heads.o @ through @ _of_each(heads.v, heads.q) for heads in _layers(model)])
    # LAPACK refuses what is not finite, but a model that diverged has a place in a run's table
    finite = circuits.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)  # [layers,H,1,1]
    # on the CPU: not every build of torch can do this on a GPU
    eigenvalues: Tensor = torch.linalg.eigvals(circuits.where(finite, 0).cpu()).to(through.device)
    return eigenvalues.masked_fill(~finite[..., 0], torch.nan)


def copying_eigenvalue_score(eigenvalues: Tensor) -> Tensor:
    """`sum(l) / sum(|l|)`: 1 where a head copies all tokens, -1 where it suppresses them (Elhage et al. 2021).

    Args:
        eigenvalues: [...,D] complex, of a real matrix.

    Returns:
        [...] float64 in [-1, 1]; NaN where all eigenvalues are 0.
    """
    return eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1)


@measures_weights
def composition_scores(model: Transformer) -> dict[str, Tensor]:
    """How much of what one head writes another reads, by its queries, keys and values.

    `||W_O W_X||_F / (||W_O||_F ||W_X||_F)`, X one of Q, K, V. W_O is centred, in the denominator too: no head can read
    the mean that it writes. (Elhage et al. 2021 put W_V W_O and W_Q W_K^T in the place of W_O and W_X; docs/design.md
    says why not here.)

    Returns:
        "q", "k" and "v": each [layers,H,layers,H] float64, first the writing head, then the reading one; NaN where the
        reader is not in a later layer, or one of the two weights is 0.

    Raises:
        InputError: they are undefined (see `why_undefined`).
    """
    _require_defined(model, "composition_scores", "composition_v")
    return composition_of(list(_layers(model)))


def composition_of(layers: Sequence[LayerWeights]) -> dict[str, Tensor]:
    """`composition_scores`, given the weights.

    With Gram matrices, ||W_O W_X||^2 = sum( (W_O^T W_O) * (W_X W_X^T) ), all heads with all heads: C x C numbers a
    pair, where the product itself takes D x D x C. A strip of rows of all Gram matrices is there at a time.
    """
    writers = torch.stack([weights.o.mT for weights in layers])  # [layers,H,C,D]
    readers = {name: torch.stack([getattr(weights, name) for weights in layers]) for name in "qkv"}  # [layers,KV,C,D]
    depth, heads, width, _ = writers.shape
    squares = {name: writers.new_zeros(depth * heads, depth * read.shape[1]) for name, read in readers.items()}
    strip = max(1, _GRAM_NUMBERS // (depth * heads * width))
    for start in range(0, width, strip):
        rows = slice(start, start + strip)
        written = _gram_rows(writers, rows)
        for name, read in readers.items():
            squares[name].addmm_(written, _gram_rows(read, rows).T)
    layer = torch.arange(depth, device=writers.device)
    earlier = (layer[:, None] < layer)[:, None, :, None]
    scores = {}
    for name, read in readers.items():
        norms = (x.square().sum((2, 3)).flatten() for x in (writers, read))
        ratio = (squares[name].clamp_min(0) / torch.outer(*norms)).sqrt().view(depth, heads, depth, -1)
        scores[name] = ratio.repeat_interleave(heads // read.shape[1], dim=3).masked_fill_(~earlier, torch.nan)
    return scores


def _gram_rows(x: Tensor, rows: slice) -> Tensor:
    """Some rows of `x x^T` of each of the matrices [layers,H,C,D], side by side: [layers*H, rows*C]."""
    return (x[:, :, rows] @ x.mT).flatten(0, 1).flatten(1)


def _layers(model: Transformer) -> Iterator[LayerWeights]:
    for block in model.blocks:
        attention, o = block.attention, head_outputs(block)
        q, k = (
            _reading(block, linear, norm)
            for linear, norm in ((attention.q, attention.q_norm), (attention.k, attention.k_norm))
        )
        centred = isinstance(block.norm1, nn.LayerNorm)  # whoever reads it
        yield LayerWeights(q, k, _reading(block, attention.v, None), o - o.mean(-1, keepdim=True) if centred else o)


def _reading(block: Block, linear: nn.Linear, norm: nn.Module | None) -> Tensor:
    """A projection of a layer's heads as it reads the residual stream, through the norm: [H,C,D], or [KV,C,D].

    Args:
        norm: of what it projects to.
    """
    weight = linear.weight.double()  # [H*D,C], of groups of heads [KV*D,C]
    if (gained := gain(block.norm1)) is not None:
        weight = weight * gained.double()
    if isinstance(block.norm1, nn.LayerNorm):
        weight = weight - weight.mean(1, keepdim=True)
    by_head = weight.view(-1, block.config.d_head, weight.shape[1]).transpose(1, 2)
    if norm is None or (gained := gain(norm)) is None:
        return by_head
    return by_head * gained.double().view(-1, 1, block.config.d_head)


def _of_each(grouped: Tensor, heads: Tensor) -> Tensor:
    """What groups of heads share [KV,...], given to each of the heads [H,...]: [H,...]."""
    return grouped.repeat_interleave(len(heads) // len(grouped), dim=0)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left^T right` in float64 of two [V,C]: [C,C]."""
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for start in range(0, left.shape[0], _VOCAB_ROWS):
        rows = slice(start, start + _VOCAB_ROWS)
        total += left[rows].double().T @ right[rows].double()
    return total
