"""The Transformer: pre-LayerNorm, causal, with or without MLPs, every site open to recording and intervention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icl_fast.errors import InputError
from icl_fast.models.config import TransformerConfig
from icl_fast.models.interventions import Intervention, Taps, make_taps, site


class Attention(nn.Module):
    """Multi-head causal attention of one layer, with position, smeared keys and local windows as configured."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        width, inner = config.width, config.heads * config.d_head
        self.q = nn.Linear(width, inner, bias=config.attention_bias)
        self.k = nn.Linear(width, inner, bias=config.attention_bias)
        self.v = nn.Linear(width, inner, bias=config.attention_bias)
        self.out = nn.Linear(inner, width, bias=config.attention_bias)
        # sigmoid(0) = 1/2: every head starts half-way between the token and its predecessor
        self.alpha = nn.Parameter(torch.zeros(config.heads)) if config.key == "smeared" else None
        self.windows = config.windows[layer] if config.windows is not None else None

    def forward(self, normed: Tensor, position: Tensor | None, taps: Taps) -> Tensor:
        """normed [B,T,C], position [T,C] (shortformer) or None -> attn_out [B,T,C]."""
        layer = self.layer
        q, k, v = (taps(site(name, layer), x) for name, x in zip("qkv", self.qkv(normed, position), strict=True))
        z = taps(site("z", layer), self._attend(q, k, v, taps))  # [B,H,T,D]
        if taps.wants(site("head_out", layer)):
            head_out = torch.einsum("bhtd,hdc->bhtc", z, self.w_o)
            out = taps(site("head_out", layer), head_out).sum(1)
            return out if self.out.bias is None else out + self.out.bias
        merged: Tensor = self.out(z.transpose(1, 2).flatten(2))
        return merged

    def qkv(self, normed: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B,H,T,D] as attention sees them: after rotation and smear."""
        key_input = normed if position is None else normed + position  # [B,T,C]
        q = self._rotate(self._split(self.q(key_input)))
        k = self._smear(self._rotate(self._split(self.k(key_input))))
        return q, k, self._split(self.v(normed))

    @property
    def scale(self) -> float:
        """The factor on the scores, 1 / sqrt(D)."""
        return float(self.config.d_head**-0.5)

    @property
    def w_o(self) -> Tensor:
        """The output projection head by head, [H,D,C]: a head writes `z_h @ w_o[h]` into the residual stream."""
        return self.out.weight.T.view(self.config.heads, self.config.d_head, self.config.width)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.config.heads, self.config.d_head).transpose(1, 2)  # [B,H,T,D]

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotary position embedding of x [B,H,T,D]; the identity for other position kinds."""
        width = self.config.rotary_width
        if not width:
            return x
        angles = _angles(x.shape[-2], width, self.config.rotary_base, x.device)  # [T,width/2]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        turned, rest = x[..., :width], x[..., width:]
        if self.config.rotary_interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        else:
            a, b = turned.chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return torch.cat((turned, rest), dim=-1)

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
        if not taps.wants(scores_site, pattern_site):
            mask = self._mask(length, q.device) if self.windows is not None else None
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        if taps.replaces(pattern_site) and not taps.wants(scores_site):
            pattern = q.new_zeros(()).expand(*q.shape[:-1], length)  # stands in for what is replaced unseen
        else:
            scores = taps(scores_site, (q @ k.transpose(-1, -2)) * scale)
            pattern = torch.softmax(scores.masked_fill(~self._mask(length, q.device), -math.inf), dim=-1)
        return taps(pattern_site, pattern) @ v

    def _mask(self, length: int, device: torch.device) -> Tensor:
        """True where a query (row) may attend to a key: [T,T], or [H,T,T] with local windows."""
        index = torch.arange(length, device=device)
        distance = index[:, None] - index[None, :]
        if self.windows is None:
            return distance >= 0
        reach = torch.tensor([length if w is None else w for w in self.windows], device=device)[:, None, None]
        return (distance >= 0) & (distance < reach)


class Block(nn.Module):
    """One layer: attention, and an MLP where the config has them; each reads the LayerNormed residual stream."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norm1 = _layer_norm(config)
        self.attention = Attention(config, layer)
        self.mlp: nn.Sequential | None = None
        if config.mlp:
            self.norm2 = _layer_norm(config)
            hidden = config.mlp_ratio * config.width
            gelu = nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")
            self.mlp = nn.Sequential(nn.Linear(config.width, hidden), gelu, nn.Linear(hidden, config.width))

    @property
    def mlp_parts(self) -> tuple[nn.Linear, nn.GELU, nn.Linear]:
        """The MLP's projection up, its activation, its projection down."""
        assert self.mlp is not None
        up, activation, down = self.mlp
        assert isinstance(up, nn.Linear)
        assert isinstance(activation, nn.GELU)
        assert isinstance(down, nn.Linear)
        return up, activation, down

    def forward(self, resid: Tensor, position: Tensor | None, taps: Taps) -> Tensor:
        """resid [B,T,C] -> [B,T,C]."""
        layer = self.layer
        resid = taps(site("resid_pre", layer), resid)
        attn_out = taps(site("attn_out", layer), self.attention(self.norm1(resid), position, taps))
        resid = taps(site("resid_mid", layer), resid + attn_out)
        if self.mlp is not None:
            resid = resid + taps(site("mlp_out", layer), self.mlp(self.norm2(resid)))
        return taps(site("resid_post", layer), resid)


