"""exemplar_steps against its definition: ExemplarTransformer, autograd and torch.optim.Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models.clamps import Clamps, make_clamps, stack_clamps
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.exemplar_transformer import ExemplarTransformer
from icl_fast.ops import _backend, exemplar_steps, exemplar_steps_supported

pytestmark = pytest.mark.skipif(not _backend.compiled(), reason="the CPU kernels are not built")

SMALL = {"width": 16, "heads": 4, "features": 10, "outputs": 7, "pairs": 2}
CLAMPS: dict[str, dict[str, Any]] = {
    "none": {},
    "pt-attend": {"names": ["pt-attend"], "previous_token_heads": (1, 2)},
    "layer-1": {"names": ["layer-1"]},
    "match": {"names": ["match"]},
    "copy": {"names": ["copy"]},
    "layer-1+copy": {"names": ["layer-1+copy"]},
    "no-previous-token": {"names": ["no-previous-token"]},
    "pt-attend, match": {"names": ["pt-attend", "match"], "only_heads": [(1, 3)]},
    "layer-1, match": {"names": ["layer-1", "match"], "without_heads": [(1, 0)]},
    "pt-attend, copy": {"names": ["pt-attend", "copy"], "temperature": [((1, 3), 0.5), ((0, 1), 3.0)]},
    "heads": {"names": [], "without_heads": [(0, 1), (1, 2)], "temperature": [((1, 0), 2.0)]},
    "no-previous-token, match": {"names": ["no-previous-token", "match"]},
}


@dataclass
class Case:
    """Models, what they are trained on, and how."""

    config: ExemplarConfig
    clamps: list[Clamps]
    classes: int = 6
    exemplars: int = 2
    batch: int = 5
    steps: int = 1
    outputs: list[int] | None = None
    trainable: dict[str, Tensor] = field(default_factory=dict)
    l2: dict[str, float] = field(default_factory=dict)
    learning_rate: float = 1e-3

    def model(self) -> ExemplarTransformer:
        """Members of different weights, larger than at the start of training; gains and biases are not trivial."""
        model = ExemplarTransformer(self.config, range(len(self.clamps)), self.outputs)
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 0.5 if name == "embed_label.weight" else 0.1
                noise = torch.randn(parameter.shape, generator=random)
                parameter += scale * noise
        return model

    def data(self) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(7)
        s, p, b, n = self.steps, len(self.clamps), self.batch, self.config.pairs

        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=random)

        few = min([self.config.outputs, *(self.outputs or [])])
        labels = draw(few, s, p, b, n)
        which = draw(n, s, p, b, 1)
        return {
            "features": torch.randn(self.classes, self.exemplars, self.config.features, generator=random),
            "classes": draw(self.classes, s, p, b, n + 1),
            "exemplars": draw(self.exemplars, s, p, b, n + 1),
            "labels": labels,
            "target": labels.gather(-1, which)[..., 0],
        }


def case(clamps: str | Clamps = "none", members: int = 1, **changes: Any) -> Case:
    own = {name: changes.pop(name) for name in list(changes) if name in Case.__dataclass_fields__}
    config = ExemplarConfig(**{**SMALL, **changes})
    made = make_clamps(config, **CLAMPS[clamps]) if isinstance(clamps, str) else clamps
    return Case(config, [made] * members, **own)


def by_torch(of: Case, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses `[S, P]` and the weights afterwards, by the definition."""
    model, data, clamps = of.model().to(dtype), of.data(), stack_clamps(of.clamps)
    clamps = replace(clamps, heads=clamps.heads.to(dtype), temperature=clamps.temperature.to(dtype))
    optimizer = torch.optim.Adam(model.parameters(), lr=of.learning_rate)
    parameters = dict(model.named_parameters())
    losses = []
    for step in range(of.steps):
        exemplars = data["features"].to(dtype)[data["classes"][step], data["exemplars"][step]]
        target = data["target"][step]
        logits, _ = model(exemplars, data["labels"][step], target, clamps=clamps)
        each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(1)
        losses.append(each.detach())
        penalty = sum((factor * parameters[name].square().sum() for name, factor in of.l2.items()), torch.zeros(()))
        optimizer.zero_grad()
        (each.sum() + penalty).backward()
        before = {name: parameters[name].detach().clone() for name in of.trainable}
        optimizer.step()
        with torch.no_grad():
            for name, kept in before.items():
                parameters[name].copy_(
                    torch.where(of.trainable[name].view(-1, *[1] * (kept.ndim - 1)), parameters[name], kept)
                )
    return torch.stack(losses), {name: value.detach() for name, value in parameters.items()}


def fused(
    of: Case, threads: int = 1, calls: tuple[int, ...] | None = None, members: slice = slice(None)
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Losses, weights and both moments by the op, in calls of so many steps."""
    data, clamps = of.data(), stack_clamps(of.clamps)[members]
    model = of.model()
    weights = {name: value.detach()[members].clone() for name, value in model.named_parameters()}
    first, second = ({name: torch.zeros_like(value) for name, value in weights.items()} for _ in range(2))
    losses, done = [], 0
    for count in calls or (of.steps,):
        part = slice(done, done + count)
        losses.append(
            exemplar_steps(
                weights,
                first,
                second,
                data["features"],
                **{name: data[name][part, members].contiguous() for name in ("classes", "exemplars", "labels", "target")},
                step=done,
                learning_rates=torch.full((count,), of.learning_rate, dtype=torch.float64),
                heads=of.config.heads,
                position=of.config.position,
                rotary_base=of.config.rotary_base,
                norm_eps=of.config.norm_eps,
                outputs=model.outputs[members],
                clamps=clamps,
                trainable={name: value[members] for name, value in of.trainable.items()},
                l2=of.l2,
                threads=threads,
            )
        )
        done += count
    return torch.cat(losses), weights, first, second
