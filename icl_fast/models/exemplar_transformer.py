"""Transformers that read exemplars and labels and name the query's label; P of them as one model, with any clamps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icl_fast.errors import InputError
from icl_fast.models.clamps import Clamps, no_clamps
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.interventions import Intervention, Taps, make_taps, site
from icl_fast.models.resnet import MemberResNet

NO_LABEL = -1e9  # the logit of a label that is not in context, where the outputs are attention logits
_POSITION_BOUND = 32**-0.5
_LABEL_SCALE = 0.02
_SEEDS = 1 << 16  # of a model, each with as many parameters: torch's generator on the CPU tells 2^32 seeds apart


class MemberLinear(nn.Module):
    """P linear maps: weight `[P, out, in]`, bias `[P, out]` or none."""

    def __init__(self, members: int, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(members, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x `[P, ..., in]` to `[P, ..., out]`."""
        flat = x.flatten(1, -2)
        if self.bias is None:
            y = torch.bmm(flat, self.weight.mT)
        else:
            y = torch.baddbmm(self.bias[:, None], flat, self.weight.mT)
        return y.view(*x.shape[:-1], y.shape[-1])


class MemberNorm(nn.Module):
    """P LayerNorms over the last dimension: weight and bias `[P, C]`."""

    def __init__(self, members: int, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, width))
        self.bias = nn.Parameter(torch.empty(members, width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x `[P, ..., C]` to the same."""
        shape = (len(self.weight), *[1] * (x.ndim - 2), x.shape[-1])
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return normed * self.weight.view(shape) + self.bias.view(shape)


class ExemplarAttention(nn.Module):
    """Attention of one layer, no biases."""

    def __init__(self, members: int, config: ExemplarConfig) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (
            MemberLinear(members, config.width, config.width, bias=False) for _ in range(4)
        )


class ExemplarBlock(nn.Module):
    """The weights of one layer; `ExemplarTransformer` says what is done with them."""

    def __init__(self, members: int, config: ExemplarConfig) -> None:
        super().__init__()
        self.norm1 = MemberNorm(members, config.width, config.norm_eps)
        self.attention = ExemplarAttention(members, config)
        self.mlp: nn.Sequential | None = None
        if config.mlp:
            hidden = config.mlp_ratio * config.width
            self.norm2 = MemberNorm(members, config.width, config.norm_eps)
            self.mlp = nn.Sequential(
                MemberLinear(members, config.width, hidden, bias=True),
                nn.GELU(),
                MemberLinear(members, hidden, config.width, bias=True),
            )


class ExemplarTransformer(nn.Module):
    """A pre-LayerNorm causal Transformer over x1 l1 ... xn ln q that names the query's label (Singh 2025, 4.2.1).

    Exemplars enter by one matrix with bias (or a ResNet), labels by an embedding; the unembedding has a bias; nothing
    else has one, but MLPs and norms. The outputs are computed at the query only, as nothing else is trained on.
    Every parameter has the P members as its first dimension; members never mix, so that training them together is
    training each alone.

    Attributes:
        outputs: `[P]` int64: how many labels each member tells apart, at most V. The logits of the others are -1e9, so
            that a member is what a model of that many outputs is.
    """

    outputs: Tensor

    def __init__(
        self, config: ExemplarConfig, seeds: Sequence[int] = (0,), outputs: Sequence[int] | None = None
    ) -> None:
        """A model of as many members as there are seeds.

        Raises:
            InputError: no seed, one out of range, outputs that are not 2 to V, one a member, or the encoder "resnet"
                where the features are no image.
        """
        super().__init__()
        self.config, self.members = config, len(seeds)
        members, known = self.members, list(outputs) if outputs is not None else [config.outputs] * len(seeds)
        if not members or len(known) != members or not all(2 <= count <= config.outputs for count in known):
            raise InputError(f"outputs {known}: must be 2 to {config.outputs} for each of {members} members")
        self.register_buffer("outputs", torch.tensor(known))
        self.embed_exemplar = _make_encoder(config, members)
        self.embed_label = MemberLinear(members, config.width, config.outputs, bias=False)  # rows are labels
        learned = config.position == "learned"
        self.position = nn.Parameter(torch.empty(members, config.length, config.width)) if learned else None
        self.blocks = nn.ModuleList(ExemplarBlock(members, config) for _ in range(config.layers))
        self.final_norm = MemberNorm(members, config.width, config.norm_eps)
        self.unembed = MemberLinear(members, config.width, config.outputs, bias=True)
        self.reset_parameters(seeds)

    @torch.no_grad()
    def reset_parameters(self, seeds: Sequence[int]) -> None:
        """Draw the weights of every member anew from its own seed.

        Matrices and convolutions are normal with standard deviation 1/sqrt(fan-in), cut off at two of them; label
        embeddings 0.02 times such numbers of unit deviation; positions uniform within 1/sqrt(32); biases 0, gains 1.
        Each parameter has its own random numbers, those of labels that a member does not have are 0.

        Raises:
            InputError: not a seed of 0 to 65,535 for every member.
        """
        if len(seeds) != self.members or not all(0 <= seed < _SEEDS for seed in seeds):
            raise InputError(f"seeds {list(seeds)}: must be 0 to {_SEEDS - 1} for each of {self.members} members")
        for member, seed in enumerate(seeds):
            for number, (name, parameter) in enumerate(self.named_parameters()):
                random = torch.Generator().manual_seed(seed * _SEEDS + number)
                part = parameter[member]
                if name in ("embed_label.weight", "unembed.weight"):
                    part.zero_()
                    part = part[: int(self.outputs[member])]
                if part.ndim == 1:
                    part.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                    continue
                drawn = torch.empty(part.shape)
                if name == "position":
                    drawn.uniform_(-_POSITION_BOUND, _POSITION_BOUND, generator=random)
                else:
                    std = _LABEL_SCALE if name == "embed_label.weight" else part[0].numel() ** -0.5
                    nn.init.trunc_normal_(drawn, 0.0, std, -2 * std, 2 * std, generator=random)
                part.copy_(drawn)

    def forward(
        self,
        exemplars: Tensor,
        labels: Tensor,
        target: Tensor | None = None,
        *,
        clamps: Clamps | None = None,
        record: Sequence[str] = (),
        interventions: Sequence[Intervention] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits of the query's label `[P, B, V]`, and what was recorded.

        Args:
            exemplars: `[P, B, n + 1, F]` features; the last one is the query.
            labels: `[P, B, n]` int64.
            target: `[P, B]` int64, the query's label; only the clamp `match` needs it.
            clamps: what is forced in each member.
            record, interventions: sites as in `icl_fast.models.interventions`, with the members folded into the
                examples: `[P * B, ...]`, and logits `[P * B, V]`. They act after the clamps.

        Raises:
            InputError: shapes that do not fit the model, `match` without a target, an unknown site.
        """
        self._check(exemplars, labels)
        return self.from_embedded(
            self.embed_exemplar(exemplars), labels, target, clamps=clamps, record=record, interventions=interventions
        )

    def from_embedded(
        self,
        exemplars: Tensor,
        labels: Tensor,
        target: Tensor | None = None,
        *,
        clamps: Clamps | None = None,
        record: Sequence[str] = (),
        interventions: Sequence[Intervention] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, with exemplars `[P, B, n + 1, C]` that `embed_exemplar` was applied to already."""
        taps = make_taps(self.config, record, interventions)
        one_pass = ExemplarPass(self, labels, target, clamps, taps)
        return one_pass.logits(self.embedded(exemplars, labels)), taps.recorded

    def embedded(self, exemplars: Tensor, labels: Tensor) -> Tensor:
        """The residual stream before the first layer, `[P, B, T, C]`, from exemplars `[P, B, n + 1, C]`."""
        config = self.config
        members, batch, _, width = exemplars.shape
        stream = exemplars.new_empty(members, batch, config.length, width)
        rows = torch.arange(members, device=labels.device)[:, None, None]
        stream[:, :, 0::2] = exemplars
        stream[:, :, 1::2] = self.embed_label.weight[rows, labels]
        if self.position is not None:
            return stream + self.position[:, None]
        if config.position == "sinusoidal":
            return stream + _sinusoids(config.length, width, stream)
        return stream

    def _check(self, exemplars: Tensor, labels: Tensor) -> None:
        config = self.config
        wanted = (self.members, exemplars.shape[1] if exemplars.ndim == 4 else -1, config.pairs + 1, config.features)
        if tuple(exemplars.shape) != wanted:
            raise InputError(
                f"exemplars: must be [P={self.members}, B, n + 1 = {config.pairs + 1}, F={config.features}], "
                f"got {list(exemplars.shape)}"
            )
        if labels.shape != (self.members, exemplars.shape[1], config.pairs) or labels.dtype != torch.int64:
            raise InputError(
                f"labels: must be int64 [{self.members}, {exemplars.shape[1]}, {config.pairs}], "
                f"got {labels.dtype} {list(labels.shape)}"
            )


class ExemplarPass:
    """One forward pass: its clamps, and what they need to know of the sequences."""

    def __init__(
        self, model: ExemplarTransformer, labels: Tensor, target: Tensor | None, clamps: Clamps | None, taps: Taps
    ) -> None:
        self.model, self.config, self.labels, self.target, self.taps = model, model.config, labels, target, taps
        self.clamps = no_clamps(self.config, model.members) if clamps is None else clamps
        if self.clamps.members != model.members:
            raise InputError(f"clamps: are for {self.clamps.members} members, the model has {model.members}")
        if target is not None and target.shape != labels.shape[:2]:
            raise InputError(f"target: must be {list(labels.shape[:2])}, one a sequence, got {list(target.shape)}")
        self.clamps = self.clamps.to(labels.device)
        length = self.config.length
        self.causal = torch.ones(length, length, dtype=torch.bool, device=labels.device).tril()

    def logits(self, embedded: Tensor) -> Tensor:
        resid = embedded = self._tap("embed", embedded)
        scores = resid.new_zeros(())
        for layer in range(self.config.layers):
            resid, scores = self._block(layer, resid, embedded)
            if layer == 0:
                resid = torch.where(self.clamps.first_layer.view(-1, 1, 1, 1), embedded, resid)
        query = self._tap("final_norm", self.model.final_norm(resid[:, :, -1:]))
        logits = self.model.unembed(query)[:, :, 0]
        known = torch.arange(self.config.outputs, device=logits.device) < self.model.outputs[:, None, None]
        logits = torch.where(known, logits, NO_LABEL)
        copying = self.clamps.copy.view(-1, 1, 1) >= 0
        logits = torch.where(copying, self._copied_logits(scores, logits), logits)
        return self._tap("logits", logits)

    def _block(self, layer: int, resid: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """The stream after a layer, and its scores `[P, B, H, T, T]`."""
        block = self.model.blocks[layer]
        assert isinstance(block, ExemplarBlock)
        resid = self._tap(site("resid_pre", layer), resid)
        normed = matched = block.norm1(resid)  # matched: what queries and keys read
        if layer == 1:
            matched = torch.where(self.clamps.first_layer.view(-1, 1, 1, 1), block.norm1(_moved_on(embedded)), normed)
        attention = block.attention
        q = self._tap(site("q", layer), self._rotated(self._split(attention.q(matched))))
        k = self._tap(site("k", layer), self._rotated(self._split(attention.k(matched))))
        v = self._tap(site("v", layer), self._split(attention.v(normed)))
        temperature = self.clamps.temperature[:, layer, None, :, None, None]
        scores = self._tap(site("scores", layer), q @ k.mT * self.config.d_head**-0.5 / temperature)
        pattern = self._tap(site("pattern", layer), self._pattern(layer, scores))
        z = pattern @ v * self.clamps.heads[:, layer, None, :, None, None]  # [P, B, H, T, D]
        z = self._tap(site("z", layer), z)
        if self.taps.wants(site("head_out", layer)):
            w_o = attention.out.weight.reshape(*attention.out.weight.shape[:2], self.config.heads, -1)  # [P, C, H, D]
            out = self._tap(site("head_out", layer), torch.einsum("pbhtd,pchd->pbhtc", z, w_o)).sum(2)
        else:
            out = attention.out(z.transpose(2, 3).flatten(3))
        resid = self._tap(site("resid_mid", layer), resid + self._tap(site("attn_out", layer), out))
        if block.mlp is not None:
            resid = resid + self._tap(site("mlp_out", layer), block.mlp(block.norm2(resid)))
        return self._tap(site("resid_post", layer), resid), scores

    def _pattern(self, layer: int, scores: Tensor) -> Tensor:
        clamps, length = self.clamps, self.config.length
        allowed = self.causal
        if layer == 0:
            places = torch.arange(length, device=scores.device)
            own = (places[:, None] % 2 == 1) & (places[None] == places[:, None] - 1)
            allowed = allowed & ~(own & clamps.no_previous_token.view(-1, 1, 1, 1, 1))
        pattern = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        if layer == 0:
            previous = torch.zeros(length, length, device=scores.device, dtype=scores.dtype)
            previous[0, 0] = 1
            previous[1:].diagonal().fill_(1)
            pattern = torch.where(clamps.previous_token[:, None, :, None, None], previous, pattern)
        if layer == self.config.layers - 1 and self.target is not None:
            right = (self.labels == self.target[..., None]).to(scores.dtype)  # [P, B, n]
            row = scores.new_zeros(*right.shape[:2], length)
            row[..., 1::2] = right / right.sum(-1, keepdim=True).clamp_min(1)
            matching = clamps.match[:, None, :, None]  # [P, 1, H, 1]
            query = torch.where(matching, row[:, :, None], pattern[..., -1, :])
            pattern = torch.cat([pattern[..., :-1, :], query[..., None, :]], dim=-2)
        elif layer == self.config.layers - 1 and bool(clamps.match.any()):
            raise InputError("target: the clamp match attends to its position, so it must be given")
        return pattern

    def _copied_logits(self, scores: Tensor, logits: Tensor) -> Tensor:
        """Attention logits from the query to the labels, as outputs `[P, B, V]`."""
        head = self.clamps.copy.clamp_min(0).view(-1, 1, 1, 1).expand(-1, scores.shape[1], 1, self.config.pairs)
        attention = scores[..., -1, 1::2].gather(2, head)[:, :, 0]  # [P, B, n]
        same = self.labels[..., :, None] == self.labels[..., None, :]
        total = attention[..., None, :].masked_fill(~same, -torch.inf).logsumexp(-1)
        # a repeated label is written once, by its first position; the others write where nothing is read
        repeated = (same & self.causal[: same.shape[-1], : same.shape[-1]]).sum(-1) > 1
        where = self.labels.masked_fill(repeated, self.config.outputs)
        blank = logits.new_full((*logits.shape[:2], self.config.outputs + 1), NO_LABEL)
        return blank.scatter(-1, where, total)[..., :-1]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.config.heads, self.config.d_head).transpose(2, 3)  # [P, B, H, T, D]

    def _rotated(self, x: Tensor) -> Tensor:
        """Rotary positions, neighbouring dimensions turned together."""
        if self.config.position != "rotary":
            return x
        angles = rotary_angles(x.shape[-2], x.shape[-1], self.config.rotary_base, x)
        cos, sin = angles.cos(), angles.sin()
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)

    def _tap(self, name: str, value: Tensor) -> Tensor:
        if not self.taps.wants(name):
            return value
        return self.taps(name, value.flatten(0, 1)).view(value.shape)


def _make_encoder(config: ExemplarConfig, members: int) -> nn.Module:
    if config.encoder == "linear":
        return MemberLinear(members, config.features, config.width, bias=True)
    if config.image is None or config.image[0] * config.image[1] != config.features:
        raise InputError(
            f"image {config.image}: the encoder resnet reads images, so this must be the height and width of "
            f"{config.features} pixels; with features that are no pixels take the encoder linear"
        )
    return MemberResNet(members, config.image, config.width)


def _moved_on(embedded: Tensor) -> Tensor:
    """Every position holds the one before; the first and the query stay (Singh 2025, C.5.2: "A A 0 B A")."""
    return torch.cat([embedded[:, :, :1], embedded[:, :, :-2], embedded[:, :, -1:]], dim=2)


def rotary_angles(length: int, width: int, base: float, like: Tensor) -> Tensor:
    """Angle of position t in plane i, t / base^(2i/width), `[T, width/2]`."""
    frequencies = base ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(length, device=like.device, dtype=torch.float64), frequencies)
    return angles.to(like.dtype)


def _sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Position vectors of Vaswani et al. 2017, sines then cosines, `[T, C]`."""
    angles = rotary_angles(length, width + width % 2, 10_000.0, like)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]
