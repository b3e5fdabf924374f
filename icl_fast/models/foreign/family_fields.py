"""What the config.json of other people's models says, in our words.

Every field that decides what the model computes is read; fields that are not read, and not known to decide nothing, are
refused by name, never passed over. A function for each family gives the values of a `TransformerConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from icl_fast.errors import InputError

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
_DECIDES_NOTHING = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "architectures", "auto_map",
    "cache_implementation", "chunk_size_feed_forward", "dtype", "gradient_checkpointing", "id2label",
    "initializer_range", "is_decoder", "is_llama_config", "is_qwen2_config", "label2id", "max_sequence_length",
    "max_window_layers", "model_type", "neftune_noise_alpha", "output_attentions", "output_hidden_states",
    "pretraining_tp", "problem_type", "reorder_and_upcast_attn", "return_dict", "summary_activation",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "tokenizer_class",
    "torch_dtype", "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache", "use_return_dict",
    # of generation, which older configs hold too
    "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "repetition_penalty", "temperature", "top_k", "top_p", "typical_p",
})  # fmt: skip
_DECIDE_NOTHING = ("dropout", "dropout_prob", "_pdrop", "_token_id")  # ends of the names of fields that do not either


class Fields:
    """A config.json that notes what was read of it."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source = dict(values), source
        self.read: set[str] = set()

    def __call__(self, *names: str, default: Any = ...) -> Any:
        """The value of the first of these fields that is there."""
        self.read.update(names)
        found = [self.values[name] for name in names if self.values.get(name) is not None]
        if not found and default is ...:
            raise InputError(f"{self.source}: field {names[0]!r} is missing")
        return found[0] if found else default

    def or_none(self, name: str, default: Any) -> Any:
        """The value of a field that may be null; the default only where there is no such field."""
        self.read.add(name)
        return self.values.get(name, default)

    def activation(self, *names: str, default: str) -> str:
        """The value of an activation's field, in our words."""
        name = self(*names, default=default)
        if name not in _ACTIVATIONS:
            raise self.not_understood(names[0], name)
        return _ACTIVATIONS[name]

    def only(self, name: str, *values: Any) -> None:
        """Refuse a field that has another value than these."""
        if self(name, default=values[0]) not in values:
            raise self.not_understood(name, self.values[name])

    def not_understood(self, name: str, value: Any) -> InputError:
        """The error for a field that says something which no option of our model does."""
        return InputError(
            f"{self.source}: field {name!r} is {value!r}, which is not understood; the model would not be the same"
        )

    def check_all_read(self, decides_nothing: frozenset[str] = _DECIDES_NOTHING) -> None:
        """Refuse fields that nothing read and that may decide something."""
        for name in sorted(self.values.keys() - self.read - decides_nothing):
            if self.values[name] not in (None, False, {}, []) and not name.endswith(_DECIDE_NOTHING):
                raise self.not_understood(name, self.values[name])


