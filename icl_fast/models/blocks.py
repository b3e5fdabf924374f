"""The blocks of every model: pre-norm causal attention, and an MLP; each site open to recording and intervention.

A block is that of one model, or of P members side by side (`icl_fast.models.members`): then B stands for P * B, the
members folded into the examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icl_fast.errors import InputError
from icl_fast.models.changes import why_changed
from icl_fast.models.config import ModelShape
from icl_fast.models.interventions import Taps, site
from icl_fast.models.members import MemberLinear, MemberNorm
from icl_fast.models.positions import Positions, causal_mask, rotate, softmax_or_zeros
from icl_fast.ops import smeared_attention


def make_linear(inputs: int, outputs: int, *, bias: bool, members: int | None = None) -> nn.Linear:
    """A linear map, or one for each of the members."""
    if members is None:
        return nn.Linear(inputs, outputs, bias=bias)
    return MemberLinear(members, inputs, outputs, bias=bias)


def make_norm(config: ModelShape, members: int | None = None) -> nn.LayerNorm:
    """A norm of the residual stream, or one for each of the members."""
    if members is None:
        return nn.LayerNorm(config.width, eps=config.norm_eps, elementwise_affine=config.norm_affine)
    return MemberNorm(members, config.width, config.norm_eps)


def make_mlp(config: ModelShape, members: int | None = None) -> nn.Sequential:
    """A projection up, an activation and a projection down."""
    hidden = config.mlp_ratio * config.width
    return nn.Sequential(
        make_linear(config.width, hidden, bias=True, members=members),
        nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none"),
        make_linear(hidden, config.width, bias=True, members=members),
    )


class Attention(nn.Module):
    """Multi-head causal attention of one layer, with position, smeared keys and local windows as configured."""

    def __init__(self, config: ModelShape, layer: int, members: int | None = None) -> None:
        super().__init__()
        self.config, self.layer, self.members = config, layer, members
        width, inner, bias = config.width, config.heads * config.d_head, config.attention_bias
        self.q = make_linear(width, inner, bias=bias, members=members)
        self.k = make_linear(width, inner, bias=bias, members=members)
        self.v = make_linear(width, inner, bias=bias, members=members)
        self.out = make_linear(inner, width, bias=bias, members=members)
        # sigmoid(0) = 1/2: every head starts half-way between the token and its predecessor
        self.alpha = nn.Parameter(torch.zeros(config.heads)) if config.key == "smeared" else None
        self.windows = config.windows[layer] if config.windows is not None else None

    def forward(self, normed: Tensor, positions: Positions, taps: Taps) -> Tensor:
        """The normed residual stream `[B,T,C]` to attn_out `[B,T,C]`."""
        layer = self.layer
        read = self._read(normed, positions)
        q = taps(site("q", layer), self.queries(read, positions))
        if self.alpha is not None and not taps.wants(*(site(name, layer) for name in ("k", "scores", "pattern"))):
            k = self._rotate(self._split(self.k(read)), positions)  # the op smears them
            v = taps(site("v", layer), self.values(normed))
            z = smeared_attention(q, k, v, self.alpha, scale=self.scale, window=self.windows)
        else:
            k = taps(site("k", layer), self.keys(read, positions))
            v = taps(site("v", layer), self.values(normed))
            z = self._attend(q, k, v, taps)
        z = taps(site("z", layer), z)  # [B,H,T,D]
        if taps.wants(site("head_out", layer)):
            out = taps(site("head_out", layer), self._head_out(z)).sum(1)
            return out if self.out.bias is None else out + self.out.bias
        merged: Tensor = self.out(z.transpose(1, 2).flatten(2))
        return merged

    def qkv(self, normed: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B,H,T,D]` as attention sees them: after rotation and smear."""
        read = self._read(normed, positions)
        return self.queries(read, positions), self.keys(read, positions), self.values(normed)

    def queries(self, read: Tensor, positions: Positions) -> Tensor:
        """Queries `[B,H,T,D]` of what they read `[B,T,C]`, after rotation."""
        return self._rotate(self._split(self.q(read)), positions)

    def keys(self, read: Tensor, positions: Positions) -> Tensor:
        """Keys `[B,H,T,D]` of what they read `[B,T,C]`, after rotation and smear."""
        return self._smear(self._rotate(self._split(self.k(read)), positions))

    def values(self, normed: Tensor) -> Tensor:
        """Values `[B,H,T,D]`."""
        return self._split(self.v(normed))

    @property
    def scale(self) -> float:
        """The factor on the scores, 1 / sqrt(D)."""
        return float(self.config.d_head**-0.5)

    @property
    def w_o(self) -> Tensor:
        """The output projection head by head: a head writes `z_h @ w_o[h]`; `[H,D,C]`, of members `[P,H,D,C]`."""
        weight = self.out.weight.mT
        return weight.view(*weight.shape[:-2], self.config.heads, self.config.d_head, -1)

    @staticmethod
    def _read(normed: Tensor, positions: Positions) -> Tensor:
        """What queries and keys read."""
        return normed if positions.added is None else normed + positions.added

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.config.heads, self.config.d_head).transpose(1, 2)  # [B,H,T,D]

    def _rotate(self, x: Tensor, positions: Positions) -> Tensor:
        if positions.rotary is None:
            return x
        return rotate(x, *positions.rotary, interleaved=self.config.rotary_interleaved)

    def _smear(self, k: Tensor) -> Tensor:
        """Smeared keys (Olsson et al. 2022, Argument 2): s k_j + (1-s) k_(j-1), s = sigmoid(alpha_h); k_0 as it is."""
        if self.alpha is None:
            return k
        share = torch.sigmoid(self.alpha).to(k.dtype)[:, None, None]  # [H,1,1]
        smeared = share * k[..., 1:, :] + (1 - share) * k[..., :-1, :]
        return torch.cat((k[..., :1, :], smeared), dim=-2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, taps: Taps) -> Tensor:
        scores_site, pattern_site = site("scores", self.layer), site("pattern", self.layer)
        length, scale = q.shape[-2], self.scale
        # contexts of members are a few tokens: written out it is as fast, and then no tap changes a bit
        if self.members is None and not taps.wants(scores_site, pattern_site):
            mask = self._mask(length, q.device) if self.windows is not None else None
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        if taps.replaces(pattern_site) and not taps.wants(scores_site):
            pattern = q.new_zeros(()).expand(*q.shape[:-1], length)  # stands in for what is replaced unseen
        else:
            scores = taps(scores_site, (q @ k.mT) * scale)
            seen = scores.masked_fill(~self._mask(length, q.device), -math.inf)
            pattern = softmax_or_zeros(seen) if taps.changes(scores_site) else torch.softmax(seen, dim=-1)
        return taps(pattern_site, pattern) @ v

    def _mask(self, length: int, device: torch.device) -> Tensor:
        return causal_mask(length, windows=self.windows, device=device)

    def _head_out(self, z: Tensor) -> Tensor:
        """What each head writes, `[B,H,T,C]`."""
        if reason := why_changed(self.out, nn.Linear if self.members is None else MemberLinear, "attention.out"):
            raise InputError(
                f"site {site('head_out', self.layer)!r}: {reason}, so that there is no W_O to split by head"
            )
        w_o = self.w_o
        by_member = z.view(*w_o.shape[:-3], -1, *z.shape[1:])  # [B,H,T,D], of members [P,B,H,T,D]
        return torch.einsum("...bhtd,...hdc->...bhtc", by_member, w_o).reshape(*z.shape[:-1], self.config.width)


