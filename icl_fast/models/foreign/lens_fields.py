"""What the config of a TransformerLens HookedTransformer says, in our words."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from icl_fast.models.config import TransformerConfig
from icl_fast.models.foreign.family_fields import Fields

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "solu": "solu_plain",
    "solu_ln": "solu",
}
_NORMS = {  # and whether they have a gain, and a bias where there is one
    "LN": ("layer", True),
    "LNPre": ("layer", False),
    "RMS": ("rms", True),
    "RMSPre": ("rms", False),
    None: ("none", True),
}
_SAID = ("normalization_type",)  # without a value it is none
_POSITIONS = {
    "standard": "learned",
    "rotary": "rotary",
    "shortformer": "shortformer",
    "alibi": "alibi",
    "none": "none",
}
DECIDES_NOTHING = frozenset({
    # of HookedTransformerConfig
    "architecture", "checkpoint_index", "checkpoint_label_type", "checkpoint_value", "decoder_start_token_id",
    "default_prepend_bos", "device", "dtype", "from_checkpoint", "init_mode", "init_weights", "initializer_range",
    "load_in_4bit", "model_name", "n_devices", "n_params", "original_architecture", "relative_attention_max_distance",
    "relative_attention_num_buckets", "seed", "tie_word_embeddings", "tokenizer_name", "tokenizer_prepends_bos",
    "trust_remote_code", "ungroup_grouped_query_attention", "use_attn_in", "use_attn_result", "use_hook_mlp_in",
    "use_hook_tokens", "use_split_qkv_input", "weight_init_mode",
    # of the training of the toy models (attn-only, GELU and SoLU, of 1 to 4 layers and more)
    "batch_size_per_device", "batches_per_step", "betas", "control", "dataset_name", "debug", "debug_batch",
    "fixed_init", "grad_norm_clip", "initializer_scale_embed", "initializer_scale_global", "initializer_scale_hidden",
    "initializer_scale_unembed", "log_interval", "lr_hidden", "lr_schedule", "lr_vector", "max_steps", "max_tokens",
    "save_checkpoints", "store_init", "tokens_per_step", "train_loss_ewma_beta", "truncate_tokens", "use_acc",
    "use_bfloat16_matmul", "version", "warmup_steps", "warmup_tokens", "weight_decay", "weight_init_scheme",
})  # fmt: skip


def hooked_transformer(fields: Fields, weights: Container[str]) -> dict[str, Any]:
    """The values of a `TransformerConfig`.

    Args:
        weights: names of the weights: the toy models' unembeddings have a bias or none, and no field says so.

    Raises:
        InputError: a field that is missing or says what no option of our model does.
    """
    width, head_width, layers = fields("d_model"), fields("d_head"), fields("n_layers")
    heads = fields("n_heads", default=-1)
    heads = width // head_width if heads == -1 else heads
    norm, affine = _norm(fields)
    values = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "head_width": head_width,
        "kv_heads": fields("n_key_value_heads", default=heads),
        "vocab": fields("d_vocab"),
        "context": fields("n_ctx"),
        "norm": norm,
        "norm_affine": affine,
        "norm_eps": float(fields("eps", "ln_eps", default=1e-5)),
        "norm_place": "both" if fields("use_normalization_before_and_after", default=False) else "before",
        "qk_norm": "head" if fields("use_qk_norm", default=False) else "none",
        "attention_bias": True,
        "unembed_bias": "unembed.b_U" in weights,
        "parallel": fields("parallel_attn_mlp", default=False),
        "score_scale": _score_scale(fields),
        "score_scale_by_layer": fields("scale_attn_by_inverse_layer_idx", default=False),
        "score_cap": _cap(fields, "attn_scores_soft_cap"),
        "logit_cap": _cap(fields, "output_logits_soft_cap"),
        "windows": _windows(fields, layers, heads),
    }
    fields.only("attention_dir", "causal")
    fields.only("d_vocab_out", -1, values["vocab"])
    fields.only("neuron_scale", 1.0)  # of the toy models' MLPs
    fields.only("neuron_temp", 1.0)
    return values | _mlp(fields, width, norm) | _positions(fields, head_width)


def _norm(fields: Fields) -> tuple[str, bool]:
    kind = fields.or_none("normalization_type", fields.or_none("normalization", "LN"))
    if kind not in _NORMS:
        raise fields.not_understood("normalization_type", kind)
    if fields("final_rms", default=False) and kind in ("LN", "LNPre"):
        raise fields.not_understood("final_rms", True)
    return _NORMS[kind]


def _mlp(fields: Fields, width: int, norm: str) -> dict[str, Any]:
    activation, hidden = fields("act_fn", default=None), fields("d_mlp", default=4 * width)
    gated = fields("gated_mlp", default=False)
    if fields("attn_only", default=False):
        return {"mlp": False}
    if activation not in _ACTIVATIONS or (gated and activation == "solu_ln"):  # gated, it would not be gated
        raise fields.not_understood("act_fn", activation)
    return {"mlp": True, "mlp_width": hidden, "gated": gated, "activation": _ACTIVATIONS[activation]}


def _score_scale(fields: Fields) -> float | None:
    divisor = fields("attn_scale", default=-1.0)
    if not fields("use_attn_scale", default=True):
        return 1.0
    return None if divisor == -1.0 else 1.0 / divisor


def _cap(fields: Fields, name: str) -> float | None:
    cap = float(fields(name, default=-1.0))
    return cap if cap > 0 else None


def _windows(fields: Fields, layers: int, heads: int) -> list[list[int | None]] | None:
    window, kinds = fields("window_size", default=None), fields("attn_types", default=None)
    if not fields("use_local_attn", default=False):
        return None
    if not isinstance(kinds, (list, tuple)) or len(kinds) != layers or not set(kinds) <= {"local", "global"}:
        raise fields.not_understood("attn_types", kinds)
    return [[window if kind == "local" else None] * heads for kind in kinds]


def _positions(fields: Fields, head_width: int) -> dict[str, Any]:
    kind = fields("positional_embedding_type", default="standard")
    if fields("shortformer_pos", default=False):  # as the toy models say it
        kind = "shortformer"
    if kind not in _POSITIONS:
        raise fields.not_understood("positional_embedding_type", kind)
    values = {"position": _POSITIONS[kind]}
    base, local = fields("rotary_base", default=10_000), fields("rotary_base_local", default=None)
    rotated = fields("rotary_dim", default=head_width)
    interleaved = fields("rotary_adjacent_pairs", default=False)
    scaling = None
    by_parts = {
        "factor": float(fields("NTK_by_parts_factor", default=8.0)),
        "low": float(fields("NTK_by_parts_low_freq_factor", default=1.0)),
        "high": float(fields("NTK_by_parts_high_freq_factor", default=4.0)),
        "original_context": fields("NTK_original_ctx_len", default=8192),
    }
    if fields("use_NTK_by_parts_rope", default=False):
        scaling = {"kind": "llama3", **by_parts}
    if kind != "rotary":
        return values
    return values | {
        "rotary_base": float(base),
        "rotary_local_base": None if local is None else float(local),
        "rotary_fraction": rotated / head_width,
        "rotary_interleaved": interleaved,
        "rotary_scaling": scaling,
    }


def lens_config(config: TransformerConfig) -> dict[str, Any]:
    """The config of a HookedTransformer, as far as it can say what ours does; `hooked_transformer` reads it.

    It has all biases, and an embedding that is scaled already.
    """
    windows = None if config.windows is None else [row[0] for row in config.windows]
    scaling, kinds = config.rotary_scaling, {ours: theirs for theirs, ours in _NORMS.items()}
    activations = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    values: dict[str, Any] = {
        "n_layers": config.layers,
        "d_model": config.width,
        "n_ctx": config.context,
        "d_head": config.d_head,
        "n_heads": config.heads,
        "n_key_value_heads": None if config.kv == config.heads else config.kv,
        "d_mlp": config.hidden_width or None,
        "act_fn": activations[config.activation] if config.mlp else None,
        "d_vocab": config.vocab,
        "d_vocab_out": config.vocab,
        "eps": config.norm_eps,
        "attn_only": not config.mlp,
        "gated_mlp": config.mlp and config.gated,
        "parallel_attn_mlp": config.mlp and config.parallel,
        "normalization_type": kinds[config.norm, config.norm_affine or config.norm == "none"],
        "use_normalization_before_and_after": config.norm_place == "both",
        "use_qk_norm": config.qk_norm == "head",
        "use_attn_scale": True,
        "attn_scale": -1.0 if config.score_scale is None else 1.0 / config.score_scale,
        "scale_attn_by_inverse_layer_idx": config.score_scale_by_layer,
        "attn_scores_soft_cap": config.score_cap or -1.0,
        "output_logits_soft_cap": config.logit_cap or -1.0,
        "positional_embedding_type": {ours: theirs for theirs, ours in _POSITIONS.items()}.get(config.position),
        "use_local_attn": windows is not None,
        "window_size": next((window for window in windows or [] if window is not None), None),
        "attn_types": windows and ["global" if window is None else "local" for window in windows],
    }
    if config.position == "rotary":
        values |= {
            "rotary_dim": config.rotary_width,
            "rotary_base": config.rotary_base,
            "rotary_base_local": config.rotary_local_base,
            "rotary_adjacent_pairs": config.rotary_interleaved,
        }
    if scaling is not None and scaling.kind == "llama3":
        values |= {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": scaling.factor,
            "NTK_by_parts_low_freq_factor": scaling.low,
            "NTK_by_parts_high_freq_factor": scaling.high,
            "NTK_original_ctx_len": scaling.original_context,
        }
    # what is off is left out: not every version of HookedTransformerConfig has all of these
    return {name: value for name, value in values.items() if value not in (None, False, -1.0) or name in _SAID}
