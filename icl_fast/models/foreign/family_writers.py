"""The config.json of a model, as each family would say it.

What is written here need not be right: a config.json is used only if reading it gives the model's own config back
(`icl_fast.models.foreign.export`), so that the tables for reading say alone what a family can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from icl_fast.models.config import TransformerConfig

Writer = Callable[[TransformerConfig], dict[str, Any]]
_ACTIVATIONS = {"gelu_tanh": "gelu_new", "solu": "gelu", "solu_plain": "gelu"}  # others have the same name there


def _activation(config: TransformerConfig) -> str:
    return _ACTIVATIONS.get(config.activation, config.activation)


def _rotary(config: TransformerConfig) -> dict[str, Any]:
    """As versions of transformers before 5 write it, which all of them read."""
    scaling = config.rotary_scaling
    values: dict[str, Any] = {"rope_theta": config.rotary_base, "rope_scaling": None}
    if scaling is not None:
        values["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            values["rope_scaling"] |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
        if scaling.kind == "yarn":
            values["rope_scaling"] |= {
                "beta_slow": scaling.low,
                "beta_fast": scaling.high,
                "attention_factor": scaling.length,
                "truncate": scaling.truncate,
            }
        if scaling.kind != "linear":
            values["rope_scaling"]["original_max_position_embeddings"] = scaling.original_context
    return values


def _windows(config: TransformerConfig) -> dict[str, Any]:
    if config.windows is None:
        return {"sliding_window": None}
    of_layers = [row[0] for row in config.windows]
    kinds = ["full_attention" if window is None else "sliding_attention" for window in of_layers]
    return {
        "sliding_window": next((window for window in of_layers if window is not None), None),
        "layer_types": kinds,
        "use_sliding_window": True,
    }


def _decoder(config: TransformerConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv,
        "head_dim": config.d_head,
        "intermediate_size": config.hidden_width or 1,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "hidden_act": _activation(config),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        **_rotary(config),
    }


def _llama(config: TransformerConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.attention_bias or bool(config.out_bias), "mlp_bias": config.mlp_bias}
    return _decoder(config) | biases


def _mistral(config: TransformerConfig) -> dict[str, Any]:
    windows = {"sliding_window": _windows(config)["sliding_window"]}
    return _decoder(config) | windows


def _qwen2(config: TransformerConfig) -> dict[str, Any]:
    return _decoder(config) | _windows(config)


def _qwen3(config: TransformerConfig) -> dict[str, Any]:
    return _qwen2(config) | {"attention_bias": config.attention_bias}


def _gemma(config: TransformerConfig) -> dict[str, Any]:
    activation = "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else _activation(config)
    return _decoder(config) | {"hidden_activation": activation, "attention_bias": config.attention_bias}


def _gemma2(config: TransformerConfig) -> dict[str, Any]:
    scale = config.d_head**-0.5 if config.score_scale is None else config.score_scale
    caps = {"attn_logit_softcapping": config.score_cap, "final_logit_softcapping": config.logit_cap}
    windows: dict[str, Any] = {"sliding_window": config.context, "layer_types": ["full_attention"] * config.layers}
    if config.windows is not None:
        windows = {name: value for name, value in _windows(config).items() if name in windows}
    return _gemma(config) | caps | windows | {"query_pre_attn_scalar": round(scale**-2)}


def _gemma3(config: TransformerConfig) -> dict[str, Any]:
    local = config.rotary_base if config.rotary_local_base is None else config.rotary_local_base
    return _gemma2(config) | {"rope_local_base_freq": local}


def _olmo(config: TransformerConfig) -> dict[str, Any]:
    own = {"clip_qkv": config.qkv_clip, "attention_bias": config.attention_bias}
    return {name: value for name, value in _decoder(config).items() if name != "rms_norm_eps"} | own


def _olmo2(config: TransformerConfig) -> dict[str, Any]:
    return _decoder(config) | {"attention_bias": config.attention_bias}


def _phi(config: TransformerConfig) -> dict[str, Any]:
    own = {"layer_norm_eps": config.norm_eps, "partial_rotary_factor": config.rotary_fraction}
    values = {name: value for name, value in _decoder(config).items() if name not in ("rms_norm_eps", "head_dim")}
    return values | own


def _phi3(config: TransformerConfig) -> dict[str, Any]:
    return {name: value for name, value in _mistral(config).items() if name != "head_dim"}


def _gpt_neox(config: TransformerConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden_width or 1,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "hidden_act": _activation(config),
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel,
        "attention_bias": True,
        "tie_word_embeddings": config.tied,
        "rotary_pct": config.rotary_fraction,
        **_rotary(config),
    }


def _gpt(config: TransformerConfig) -> dict[str, Any]:
    return {
        "n_layer": config.layers,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": config.hidden_width or 1,
        "vocab_size": config.vocab,
        "n_positions": config.context,
        "activation_function": _activation(config),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }


def _gpt2(config: TransformerConfig) -> dict[str, Any]:
    scales = {"scale_attn_weights": config.score_scale != 1.0}
    return _gpt(config) | scales | {"scale_attn_by_inverse_layer_idx": config.score_scale_by_layer}


def _gptj(config: TransformerConfig) -> dict[str, Any]:
    return _gpt(config) | {"rotary_dim": config.rotary_width}


def _gpt_neo(config: TransformerConfig) -> dict[str, Any]:
    windows = config.windows or [[None]] * config.layers
    return {
        "num_layers": config.layers,
        "hidden_size": config.width,
        "num_heads": config.heads,
        "intermediate_size": config.hidden_width or 1,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "activation_function": _activation(config),
        "layer_norm_epsilon": config.norm_eps,
        "attention_types": [[["global" if row[0] is None else "local"], 1] for row in windows],
        "window_size": next((row[0] for row in windows if row[0] is not None), 256),
        "tie_word_embeddings": config.tied,
    }


WRITERS: dict[str, tuple[str, Writer]] = {
    "gpt2": ("GPT2LMHeadModel", _gpt2),
    "gpt_neox": ("GPTNeoXForCausalLM", _gpt_neox),
    "gptj": ("GPTJForCausalLM", _gptj),
    "gpt_neo": ("GPTNeoForCausalLM", _gpt_neo),
    "llama": ("LlamaForCausalLM", _llama),
    "mistral": ("MistralForCausalLM", _mistral),
    "qwen2": ("Qwen2ForCausalLM", _qwen2),
    "qwen3": ("Qwen3ForCausalLM", _qwen3),
    "gemma": ("GemmaForCausalLM", _gemma),
    "gemma2": ("Gemma2ForCausalLM", _gemma2),
    "gemma3_text": ("Gemma3ForCausalLM", _gemma3),
    "olmo": ("OlmoForCausalLM", _olmo),
    "olmo2": ("Olmo2ForCausalLM", _olmo2),
    "phi": ("PhiForCausalLM", _phi),
    "phi3": ("Phi3ForCausalLM", _phi3),
}  # by model_type: the class in transformers, and what it would say
