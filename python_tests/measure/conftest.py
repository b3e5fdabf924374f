"""Small models for measurements: noisy ones in which every parameter matters, and one whose circuits are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from icl_fast import Transformer, TransformerConfig
from icl_fast.models import parse_transformer_config


class Sizes(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.fixture
def sizes() -> Sizes:
    """`with sizes: ...`, then `sizes.largest`."""
    return Sizes()


@pytest.fixture(scope="session")
def shapes() -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of `noisy` that reach every branch of the model."""
    return st.fixed_dictionaries(
        {
            "seed": st.integers(0, 10_000),
            "layers": st.integers(1, 3),
            "heads": st.integers(1, 3),
            "head_width": st.integers(1, 3).map(lambda half: 2 * half),
            "mlp": st.booleans(),
            "position": st.sampled_from(["learned", "sinusoidal", "shortformer", "rotary", "none"]),
            "key": st.sampled_from(["plain", "smeared"]),
            "attention_bias": st.booleans(),
            "norm_affine": st.booleans(),
            "unembed_bias": st.booleans(),
        }
    )


@st.composite
def _architectures(draw: st.DrawFn) -> dict[str, Any]:
    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    heads, layers, mlp = one(2, 4), one(1, 2, 3), one(True, True, False)
    place, parallel, position = one("before", "after", "both"), one(False, True), one("rotary", "alibi", "learned")
    values = {
        "vocab": 50, "context": 24, "layers": layers, "width": one(16, 24), "heads": heads, "head_width": one(4, 8),
        "kv_heads": one(*(k for k in (1, 2, 4) if heads % k == 0)), "mlp": mlp, "mlp_width": one(None, 20),
        "mlp_bias": one(True, False), "gated": mlp and one(True, False),
        "activation": one("gelu", "gelu_tanh", "silu", "relu", "solu", "solu_plain"),
        "norm": one("layer", "rms", "none"),
        "norm_affine": one(True, False), "norm_place": place, "parallel": parallel,
        "shared_norm": parallel and place == "before" and one(True, False), "qk_norm": one("none", "head", "all"),
        "qkv_clip": one(None, None, 2.0), "score_scale": one(None, 0.3), "score_cap": one(None, 5.0),
        "logit_cap": one(None, None, 6.0), "attention_bias": one(True, False), "out_bias": one(None, True),
        "tied": one(True, False), "embed_scale": one(1.0, 3.0), "position": position,
        "windows": one(None, [[5] * heads] * layers),
    }  # fmt: skip
    if position == "rotary":
        values["rotary_local_base"] = one(None, 100.0)
        values["rotary_scaling"] = one(None, {"kind": "llama3", "factor": 4.0, "original_context": 16})
    plain = values["qk_norm"] == "none" and values["score_cap"] is None and position != "alibi"
    if plain and values["kv_heads"] == heads:
        values["key"] = one("plain", "smeared")
    return values


@pytest.fixture(scope="session")
def architectures() -> st.SearchStrategy[dict[str, Any]]:
    """Any combination of options that a model can have."""
    return _architectures()


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Transformer]:
    """Makes a model of `architectures` in which every parameter matters, `random_model(values, dtype)`."""

    def make(values: dict[str, Any], dtype: torch.dtype) -> Transformer:
        torch.manual_seed(0)
        model = Transformer(parse_transformer_config(values)).to(dtype).requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(scope="session")
def noisy() -> Callable[..., Transformer]:
    """Makes a float64 model, `noisy(seed=0, **shape)`: biases, gains and smears are not at their start values."""

    def make(seed: int = 0, **shape: Any) -> Transformer:
        torch.manual_seed(seed)
        values = {"vocab": 17, "context": 9, "layers": 2, "width": 7, "heads": 2, "head_width": 4}
        model = Transformer(TransformerConfig(**(values | shape))).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.5)
        return model

    return make


@pytest.fixture(scope="session")
def induction() -> Callable[..., Transformer]:
    """Makes `induction(vocab, context)`: a perfect induction circuit in float64, written by hand.

    The stream is three subspaces side by side: this token | the previous token | position, each one-hot. Head 0.0
    attends to the position before and copies its token into the second; head 1.0 matches the present token against the
    second and copies the attended token into the logits. Positions reach queries and keys only.
    """

    def make(vocab: int, context: int) -> Transformer:
        width, head_width = 2 * vocab + context, max(vocab, context) + 1
        model = Transformer(
            TransformerConfig(
                vocab=vocab,
                context=context,
                layers=2,
                heads=1,
                width=width,
                head_width=head_width,
                position="shortformer",
                norm_affine=False,
            )
        ).double()
        this, previous = slice(0, vocab), slice(vocab, 2 * vocab)
        token, place = torch.eye(vocab), torch.eye(context)
        first, second = (block.attention for block in model.blocks)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            model.embed.weight[:, this] = width**0.5 * token  # what a norm makes of it: both layers write alike
            model.unembed.weight[:, this] = token
            model.position.weight[:, 2 * vocab :] = 10 * place
            first.q.weight[: context - 1, 2 * vocab + 1 :] = 20 * place[1:, 1:]  # position t asks for t - 1
            first.k.weight[:context, 2 * vocab :] = 20 * place
            first.v.weight[:vocab, this] = token
            first.out.weight[previous, :vocab] = token
            second.q.weight[:vocab, this] = 4 * token
            second.k.weight[:vocab, previous] = 4 * token
            second.v.weight[:vocab, this] = token
            second.out.weight[this, :vocab] = token
        return model

    return make
