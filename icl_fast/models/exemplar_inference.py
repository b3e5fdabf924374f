"""`ExemplarTransformer` for measurements: no gradients, only what the query's outputs need, and passes that share.

Sequences are the innermost dimension, so that attention over a few positions runs at the speed of memory, not at that
of many tiny matrix products. A second pass with heads removed begins where the first change is, and takes from the
first pass what it is told to preserve.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icl_fast.errors import InputError
from icl_fast.models.blocks import layer_norm
from icl_fast.models.clamps import (
    NO_LABEL,
    Clamps,
    copied_logits,
    matching_rows,
    moved_on,
    no_clamps,
    own_exemplars,
    previous_token_pattern,
)
from icl_fast.models.exemplar_transformer import ExemplarTransformer
from icl_fast.models.interventions import Preservable
from icl_fast.models.positions import causal_mask

_FREED_ONCE = 28 * 2**20  # bytes


@dataclass(frozen=True)
class LayerActivations:
    """A layer's part of a pass; R is T, in the last layer 1 (the query), unless all rows were asked for.

    Attributes:
        resid: `[P,C,T,B]`: the stream that it reads.
        q, k, v: `[P,H,D,R,B]`, `[P,H,D,T,B]` twice; q and k after rotation, q scaled: scores are their product.
        scores, pattern: `[P,H,R,T,B]`; scores of positions that cannot be attended to are -inf.
        z: `[P,H,D,R,B]`, before heads are removed; of the last layer the query's alone.
    """

    resid: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    pattern: Tensor
    z: Tensor


@dataclass(frozen=True)
class Activations:
    """A first pass: what later passes take from it, and its logits `[P,B,V]`."""

    labels: Tensor
    target: Tensor | None
    embedded: Tensor
    layers: tuple[LayerActivations, ...]
    logits: Tensor


@dataclass(frozen=True)
class Ending:
    """A second pass before the last layer's heads write: the stream `[P,C,T,B]`, z and scores of that layer."""

    resid: Tensor
    z: Tensor
    scores: Tensor


