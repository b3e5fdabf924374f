"""Our models in TransformerLens, where it is installed; what the bench of the sweep says where something is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import bench_sweep
import lens_sweep
import pytest
import torch
from harness import Maker, Options, run_bench

from icl_fast.models import Transformer, TransformerConfig

QUICK = Options(threads=1, quick=True, compile=False, memory=False)


def model(**others: Any) -> Transformer:
    """In float64, with biases and gains that are not what they start at."""
    torch.manual_seed(0)
    shape = {"layers": 2, "width": 12, "heads": 3, "vocab": 19, "context": 9, "position": "shortformer"}
    made = Transformer(TransformerConfig(**{**shape, **others})).double().requires_grad_(False)
    for parameter in made.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"head_width": 5, "attention_bias": True, "unembed_bias": True, "norm_eps": 1e-2},
        {"mlp": True, "mlp_ratio": 3},
        {"mlp": True, "activation": "gelu_tanh"},
    ],
    ids=["attention-only", "biases", "mlp", "gelu_tanh"],
)
@torch.no_grad()
def test_the_same_function(others: dict[str, Any]) -> None:
    pytest.importorskip("transformer_lens")
    mine = model(**others)
    tokens = torch.randint(19, (4, 9))
    torch.testing.assert_close(lens_sweep.to_transformer_lens(mine)(tokens), mine(tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "others", [{"position": "rotary"}, {"key": "smeared"}, {"windows": [[1, 1, 1]] * 2}, {"norm_affine": False}]
)
def test_what_it_cannot_express(others: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="only shortformer positions, plain keys, dense heads and affine norms"):
        lens_sweep.to_transformer_lens(model(**others))


def test_why_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    packages: dict[str, Any] = {}
    monkeypatch.setattr(lens_sweep, "module_or_none", packages.get)
    assert lens_sweep.missing() == "transformer_lens is not installed"
    packages["transformer_lens"] = SimpleNamespace()
    assert lens_sweep.missing() == "transformer_lens is too new: it has no HookedTransformer"
    packages["transformer_lens"].HookedTransformer = None
    assert lens_sweep.missing() == ""


def test_a_machine_with_torch_and_numpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_sweep, "module_or_none", {}.get)
    cases = bench_sweep.cases(QUICK)
    done = run_bench("sweep", cases, QUICK, bench_sweep.__file__, lambda so_far: None)
    torch.set_num_threads(1)
    assert len(done["cases"]) == len(cases)
    for case in done["cases"]:
        assert case["errors"] == []
        assert {row["missing"] for row in case["candidates"]} == {"icl_fast.measure needs packages that are not here"}


@torch.no_grad()
def test_every_head_of_the_inputs_matters() -> None:
    """Else a candidate that ablates the wrong head, or none, would agree."""
    for case in bench_sweep.cases(QUICK):
        inputs = case.make(Maker("cpu", torch.float32, 0))
        (reference,) = (c for c in case.candidates if c.name == "reference")
        base, effects = reference.call(inputs)
        assert effects.shape == (4, *base.shape)
        for head, effect in enumerate(effects):
            assert effect.square().mean() > 0.1
            for other in effects[head + 1 :]:
                assert (effect - other).square().mean() > 0.1


def test_operations_counted_by_hand() -> None:
    """One layer of two heads, C = 4, T = 8, V = 10, one example."""
    size = bench_sweep.Size("tiny", 1, 4, 2, 8, 10, 1)
    pairs = 8 * 9 // 2
    attention, logits = 4 * 2 * 8 * 4 * 4 + 2 * 2 * pairs * 4, 2 * 8 * 4 * 10
    low_rank = 2 * 10 * 4 * (4 + 8)  # W_O through the unembedding, then a product of rank 2 a head and row
    assert bench_sweep.plan(size, 8, "pattern-preserving", "cpu").flops == attention + logits + low_rank
    with_mlp = bench_sweep.Size("tiny", 1, 4, 2, 8, 10, 1, mlp=True)
    mlp, written = 2 * 2 * 8 * 4 * 16, 2 * 8 * 4 * 4
    assert (
        bench_sweep.plan(with_mlp, 8, "pattern-preserving", "cpu").flops == attention + 3 * mlp + written + 3 * logits
    )
