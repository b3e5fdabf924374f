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
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from icl_fast.measure.ablation.delta import attention_change
from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import Ablation
from icl_fast.measure.ablation.products import Products
from icl_fast.measure.ablation.removal import Removal
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
                self.written.append(base.attention.w_o[list(heads)].flatten(0, 1))
            return
        rows = torch.stack([base.take(z) @ w for z, w in zip(self.results, self.written, strict=True)])  # [A,n,R,C]
        norms = _Norms(base)
        for index, ablation in enumerate(self.ablations):
            change = norms.attention_change(self.results[index], self.written[index])
            if change is None:
                whole = (self.results[index] @ self.written[index])[None]
                moved = attention_change(whole, base, [ablation], self.mode, self.removal, self.products)
                assert moved is not None
                change = moved[0]
            elif heads := ablation.heads_of(1):
                by_head = change.view(*change.shape[:2], *base.z.shape[1::2])  # [n,R,H,D]
                by_head[:, :, list(heads)] = self.removal.of_heads(base, heads).transpose(1, 2)
            project(change, self.products.of(base.attention.out.weight), onto=rows[index])
        self.removed = rows


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
        self.v = v - offset.view(heads, 1, depth)  # [n,H,T,D]

    def attention_change(self, z: Tensor, w_o: Tensor) -> Tensor | None:
        """What is taken from the results of the heads, [n,R,H*D], by z [n,T,K] and w_o [K,C]; None: not this way."""
        pattern, width = self.base.pattern, w_o.shape[1]  # [n,H,R,T]
        wide = self.centred.dtype
        results, centred_w = z.to(wide), w_o.to(wide) - w_o.to(wide).mean(-1, keepdim=True)  # [n,T,K], [K,C]
        gram = centred_w @ centred_w.T
        along = self.centred @ centred_w.T  # [n,T,K]
        grown = (results * (results @ gram - 2 * along)).sum(-1) / width  # var' - var, [n,T]
        left = self.variance + grown
        if bool((left < LEAST_VARIANCE * self.variance).any()):
            return None
        sd = (left + self.eps).sqrt()
        spread = grown / (self.sd + sd) / sd  # c sd, [n,T]
        narrow = pattern.dtype
        summed = (pattern * (1 / sd).to(narrow)[:, None, None]).flatten(1, 2) @ z  # [n,H*R,K]
        through = torch.einsum("kc,hdc->hkd", centred_w.to(narrow), self.values)
        first = summed.view(*pattern.shape[:3], -1) @ through  # [n,H,R,D]
        second = (pattern * spread.to(narrow)[:, None, None]) @ self.v  # [n,H,R,D]
        return merged(first + second)
