"""Small models whose every parameter matters: random biases, gains and smears instead of zeros and ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from icl_fast.models import Transformer, TransformerConfig

Build = Callable[..., Transformer]

SMALL: dict[str, Any] = {"layers": 2, "width": 12, "heads": 3, "vocab": 11, "context": 16}


def _build(*, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
    model = Transformer(TransformerConfig(**{**SMALL, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * (1.0 if name in ("embed.weight", "position.weight") else 0.4))
            else:
                parameter.copy_(0.5 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.to(dtype)


@pytest.fixture(scope="session")
def build() -> Build:
    """Makes a small model: `build(seed=0, dtype=torch.float32, **changes to SMALL)`."""
    return _build


@pytest.fixture(scope="session")
def draw_tokens() -> Callable[..., torch.Tensor]:
    """Makes token ids [batch,length] below `vocab`."""

    def draw(batch: int = 3, length: int = 7, *, vocab: int = SMALL["vocab"], seed: int = 1) -> torch.Tensor:
        return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))

    return draw
