"""Ablations in a 2-layer attention-only model with frozen patterns, at few positions: no stream is ever carried.

The last layer's rows need, per head h and row i, u = sum_j P_h[i,j] (LN(x_j) - LN(x_j - d_j)) W_V^h. With d = Z W_O
(Z the removed results of the first layer's heads, one row of `rank` numbers per position), O = W_O less its row means,
and xc = x less its mean,

    LN(x) - LN(x - d) = g [ Z O / sd' + xc c ],    c = (var' - var) / (sd sd' (sd + sd')),
    var' - var = (Z G Z^T - 2 Z (O xc^T)) / C,     G = O O^T,

so that, M = O diag(g) W_V^h and v_j = xc_j diag(g) W_V^h / sd_j being the value without what the biases add,

    u = [ sum_j (P_h[i,j] / sd'_j) Z_j ] M + sum_j (P_h[i,j] c_j sd_j) v_j.

Both sums run over vectors as wide as a head, not as the model, and values of ablated streams are never computed. Where
little of a stream is left (var' far below var) its variance would be a difference of nearly equal numbers: such
ablations go through `attention_change` instead.

Ablations of one rank go together, as many at a time as `BaseLayer.stream_slices` says: on a GPU all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from icl_fast.measure.ablation.delta import attention_change
from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import Ablation
from icl_fast.measure.ablation.products import Products
from icl_fast.measure.ablation.removal import Removal, of_these
from icl_fast.measure.base_pass import BaseLayer, merged
from icl_fast.models.blocks import layer_norm
from icl_fast.ops._project import project

LEAST_VARIANCE = 0.05  # var' / var under which the direct way is taken: rounding grows by its inverse


class SourceSums:
    """What A ablations have removed from the rows' stream, [A,n,R,C] in `removed` after the last layer."""

    def __init__(self, ablations: Sequence[Ablation], mode: AblationMode, removal: Removal, products: Products) -> None:
        self.ablations, self.mode, self.removal, self.products = ablations, mode, removal, products
        self.results: list[Tensor] = []  # of each ablation, [n,T,rank]
        self.written: list[Tensor] = []  # its W_O, [rank,C]
        self.removed: Tensor

    def layer(self, base: BaseLayer) -> None:
        """The first layer, then the last."""
        if base.layer == 0:
            for ablation in self.ablations:
                heads = ablation.heads_of(0)
                self.results.append(merged(self.removal.of_heads(base, heads)))
                self.written.append(of_these(base.attention.w_o, heads).flatten(0, 1))
            return
        assert base.rows is not None
        self.removed = base.resid.new_empty(len(self.ablations), *base.rows.shape, base.resid.shape[-1])
        norms = _Norms(base)
        for part in self._of_one_rank(base):
            z, w_o = torch.stack(self.results[part]), torch.stack(self.written[part])
            self.removed[part] = base.take(z) @ w_o[:, None]
            changes, little = norms.attention_change(z, w_o)
            for index, ablation in enumerate(self.ablations[part]):
                if little[index]:
                    moved = attention_change(
                        (z[index] @ w_o[index])[None], base, [ablation], self.mode, self.removal, self.products
                    )
                    assert moved is not None
                    changes[index] = moved[0]
                elif heads := ablation.heads_of(1):
                    by_head = changes[index].view(*base.rows.shape, *base.z.shape[1::2])  # [n,R,H,D]
                    by_head[:, :, list(heads)] = self.removal.of_heads(base, heads).transpose(1, 2)
            project(changes, self.products.of(base.attention.out.weight), onto=self.removed[part])

    def _of_one_rank(self, base: BaseLayer) -> Iterator[slice]:
        """Ablations that remove equally many heads' results, as many at a time as go through a layer together."""
        for _, same in groupby(range(len(self.ablations)), lambda index: len(self.written[index])):
            indices = list(same)
            for part in base.stream_slices(len(indices)):
                yield slice(indices[0] + part.start, indices[0] + part.stop)


class _Norms:
    """What all ablations share in the last layer."""

    def __init__(self, base: BaseLayer) -> None:
        norm, attention = layer_norm(base.block.norm1), base.attention
        wide = torch.promote_types(base.resid.dtype, torch.float32)
        stream = base.resid.to(wide)
        self.base = base
        self.centred = stream - stream.mean(-1, keepdim=True)  # [n,T,C]
        self.variance = self.centred.square().mean(-1)  # [n,T]
        self.eps = norm.eps
        self.sd = (self.variance + norm.eps).sqrt()
        v = base.qkv[2]
        heads, depth = v.shape[1], v.shape[3]
        gained: Tensor = attention.v.weight if norm.weight is None else attention.v.weight * norm.weight
        self.values = gained.view(heads, depth, -1)  # [H,D,C]
        offset: Tensor = v.new_zeros(heads * depth) if attention.v.bias is None else attention.v.bias
        if norm.bias is not None:
            offset = offset + attention.v.weight @ norm.bias
        self.v = (v - offset.view(heads, 1, depth)).contiguous()  # [n,H,T,D]

    def attention_change(self, z: Tensor, w_o: Tensor) -> tuple[Tensor, list[bool]]:
        """What is taken from the results of the heads, [A,n,R,H*D], by z [A,n,T,K] and w_o [A,K,C], and of which
        ablations little is left of a stream: their numbers are of no use."""
        pattern = self.base.pattern  # [n,H,R,T]
        wide, narrow = self.centred.dtype, pattern.dtype
        count, heads, rows, length = pattern.shape
        variants, rank = len(z), z.shape[-1]
        centred_w = w_o.to(wide)
        centred_w = centred_w - centred_w.mean(-1, keepdim=True)  # [A,K,C]
        flat_w = centred_w.flatten(0, 1)
        gram = centred_w @ centred_w.mT
        along = (self.centred.flatten(0, 1) @ flat_w.T).view(count, length, variants, rank).permute(2, 0, 1, 3)
        results = z.to(wide)
        crossed = torch.sub((results.flatten(1, 2) @ gram).view_as(results), along, alpha=2)
        grown = (results * crossed).sum(-1) / w_o.shape[-1]  # var' - var, [A,n,T]
        left = self.variance + grown
        little: list[bool] = (left < LEAST_VARIANCE * self.variance).flatten(1).any(1).tolist()
        sd = (left + self.eps).sqrt()
        spread = (grown / (self.sd + sd) / sd).to(narrow).transpose(0, 1)  # c sd, [n,A,T]
        summed = (pattern * (1 / sd).to(narrow)[:, :, None, None]).flatten(2, 3) @ z  # [A,n,H*R,K]
        through = (flat_w.to(narrow) @ self.values.flatten(0, 1).T).view(variants, rank, heads, -1).transpose(1, 2)
        first = summed.view(variants, count, heads, rows, rank).transpose(1, 2).flatten(2, 3) @ through  # [A,H,n*R,D]
        second = (pattern[:, :, None] * spread[:, None, :, None]).flatten(2, 3) @ self.v  # [n,H,A*R,D]
        first = first.view(variants, heads, count, rows, -1).permute(0, 2, 3, 1, 4)
        second = second.view(count, heads, variants, rows, -1).permute(2, 0, 3, 1, 4)
        return (first + second).flatten(3), little
