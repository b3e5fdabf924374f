"""Ablations done fast: one run without ablation for all of them, and of each only what it changes.

The definition is `ablated_losses`; `schedule.py` says which method computes which ablation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from icl_fast.measure.ablation.delta import Delta
from icl_fast.measure.ablation.differences import norm_difference
from icl_fast.measure.ablation.modes import AblationMode
from icl_fast.measure.ablation.names import Ablation
from icl_fast.measure.ablation.products import Products
from icl_fast.measure.ablation.removal import Removal
from icl_fast.measure.ablation.rerun import Rerun
from icl_fast.measure.ablation.schedule import Schedule
from icl_fast.measure.ablation.source_sums import SourceSums
from icl_fast.measure.base_pass import base_layers
from icl_fast.models import Transformer
from icl_fast.models.blocks import layer_norm
from icl_fast.ops import cross_entropy_difference, head_ablation_cross_entropy


def ablation_effects(
    model: Transformer,
    inputs: Tensor,
    targets: Tensor,
    rows: Tensor,
    ablations: Sequence[Ablation],
    mode: AblationMode,
    means: dict[str, Tensor] | None = None,
    *,
    schedule: Schedule,
    products: Products | None = None,
) -> tuple[Tensor, Tensor]:
    """Per-token losses of the whole model, and what each ablation adds to them.

    Args:
        model: the model.
        inputs: [n,T] token ids.
        targets: [n,T] the tokens to predict.
        rows: [n,R] 0-based positions whose losses are wanted.
        ablations: what to remove.
        mode: what is preserved.
        means: for mean ablation, of `mean_activations`; None: zero ablation.
        schedule: of `make_schedule`, for these ablations, this mode and R.
        products: of this model; None: nothing is rounded.

    Returns:
        losses [n,R] and effects [A,n,R] in nats, float32 (float64 for a float64 model).
    """
    length = inputs.shape[1]
    how = mode, Removal(means), schedule, products or Products(model)
    if rows.shape[1] >= length:  # all positions are computed once, however often they are asked for
        base, effects = _Chunk(model, inputs, targets, None, ablations, *how).run()
        return base.gather(1, rows), effects.gather(2, rows.expand(len(effects), -1, -1))
    seen = int(rows.max()) + 1 if rows.numel() else 1
    return _Chunk(model, inputs[:, :seen], targets, rows, ablations, *how).run()


class _Chunk:
    """The ablations of one chunk of examples."""

    def __init__(
        self,
        model: Transformer,
        inputs: Tensor,
        targets: Tensor,
        rows: Tensor | None,
        ablations: Sequence[Ablation],
        mode: AblationMode,
        removal: Removal,
        schedule: Schedule,
        products: Products,
    ) -> None:
        self.model, self.inputs, self.rows, self.products = model, inputs, rows, products
        self.ablations, self.mode, self.removal, self.schedule = ablations, mode, removal, schedule
        self.targets = (targets if rows is None else targets.gather(1, rows)).flatten()  # [n*R]
        self.losses: Tensor | None = None
        self.effects: dict[int, Tensor] = {}

    def run(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            waves = self.schedule.waves() or [[]]
            for number, wave in enumerate(waves):
                self._wave(wave, self.schedule.of("low rank") if number == 0 else [])
        assert self.losses is not None
        shape = (len(self.inputs), -1)
        effects = [self.effects[index].view(shape) for index in range(len(self.ablations))]
        losses = self.losses.view(shape)
        return losses, torch.stack(effects) if effects else losses.new_empty(0, *losses.shape)

    def _wave(self, wave: list[int], low_rank: list[int]) -> None:
        """The run without ablation, and beside it these ablations."""
        chosen = {
            method: [index for index in wave if self.schedule.methods[index] == method]
            for method in ("delta", "source sums", "rerun")
        }
        ablations = {method: [self.ablations[index] for index in indices] for method, indices in chosen.items()}
        resid, positions = self.model.embedded(self.inputs)
        how = self.mode, self.removal, self.products
        delta = Delta(ablations["delta"], *how, resid) if chosen["delta"] else None
        sums = SourceSums(ablations["source sums"], *how) if chosen["source sums"] else None
        rerun = Rerun(ablations["rerun"], self.mode, self.removal, resid) if chosen["rerun"] else None
        base = None
        for base in base_layers(self.model, resid, positions, self.rows):
            for method in (delta, sums, rerun):
                if method is not None:
                    method.layer(base)
        assert base is not None
        final = self.model.final_norm(base.post)  # [n,R,C]
        hidden, weight, bias = final.flatten(0, 1), self.model.unembed.weight, self.model.unembed.bias
        for name, carried in (("delta", delta), ("source sums", sums)):
            if carried is not None:
                removed = carried.removed  # [A,n,R,C]
                for part in base.stream_slices(len(removed)):
                    removed[part] = norm_difference(base.post, removed[part], self.model.final_norm)
                losses, effects = cross_entropy_difference(
                    hidden, removed.flatten(1, 2), self.products.of(weight), self.targets, bias=bias
                )
                # of rounded products only the effects are exact
                self._keep(None if self.products.rounded else losses, chosen[name], effects)
        if low_rank:
            norm, heads = layer_norm(self.model.final_norm), [self.ablations[index].heads[0][1] for index in low_rank]
            losses, ablated = head_ablation_cross_entropy(
                base.post.flatten(0, 1),
                self.removal.of_heads(base, tuple(heads)).transpose(0, 1).flatten(1, 2),
                base.attention.w_o[heads],
                weight,
                self.targets,
                norm_weight=norm.weight,
                norm_bias=norm.bias,
                eps=norm.eps,
                bias=bias,
            )
            self._keep(losses, low_rank, ablated - losses)
        if rerun is not None or self.losses is None:
            losses = self.model.token_losses(hidden, self.targets)
            self._keep(losses, [], losses)
        if rerun is not None:
            normed = self.model.final_norm(rerun.resid).flatten(1, 2)
            targets = self.targets.expand(len(normed), -1)
            self._keep(losses, chosen["rerun"], self.model.token_losses(normed, targets) - losses)

    def _keep(self, losses: Tensor | None, indices: list[int], effects: Tensor) -> None:
        self.losses = losses if self.losses is None else self.losses
        self.effects.update(zip(indices, effects, strict=False))
