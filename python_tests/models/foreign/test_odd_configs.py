"""Configs with any value in any place: a model, or one line that says what is wrong; never anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from icl_fast.errors import InputError
from icl_fast.models.foreign import foreign_config, is_foreign, load_foreign

DECODER: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 24, "vocab_size": 31, "max_position_embeddings": 32, "hidden_act": "silu", "head_dim": 8,
    "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
    "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True,
}  # fmt: skip
GPT: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 31, "rotary_dim": 4}
LENS: dict[str, Any] = {
    "n_layers": 2, "d_model": 16, "n_ctx": 32, "d_head": 8, "n_heads": 2, "d_vocab": 31, "act_fn": "gelu", "eps": 1e-5,
    "positional_embedding_type": "rotary", "rotary_dim": 4, "normalization_type": "LN", "use_local_attn": True,
    "attn_types": ["local", "global"], "window_size": 4, "attn_scale": 2.0, "n_key_value_heads": 1, "d_mlp": 8,
    "use_NTK_by_parts_rope": True, "NTK_by_parts_factor": 2.0, "attn_scores_soft_cap": 2.0,
}  # fmt: skip
CONFIGS: list[dict[str, Any]] = [
    *({"model_type": kind, **DECODER} for kind in ("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "phi3")),
    *({"model_type": kind, **DECODER} for kind in ("gemma", "gemma2", "gemma3_text", "phi", "gpt_neox")),
    {"model_type": "gpt2", **GPT}, {"model_type": "gptj", **GPT}, LENS,
    {"model_type": "gpt_neo", "hidden_size": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 31, "window_size": 4,
     "max_position_embeddings": 32, "attention_types": [[["global", "local"], 1]]},
    {"layers": 2, "width": 16, "heads": 2, "vocab": 31, "context": 32, "windows": [[4, None]] * 2},
]  # fmt: skip
numbers = st.sampled_from([0, 1, -1, 3, 2**31 - 1, 2**63, 10**400, 0.0, 0.5, -2.5, 1e308, 1e-320])
plain = st.none() | st.booleans() | numbers | st.sampled_from(["", "silu", "local", "full_attention", "7"])
values = st.recursive(
    plain, lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text("abc", max_size=2), some), max_leaves=5
)
NO_CONFIGS = ["[]", "3", '"a"', "null", "{}", "{", "", '{"model_type": 3}', '{"n_layers": 3}', "\xff"]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(CONFIGS), st.data())
def test_any_value_in_any_field(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], data: Any) -> None:
    folder = tmp_path_factory.mktemp("odd")
    names = data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=2, unique=True))
    changed = config | {name: data.draw(values) for name in names}
    (folder / "config.json").write_text(json.dumps(changed))
    save_file({"model.norm.weight": torch.ones(16)}, folder / "model.safetensors")
    with pytest.raises(InputError) as raised:
        load_foreign(folder)  # whatever the config says, there are weights missing
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_more_weights_than_can_be_counted(tmp_path: Path) -> None:
    sizes = dict.fromkeys(("hidden_size", "head_dim", "intermediate_size", "vocab_size"), 2**31 - 2)
    config = {"model_type": "llama", **DECODER, **sizes, "rope_scaling": None, "sliding_window": None}
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_types": None}))
    with pytest.raises(InputError, match=r"weights.*: needs .* of memory"):
        load_foreign(tmp_path)


@pytest.mark.parametrize("text", NO_CONFIGS)
def test_what_is_no_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert is_foreign(tmp_path)
    with pytest.raises(InputError, match=r"config.json|has to hold one file of weights"):
        foreign_config(tmp_path)


def test_what_is_no_model(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "gone", r"model: \S+gone does not exist"),
        (tmp_path, r"config.json does not exist"),
        (tmp_path / "gone.gguf", r"model: \S+gone.gguf does not exist"),
    ):
        assert not is_foreign(path)
        with pytest.raises(InputError, match=message):
            load_foreign(path)
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(InputError, match=r"x.gguf"):
        load_foreign(tmp_path / "x.gguf")
