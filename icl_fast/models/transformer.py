"""The Transformer: pre-LayerNorm, causal, with or without MLPs, every site open to recording and intervention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icl_fast.errors import InputError
from icl_fast.models.blocks import Blocks, make_norm
from icl_fast.models.config import TransformerConfig
from icl_fast.models.ids import as_ids
from icl_fast.models.interventions import Intervention, make_taps, named_sites
from icl_fast.models.positions import Positions, rotary_positions, sinusoids
from icl_fast.models.sizes import check_weights_fit
from icl_fast.ops import linear_cross_entropy

_LOGIT_ROWS = 256  # whose logits are held at a time


@torch.no_grad()
def draw_weight(config: TransformerConfig, name: str, weight: Tensor) -> None:
    """Fill one weight as `Transformer.reset_parameters` does; called in the order of the parameters, all of them."""
    if weight.ndim < 2:
        weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    elif name == "position.weight" and config.init_std is None:
        weight.copy_(sinusoids(config.context, config.width, device=weight.device))
    elif name == "embed.weight" or config.init_std is not None:
        weight.normal_(0.0, config.init_std or 1.0)
    else:
        bound = weight.shape[1] ** -0.5
        weight.uniform_(-bound, bound)


class Transformer(nn.Module):
    """A decoder-only Transformer with named sites (see `icl_fast.models.interventions`).

    "Shortformer" positions are added to the inputs of the query and key projections only, after the LayerNorm, so
    that residual stream and values carry no position (Press et al. 2021; Olsson et al. 2022, Model Details).
    """

    def __init__(self, config: TransformerConfig) -> None:
        """A model with weights as `reset_parameters` draws them.

        Raises:
            InputError: this machine cannot hold them.
        """
        check_weights_fit(Transformer, config)
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        self.position = nn.Embedding(config.context, config.width) if self._has_position_table else None
        self.blocks = Blocks(config)
        self.final_norm = make_norm(config)
        self.unembed = nn.Linear(config.width, config.vocab, bias=config.unembed_bias)
        if config.tied:
            self.unembed.weight = self.embed.weight
        self.reset_parameters()

    @property
    def _has_position_table(self) -> bool:
        return self.config.position in ("learned", "shortformer")

    def reset_parameters(self) -> None:
        """Draw all weights anew, from torch's global generator.

        Matrices are uniform within 1/sqrt(fan-in) as in `torch.nn.Linear`, token embeddings N(0, 1); position tables
        start as sinusoids, and are learned. With `init_std` all of them are N(0, init_std) instead.
        Biases start at 0, gains at 1, smeared keys half-way.
        """
        for name, parameter in self.named_parameters():
            if not parameter.is_meta:
                draw_weight(self.config, name, parameter)

    @overload
    def forward(self, tokens: Tensor, *, interventions: Sequence[Intervention] = ()) -> Tensor: ...

    @overload
    def forward(
        self, tokens: Tensor, *, record: str | Sequence[str], interventions: Sequence[Intervention] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def forward(
        self, tokens: Tensor, *, record: str | Sequence[str] | None = None, interventions: Sequence[Intervention] = ()
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits [B,T,V] of tokens [B,T] (integers), or of embeddings [B,T,C] (floats) given in their place.

        Args:
            tokens: token ids, integers [B,T], or token embeddings [B,T,C], to which positions are added all the same.
            record: sites to return, by names or patterns: `"all"`, `"*.pattern"`, `["1.z", "0.*"]`; given at all (even
                empty), the result is `(logits, {site: tensor})`.
            interventions: what is forced at which site; several at one site apply in order.

        Raises:
            InputError: wrong shape or token, a context too long for the position table, an unknown site, an
                intervention whose heads, positions, examples or tensor do not fit its site.
        """
        recorded = named_sites(record if record is not None else (), self.config)
        make_taps(self.config, recorded, interventions)  # checks all of them before anything is computed
        last = [intervention for intervention in interventions if intervention.site == "logits"]
        earlier = [intervention for intervention in interventions if intervention.site != "logits"]
        names = (*recorded, *(name for intervention in last for name in intervention.reads))
        inner = [name for name in names if name != "logits"]
        hidden, sites = self.hidden(tokens, record=inner, interventions=earlier)
        logits = self.capped(self.unembed(hidden))
        for intervention in last:
            logits = intervention(logits, *(sites[name] for name in intervention.reads))
        if record is None:
            return logits
        return logits, {name: logits if name == "logits" else sites[name] for name in recorded}

    def hidden(
        self, tokens: Tensor, *, record: str | Sequence[str] = (), interventions: Sequence[Intervention] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, but stops before the unembedding: the final norm's output [B,T,C] and the recorded sites.

        For callers that need few positions, or losses without logits.
        """
        taps = make_taps(self.config, record, interventions)
        if taps.wants("logits"):
            raise InputError("hidden() ends before the logits: record or intervene on 'logits' with forward()")
        resid, positions = self.embedded(tokens)
        resid = self.blocks(taps("embed", resid), positions, taps)
        hidden = taps("final_norm", self.final_norm(resid))
        return hidden, taps.done()

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Losses in nats of the final norm's output [...,C] and the tokens to predict [...], in the shape of those."""
        weight, bias = self.unembed.weight, self.unembed.bias
        if self.config.logit_cap is None:
            losses: Tensor = linear_cross_entropy(hidden, weight, targets, bias=bias, reduction="none")
            return losses
        rows = hidden.flatten(0, -2)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        found = [
            F.cross_entropy(self.capped(self.unembed(some)).to(wide), wanted, reduction="none")
            for some, wanted in zip(
                torch.split(rows, _LOGIT_ROWS), torch.split(targets.flatten(), _LOGIT_ROWS), strict=True
            )
        ]
        return torch.cat(found).view(targets.shape)

    def mean_loss(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of `token_losses`, and those losses without a gradient: what a training needs, for less."""
        if self.config.logit_cap is None:
            weight, bias = self.unembed.weight, self.unembed.bias
            return linear_cross_entropy(hidden, weight, targets, bias=bias, reduction="mean_and_losses")
        losses = self.token_losses(hidden, targets)
        return losses.mean(), losses.detach()

    def capped(self, logits: Tensor) -> Tensor:
        """Logits under the config's cap, if it has one."""
        return logits if (cap := self.config.logit_cap) is None else cap * torch.tanh(logits / cap)

    def embedded(self, tokens: Tensor) -> tuple[Tensor, Positions]:
        """The residual stream at the site `embed` [B,T,C], and what attention is told of positions besides."""
        tokens = self._checked(tokens)
        config = self.config
        resid = tokens if tokens.is_floating_point() else self.embed(tokens)
        if config.embed_scale != 1.0 and not tokens.is_floating_point():
            resid = resid * config.embed_scale
        length, device = resid.shape[1], resid.device
        if config.position == "rotary":
            return resid, rotary_positions(length, config, device=device)
        if config.position == "sinusoidal":
            return resid + sinusoids(length, config.width, device=device).to(resid.dtype), Positions()
        if self.position is None:
            return resid, Positions()
        table = self.position(torch.arange(length, device=device))
        return (resid, Positions(added=table)) if config.position == "shortformer" else (resid + table, Positions())

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are numbers of."""
        return next(self.parameters()).dtype

    def _checked(self, tokens: Tensor) -> Tensor:
        if isinstance(tokens, Tensor) and tokens.is_floating_point():
            if tokens.ndim != 3 or tokens.shape[-1] != self.config.width:
                raise InputError(f"tokens: embeddings must be [B,T,{self.config.width}], got {list(tokens.shape)}")
        else:
            tokens = as_ids("tokens", tokens, self.config.vocab, "B,T", device=self.device)
        if self._has_position_table and tokens.shape[1] > self.config.context:
            raise InputError(
                f"tokens: {tokens.shape[1]} positions, but the model's position table holds {self.config.context}"
            )
        return tokens
