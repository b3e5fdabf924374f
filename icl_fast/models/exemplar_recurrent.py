"""Recurrent networks that read exemplars and labels one after the other and name the query's label; P of them as one.

What transformers are compared with (Singh 2025, 2.3.6, A.2): the blocks are replaced, all else is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icl_fast.models.clamps import NO_LABEL, Clamps
from icl_fast.models.exemplar_model import ExemplarModel
from icl_fast.models.interventions import Intervention
from icl_fast.models.members import MemberLinear

_FORGET_BIAS = 1.0  # Jozefowicz et al. 2015


class RecurrentLayer(nn.Module):
    """P layers of one architecture, C wide: one matrix, with bias, over input and state `[P,G*C,2C]`.

    rnn (G = 1): h' = ReLU(W [x, h] + b). lstm (G = 4, the gates input, forget, cell, output in this order):
    c' = sigmoid(f + 1) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c'). States begin at 0.
    """

    def __init__(self, members: int, width: int, architecture: str) -> None:
        super().__init__()
        self.width, self.gated = width, architecture == "lstm"
        self.cell = MemberLinear(members, 2 * width, 4 * width if self.gated else width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[P,B,T,C]` to the states after each position, `[P,B,T,C]`."""
        weight, bias = self.cell.weight, self.cell.bias
        members, batch, length, _ = x.shape
        # what inputs contribute does not wait for the states
        read = torch.baddbmm(bias[:, None], x.flatten(1, 2), weight[..., : self.width].mT).view(
            members, batch, length, -1
        )
        carried = weight[..., self.width :].mT
        state = memory = x.new_zeros(members, batch, self.width)
        states = []
        for step in read.unbind(2):
            summed = torch.baddbmm(step, state, carried)
            if self.gated:
                entry, forget, new, out = summed.chunk(4, dim=-1)
                memory = torch.sigmoid(forget + _FORGET_BIAS) * memory + torch.sigmoid(entry) * torch.tanh(new)
                state = torch.sigmoid(out) * torch.tanh(memory)
            else:
                state = torch.relu(summed)
            states.append(state)
        return torch.stack(states, dim=2)


class ExemplarRecurrent(ExemplarModel):
    """A stack of recurrent layers over x1 l1 ... xn ln q; the last state names the query's label (Singh 2025, 2.3.6).

    Each layer reads the states of the one before. There is no attention: nothing to clamp, no sites.
    """

    def _make_blocks(self) -> None:
        config = self.config
        layers = (RecurrentLayer(self.members, config.width, config.architecture) for _ in range(config.layers))
        self.blocks = nn.ModuleList(layers)

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
        if clamps is not None:
            self.check_clamps(clamps)
        if record or interventions:
            self.config.check_attention("record, interventions")
        states = self.embedded(exemplars, labels)
        for layer in self.blocks:
            states = layer(states)
        logits = self.unembed(self.final_norm(states[:, :, -1]))
        return torch.where(self.has_output[:, None], logits, NO_LABEL), {}

    def check_clamps(self, clamps: Clamps) -> Clamps:
        if clamps.forced:
            self.config.check_attention("clamps")
        return super().check_clamps(clamps)
