"""Models written for other programs: read back, by us and by transformers, and what cannot be written is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from icl_fast.errors import InputError
from icl_fast.models import Transformer, TransformerConfig
from icl_fast.models.foreign import describe, export_model, load_foreign

TOKENS = torch.randint(0, 31, (2, 16), generator=torch.Generator().manual_seed(0))
MLP: dict[str, Any] = {"mlp": True, "activation": "gelu_tanh"}
GATED: dict[str, Any] = {"mlp": True, "gated": True, "activation": "silu", "norm": "rms", "mlp_bias": False,
                         "position": "rotary"}  # fmt: skip
BOTH: dict[str, Any] = GATED | {
    "norm_place": "both", "activation": "gelu_tanh", "tied": True, "embed_scale": 4.0, "head_width": 8,
}  # fmt: skip
GPTJ: dict[str, Any] = MLP | {"position": "rotary", "rotary_interleaved": True, "parallel": True, "shared_norm": True,
                              "unembed_bias": True}  # fmt: skip
LLAMA3 = {"kind": "llama3", "factor": 4.0, "original_context": 8}
YARN = {"kind": "yarn", "factor": 4.0, "original_context": 8, "high": 32.0, "length": 1.1}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "learned positions": (MLP | {"position": "learned"}, "GPT2LMHeadModel"),
    "no gains": (MLP | {"position": "learned", "norm_affine": False, "attention_bias": True}, "GPT2LMHeadModel"),
    "no scale": (MLP | {"position": "learned", "score_scale": 1.0, "tied": True}, "GPT2LMHeadModel"),
    "parallel": (MLP | {"position": "rotary", "parallel": True, "rotary_fraction": 0.5}, "GPTNeoXForCausalLM"),
    "rotary": (MLP | {"position": "rotary", "attention_bias": True}, "GPTNeoXForCausalLM"),
    "gptj": (GPTJ, "GPTJForCausalLM"),
    "phi": (GPTJ | {"rotary_interleaved": False, "attention_bias": True}, "PhiForCausalLM"),
    "local": (MLP | {"position": "learned", "score_scale": 1.0, "windows": [[5] * 2, [None] * 2]}, "GPTNeoForCausalLM"),
    "llama": (GATED, "LlamaForCausalLM"),
    "llama 3": (GATED | {"kv_heads": 1, "rotary_scaling": LLAMA3, "head_width": 4}, "LlamaForCausalLM"),
    "yarn": (GATED | {"rotary_scaling": YARN, "attention_bias": True}, "LlamaForCausalLM"),
    "windows": (GATED | {"windows": [[5] * 2] * 2}, "MistralForCausalLM"),
    "some windows": (GATED | {"windows": [[None] * 2, [5] * 2]}, "Qwen2ForCausalLM"),
    "qwen3": (GATED | {"qk_norm": "head", "kv_heads": 1}, "Qwen3ForCausalLM"),
    "gemma": (BOTH | {"norm_place": "before"}, "GemmaForCausalLM"),
    "gemma2": (BOTH | {"score_cap": 3.0, "logit_cap": 4.0, "score_scale": 0.25}, "Gemma2ForCausalLM"),
    "gemma3": (BOTH | {"qk_norm": "head", "windows": [[5] * 2, [None] * 2], "rotary_local_base": 100.0},
               "Gemma3ForCausalLM"),
    "olmo": (GATED | {"norm": "layer", "norm_affine": False, "qkv_clip": 0.5}, "OlmoForCausalLM"),
    "olmo2": (GATED | {"norm_place": "after", "qk_norm": "all"}, "Olmo2ForCausalLM"),
}  # fmt: skip


def make(**values: Any) -> Transformer:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "vocab": 31, "context": 16}
    model = Transformer(TransformerConfig(**(shape | values))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_to_hugging_face(name: str, tmp_path: Path) -> None:
    """The family that has the model's options, checked with transformers' own code; and loaded again here."""
    transformers = pytest.importorskip("transformers")
    values, expected = MODELS[name]
    model, folder = make(**values), tmp_path / "out"
    assert export_model(model, "hf", folder, tokenizer="{}", bos=0) == f"{expected} (Hugging Face)"
    with torch.no_grad():
        logits = model(TOKENS)
        torch.testing.assert_close(load_foreign(folder)(TOKENS), logits, rtol=0, atol=1e-5)
        theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        assert type(theirs).__name__ == expected
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        torch.testing.assert_close(theirs(TOKENS).logits, logits, rtol=0, atol=1e-5)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert json.loads((folder / "config.json").read_text())["bos_token_id"] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"to: hf: no family has .*position shortformer.*mlp False|no family has .*mlp False"),
        (MLP, r"no family has position shortformer"),
        (MLP | {"position": "alibi"}, r"no family has position alibi"),
        (MLP | {"position": "learned", "activation": "solu"}, r"no family has activation solu"),
        (MLP | {"position": "learned", "key": "smeared"}, r"no family has key smeared"),
        (MLP | {"position": "learned", "norm": "none"}, r"no family has norm none"),
        (GATED | {"score_cap": 3.0}, r"no family has all of its options; \w+ lacks"),
        (MLP | {"position": "learned", "windows": [[5, None]] * 2}, r"no family has windows"),
    ],
)
def test_what_no_family_has_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export_model(make(**values), "hf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    mlp, parallel, norm = one(True, False), one(False, True), one("layer", "rms", "none")
    return {
        "mlp": mlp, "gated": mlp and one(False, True), "mlp_bias": one(True, False), "norm": norm,
        "activation": one("gelu", "gelu_tanh", "silu", "relu", "solu_plain", "solu" if norm == "layer" else "gelu"),
        "norm_affine": one(True, False), "norm_place": one("before", "both"), "parallel": parallel,
        "kv_heads": one(None, 1), "qk_norm": one("none", "head"), "score_scale": one(None, 0.3),
        "score_scale_by_layer": one(False, True), "score_cap": one(None, 3.0), "logit_cap": one(None, 4.0),
        "attention_bias": one(True, False), "out_bias": one(None, True, False), "unembed_bias": one(True, False),
        "tied": one(True, False), "embed_scale": one(1.0, 3.0), "windows": one(None, [[4] * 2, [None] * 2]),
        "position": one("learned", "shortformer", "rotary", "alibi", "none"), "rotary_interleaved": one(False, True),
        "rotary_fraction": one(1.0, 0.5), "rotary_scaling": one(None, LLAMA3),
    }  # fmt: skip


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(shapes())
def test_to_transformer_lens_and_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    if values["gated"]:
        values |= {"mlp_bias": False} | ({"activation": "silu"} if values["activation"] == "solu" else {})
    model, folder = make(**values).double(), tmp_path_factory.mktemp("lens") / "out"
    assert export_model(model, "transformer-lens", folder) == "HookedTransformer (TransformerLens)"
    assert describe(folder) == "HookedTransformer (TransformerLens)"
    with torch.no_grad():
        found, logits = load_foreign(folder, dtype=torch.float64)(TOKENS), model(TOKENS)
    assert (found - logits).abs().max() <= 1e-9 * logits.abs().max()
    assert load_file(folder / "model.safetensors")["blocks.1.attn.W_Q"].shape == (2, 16, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"key": "smeared"}, r"to: transformer-lens: HookedTransformer has no key smeared"),
        (GATED | {"mlp_bias": True}, r"to: blocks.0.mlp.b_in holds numbers that are not 0"),
        ({"norm_place": "after"}, r"has no norm_place after"),
        ({"position": "sinusoidal"}, r"position.* is None|has no position sinusoidal"),
        (GATED | {"qkv_clip": 2.0, "rotary_scaling": YARN}, r"has no rotary_scaling .*, qkv_clip 2.0|qkv_clip 2.0"),
    ],
)
def test_what_transformer_lens_lacks_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export_model(make(**values), "transformer-lens", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [{}, {"key": "smeared"}, BOTH])
def test_our_own_names_and_back(tmp_path: Path, values: dict[str, Any]) -> None:
    model = make(**values).to(torch.bfloat16)
    assert export_model(model, "safetensors", tmp_path) == describe(tmp_path) == "Transformer (icl_fast)"
    found = load_foreign(tmp_path, dtype=torch.bfloat16)
    assert found.config == model.config
    assert all(torch.equal(weight, found.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_model_that_is_read_layer_by_layer(tmp_path: Path) -> None:
    model = make(layers=3)
    export_model(model, "safetensors", tmp_path / "whole")
    for to in ("safetensors", "transformer-lens"):
        export_model(load_foreign(tmp_path / "whole", stream=True), to, tmp_path / to)  # type: ignore[arg-type]
        with torch.no_grad():
            torch.testing.assert_close(load_foreign(tmp_path / to)(TOKENS), model(TOKENS))


def test_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(InputError, match=r"the disk is full"):
        export_model(make(width=128), "safetensors", small_disk / "out")
    assert not list(small_disk.iterdir())


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"to: must be one of hf, transformer-lens, safetensors, got 'onnx'"):
        export_model(make(), "onnx", tmp_path / "out")  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").write_text("kept")
    with pytest.raises(InputError, match=r"out: .*full exists and is not an empty folder"):
        export_model(make(), "safetensors", tmp_path / "full")
    hooked = make()
    hooked.blocks[0].mlp = torch.nn.Identity()  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"model: .*which no file can hold"):
        export_model(hooked, "safetensors", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
