"""Small models whose every parameter matters: random biases, gains and smears instead of zeros and ones.

And the forward pass of exemplar models, written out once more.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from icl_fast.models import ExemplarConfig, ExemplarTransformer, Transformer, TransformerConfig

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


EXEMPLARS: dict[str, Any] = {"layers": 2, "width": 12, "heads": 3, "features": 7, "outputs": 8, "pairs": 2}
Edit = Callable[[str, Tensor], Tensor]


@pytest.fixture(scope="session")
def build_exemplars() -> Callable[..., ExemplarTransformer]:
    """Makes a float64 exemplar model with random weights: `(members=2, seed=0, known=None, **changes to EXEMPLARS)`.

    `known`: how many outputs each member has.
    """

    def build(
        members: int = 2, *, seed: int = 0, known: list[int] | None = None, **changes: Any
    ) -> ExemplarTransformer:
        model = ExemplarTransformer(ExemplarConfig(**{**EXEMPLARS, **changes}), range(members), known).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                is_vector, is_gain = parameter.ndim == 2, "norm" in name and name.endswith("weight")
                parameter.copy_(0.4 * noise + (1.0 if is_vector and is_gain else 0.0))
        return model

    return build


@pytest.fixture(scope="session")
def draw_sequences() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Makes features [P,B,n+1,F], labels [P,B,n] and targets [P,B] that a model can read; labels may repeat."""

    def draw(model: ExemplarTransformer, batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        random, config, members = torch.Generator().manual_seed(seed), model.config, model.members
        shape = (members, batch, config.pairs + 1, config.features)
        exemplars = torch.randn(shape, generator=random, dtype=torch.float64)
        labels = torch.rand((members, batch, config.pairs), generator=random) * model.outputs[:, None, None]
        place = torch.randint(config.pairs, (members, batch, 1), generator=random)
        return exemplars, labels.long(), labels.long().gather(-1, place)[..., 0]

    return draw


@pytest.fixture(scope="session")
def plain_pass() -> Callable[..., dict[str, Tensor]]:
    """Every site of one sequence of one member, written out from its weights: `(weights, config, exemplars, labels)`.

    Weights without the members' dimension; exemplars [n+1,F]; labels: n integers. `edit(site, value)` returns what
    goes on; a site has neither batch nor members, the logits are [V].
    """
    return _plain_pass


def _plain_pass(
    w: dict[str, Tensor],
    config: ExemplarConfig,
    exemplars: Tensor,
    labels: list[int],
    edit: Edit = lambda _, value: value,
) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    length, heads, d = 2 * len(labels) + 1, config.heads, config.width // config.heads

    def at(name: str, value: Tensor) -> Tensor:
        seen[name] = edit(name, value)
        return seen[name]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + config.norm_eps).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    tokens = []
    for t in range(length):
        if t % 2:
            token = w["embed_label.weight"][labels[t // 2]]
        else:
            token = w["embed_exemplar.weight"] @ exemplars[t // 2] + w["embed_exemplar.bias"]
        if config.position == "learned":
            token = token + w["position"][t]
        if config.position == "sinusoidal":
            even = config.width + config.width % 2
            angles = [t / config.sinusoid_base ** (2 * i / even) for i in range(even // 2)]
            waves = [*map(math.sin, angles), *map(math.cos, angles)][: config.width]
            token = token + torch.tensor(waves, dtype=torch.float64)
        tokens.append(token)

    def rotate(vector: Tensor, t: int) -> Tensor:
        if config.position != "rotary":
            return vector
        turns = [cmath.exp(1j * t / config.rotary_base ** (2 * i / d)) for i in range(d // 2)]
        turned = torch.view_as_complex(vector.reshape(-1, 2)) * torch.tensor(turns, dtype=torch.complex128)
        return torch.view_as_real(turned).flatten()

    x = at("embed", torch.stack(tokens))
    for layer in range(config.layers):
        a = f"blocks.{layer}.attention"
        x = at(f"{layer}.resid_pre", x)
        normed = norm(f"blocks.{layer}.norm1", x)
        q, k, v = (
            torch.stack(
                [
                    normed @ w[f"{a}.{part}.weight"][h * d : (h + 1) * d].T
                    + (w[f"{a}.{part}.bias"][h * d : (h + 1) * d] if config.attention_bias else 0)
                    for h in range(heads)
                ]
            )
            for part in ("q", "k", "v")
        )
        q, k = (torch.stack([torch.stack([rotate(one[t], t) for t in range(length)]) for one in of]) for of in (q, k))
        q, k, v = at(f"{layer}.q", q), at(f"{layer}.k", k), at(f"{layer}.v", v)
        scores = at(f"{layer}.scores", torch.stack([one @ other.T / d**0.5 for one, other in zip(q, k, strict=True)]))
        rows = [
            [torch.cat([scores[h, t, : t + 1].softmax(0), scores.new_zeros(length - t - 1)]) for t in range(length)]
            for h in range(heads)
        ]
        pattern = at(f"{layer}.pattern", torch.stack([torch.stack(row) for row in rows]))
        z = at(f"{layer}.z", torch.stack([pattern[h] @ v[h] for h in range(heads)]))
        w_o = w[f"{a}.out.weight"]
        out = torch.stack([z[h] @ w_o[:, h * d : (h + 1) * d].T for h in range(heads)])
        written = at(f"{layer}.head_out", out).sum(0)
        if config.attention_bias:
            written = written + w[f"{a}.out.bias"]
        x = at(f"{layer}.resid_mid", x + at(f"{layer}.attn_out", written))
        if config.mlp:
            mlp = f"blocks.{layer}.mlp"
            inner = norm(f"blocks.{layer}.norm2", x) @ w[f"{mlp}.0.weight"].T + w[f"{mlp}.0.bias"]
            inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
            x = x + at(f"{layer}.mlp_out", inner @ w[f"{mlp}.2.weight"].T + w[f"{mlp}.2.bias"])
        x = at(f"{layer}.resid_post", x)
    query = at("final_norm", norm("final_norm", x[-1:]))
    at("logits", w["unembed.weight"] @ query[0] + w["unembed.bias"])
    return seen
