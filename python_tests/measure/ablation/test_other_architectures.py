"""Ablations in models of every architecture: fast against the definition and against hooks on another library's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_fast import ablate
from icl_fast.models import Transformer

Architectures = st.SearchStrategy[dict[str, Any]]
Build = Callable[..., Transformer]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["pattern-preserving", "full", "direct"]), st.sampled_from(["all", "1,5,24"]))
def test_the_fast_engine_is_the_definition(
    architectures: Architectures, random_model: Build, data: st.DataObject, mode: str, positions: str
) -> None:
    values = data.draw(architectures)
    model, tokens = random_model(values, torch.float64), torch.randint(0, 50, (3, 25))
    options: dict[str, Any] = {"mode": mode, "positions": positions, "dtype": "float64"}
    fast, slow = ablate(model, tokens, **options), ablate(model, tokens, engine="definition", **options)
    np.testing.assert_allclose(fast["position_loss"], slow["position_loss"], rtol=1e-12, atol=1e-10)


DEEP: dict[str, Any] = {  # as Llama is, and parts of it local
    "vocab": 50, "context": 24, "layers": 5, "width": 24, "heads": 6, "head_width": 4, "mlp": True, "mlp_width": 40,
    "mlp_bias": False, "gated": True, "activation": "silu", "norm": "rms", "position": "rotary", "tied": True,
    "windows": [[None, 4, None, 7, None, None], [5] * 6, [None] * 6, [3, None] * 3, [9] * 6],
}  # fmt: skip


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("positions", ["all", "1,24", "paper"])
@pytest.mark.parametrize("at_a_time", [1, 20_000, 1 << 30])
def test_groups_of_heads_a_few_ablations_at_a_time(
    random_model: Build, kv_heads: int, positions: str, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icl_fast.measure.base_pass.STREAM_BYTES", at_a_time)
    monkeypatch.setattr("icl_fast.measure.base_pass.CACHE_BYTES", at_a_time // 2)
    model, tokens = random_model(DEEP | {"kv_heads": kv_heads}, torch.float64), torch.randint(0, 50, (2, 25))
    options: dict[str, Any] = {"heads": "all,1.0+1.4+3.2,~2.5", "positions": positions}
    exact = ablate(model, tokens, engine="definition", **options)["position_loss"]
    np.testing.assert_allclose(ablate(model, tokens, **options)["position_loss"], exact, rtol=0, atol=1e-10)
    single = ablate(model.float(), tokens, **options)["position_loss"]
    np.testing.assert_allclose(single, exact, rtol=5e-6, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_in_float32_errors_are_relative_to_the_effect(
    architectures: Architectures, random_model: Build, data: st.DataObject
) -> None:
    """As small as an effect is made: with little in what the heads write, nothing of it drowns in rounding."""
    values = data.draw(architectures) | {
        "activation": "silu",
        "qkv_clip": None,
        "logit_cap": None,
        "norm_place": "before",
        "layers": 2,
        "mlp": True,
    }
    values |= {"windows": None, "position": "learned", "rotary_local_base": None, "rotary_scaling": None}
    model, tokens = random_model(values, torch.float64), torch.randint(0, 50, (3, 25))
    for block in model.blocks:
        block.attention.out.weight *= 1e-4
    exact = ablate(model, tokens, engine="definition", dtype="float64")["position_loss"]
    fast = ablate(model.float(), tokens, dtype="float32")["position_loss"]
    effect, found = exact[1:] - exact[0], fast[1:] - fast[0]
    np.testing.assert_allclose(found, effect, rtol=0, atol=2e-3 * float(abs(effect).max()))
