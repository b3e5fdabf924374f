"""What one head adds to logits on a text, source by source, along the direct path (Olsson et al. 2022, Argument 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from icl_fast.arguments import whole_number
from icl_fast.errors import InputError
from icl_fast.measure.of_model import measures_weights
from icl_fast.models import Intervention, Transformer, site
from icl_fast.models.blocks import Block, gain
from icl_fast.models.ids import as_ids


@dataclass(frozen=True)
class Attribution:
    """A head on a text. Rows are destinations, columns sources.

    Attributes:
        pattern: its attention, [B,T,T], in the model's dtype.
        logits: what it adds to the logit of the target (or of each of K tokens), [B,T,T] or [B,T,T,K], float64.
    """

    pattern: Tensor
    logits: Tensor


def logit_directions(model: Transformer, tokens: Tensor) -> Tensor:
    """What a vector in the final residual stream is multiplied by to give a token's logit over the mean logit.

    The scale of the final norm is left out: it depends on the position. Centring of the stream and the norm's gain
    are in; its bias and that of the unembedding are the same whatever a head does.

    Args:
        tokens: [...] ids.

    Returns:
        [...,C] float64.
    """
    weight = model.unembed.weight
    # the mean logit is the logit of the mean row: all the vocabulary in one vector
    directions = weight[tokens].double() - weight.mean(0, dtype=torch.float64)
    if (gained := gain(model.final_norm)) is not None:
        directions = directions * gained.double()
    if isinstance(model.final_norm, nn.LayerNorm):
        directions = directions - directions.mean(-1, keepdim=True)  # instead of centring the stream
    return directions


def through_norm(norm: nn.Module, rows: Tensor) -> Tensor:
    """What is linear in a norm, of rows [...,C]: a LayerNorm centres them; all multiply by their gain."""
    if isinstance(norm, nn.LayerNorm):
        rows = rows - rows.mean(-1, keepdim=True)
    return rows if (gained := gain(norm)) is None else rows * gained.double()


def norm_scale(norm: nn.Module, rows: Tensor) -> Tensor | None:
    """What a norm divides rows [...,C] by, [...] float64; None: nothing, as there is none."""
    if isinstance(norm, nn.Identity):
        return None
    wide, eps = rows.double(), getattr(norm, "eps", None) or 0.0
    variance = wide.var(-1, correction=0) if isinstance(norm, nn.LayerNorm) else wide.square().mean(-1)
    return (variance + eps).sqrt()


def head_outputs(block: Block) -> Tensor:
    """What the heads of a layer write into the residual stream for their results: [H,D,C] float64.

    Where a norm comes after attention, its scale is left out: see `output_scale`.
    """
    return through_norm(block.after1, block.attention.w_o.double())


def output_scale(block: Block, z: Tensor) -> Tensor | None:
    """What the norm after attention, if there is one, divides all that the heads write by: [B,T] float64.

    Args:
        z: [B,H,T,D], the results of all heads of the layer.
    """
    if isinstance(block.after1, nn.Identity):
        return None
    return norm_scale(block.after1, block.attention.out(z.transpose(1, 2).flatten(2)))


def scaled_directions(model: Transformer, tokens: Tensor, last: Tensor) -> Tensor:
    """As `logit_directions`, over the final norm's scale in one run: what a head's result is multiplied by there.

    Args:
        tokens: [B,T,K] ids, K at each destination.
        last: [B,T,C] the final residual stream.

    Returns:
        [B,T,K,C] float64.
    """
    directions, scale = logit_directions(model, tokens), norm_scale(model.final_norm, last)
    return directions if scale is None else directions / scale[..., None, None]


def direct_logits(outputs: Tensor, directions: Tensor, values: Tensor, pattern: Tensor, scale: Tensor | None) -> Tensor:
    """What heads add along the direct path to the logits of K tokens at each destination, source by source.

    Args:
        outputs: [H,D,C] float64, of `head_outputs`, of some heads.
        directions: [B,T,K,C] of `scaled_directions`.
        values: [B,H,T,D] of the same heads.
        pattern: [B,H,T,T] of the same heads, in the same run.
        scale: [B,T] of `output_scale`, in the same run.

    Returns:
        [B,H,T,T,K] float64: destinations, sources, tokens.
    """
    if scale is not None:
        directions = directions / scale[..., None, None]
    reads = torch.einsum("bikc,hdc->bhikd", directions, outputs)
    logits = torch.einsum("bhikd,bhjd->bhijk", reads, values.double())
    return logits.mul_(pattern[..., None])


@measures_weights
def logit_attribution(model: Transformer, inputs: Tensor, targets: Tensor, layer: int, head: int) -> Attribution:
    """Direct-path logit attribution of one head on a text (docs/design.md, "Direct-path logit attribution").

    Source j adds to the target's logit at destination i

        A_ij v_j W_O centred, times the final norm's gain, over that norm's scale in this run at i,
            times (unembedding of the target - mean over the vocabulary)

    with A the pattern and v_j the value that the head read in this run, its bias (of `attention_bias`) included.
    Where a norm comes after attention, its centring, its gain and its scale in this run at i come after W_O. Logits are
    those before a cap.
    Summed over sources it is the head's whole direct effect. The bias of the output projection belongs to no head. What
    later layers make of the head's result is not in it: this is the direct path alone. Of all that is as large as the
    text squared, only the pattern of the head's own layer and one such array a target are ever held.

    Args:
        inputs: [B,T] token ids.
        targets: [B,T] the token to predict at each destination, `text[:, 1:]` where `inputs` is `text[:, :-1]`; or
            [B,T,K], any K tokens.
        layer: 0-based.
        head: 0-based.

    Raises:
        InputError: a head that the model does not have; targets of another shape or outside the vocabulary; inputs that
            the model refuses; a model with hooks or other changes, which its weights say nothing of.
    """
    config, device = model.config, model.device
    for name, index, count in (("layer", layer, config.layers), ("head", head, config.heads)):
        if not 0 <= whole_number(name, index) < count:
            raise InputError(f"{name}: {index} is not in this model, which has {count} (0 to {count - 1})")
    inputs = as_ids("inputs", inputs, config.vocab, "B,T").to(device)
    several = np.ndim(targets) == 3
    sizes = *inputs.shape, *([None] if several else [])
    targets = as_ids("targets", targets, config.vocab, "B,T,K" if several else "B,T", sizes=sizes).to(device)
    recorded = []

    def record(patterns: Tensor) -> Tensor:
        recorded.append(patterns[:, head].clone())  # a view would hold the patterns of all heads
        return patterns

    values, results, last = site("v", layer), site("z", layer), site("resid_post", config.layers - 1)
    recording = Intervention.apply(site("pattern", layer), record)
    _, sites = model.hidden(inputs, record=[values, results, last], interventions=[recording])
    (pattern,) = recorded
    directions = scaled_directions(model, targets.reshape(*inputs.shape, -1), sites[last])
    one = slice(head, head + 1)
    block = model.blocks[layer]
    scale = output_scale(block, sites[results])
    logits = direct_logits(head_outputs(block)[one], directions, sites[values][:, one], pattern[:, None], scale)
    logits = logits.squeeze(1)  # [B,T,T,K]
    return Attribution(pattern, logits if several else logits[..., 0])
