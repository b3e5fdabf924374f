"""Families of other people's models: what their config says in our words, and what they call each weight.

A family is a table of two parts. `shape` reads every field of a `config.json` that decides what the model computes;
fields that it does not read and that are not known to decide nothing are refused by name, never passed over. `names`
says where each of our weights is in their file, and how it is laid out there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models.config import TransformerConfig, parse_transformer_config
from icl_fast.models.transformer import Transformer

Layout = Callable[[Tensor, TransformerConfig], Tensor]
Names = dict[str, "str | tuple[str, Layout]"]

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
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout",
    "attn_pdrop", "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "classifier_dropout", "dtype",
    "embd_pdrop", "embed_dropout", "eos_token_id", "gradient_checkpointing", "hidden_dropout", "id2label",
    "initializer_range", "is_decoder", "label2id", "max_window_layers", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "reorder_and_upcast_attn",
    "resid_dropout", "resid_pdrop", "return_dict", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "tokenizer_class",
    "torch_dtype", "transformers_version", "unk_token_id", "use_cache", "use_return_dict",
})  # fmt: skip
_NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")


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

    def check_all_read(self) -> None:
        """Refuse fields that nothing read and that may decide something."""
        for name in sorted(self.values.keys() - self.read - _DECIDES_NOTHING):
            if self.values[name] not in (None, False):
                raise self.not_understood(name, self.values[name])


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        shape: fields to the values of a `TransformerConfig`.
        names: of our weights, without `.weight` and `.bias`: where they are in theirs. `{}` is the layer.
        prefix: of all their names but the unembedding's; a file may be without it.
    """

    shape: Callable[[Fields], dict[str, Any]]
    names: Names
    prefix: str

    def config(self, fields: Fields) -> TransformerConfig:
        """The config of one of its models.

        Raises:
            InputError: a field that is missing or not understood.
        """
        values = self.shape(fields)
        fields.check_all_read()
        return parse_transformer_config(values, fields.source)

    def weights(self, config: TransformerConfig, theirs: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Our weights by name, each of theirs used.

        Args:
            theirs: their weights by name; read when asked for, so that it may be a file.

        Raises:
            InputError: weights that are missing, or that are there and not used.
        """
        prefix = self.prefix if any(name.startswith(self.prefix) for name in theirs) else ""
        used: set[str] = set()
        found: dict[str, Tensor] = {}
        for name in our_names(config):
            if name == "unembed.weight" and config.tied:
                continue
            theirs_name, layout = self._theirs(name, prefix)
            if theirs_name not in theirs:
                raise InputError(f"{source}: weight {theirs_name!r} is missing")
            used.add(theirs_name)
            weight = theirs[theirs_name]
            found[name] = weight if layout is None else layout(weight, config).contiguous()
        if config.tied:
            found["unembed.weight"] = found["embed.weight"]
            used.add("lm_head.weight")  # some files hold it twice
        for name in theirs:
            if name not in used and not name.endswith(_NO_WEIGHTS):
                raise InputError(f"{source}: weight {name!r} is not used; the model has a part that is not understood")
        return found

    def _theirs(self, name: str, prefix: str) -> tuple[str, Layout | None]:
        part, _, kind = name.rpartition(".")
        layer = ""
        if part.startswith("blocks."):
            layer, _, part = part.removeprefix("blocks.").partition(".")
        entry = self.names[part]
        theirs, layout = (entry, None) if isinstance(entry, str) else entry
        theirs = f"{theirs.format(layer)}.{kind}"
        return theirs if part == "unembed" else prefix + theirs, layout


def our_names(config: TransformerConfig) -> list[str]:
    """Names of all weights of a Transformer of this shape."""
    with torch.device("meta"):
        return list(Transformer(config).state_dict())


# --- what fields say --------------------------------------------------------------------------------------------------


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


def _llama(fields: Fields) -> dict[str, Any]:
    biases = {"attention_bias": fields("attention_bias", default=False), "mlp_bias": fields("mlp_bias", default=False)}
    return _decoder(fields) | biases | _rotary(fields)


def _mistral(fields: Fields) -> dict[str, Any]:
    values = _decoder(fields) | _rotary(fields)
    return values | {"windows": _windows(fields, values["layers"], values["heads"], None)}


def _qwen(fields: Fields) -> dict[str, Any]:
    values = _decoder(fields) | _rotary(fields)
    full = fields("max_window_layers", default=28)
    kinds = ["full_attention" if layer < full else "sliding_attention" for layer in range(values["layers"])]
    sliding = fields("use_sliding_window", default=False)
    windows = _windows(fields, values["layers"], values["heads"], kinds)
    return values | {"windows": windows if sliding else None}


def _qwen2(fields: Fields) -> dict[str, Any]:
    return _qwen(fields) | {"attention_bias": True, "out_bias": False}


def _qwen3(fields: Fields) -> dict[str, Any]:
    # unlike in its predecessors a head is 128 wide where the config does not say
    wide = {"head_width": fields("head_dim", default=128), "attention_bias": fields("attention_bias", default=False)}
    return _qwen(fields) | wide | {"qk_norm": "head"}


def _gemma(fields: Fields) -> dict[str, Any]:
    fields("hidden_act", default=None)  # older configs say "gelu" and mean the approximation
    return (
        _decoder(fields)
        | _rotary(fields)
        | {
            "head_width": fields("head_dim", default=256),
            "activation": fields.activation("hidden_activation", default="gelu_pytorch_tanh"),
            "attention_bias": fields("attention_bias", default=False),
            "embed_scale": fields("hidden_size") ** 0.5,
            "tied": fields("tie_word_embeddings", default=True),
        }
    )


def _gemma2(fields: Fields) -> dict[str, Any]:
    fields.only("use_bidirectional_attention", None, False)
    values = _gemma(fields)
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(values["layers"])]
    return values | {
        "norm_place": "both",
        "score_scale": fields("query_pre_attn_scalar", default=256) ** -0.5,
        "score_cap": fields.or_none("attn_logit_softcapping", 50.0),
        "logit_cap": fields.or_none("final_logit_softcapping", 30.0),
        "windows": _windows(fields, values["layers"], values["heads"], kinds),
    }


def _gemma3(fields: Fields) -> dict[str, Any]:
    fields.only("use_bidirectional_attention", None, False)
    by_kind = fields("rope_parameters", default=None)
    older = fields("rope_scaling", default=None)
    whole = dict((by_kind or {}).get("full_attention") or older or {})
    local = dict((by_kind or {}).get("sliding_attention") or {})
    base = whole.pop("rope_theta", fields("rope_theta", default=1_000_000.0))
    local_base = local.pop("rope_theta", fields("rope_local_base_freq", default=10_000.0))
    if (stretched := _scaling(fields, local)) is not None:
        raise fields.not_understood("rope_parameters.sliding_attention", stretched)
    inner = Fields(
        {name: value for name, value in fields.values.items() if not name.startswith("rope_")}, fields.source
    )
    values = _gemma(inner)
    fields.read |= inner.read
    every = fields("sliding_window_pattern", "_sliding_window_pattern", default=6)
    kinds = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(values["layers"])]
    return values | {
        "norm_place": "both",
        "qk_norm": "head",
        "score_scale": fields("query_pre_attn_scalar", default=256) ** -0.5,
        "score_cap": fields("attn_logit_softcapping", default=None),
        "logit_cap": fields("final_logit_softcapping", default=None),
        "rotary_base": float(base),
        "rotary_scaling": _scaling(fields, whole),
        "rotary_local_base": float(local_base),
        "windows": _windows(fields, values["layers"], values["heads"], kinds),
    }


def _olmo(fields: Fields) -> dict[str, Any]:
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


def _olmo2(fields: Fields) -> dict[str, Any]:
    own = {"norm_eps": float(fields("rms_norm_eps", default=1e-5)), "norm_place": "after", "qk_norm": "all"}
    return _decoder(fields) | _rotary(fields) | own | {"attention_bias": fields("attention_bias", default=False)}


def _phi(fields: Fields) -> dict[str, Any]:
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


def _phi3(fields: Fields) -> dict[str, Any]:
    fields("original_max_position_embeddings", default=None)  # of longrope, which is refused
    values = _decoder(fields) | _rotary(fields) | {"norm_eps": float(fields("rms_norm_eps", default=1e-5))}
    return values | {"windows": _windows(fields, values["layers"], values["heads"], None)}


def _gpt_neox(fields: Fields) -> dict[str, Any]:
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


def _gpt2(fields: Fields) -> dict[str, Any]:
    fields.only("add_cross_attention", False)
    scaled = fields("scale_attn_weights", default=True)
    return _gpt(fields) | {
        "position": "learned",
        "attention_bias": True,
        "score_scale": None if scaled else 1.0,
        "score_scale_by_layer": fields("scale_attn_by_inverse_layer_idx", default=False),
        "tied": fields("tie_word_embeddings", default=True),
    }


def _gptj(fields: Fields) -> dict[str, Any]:
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


def _gpt_neo(fields: Fields) -> dict[str, Any]:
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


# --- where weights are ------------------------------------------------------------------------------------------------


def _transposed(weight: Tensor, _: TransformerConfig) -> Tensor:
    return weight.T if weight.ndim == 2 else weight


def _plus_one(weight: Tensor, _: TransformerConfig) -> Tensor:
    return weight.float() + 1  # in their code the gain is 1 + weight, in float32


def _third(index: int) -> Layout:
    """Queries, keys or values of a matrix [C,3C] of all three (GPT-2)."""

    def layout(weight: Tensor, config: TransformerConfig) -> Tensor:
        return _transposed(weight.chunk(3, dim=-1)[index], config)

    return layout


def _of_heads(index: int) -> Layout:
    """Queries, keys or values of a matrix [3C,C] that has them head by head (GPT-NeoX)."""

    def layout(weight: Tensor, config: TransformerConfig) -> Tensor:
        by_head = weight.view(config.heads, 3, config.d_head, *weight.shape[1:])
        return by_head[:, index].flatten(0, 1)

    return layout


def _rows(index: int) -> Layout:
    """Queries, keys or values of a matrix of all three, one below the other (Phi-3)."""

    def layout(weight: Tensor, config: TransformerConfig) -> Tensor:
        shared = config.kv * config.d_head
        return torch.split(weight, [config.heads * config.d_head, shared, shared])[index]

    return layout


def _half(index: int) -> Layout:
    def layout(weight: Tensor, _: TransformerConfig) -> Tensor:
        return weight.chunk(2)[index]

    return layout


_DECODER: Names = {
    "embed": "embed_tokens",
    "final_norm": "norm",
    "unembed": "lm_head",
    "norm1": "layers.{}.input_layernorm",
    "norm2": "layers.{}.post_attention_layernorm",
    "attention.q": "layers.{}.self_attn.q_proj",
    "attention.k": "layers.{}.self_attn.k_proj",
    "attention.v": "layers.{}.self_attn.v_proj",
    "attention.out": "layers.{}.self_attn.o_proj",
    "attention.q_norm": "layers.{}.self_attn.q_norm",
    "attention.k_norm": "layers.{}.self_attn.k_norm",
    "mlp.gate": "layers.{}.mlp.gate_proj",
    "mlp.up": "layers.{}.mlp.up_proj",
    "mlp.down": "layers.{}.mlp.down_proj",
}
_AFTER: Names = {"after1": "layers.{}.post_attention_layernorm", "after2": "layers.{}.post_feedforward_layernorm"}
_GEMMA: Names = _DECODER | {
    name: (str(_DECODER[name]), _plus_one)
    for name in ("final_norm", "norm1", "norm2", "attention.q_norm", "attention.k_norm")
}
_GEMMA_BOTH: Names = (
    _GEMMA
    | {name: (str(theirs), _plus_one) for name, theirs in _AFTER.items()}
    | {"norm2": ("layers.{}.pre_feedforward_layernorm", _plus_one)}
)
_PHI: Names = _DECODER | {
    "final_norm": "final_layernorm",
    "attention.out": "layers.{}.self_attn.dense",
    "mlp.0": "layers.{}.mlp.fc1",
    "mlp.2": "layers.{}.mlp.fc2",
}
_PHI3: Names = _DECODER | {
    "attention.q": ("layers.{}.self_attn.qkv_proj", _rows(0)),
    "attention.k": ("layers.{}.self_attn.qkv_proj", _rows(1)),
    "attention.v": ("layers.{}.self_attn.qkv_proj", _rows(2)),
    "mlp.gate": ("layers.{}.mlp.gate_up_proj", _half(0)),
    "mlp.up": ("layers.{}.mlp.gate_up_proj", _half(1)),
}
_GPT_NEOX: Names = {
    "embed": "embed_in",
    "final_norm": "final_layer_norm",
    "unembed": "embed_out",
    "norm1": "layers.{}.input_layernorm",
    "norm2": "layers.{}.post_attention_layernorm",
    "attention.out": "layers.{}.attention.dense",
    "mlp.0": "layers.{}.mlp.dense_h_to_4h",
    "mlp.2": "layers.{}.mlp.dense_4h_to_h",
    "attention.q": ("layers.{}.attention.query_key_value", _of_heads(0)),
    "attention.k": ("layers.{}.attention.query_key_value", _of_heads(1)),
    "attention.v": ("layers.{}.attention.query_key_value", _of_heads(2)),
}
_GPT2: Names = {
    "embed": "wte",
    "position": "wpe",
    "final_norm": "ln_f",
    "unembed": "lm_head",
    "norm1": "h.{}.ln_1",
    "norm2": "h.{}.ln_2",
    "attention.out": ("h.{}.attn.c_proj", _transposed),
    "mlp.0": ("h.{}.mlp.c_fc", _transposed),
    "mlp.2": ("h.{}.mlp.c_proj", _transposed),
    "attention.q": ("h.{}.attn.c_attn", _third(0)),
    "attention.k": ("h.{}.attn.c_attn", _third(1)),
    "attention.v": ("h.{}.attn.c_attn", _third(2)),
}
_GPTJ: Names = {
    "embed": "wte",
    "final_norm": "ln_f",
    "unembed": "lm_head",
    "norm1": "h.{}.ln_1",
    "attention.q": "h.{}.attn.q_proj",
    "attention.k": "h.{}.attn.k_proj",
    "attention.v": "h.{}.attn.v_proj",
    "attention.out": "h.{}.attn.out_proj",
    "mlp.0": "h.{}.mlp.fc_in",
    "mlp.2": "h.{}.mlp.fc_out",
}
_GPT_NEO: Names = {
    "embed": "wte",
    "position": "wpe",
    "final_norm": "ln_f",
    "unembed": "lm_head",
    "norm1": "h.{}.ln_1",
    "norm2": "h.{}.ln_2",
    "attention.q": "h.{}.attn.attention.q_proj",
    "attention.k": "h.{}.attn.attention.k_proj",
    "attention.v": "h.{}.attn.attention.v_proj",
    "attention.out": "h.{}.attn.attention.out_proj",
    "mlp.0": "h.{}.mlp.c_fc",
    "mlp.2": "h.{}.mlp.c_proj",
}

FAMILIES: dict[str, Family] = {
    "gpt2": Family(_gpt2, _GPT2, "transformer."),
    "gpt_neo": Family(_gpt_neo, _GPT_NEO, "transformer."),
    "gptj": Family(_gptj, _GPTJ, "transformer."),
    "gpt_neox": Family(_gpt_neox, _GPT_NEOX, "gpt_neox."),
    "llama": Family(_llama, _DECODER, "model."),
    "mistral": Family(_mistral, _DECODER, "model."),
    "qwen2": Family(_qwen2, _DECODER, "model."),
    "qwen3": Family(_qwen3, _DECODER, "model."),
    "gemma": Family(_gemma, _GEMMA, "model."),
    "gemma2": Family(_gemma2, _GEMMA_BOTH, "model."),
    "gemma3_text": Family(_gemma3, _GEMMA_BOTH, "model."),
    "olmo": Family(_olmo, _DECODER, "model."),
    "olmo2": Family(_olmo2, _DECODER | _AFTER, "model."),
    "phi": Family(_phi, _PHI, "model."),
    "phi3": Family(_phi3, _PHI3, "model."),
}  # by the `model_type` of a config.json
