"""Transformers that read exemplars and labels and name the query's label; P of them as one model, with any clamps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models.blocks import Blocks
from icl_fast.models.clamps import NO_LABEL, Clamps, clamp_interventions
from icl_fast.models.exemplar_model import ExemplarModel
from icl_fast.models.interventions import Intervention, make_taps
from icl_fast.models.positions import Positions, position_angles


class ExemplarTransformer(ExemplarModel):
    """A pre-LayerNorm causal Transformer over x1 l1 ... xn ln q that names the query's label (Singh 2025, 4.2.1).

    But for what `ExemplarModel` says, nothing has a bias but MLPs, norms and, where asked for, attention.
    """

    def _make_blocks(self) -> None:
        self.blocks = Blocks(self.config.trunk, self.members)

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
        stream = self.embedded(exemplars, labels)
        positions = self.positions(stream)
        if clamps is not None:
            clamps = self.check_clamps(clamps)
            interventions = [*clamp_interventions(clamps, self.blocks, positions, labels, target), *interventions]
        taps = make_taps(self.config, record, interventions)
        resid = self.blocks(taps("embed", stream.flatten(0, 1)), positions, taps)
        query = taps("final_norm", self.final_norm(resid[:, -1:]))
        by_member = *labels.shape[:2], self.config.outputs
        logits = self.unembed(query).view(by_member)
        logits = torch.where(self.has_output[:, None], logits, NO_LABEL).flatten(0, 1)
        return taps("logits", logits).view(by_member), taps.done()

    def positions(self, stream: Tensor) -> Positions:
        """What attention is told of positions, on the device and in the dtype of the residual stream."""
        config = self.config
        if config.position != "rotary":
            return Positions()
        angles = position_angles(
            config.length,
            config.d_head,
            config.rotary_base,
            precision=torch.float64,
            dtype=stream.dtype,
            device=stream.device,
        )
        return Positions(rotary=(angles.cos(), angles.sin()))

    def check_clamps(self, clamps: Clamps) -> Clamps:
        if self.config.layers == 1 and "first_layer" in clamps.forced:
            raise InputError("clamps: layer-1 replaces the layer before another one, but the model has only one")
        return super().check_clamps(clamps)