class Block(nn.Module):
    """One layer: attention, and an MLP where the config has them; each reads the normed residual stream."""

    def __init__(self, config: ModelShape, layer: int, members: int | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.norm1 = make_norm(config, members)
        self.attention = Attention(config, layer, members)
        self.mlp: nn.Sequential | None = None
        if config.mlp:
            self.norm2 = make_norm(config, members)
            self.mlp = make_mlp(config, members)

    @property
    def mlp_parts(self) -> tuple[nn.Linear, nn.GELU, nn.Linear]:
        """The MLP's projection up, its activation, its projection down."""
        assert self.mlp is not None
        up, activation, down = self.mlp
        assert isinstance(up, nn.Linear)
        assert isinstance(activation, nn.GELU)
        assert isinstance(down, nn.Linear)
        return up, activation, down

    def forward(self, resid: Tensor, positions: Positions, taps: Taps) -> Tensor:
        """The residual stream `[B,T,C]` before the layer to that after it."""
        layer = self.layer
        resid = taps(site("resid_pre", layer), resid)
        attn_out = taps(site("attn_out", layer), self.attention(self.norm1(resid), positions, taps))
        resid = taps(site("resid_mid", layer), resid + attn_out)
        if self.mlp is not None:
            resid = resid + taps(site("mlp_out", layer), self.mlp(self.norm2(resid)))
        return taps(site("resid_post", layer), resid)


class Blocks(nn.ModuleList):
    """The blocks of a model, one after the other."""

    def __init__(self, config: ModelShape, members: int | None = None) -> None:
        super().__init__(Block(config, layer, members) for layer in range(config.layers))

    def __iter__(self) -> Iterator[Block]:
        return super().__iter__()  # type: ignore[return-value]

    def __getitem__(self, index: int) -> Block:  # type: ignore[override]
        return super().__getitem__(index)  # type: ignore[return-value]

    def forward(self, resid: Tensor, positions: Positions, taps: Taps) -> Tensor:
        """The residual stream `[B,T,C]` before the first layer to that after the last."""
        for block in self:
            resid = block(resid, positions, taps)
        return resid
