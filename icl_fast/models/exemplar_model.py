"""What all models on exemplars share: encoders, positions, outputs; P members as one. What is between is a subclass."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icl_fast.arguments import shown, whole_numbers
from icl_fast.errors import InputError
from icl_fast.models.blocks import make_norm
from icl_fast.models.clamps import Clamps
from icl_fast.models.exemplar_config import SEEDS as _SEEDS
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.ids import as_ids
from icl_fast.models.interventions import Intervention
from icl_fast.models.members import MemberLinear
from icl_fast.models.positions import sinusoids
from icl_fast.models.resnet import MemberResNet
from icl_fast.models.sizes import check_weights_fit

_POSITION_BOUND = 32**-0.5
_LABEL_SCALE = 0.02


class ExemplarModel(nn.Module):
    """A model that reads x1 l1 ... xn ln q and names the query's label (Singh 2025, 2.2, 4.2.1); a subclass says how.

    Exemplars enter by one matrix with bias (or a ResNet), labels by an embedding; the unembedding has a bias.
    The outputs are computed at the query only, as nothing else is trained on.
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
        """A model with one member for each seed.

        Raises:
            InputError: no seed, one out of range, outputs that are not 2 to V, one a member, the encoder "resnet"
                where the features are no image, or more weights than this machine can hold.
        """
        if not isinstance(seeds, Sized):
            raise InputError(f"seeds: must be a list, one for each member, got {shown(seeds)}")
        check_weights_fit(lambda one: type(self)(one, seeds=[0]), config, len(seeds))
        super().__init__()
        self.config, self.members = config, len(seeds)
        given = [config.outputs] * len(seeds) if outputs is None else outputs
        members, known = self.members, whole_numbers("outputs", given)
        if not members or len(known) != members or not all(2 <= count <= config.outputs for count in known):
            raise InputError(f"outputs {shown(known)}: must be 2 to {config.outputs} for each of {members} members")
        self.register_buffer("outputs", torch.tensor(known))
        self.embed_exemplar = _make_encoder(config, members)
        self.embed_label = MemberLinear(members, config.width, config.outputs, bias=False)  # rows are labels
        learned = config.position == "learned"
        self.position = nn.Parameter(torch.empty(members, config.length, config.width)) if learned else None
        self._make_blocks()
        self.final_norm = make_norm(config.trunk, members)
        self.unembed = MemberLinear(members, config.width, config.outputs, bias=True)
        self.reset_parameters(seeds)

    def _make_blocks(self) -> None:
        """Sets `blocks`, what is between the embedding and the final norm."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self, seeds: Sequence[int]) -> None:
        """Draw the weights of every member anew from its own seed.

        Matrices and convolutions are normal with standard deviation 1/sqrt(fan-in), cut off at two of them; label
        embeddings 0.02 times such numbers of unit deviation; positions uniform within 1/sqrt(32); biases 0, gains 1.
        Each parameter has its own random numbers, those of labels that a member does not have are 0.

        Raises:
            InputError: not a seed of 0 to 65,535 for every member.
        """
        seeds = whole_numbers("seeds", seeds)
        if len(seeds) != self.members or not all(0 <= seed < _SEEDS for seed in seeds):
            raise InputError(f"seeds {shown(seeds)}: must be 0 to {_SEEDS - 1} for each of {self.members} members")
        for member, seed in enumerate(seeds):
            for number, (name, parameter) in enumerate(self.named_parameters()):
                if parameter.is_meta:
                    continue  # there is nothing to draw
                random = torch.Generator().manual_seed(seed * _SEEDS + number)
                part = parameter[member]
                if name in ("embed_label.weight", "unembed.weight"):
                    part.zero_()
                    part = part[: int(self.outputs[member])]
                if part.ndim == 1:
                    part.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                    continue
                drawn = torch.empty(part.shape, device="cpu")
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
        record: str | Sequence[str] = (),
        interventions: Sequence[Intervention] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits of the query's label `[P,B,V]`, and what was recorded.

        Args:
            exemplars: `[P,B,n+1,F]` features; the last one is the query.
            labels: `[P,B,n]` integers.
            target: `[P,B]` integers, the query's label; only the clamp `match` needs it.
            clamps: what is forced in each member: `clamp_interventions`, which come before others at the same site.
            record, interventions: as in `icl_fast.models.interventions`, with the members folded into the examples:
                `[P*B,...]`; final_norm is `[P*B,1,C]`, of the query alone, and logits `[P*B,V]`.

        Raises:
            InputError: shapes that do not fit the model, `match` without a target, an unknown site; any clamp or site
                of a model without attention.
        """
        labels, target = self._check(exemplars, labels, target)
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
        record: str | Sequence[str] = (),
        interventions: Sequence[Intervention] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, with exemplars `[P,B,n+1,C]` that `embed_exemplar` was applied to already."""
        raise NotImplementedError

    def embedded(self, exemplars: Tensor, labels: Tensor) -> Tensor:
        """The sequence before the first layer, `[P,B,T,C]`, from exemplars `[P,B,n+1,C]`."""
        config = self.config
        members, width = len(exemplars), config.width
        rows = torch.arange(members, device=labels.device)[:, None, None] * config.outputs + labels
        labelled = F.embedding(rows, self.embed_label.weight.flatten(0, 1))  # its gradient needs no sort on a GPU
        pairs = torch.stack((exemplars[:, :, :-1], labelled), dim=3).flatten(2, 3)
        stream = torch.cat((pairs, exemplars[:, :, -1:]), dim=2)
        if self.position is not None:
            return stream + self.position[:, None]
        if config.position == "sinusoidal":
            how: dict[str, Any] = {"precision": torch.float64, "dtype": stream.dtype, "device": stream.device}
            return stream + sinusoids(config.length, width, config.sinusoid_base, **how)
        return stream

    @property
    def has_output(self) -> Tensor:
        """`[P,V]` bool: whether a member has that output."""
        return torch.arange(self.config.outputs, device=self.outputs.device) < self.outputs[:, None]

    def check_clamps(self, clamps: Clamps) -> Clamps:
        """The clamps on the device of the model.

        Raises:
            InputError: clamps of another number of members, or that the model does not have.
        """
        if clamps.members != self.members:
            raise InputError(f"clamps: are for {clamps.members} members, the model has {self.members}")
        return clamps if clamps.copy.device == self.outputs.device else clamps.to(self.outputs.device)

    def _check(self, exemplars: Tensor, labels: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        config = self.config
        if not isinstance(exemplars, Tensor) or not exemplars.is_floating_point():
            raise InputError(f"exemplars must be floats [P,B,n+1,F], got {shown(exemplars)}")
        wanted = (self.members, exemplars.shape[1] if exemplars.ndim == 4 else -1, config.pairs + 1, config.features)
        if tuple(exemplars.shape) != wanted:
            raise InputError(
                f"exemplars: must be [P={self.members}, B, n + 1 = {config.pairs + 1}, F={config.features}], "
                f"got {list(exemplars.shape)}"
            )
        each = self.members, exemplars.shape[1]
        where = {"device": self.outputs.device}
        labels = as_ids("labels", labels, config.outputs, "P,B,n", sizes=(*each, config.pairs), **where)
        if target is not None:
            target = as_ids("target", target, config.outputs, "P,B", sizes=each, **where)
        return labels, target


def _make_encoder(config: ExemplarConfig, members: int) -> nn.Module:
    if config.encoder == "linear":
        return MemberLinear(members, config.features, config.width, bias=True)
    if config.image is None or config.image[0] * config.image[1] != config.features:
        raise InputError(
            f"image {config.image}: the encoder resnet reads images, so this must be the height and width of "
            f"{config.features} pixels; with features that are no pixels take the encoder linear"
        )
    return MemberResNet(members, config.image, config.width)