class ExemplarInference:
    """A model with its clamps, ready for passes. Call it under `torch.inference_mode`."""

    def __init__(self, model: ExemplarTransformer, clamps: Clamps | None = None) -> None:
        """Of a model and what is forced in it.

        Raises:
            InputError: clamps of another number of members.
        """
        self.model, self.config = model, model.config
        device = model.unembed.weight.device
        # glibc gives freed memory back to the system, and every chunk has to ask for it anew, until a block of 1 to 32
        # MiB was freed once: a third of the time
        torch.empty(_FREED_ONCE, dtype=torch.uint8)
        self.clamps = model.check_clamps(no_clamps(model.config, model.members) if clamps is None else clamps)
        length = self.config.length
        later = ~causal_mask(length, device=device)[..., None]
        hidden = own_exemplars(length, device)[..., None] & self.clamps.no_previous_token.view(-1, 1, 1, 1, 1)
        self._blocked, self._blocked_first = later, later | hidden
        self._previous = previous_token_pattern(length, device)[..., None]
        self._rotary = model.positions(model.unembed.weight).rotary
        known = model.has_output[:, None]
        self._fewer_outputs = None if bool(known.all()) else known

    def first(
        self, exemplars: Tensor, labels: Tensor, target: Tensor | None = None, *, all_rows: bool = False
    ) -> Activations:
        """A pass under the clamps.

        Args:
            exemplars: `[P,B,n+1,C]`, after `embed_exemplar`.
            labels: `[P,B,n]` int64.
            target: `[P,B]` int64; the clamp `match` needs it.
            all_rows: keep the last layer's patterns of all positions, not of the query alone.

        Raises:
            InputError: `match` without a target.
        """
        if "match" in self.clamps.forced and target is None:
            raise InputError("target: the clamp match attends to its position, so it must be given")
        embedded = self.model.embedded(exemplars, labels).permute(0, 3, 2, 1).contiguous()
        resid = matched = embedded
        layers = []
        for layer in range(self.config.layers):
            part = self._attend(layer, resid, matched, labels, target, all_rows)
            layers.append(part)
            resid, matched = self._after(layer, resid, part.z, self.clamps.heads[:, layer], embedded)
        logits = self._logits(resid, layers[-1].scores, labels)
        return Activations(labels, target, embedded, tuple(layers), logits)

    def second(
        self,
        base: Activations,
        *,
        heads: Tensor | None = None,
        embedding: float = 1.0,
        preserve: Collection[Preservable] = (),
        query_pattern: Tensor | None = None,
    ) -> Tensor:
        """The logits `[P,B,V]` of another pass over the same sequences.

        Args:
            heads: `[P,L,H]`: what every head's output is multiplied by, in place of `Clamps.heads`.
            embedding: what the stream before the first layer is multiplied by; 0 removes it.
            preserve: what attention takes from the first pass, in all layers and heads.
            query_pattern: `[P,H,T,B]`: where the query attends in the last layer, whatever is preserved.
        """
        heads = self.clamps.heads if heads is None else heads.to(self.clamps.heads)
        return self.output(base, self.ending(base, heads, embedding, preserve, query_pattern), heads)

    def ending(
        self,
        base: Activations,
        heads: Tensor,
        embedding: float = 1.0,
        preserve: Collection[Preservable] = (),
        query_pattern: Tensor | None = None,
    ) -> Ending:
        """The first part of `second`: all but the last layer's heads, which several passes may differ in alone."""
        last, first = self.config.layers - 1, 0
        if embedding == 1:  # layers that read what they read before give what they gave
            while first < last and torch.equal(heads[:, first], self.clamps.heads[:, first]):
                first += 1
        embedded = base.embedded * embedding if embedding != 1 else base.embedded
        resid = matched = base.layers[first].resid if embedding == 1 else embedded
        for layer in range(first, last):
            if layer == first and embedding == 1:
                z = base.layers[layer].z
            else:
                z = self._attend(layer, resid, matched, base.labels, base.target, False, base, preserve).z
            resid, matched = self._after(layer, resid, z, heads[:, layer], embedded)
        if first == last and embedding == 1:
            part = base.layers[last]
        else:
            part = self._attend(last, resid, matched, base.labels, base.target, False, base, preserve)
        z = part.z if query_pattern is None else _weighted(query_pattern[:, :, None], part.v)
        return Ending(resid, z, part.scores)

    def output(self, base: Activations, ending: Ending, heads: Tensor) -> Tensor:
        """The rest of `second`; of the heads `[P,L,H]` only the last layer's matter."""
        last = self.config.layers - 1
        resid, _ = self._after(last, ending.resid, ending.z, heads[:, last], base.embedded)
        return self._logits(resid, ending.scores, base.labels)

    def _attend(
        self,
        layer: int,
        resid: Tensor,
        matched: Tensor,
        labels: Tensor,
        target: Tensor | None,
        all_rows: bool,
        base: Activations | None = None,
        preserve: Collection[Preservable] = (),
    ) -> LayerActivations:
        block, known = self.model.blocks[layer], None if base is None else base.layers[layer]
        last = layer == self.config.layers - 1
        rows = slice(-1, None) if last and not all_rows else slice(None)
        keep = known is not None and "pattern" in preserve
        if (
            known is not None and keep and not (last and "copy" in self.clamps.forced)
        ):  # copied are scores, whatever the pattern
            q, k, scores, pattern = known.q, known.k, known.scores, known.pattern
        else:
            normed = _normed(block.norm1, matched)
            if known is not None and "q" in preserve:
                q = known.q[..., rows, :]
            else:
                q = self._rotated(self._split(_linear(block.attention.q, normed[:, :, rows])))
                q.mul_(self.config.d_head**-0.5 / self.clamps.temperature[:, layer, :, None, None, None].to(q))
            if known is not None and "k" in preserve:
                k = known.k
            else:
                k = self._rotated(self._split(_linear(block.attention.k, normed)))
            scores = _products(q, k)
            if scores.shape[2] > 1:
                scores.masked_fill_(self._blocked if layer else self._blocked_first, -torch.inf)
            computed = self._clamped(layer, scores.softmax(-2), labels, target)
            pattern = known.pattern if known is not None and keep else computed
        v = known.v if known is not None and "v" in preserve else self._value(layer, resid)
        z = _weighted(pattern[:, :, -1:] if last else pattern, v)
        return LayerActivations(resid, q, k, v, scores, pattern, z)

    def _clamped(self, layer: int, pattern: Tensor, labels: Tensor, target: Tensor | None) -> Tensor:
        if layer == 0 and "previous_token" in self.clamps.forced:
            previous = self._previous[-pattern.shape[2] :].to(pattern.dtype)
            pattern = torch.where(self.clamps.previous_token[:, :, None, None, None], previous, pattern)
        if layer == self.config.layers - 1 and "match" in self.clamps.forced and target is not None:
            row = matching_rows(labels, target).to(pattern.dtype).mT[:, None]  # [P,1,T,B]
            query = torch.where(self.clamps.match[:, :, None, None], row, pattern[:, :, -1])
            pattern = torch.cat([pattern[:, :, :-1], query[:, :, None]], dim=2)
        return pattern

    def _value(self, layer: int, resid: Tensor) -> Tensor:
        block = self.model.blocks[layer]
        return self._split(_linear(block.attention.v, _normed(block.norm1, resid)))

    def _after(self, layer: int, resid: Tensor, z: Tensor, heads: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """The stream after a layer, and what the next one's queries and keys read; after the last the query's alone."""
        block = self.model.blocks[layer]
        # removing heads from the weights, which are small
        weight = block.attention.out.weight * heads.to(z).repeat_interleave(self.config.d_head, 1)[:, None]
        resid = _product(weight, z.flatten(1, 2)).add_(resid[:, :, -z.shape[3] :])
        if block.attention.out.bias is not None:  # of no head: it stays when heads are removed
            resid.add_(block.attention.out.bias[..., None, None])
        if block.mlp is not None:
            hidden = F.gelu(_linear(block.up, _normed(block.norm2, resid)))
            resid = _linear(block.down, hidden).add_(resid)
        if layer or "first_layer" not in self.clamps.forced:
            return resid, resid
        replaced = self.clamps.first_layer.view(-1, 1, 1, 1)
        return torch.where(replaced, embedded, resid), torch.where(replaced, moved_on(embedded, dim=2), resid)

    def _logits(self, resid: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        query = _normed(self.model.final_norm, resid[:, :, -1:])[:, :, 0]
        logits: Tensor = self.model.unembed(query.mT)
        if self._fewer_outputs is not None:
            logits = torch.where(self._fewer_outputs, logits, NO_LABEL)
        if "copy" in self.clamps.forced:
            of_query = scores[:, :, -1].movedim(-1, 1).flatten(0, 1)  # [P*B,H,T]
            head = self.clamps.copy.repeat_interleave(labels.shape[1])
            copied = copied_logits(of_query, labels.flatten(0, 1), head, logits.shape[-1]).view(logits.shape)
            logits = torch.where(self.clamps.copy.view(-1, 1, 1) >= 0, copied, logits)
        return logits

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.config.heads, -1, *x.shape[2:])  # [P,H,D,T,B]

    def _rotated(self, x: Tensor) -> Tensor:
        """Positions are the last ones of the sequence."""
        if self._rotary is None:
            return x
        cos, sin = (table[-x.shape[3] :].mT[..., None] for table in self._rotary)  # [D/2, T, 1]
        rotated, a, b = torch.empty_like(x), x[:, :, 0::2], x[:, :, 1::2]
        torch.mul(a, cos, out=rotated[:, :, 0::2]).addcmul_(b, sin, value=-1)
        torch.mul(b, cos, out=rotated[:, :, 1::2]).addcmul_(a, sin)
        return rotated


def _linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """x `[P,in,T,B]` to `[P,out,T,B]`."""
    y = _product(linear.weight, x)
    return y if linear.bias is None else y.add_(linear.bias[..., None, None])


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """Weight `[P,out,in]` times x `[P,in,T,B]`: `[P,out,T,B]`."""
    return torch.bmm(weight, x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])


def _normed(module: nn.Module, x: Tensor) -> Tensor:
    norm = layer_norm(module)
    centred = x - x.mean(1, keepdim=True)
    scale = (centred.square().mean(1, keepdim=True) + norm.eps).rsqrt()
    return centred.mul_(scale).mul_(norm.weight[..., None, None]).add_(norm.bias[..., None, None])


def _products(q: Tensor, k: Tensor) -> Tensor:
    """Scores `[P,H,R,T,B]` of q `[P,H,D,R,B]` and k `[P,H,D,T,B]`."""
    scores = q[:, :, 0, :, None] * k[:, :, 0, None]
    for d in range(1, q.shape[2]):
        scores.addcmul_(q[:, :, d, :, None], k[:, :, d, None])
    return scores


def _weighted(pattern: Tensor, v: Tensor) -> Tensor:
    """z `[P,H,D,R,B]` of a pattern `[P,H,R,T,B]` and v `[P,H,D,T,B]`."""
    z = pattern[:, :, None, :, 0] * v[:, :, :, None, 0]
    for position in range(1, v.shape[3]):
        z.addcmul_(pattern[:, :, None, :, position], v[:, :, :, None, position])
    return z