class Transformer(nn.Module):
    """A decoder-only Transformer with named sites (see `icl_fast.models.interventions`).

    "Shortformer" positions are added to the inputs of the query and key projections only, after the LayerNorm, so
    that residual stream and values carry no position (Press et al. 2021; Olsson et al. 2022, Model Details).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        self.position = nn.Embedding(config.context, config.width) if self._has_position_table else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = _layer_norm(config)
        self.unembed = nn.Linear(config.width, config.vocab, bias=config.unembed_bias)
        self.reset_parameters()

    @property
    def _has_position_table(self) -> bool:
        return self.config.position in ("learned", "shortformer")

    def reset_parameters(self) -> None:
        """Draw all weights anew, from torch's global generator.

        Matrices are uniform within 1/sqrt(fan-in) as in `torch.nn.Linear`, token embeddings N(0, 1); position tables
        start as sinusoids and are learned from there. With `init_std` all of them are N(0, init_std) instead.
        Biases start at 0, gains at 1, smeared keys half-way.
        """
        config = self.config
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim < 2:
                    parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                elif name == "position.weight" and config.init_std is None:
                    parameter.copy_(_sinusoids(config.context, config.width, parameter.device))
                elif name == "embed.weight" or config.init_std is not None:
                    parameter.normal_(0.0, config.init_std or 1.0)
                else:
                    bound = parameter.shape[1] ** -0.5
                    parameter.uniform_(-bound, bound)

    @overload
    def forward(self, tokens: Tensor, *, interventions: Sequence[Intervention] = ()) -> Tensor: ...

    @overload
    def forward(
        self, tokens: Tensor, *, record: Sequence[str], interventions: Sequence[Intervention] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def forward(
        self, tokens: Tensor, *, record: Sequence[str] | None = None, interventions: Sequence[Intervention] = ()
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits [B,T,V] of tokens [B,T] (integers), or of embeddings [B,T,C] (floats) given in their place.

        Args:
            tokens: token ids, int64 [B,T], or token embeddings [B,T,C], to which positions are added all the same.
            record: sites to return; given at all (even empty), the result is `(logits, {site: tensor})`.
            interventions: what is forced at which site; several at one site apply in order.

        Raises:
            InputError: wrong shape or token, a context too long for the position table, an unknown site, an
                intervention whose heads, positions, examples or tensor do not fit its site.
        """
        taps = make_taps(self.config, record or (), interventions)
        logits = taps("logits", self.unembed(self._hidden(tokens, taps)))
        return logits if record is None else (logits, taps.recorded)

    def hidden(
        self, tokens: Tensor, *, record: Sequence[str] = (), interventions: Sequence[Intervention] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, but stops before the unembedding: the final norm's output [B,T,C] and the recorded sites.

        For callers that need few positions, or losses without logits.
        """
        taps = make_taps(self.config, record, interventions)
        if taps.wants("logits"):
            raise InputError("hidden() ends before the logits: record or intervene on 'logits' with forward()")
        return self._hidden(tokens, taps), taps.recorded

    def _hidden(self, tokens: Tensor, taps: Taps) -> Tensor:
        resid, position = self.embedded(tokens)
        resid = taps("embed", resid)
        for block in self.blocks:
            resid = block(resid, position, taps)
        return taps("final_norm", self.final_norm(resid))

    def embedded(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The residual stream at the site `embed` [B,T,C], and what shortformer adds for queries and keys [T,C]."""
        self._check(tokens)
        resid = tokens if tokens.is_floating_point() else self.embed(tokens)
        position = self._position(resid.shape[1], resid.device)  # [T,C] or None
        if position is not None and self.config.position != "shortformer":
            return resid + position, None
        return resid, position

    def _position(self, length: int, device: torch.device) -> Tensor | None:
        if self.position is not None:
            return self.position.weight[:length]
        if self.config.position == "sinusoidal":
            return _sinusoids(length, self.config.width, device).to(self.embed.weight.dtype)
        return None

    def _check(self, tokens: Tensor) -> None:
        if tokens.is_floating_point():
            if tokens.ndim != 3 or tokens.shape[-1] != self.config.width:
                raise InputError(f"tokens: embeddings must be [B,T,{self.config.width}], got {list(tokens.shape)}")
        elif tokens.ndim != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise InputError(f"tokens must be int64 [B,T], got {tokens.dtype} {list(tokens.shape)}")
        # only where looking is cheap: on a GPU it would wait for the device, under torch.compile break the graph
        elif tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in tokens.aminmax())
            if low < 0 or high >= self.config.vocab:
                unknown = low if low < 0 else high
                raise InputError(f"tokens holds {unknown}, but the vocabulary is 0 to {self.config.vocab - 1}")
        if self._has_position_table and tokens.shape[1] > self.config.context:
            raise InputError(
                f"tokens: {tokens.shape[1]} positions, but the model's position table holds {self.config.context}"
            )


def _layer_norm(config: TransformerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.width, eps=config.norm_eps, elementwise_affine=config.norm_affine)


def _sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Position vectors of Vaswani et al. 2017, sines then cosines, [length,width]."""
    angles = _angles(length, width + width % 2, 10_000.0, device)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]


def _angles(length: int, width: int, base: float, device: torch.device) -> Tensor:
    """Angle of position t in the plane i: t / base^(2i/width), float32 [T,width/2]."""
    frequencies = base ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    return torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
