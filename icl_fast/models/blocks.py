"""The blocks of every model: pre-norm causal attention, and an MLP; each site open to recording and intervention.

A block is that of one model, or of P members side by side (`icl_fast.models.members`): then B stands for P * B, the
members folded into the examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from icl_fast.errors import InputError
from icl_fast.models.changes import why_changed
from icl_fast.models.config import ModelShape
from icl_fast.models.interventions import Taps, site
from icl_fast.models.layer_stream import LayerStream
from icl_fast.models.members import MemberLinear, MemberNorm
from icl_fast.models.positions import Positions, alibi_slopes, causal_mask, rotate, softmax_or_zeros
from icl_fast.ops import _backend, smeared_attention

# With AVX2, AVX-512 or units for bfloat16 our kernels are faster than torch's attention in bfloat16, on a CPU.
_BY_KERNEL = _backend.has_wide_vectors()

Linear = Callable[[nn.Linear, Tensor], Tensor]  # how a projection is applied


def make_linear(inputs: int, outputs: int, *, bias: bool, members: int | None = None) -> nn.Linear:
    """A linear map, or one for each of the members."""
    if members is None:
        return nn.Linear(inputs, outputs, bias=bias)
    return MemberLinear(members, inputs, outputs, bias=bias)


def make_norm(config: ModelShape, members: int | None = None) -> nn.LayerNorm | nn.RMSNorm | nn.Identity:
    """A norm of the residual stream, or one for each of the members."""
    if members is not None:
        return MemberNorm(members, config.width, config.norm_eps)
    if config.norm == "none":
        return nn.Identity()
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.width, eps=config.norm_eps, elementwise_affine=config.norm_affine)


def layer_norm(norm: nn.Module) -> nn.LayerNorm:
    """A norm of which it is known that it is a LayerNorm."""
    assert isinstance(norm, nn.LayerNorm)
    return norm


def gain(norm: nn.Module) -> Tensor | None:
    """The gain of a norm, `[C]`; None: it has none, or there is no norm."""
    weight: Tensor | None = getattr(norm, "weight", None)
    return weight


class SoLU(nn.Module):
    """x softmax(x) over the hidden layer, then a LayerNorm of its own (Elhage et al. 2022, "Softmax Linear Units").

    Without the norm where it is plain; without its gain and bias unless the stream's norms have both.
    """

    def __init__(self, config: ModelShape) -> None:
        super().__init__()
        affine = config.norm == "layer" and config.norm_affine
        norm = nn.LayerNorm(config.hidden_width, eps=config.norm_eps, elementwise_affine=affine)
        self.norm = nn.Identity() if config.activation == "solu_plain" else norm

    def forward(self, x: Tensor) -> Tensor:
        """`[...,M]` to the same."""
        normed: Tensor = self.norm(x * x.softmax(-1))
        return normed


class GatedMLP(nn.Module):
    """act(x W_gate) * (x W_up), projected down (Shazeer 2020: SwiGLU with SiLU, GeGLU with GeLU)."""

    def __init__(self, config: ModelShape) -> None:
        super().__init__()
        width, hidden, bias = config.width, config.hidden_width, config.mlp_bias
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = make_activation(config)

    def forward(self, x: Tensor) -> Tensor:
        """`[...,C]` to the same."""
        written: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return written


def make_activation(config: ModelShape) -> nn.Module:
    """What the MLP does with its hidden layer."""
    if config.activation in ("solu", "solu_plain"):
        return SoLU(config)
    if config.activation in ("silu", "relu"):
        return nn.SiLU() if config.activation == "silu" else nn.ReLU()
    return nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")


def make_mlp(config: ModelShape, members: int | None = None) -> nn.Sequential | GatedMLP:
    """A projection up (two where gated), an activation and a projection down."""
    if config.gated:
        return GatedMLP(config)
    hidden, bias = config.hidden_width, config.mlp_bias
    return nn.Sequential(
        make_linear(config.width, hidden, bias=bias, members=members),
        make_activation(config),
        make_linear(hidden, config.width, bias=bias, members=members),
    )


class Attention(nn.Module):
    """Multi-head causal attention of one layer, with position, smeared keys and local windows as configured."""

    def __init__(self, config: ModelShape, layer: int, members: int | None = None) -> None:
        super().__init__()
        self.config, self.layer, self.members = config, layer, members
        width, inner, bias = config.width, config.heads * config.d_head, config.attention_bias
        shared = config.kv * config.d_head
        self.q = make_linear(width, inner, bias=bias, members=members)
        self.k = make_linear(width, shared, bias=bias, members=members)
        self.v = make_linear(width, shared, bias=bias, members=members)
        self.out = make_linear(inner, width, bias=bias if config.out_bias is None else config.out_bias, members=members)
        self.q_norm = self.k_norm = None
        if config.qk_norm != "none":
            of_all = config.qk_norm == "all"
            self.q_norm = nn.RMSNorm(inner if of_all else config.d_head, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(shared if of_all else config.d_head, eps=config.norm_eps)
        # sigmoid(0) = 1/2: every head starts half-way between the token and its predecessor
        self.alpha = nn.Parameter(torch.zeros(config.heads)) if config.key == "smeared" else None
        self.windows = config.windows[layer] if config.windows is not None else None
        self.heads_of_window: dict[int | None, Sequence[int]] = {None: range(config.heads)}
        if (windows := self.windows) is not None:
            self.heads_of_window = {
                window: [head for head, its in enumerate(windows) if its == window] for window in dict.fromkeys(windows)
            }
        self.local = self.windows is not None and None not in self.windows
        self.slopes = alibi_slopes(config.heads) if config.position == "alibi" else None

    def forward(self, normed: Tensor, positions: Positions, taps: Taps) -> Tensor:
        """The normed residual stream `[B,T,C]` to attn_out `[B,T,C]`."""
        layer = self.layer
        read = self._read(normed, positions)
        q = taps(site("q", layer), self.queries(read, positions))
        if self.alpha is not None and not taps.wants(*(site(name, layer) for name in ("k", "scores", "pattern"))):
            k = self._rotate(self._keys(read), positions)  # the op smears them
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

    def qkv(
        self, normed: Tensor, positions: Positions, linear: Linear = nn.Linear.__call__
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B,H,T,D]` as attention sees them: after rotation and smear."""
        read = self._read(normed, positions)
        return (
            self.queries(read, positions, linear),
            self.keys(read, positions, linear),
            self.values(normed, linear),
        )

    def queries(self, read: Tensor, positions: Positions, linear: Linear = nn.Linear.__call__) -> Tensor:
        """Queries `[B,H,T,D]` of what they read `[B,T,C]`, after norm and rotation."""
        return self._rotate(self._normed(self._clip(linear(self.q, read)), self.q_norm), positions)

    def keys(self, read: Tensor, positions: Positions, linear: Linear = nn.Linear.__call__) -> Tensor:
        """Keys `[B,H,T,D]` of what they read `[B,T,C]`, after norm, rotation and smear."""
        return self._smear(self.of_each_head(self._rotate(self._keys(read, linear), positions)))

    def values(self, normed: Tensor, linear: Linear = nn.Linear.__call__) -> Tensor:
        """Values `[B,H,T,D]`."""
        return self.of_each_head(self._split(self._clip(linear(self.v, normed))))

    def of_each_head(self, x: Tensor) -> Tensor:
        """Keys or values `[...,KV,T,D]` of groups of heads, given to each of their heads: `[...,H,T,D]`."""
        group = self.config.heads // self.config.kv
        return x if group == 1 else x.repeat_interleave(group, dim=-3)

    @property
    def scale(self) -> float:
        """The factor on the scores, 1 / sqrt(D) unless the config has another."""
        config = self.config
        scale = float(config.d_head**-0.5) if config.score_scale is None else config.score_scale
        return scale / (self.layer + 1) if config.score_scale_by_layer else scale

    @property
    def plain_scores(self) -> bool:
        """Whether scores are products of queries and keys, scaled, and nothing else."""
        return self.config.score_cap is None and self.slopes is None

    def scores(self, q: Tensor, k: Tensor, rows: Tensor | None = None) -> Tensor:
        """Scores `[...,H,R,T]` before the mask, of queries `[...,H,R,D]` and keys `[...,H,T,D]`.

        Args:
            rows: 0-based positions `[...,R]` of the queries; None: all T.
        """
        scores = (q @ k.mT) * self.scale
        if (cap := self.config.score_cap) is not None:
            scores = cap * torch.tanh(scores / cap)
        if self.slopes is not None:
            keys = torch.arange(k.shape[-2], device=q.device)
            back = keys - (keys if rows is None else rows)[..., None]  # [...,R,T]
            scores = scores + torch.tensor(self.slopes, device=q.device)[:, None, None] * back[..., None, :, :]
        return scores

    @property
    def w_o(self) -> Tensor:
        """The output projection head by head: a head writes `z_h @ w_o[h]`; `[H,D,C]`, of members `[P,H,D,C]`."""
        weight = self.out.weight.mT
        return weight.view(*weight.shape[:-2], self.config.heads, self.config.d_head, -1)

    @staticmethod
    def _read(normed: Tensor, positions: Positions) -> Tensor:
        """What queries and keys read."""
        return normed if positions.added is None else normed + positions.added

    def _keys(self, read: Tensor, linear: Linear = nn.Linear.__call__) -> Tensor:
        return self._normed(self._clip(linear(self.k, read)), self.k_norm)

    def _clip(self, x: Tensor) -> Tensor:
        return x if (most := self.config.qkv_clip) is None else x.clamp(-most, most)

    def _normed(self, x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        if norm is None:
            return self._split(x)
        return self._split(norm(x)) if self.config.qk_norm == "all" else norm(self._split(x))

    def _split(self, x: Tensor) -> Tensor:
        heads = x.shape[-1] // self.config.d_head
        return x.reshape(*x.shape[:-1], heads, self.config.d_head).transpose(1, 2)  # [B,H,T,D], of groups [B,KV,T,D]

    def _rotate(self, x: Tensor, positions: Positions) -> Tensor:
        rotary = positions.local_rotary if self.local else positions.rotary
        return x if rotary is None else rotate(x, *rotary, interleaved=self.config.rotary_interleaved)

    def _smear(self, k: Tensor) -> Tensor:
        """Smeared keys (Olsson et al. 2022, Argument 2): s k_j + (1-s) k_(j-1), s = sigmoid(alpha_h); k_0 as it is."""
        if self.alpha is None:
            return k
        share = torch.sigmoid(self.alpha).to(k.dtype)[:, None, None]  # [H,1,1]
        smeared = share * k[..., 1:, :] + (1 - share) * k[..., :-1, :]
        return torch.cat((k[..., :1, :], smeared), dim=-2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, taps: Taps) -> Tensor:
        scores_site, pattern_site = site("scores", self.layer), site("pattern", self.layer)
        length = q.shape[-2]
        # contexts of members are a few tokens: written out it is as fast, and then no tap changes a bit
        if self.members is None and self.plain_scores and not taps.wants(scores_site, pattern_site):
            return self._fused(q, k, v)
        if taps.replaces(pattern_site) and not taps.wants(scores_site):
            pattern = q.new_zeros(()).expand(*q.shape[:-1], length)  # stands in for what is replaced unseen
        else:
            scores = taps(scores_site, self.scores(q, k))
            seen = scores.masked_fill(~self._mask(length, q.device), -math.inf)
            pattern = softmax_or_zeros(seen) if taps.changes(scores_site) else torch.softmax(seen, dim=-1)
        return taps(pattern_site, pattern) @ v

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention without its pattern; heads of one window together: a mask [T,T], not [H,T,T]."""
        if _BY_KERNEL and _is_bfloat16_on_cpu(q):
            # of each key its own share is 1
            plain = q.new_full((self.config.heads,), math.inf, dtype=torch.float32)
            return smeared_attention(q, k, v, plain, scale=self.scale, window=self.windows)
        length, written = q.shape[-2], [q] * self.config.heads
        for window, heads in self.heads_of_window.items():
            dense = window is None or window >= length
            mask = None if dense else causal_mask(length, windows=[window], device=q.device)[0]
            whole = len(heads) == self.config.heads
            of_q, of_k, of_v = ((x if whole else torch.stack([x[:, h] for h in heads], 1)) for x in (q, k, v))
            z = F.scaled_dot_product_attention(of_q, of_k, of_v, attn_mask=mask, is_causal=dense, scale=self.scale)
            if whole:
                return z
            for head, of_head in zip(heads, z.unbind(1), strict=True):
                written[head] = of_head
        return torch.stack(written, 1)

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


def _is_bfloat16_on_cpu(q: Tensor) -> bool:
    """Whether it will be, under autocast."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    return q.device.type == "cpu" and dtype == torch.bfloat16


class Block(nn.Module):
    """One layer: attention, and an MLP where the config has them, each with norms before or after it, or both."""

    def __init__(self, config: ModelShape, layer: int, members: int | None = None) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        before, after = config.norm_place != "after", config.norm_place != "before"
        self.norm1 = make_norm(config, members) if before else nn.Identity()
        self.attention = Attention(config, layer, members)
        self.after1 = make_norm(config, members) if after else nn.Identity()
        self.mlp: nn.Sequential | GatedMLP | None = None
        if config.mlp:
            if not config.shared_norm:
                self.norm2 = make_norm(config, members) if before else nn.Identity()
            self.mlp = make_mlp(config, members)
            self.after2 = make_norm(config, members) if after else nn.Identity()

    @property
    def mlp_norm(self) -> nn.Module:
        """The norm through which the MLP reads the stream."""
        return self.norm1 if self.config.shared_norm else self.norm2

    @property
    def up(self) -> nn.Linear:
        """The MLP's projection up."""
        assert self.mlp is not None
        up = self.mlp.up if isinstance(self.mlp, GatedMLP) else self.mlp[0]
        assert isinstance(up, nn.Linear)
        return up

    @property
    def activation(self) -> nn.Module:
        """What the MLP does with its hidden layer."""
        assert self.mlp is not None
        return self.mlp.activation if isinstance(self.mlp, GatedMLP) else self.mlp[1]

    @property
    def down(self) -> nn.Linear:
        """The MLP's projection down."""
        assert self.mlp is not None
        down = self.mlp.down if isinstance(self.mlp, GatedMLP) else self.mlp[2]
        assert isinstance(down, nn.Linear)
        return down

    def forward(self, resid: Tensor, positions: Positions, taps: Taps) -> Tensor:
        """The residual stream `[B,T,C]` before the layer to that after it."""
        layer = self.layer
        resid = taps(site("resid_pre", layer), resid)
        written = self.after1(self.attention(self.norm1(resid), positions, taps))
        mid = taps(site("resid_mid", layer), resid + taps(site("attn_out", layer), written))
        if self.mlp is None:
            return taps(site("resid_post", layer), mid)
        written = self.mlp_out(self.mlp_reads(resid, mid))
        return taps(site("resid_post", layer), mid + taps(site("mlp_out", layer), written))

    def mlp_reads(self, resid: Tensor, mid: Tensor) -> Tensor:
        """Which stream the MLP reads: that before attention where they are parallel, else that after it."""
        return resid if self.config.parallel else mid

    def mlp_out(self, stream: Tensor) -> Tensor:
        """What the MLP writes for the stream that it reads, `[...,C]`."""
        assert self.mlp is not None
        written: Tensor = self.after2(self.mlp(self.mlp_norm(stream)))
        return written


class Blocks(nn.ModuleList):
    """The blocks of a model, one after the other.

    Attributes:
        stream: where weights are that are not in memory but while their block runs; None: all are in memory.
        checkpointed: of a block only what enters it is kept, and it is computed again for the backward pass.
    """

    def __init__(self, config: ModelShape, members: int | None = None) -> None:
        super().__init__(Block(config, layer, members) for layer in range(config.layers))
        self.stream: LayerStream | None = None
        self.checkpointed = False

    def __iter__(self) -> Iterator[Block]:
        for block in super().__iter__():
            yield self._ready(block)

    def __getitem__(self, index: int) -> Block:  # type: ignore[override]
        if isinstance(index, slice):  # not a model's blocks any more
            return nn.ModuleList(list(self)[index])
        return self._ready(super().__getitem__(index))

    def forward(self, resid: Tensor, positions: Positions, taps: Taps) -> Tensor:
        """The residual stream `[B,T,C]` before the first layer to that after the last."""
        for block in self:
            if self.checkpointed and torch.is_grad_enabled():
                # no block draws random numbers; to keep the generator's state would wait for the device
                resid = checkpoint(block, resid, positions, taps, use_reentrant=False, preserve_rng_state=False)
            else:
                resid = block(resid, positions, taps)
        return resid

    def _ready(self, block: nn.Module) -> Block:
        if self.stream is not None:
            self.stream.hold(block)
        return block  # type: ignore[return-value]

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Blocks:
        if self.stream is None:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]
        self.stream.convert(self, fn)
        return self