@contextmanager
def understood(source: str) -> Iterator[None]:
    """Turn what a value of the wrong type or size does to a formula into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError, KeyError, AttributeError) as error:
        raise InputError(f"{source}: has a value that is not understood ({type(error).__name__}: {error})") from None


def _rotary(fields: Fields, *, base: float = 10_000.0, fraction: float | None = None) -> dict[str, Any]:
    """Rotary positions, as newer configs (`rope_parameters`) and older ones (`rope_theta`, `rope_scaling`) say them.

    Args:
        fraction: of a head that is rotated where the config does not say; None: always all of it.
    """
    newer = fields("rope_parameters", default=None)
    scaling = newer if newer is not None else fields("rope_scaling", default=None) or {}
    if not isinstance(scaling, dict):
        raise fields.not_understood("rope_parameters", scaling)
    older = {"rope_theta": fields("rope_theta", "rotary_emb_base", default=base)}
    older["partial_rotary_factor"] = fields("partial_rotary_factor", "rotary_pct", default=fraction or 1.0)
    values = older | scaling
    if fraction is None and values["partial_rotary_factor"] not in (None, 1.0):  # their own code does not read it
        raise fields.not_understood("partial_rotary_factor", values["partial_rotary_factor"])
    values["partial_rotary_factor"] = values["partial_rotary_factor"] or fraction or 1.0
    return {
        "position": "rotary",
        "rotary_base": float(values.pop("rope_theta")),
        "rotary_fraction": float(values.pop("partial_rotary_factor")),
        "rotary_scaling": _scaling(fields, values),
    }


def _scaling(fields: Fields, values: dict[str, Any]) -> dict[str, Any] | None:
    kind = values.pop("rope_type", values.pop("type", "default"))
    values.pop("type", None)
    factor, found = values.pop("factor", 1.0), None
    original = values.pop("original_max_position_embeddings", None) or fields("max_position_embeddings")
    if kind == "linear":
        found = {"kind": kind, "factor": float(factor)}
    elif kind == "llama3":
        found = {
            "kind": kind,
            "factor": float(factor),
            "original_context": original,
            "low": float(values.pop("low_freq_factor")),
            "high": float(values.pop("high_freq_factor")),
        }
    elif kind == "yarn":
        found = {
            "kind": kind,
            "factor": float(factor),
            "original_context": original,
            "low": float(values.pop("beta_slow", None) or 1),
            "high": float(values.pop("beta_fast", None) or 32),
            "length": _yarn_length(float(factor), values),
            "truncate": values.pop("truncate", True),
        }
    elif kind != "default":
        raise fields.not_understood("rope_parameters.rope_type", kind)
    for name, value in values.items():
        if value is not None:
            raise fields.not_understood(f"rope_parameters.{name}", value)
    return found


def _yarn_length(factor: float, values: dict[str, Any]) -> float:
    given, one, all_ = (values.pop(name, None) for name in ("attention_factor", "mscale", "mscale_all_dim"))

    def length(share: float) -> float:
        return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0

    if given is not None:
        return float(given)
    return length(one) / length(all_) if one and all_ else length(1.0)


def _windows(fields: Fields, layers: int, heads: int, kinds: list[str] | None) -> list[list[int | None]] | None:
    """Local windows of the layers that are of the kind `sliding_attention`; without kinds, of all."""
    window = fields("sliding_window", default=None)
    kinds = fields("layer_types", default=kinds)
    if kinds is None:
        kinds = ["sliding_attention"] * layers
    for kind in set(kinds) - {"sliding_attention", "full_attention"}:
        raise fields.not_understood("layer_types", kind)
    if window is None or window >= fields("max_position_embeddings") or "sliding_attention" not in kinds:
        return None
    return [[window if kind == "sliding_attention" else None] * heads for kind in kinds]


def _decoder(fields: Fields) -> dict[str, Any]:
    """What Llama and its like have in common."""
    heads = fields("num_attention_heads")
    return {
        "layers": fields("num_hidden_layers"),
        "width": fields("hidden_size"),
        "heads": heads,
        "head_width": fields("head_dim", default=fields("hidden_size") // heads),
        "kv_heads": fields("num_key_value_heads", default=heads),
        "vocab": fields("vocab_size"),
        "context": fields("max_position_embeddings"),
        "mlp": True,
        "mlp_width": fields("intermediate_size"),
        "mlp_bias": False,
        "gated": True,
        "activation": fields.activation("hidden_act", default="silu"),
        "norm": "rms",
        "norm_eps": float(fields("rms_norm_eps", default=1e-6)),
        "tied": fields("tie_word_embeddings", default=False),
    }


def llama(fields: Fields) -> dict[str, Any]:
    biases = {"attention_bias": fields("attention_bias", default=False), "mlp_bias": fields("mlp_bias", default=False)}
    return _decoder(fields) | biases | _rotary(fields)


def mistral(fields: Fields) -> dict[str, Any]:
    values = _decoder(fields) | _rotary(fields)
    return values | {"windows": _windows(fields, values["layers"], values["heads"], None)}


def _qwen(fields: Fields) -> dict[str, Any]:
    values = _decoder(fields) | _rotary(fields)
    full = fields("max_window_layers", default=28)
    kinds = ["full_attention" if layer < full else "sliding_attention" for layer in range(values["layers"])]
    sliding = fields("use_sliding_window", default=False)
    windows = _windows(fields, values["layers"], values["heads"], kinds)
    return values | {"windows": windows if sliding else None}


def qwen2(fields: Fields) -> dict[str, Any]:
    return _qwen(fields) | {"attention_bias": True, "out_bias": False}


def qwen3(fields: Fields) -> dict[str, Any]:
    # unlike in its predecessors a head is 128 wide where the config does not say
    wide = {"head_width": fields("head_dim", default=128), "attention_bias": fields("attention_bias", default=False)}
    return _qwen(fields) | wide | {"qk_norm": "head"}


def _gemmas(fields: Fields) -> dict[str, Any]:
    """What Gemma 1 to 3 have in common: all but positions."""
    fields("hidden_act", default=None)  # older configs say "gelu" and mean the approximation
    return _decoder(fields) | {
        "head_width": fields("head_dim", default=256),
        "activation": fields.activation("hidden_activation", default="gelu_pytorch_tanh"),
        "attention_bias": fields("attention_bias", default=False),
        "embed_scale": fields("hidden_size") ** 0.5,
        "tied": fields("tie_word_embeddings", default=True),
    }


def gemma(fields: Fields) -> dict[str, Any]:
    return _gemmas(fields) | _rotary(fields)


def gemma2(fields: Fields) -> dict[str, Any]:
    fields.only("use_bidirectional_attention", None, False)
    values = gemma(fields)
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(values["layers"])]
    return values | {
        "norm_place": "both",
        "score_scale": fields("query_pre_attn_scalar", default=256) ** -0.5,
        "score_cap": fields.or_none("attn_logit_softcapping", 50.0),
        "logit_cap": fields.or_none("final_logit_softcapping", 30.0),
        "windows": _windows(fields, values["layers"], values["heads"], kinds),
    }


def gemma3(fields: Fields) -> dict[str, Any]:
    fields.only("use_bidirectional_attention", None, False)
    by_kind = fields("rope_parameters", default=None)
    older = fields("rope_scaling", default=None)
    whole = dict((by_kind or {}).get("full_attention") or older or {})
    local = dict((by_kind or {}).get("sliding_attention") or {})
    base = whole.pop("rope_theta", fields("rope_theta", default=1_000_000.0))
    local_base = local.pop("rope_theta", fields("rope_local_base_freq", default=10_000.0))
    if (stretched := _scaling(fields, local)) is not None:
        raise fields.not_understood("rope_parameters.sliding_attention", stretched)
    values = _gemmas(fields)
    every = fields("sliding_window_pattern", "_sliding_window_pattern", default=6)
    kinds = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(values["layers"])]
    return values | {
        "norm_place": "both",
        "qk_norm": "head",
        "score_scale": fields("query_pre_attn_scalar", default=256) ** -0.5,
        "score_cap": fields("attn_logit_softcapping", default=None),
        "logit_cap": fields("final_logit_softcapping", default=None),
        "position": "rotary",
        "rotary_base": float(base),
        "rotary_scaling": _scaling(fields, whole),
        "rotary_local_base": float(local_base),
        "windows": _windows(fields, values["layers"], values["heads"], kinds),
    }


def olmo(fields: Fields) -> dict[str, Any]:
    return (
        _decoder(fields)
        | _rotary(fields)
        | {
            "norm": "layer",
            "norm_affine": False,
            "norm_eps": 1e-5,
            "qkv_clip": fields("clip_qkv", default=None),
            "attention_bias": fields("attention_bias", default=False),
        }
    )


def olmo2(fields: Fields) -> dict[str, Any]:
    own = {"norm_eps": float(fields("rms_norm_eps", default=1e-5)), "norm_place": "after", "qk_norm": "all"}
    return _decoder(fields) | _rotary(fields) | own | {"attention_bias": fields("attention_bias", default=False)}


def phi(fields: Fields) -> dict[str, Any]:
    fields.only("qk_layernorm", False)
    return (
        _decoder(fields)
        | _rotary(fields, fraction=0.5)
        | {
            "norm": "layer",
            "norm_eps": float(fields("layer_norm_eps", default=1e-5)),
            "activation": fields.activation("hidden_act", default="gelu_new"),
            "gated": False,
            "mlp_bias": True,
            "attention_bias": True,
            "unembed_bias": True,
            "parallel": True,
            "shared_norm": True,
        }
    )


def phi3(fields: Fields) -> dict[str, Any]:
    fields("original_max_position_embeddings", default=None)  # of longrope, which is refused
    values = _decoder(fields) | _rotary(fields) | {"norm_eps": float(fields("rms_norm_eps", default=1e-5))}
    return values | {"windows": _windows(fields, values["layers"], values["heads"], None)}


def gpt_neox(fields: Fields) -> dict[str, Any]:
    return {
        "layers": fields("num_hidden_layers"),
        "width": fields("hidden_size"),
        "heads": fields("num_attention_heads"),
        "vocab": fields("vocab_size"),
        "context": fields("max_position_embeddings", default=2048),
        "mlp": True,
        "mlp_width": fields("intermediate_size"),
        "activation": fields.activation("hidden_act", default="gelu"),
        "norm_eps": float(fields("layer_norm_eps", "layer_norm_epsilon", default=1e-5)),
        "parallel": fields("use_parallel_residual", default=True),
        "attention_bias": fields("attention_bias", default=True),
        "tied": fields("tie_word_embeddings", default=False),
    } | _rotary(fields, fraction=0.25)


def _gpt(fields: Fields) -> dict[str, Any]:
    """What GPT-2 and GPT-J have in common."""
    width = fields("n_embd")
    return {
        "layers": fields("n_layer"),
        "width": width,
        "heads": fields("n_head"),
        "vocab": fields("vocab_size"),
        "context": fields("n_positions", "n_ctx"),
        "mlp": True,
        "mlp_width": fields("n_inner", default=4 * width),
        "activation": fields.activation("activation_function", default="gelu_new"),
        "norm_eps": float(fields("layer_norm_epsilon", default=1e-5)),
    }


def gpt2(fields: Fields) -> dict[str, Any]:
    fields.only("add_cross_attention", False)
    scaled = fields("scale_attn_weights", default=True)
    return _gpt(fields) | {
        "position": "learned",
        "attention_bias": True,
        "score_scale": None if scaled else 1.0,
        "score_scale_by_layer": fields("scale_attn_by_inverse_layer_idx", default=False),
        "tied": fields("tie_word_embeddings", default=True),
    }


def gptj(fields: Fields) -> dict[str, Any]:
    fields.only("rotary", True)
    fields.only("scale_attn_weights", True)
    values = _gpt(fields)
    head = values["width"] // values["heads"]
    return values | {
        "position": "rotary",
        "rotary_fraction": fields("rotary_dim", default=head) / head,
        "rotary_interleaved": True,
        "parallel": True,
        "shared_norm": True,
        "unembed_bias": True,
        "tied": fields("tie_word_embeddings", default=False),
    }


def gpt_neo(fields: Fields) -> dict[str, Any]:
    layers, heads, width = fields("num_layers"), fields("num_heads"), fields("hidden_size")
    fields("attention_layers", default=None)  # the same as attention_types, written out
    kinds = [kind for pattern, count in fields("attention_types") for kind in pattern * count]
    window = fields("window_size", default=256)
    return {
        "layers": layers,
        "width": width,
        "heads": heads,
        "vocab": fields("vocab_size"),
        "context": fields("max_position_embeddings"),
        "mlp": True,
        "mlp_width": fields("intermediate_size", default=4 * width),
        "activation": fields.activation("activation_function", default="gelu_new"),
        "norm_eps": float(fields("layer_norm_epsilon", default=1e-5)),
        "position": "learned",
        "score_scale": 1.0,
        "out_bias": True,
        "windows": [[window if kind == "local" else None] * heads for kind in kinds] if "local" in kinds else None,
        "tied": fields("tie_word_embeddings", default=True),
    }
