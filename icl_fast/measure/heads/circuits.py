"""What heads could do with each other's results, from weights alone (Olsson et al. 2022, Data Collection (4) and
Appendix, "Validating head activation evaluators"; Elhage et al. 2021 for the circuits; docs/design.md, "Circuits").

Tokens are rows: `W_E [V,C]`, of each head `W_Q, W_K, W_V [C,D]` and `W_O [D,C]`, `W_U [V,C]`. Folded in is what is
linear in a LayerNorm: it centres what it reads over the width C, and multiplies by its gain. Left out is what depends
on the text or adds a constant (the norm's scale and bias, biases of attention), and the scores' factor 1 / sqrt(D).
Positions are ignored wherever they enter (vectors, rotation, smeared keys, windows), and so are MLPs.

Circuits over tokens are V x V; their traces and eigenvalues are taken from C x C and D x D matrices, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from icl_fast.arguments import shown
from icl_fast.errors import InputError
from icl_fast.measure.of_model import measures_weights
from icl_fast.models import Transformer
from icl_fast.models.blocks import Block, gain

_VOCAB_ROWS = 8192  # tokens whose embeddings are held in float64 at a time


@dataclass(frozen=True)
class LayerWeights:
    """One layer's heads, float64, norm folded in: q, k, v [H,C,D]; o [H,D,C], centred, as every reader has it."""

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
        InputError: scores of another shape.
    """
    config = model.config
    if np.shape(previous_token) != (config.layers, config.heads):
        raise InputError(
            f"previous_token must be [layers,heads], {[config.layers, config.heads]}, got {shown(previous_token)}"
        )
    embed = model.embed.weight
    weights = torch.as_tensor(previous_token, dtype=torch.float64, device=embed.device)
    seen = _product(embed, embed)  # [C,C]; its centring is in W_Q and W_V
    written = torch.zeros_like(seen)
    traces = torch.full_like(weights, torch.nan)
    for layer, heads in enumerate(_layers(model)):
        if layer:
            traces[layer] = ((seen @ heads.q) * (written @ heads.k)).sum((1, 2))
        written += torch.einsum("h,hcd,hde->ce", weights[layer], heads.v, heads.o)
    return traces


@measures_weights
def copying_eigenvalues(model: Transformer) -> Tensor:
    """Eigenvalues of the OV circuits: does attending to a token raise its own logit?

    `W_E W_V W_O W_U^T`, final norm's gain folded into W_U, is V x V of rank D at most; the eigenvalues of
    `W_O (W_U^T W_E) W_V`, D x D, are those that are not 0, and 0 for the rest. Logits are as they are: no mean over the
    vocabulary is subtracted, unlike in the copying score.

    Returns:
        [layers,H,D] complex128; NaN where weights are not finite.
    """
    through = _product(model.unembed.weight, model.embed.weight)  # [C,C], from the embedding to the left
    if (gained := gain(model.final_norm)) is not None:
        through = gained.double()[:, None] * through
    circuits = torch.stack([heads.o @ through @ heads.v for heads in _layers(model)])
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
    """
    return composition_of(list(_layers(model)))


def composition_of(layers: Sequence[LayerWeights]) -> dict[str, Tensor]:
    """`composition_scores`, given the weights."""
    heads, device = len(layers[0].o), layers[0].o.device
    shape = (len(layers), heads) * 2
    scores = {name: torch.full(shape, torch.nan, dtype=torch.float64, device=device) for name in "qkv"}
    for later, reader in enumerate(layers):
        for name, read in (("q", reader.q), ("k", reader.k), ("v", reader.v)):
            reads = torch.linalg.matrix_norm(read)  # [H]
            for earlier, writer in enumerate(layers[:later]):
                for head, w_o in enumerate(writer.o):  # head by head: all pairs at once would be [H,H,D,D]
                    passed = torch.linalg.matrix_norm(w_o @ read)
                    scores[name][earlier, head, later] = passed / (torch.linalg.matrix_norm(w_o) * reads)
    return scores


def _layers(model: Transformer) -> list[LayerWeights]:
    layers = []
    for block in model.blocks:
        o = block.attention.w_o.double()
        q, k, v = (_reading(block, linear) for linear in (block.attention.q, block.attention.k, block.attention.v))
        layers.append(LayerWeights(q, k, v, o - o.mean(-1, keepdim=True) if block.config.norm == "layer" else o))
    return layers


def _reading(block: Block, linear: nn.Linear) -> Tensor:
    """A projection of a layer's heads as it reads the residual stream, through the norm: [H,C,D]."""
    weight = linear.weight.double()  # [H*D,C], of groups of heads [KV*D,C]
    if (gained := gain(block.norm1)) is not None:
        weight = weight * gained.double()
    if block.config.norm == "layer":
        weight = weight - weight.mean(1, keepdim=True)
    by_head = weight.view(-1, block.config.d_head, weight.shape[1]).transpose(1, 2)
    return by_head.repeat_interleave(block.config.heads // len(by_head), dim=0)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left^T right` in float64 of two [V,C]: [C,C]."""
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for start in range(0, left.shape[0], _VOCAB_ROWS):
        rows = slice(start, start + _VOCAB_ROWS)
        total += left[rows].double().T @ right[rows].double()
    return total
