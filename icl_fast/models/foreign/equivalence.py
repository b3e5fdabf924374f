"""Whether a model of one config can be written as one of another, with the same logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from icl_fast.models.config import TransformerConfig
from icl_fast.models.transformer import Transformer

# may be on in another config where they are off in a model's: biases of 0, gains of 1, as many as there are
_WIDENED = ("attention_bias", "out_bias", "mlp_bias", "unembed_bias", "norm_affine")
_OF_MLP = ("gated", "activation", "mlp_bias", "mlp_width", "parallel", "shared_norm")
_OF_ROTATION = ("rotary_base", "rotary_width", "rotary_interleaved", "rotary_scaling", "rotary_local_base")


def differences(ours: TransformerConfig, theirs: TransformerConfig) -> list[str]:
    """The options in which a model of ours cannot be one of theirs; none: `widened` makes it one."""
    first, second = _meaning(ours), _meaning(theirs)
    return [name for name, value in first.items() if not _fits(name, value, second[name])]


def widened(weights: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """All weights of a Transformer of a config, from those of one that `differences` says fits it.

    Biases that are not there are 0, gains 1; an MLP's norm that is shared with attention's is there twice.
    """
    with torch.device("meta"):
        expected = Transformer(config).state_dict()
    like = next(iter(weights.values()))
    found = {}
    for name, meta in expected.items():
        if name in weights:
            found[name] = weights[name]
        elif (shared := name.replace(".norm2.", ".norm1.")) in weights:
            found[name] = weights[shared]
        else:
            found[name] = torch.full(meta.shape, 0.0 if name.endswith("bias") else 1.0, dtype=like.dtype)
    return found


def _meaning(config: TransformerConfig) -> dict[str, Any]:
    """What a config says, each thing in one way, and nothing that decides nothing."""
    values = config.model_dump()
    del values["init_std"], values["mlp_ratio"], values["rotary_fraction"]
    windows = config.windows and [[w if w and w < config.context else None for w in row] for row in config.windows]
    local = windows is not None and any(w is not None for row in windows for w in row)
    values |= {
        "mlp_width": config.hidden_width,
        "head_width": config.d_head,
        "kv_heads": config.kv,
        "out_bias": config.attention_bias if config.out_bias is None else config.out_bias,
        "score_scale": config.d_head**-0.5 if config.score_scale is None else config.score_scale,
        "windows": windows if local else None,
        "rotary_width": config.rotary_width,
    }
    if not config.mlp:
        values |= dict.fromkeys(_OF_MLP)
    if config.position != "rotary":
        values |= dict.fromkeys(_OF_ROTATION)
    elif not local:
        values["rotary_local_base"] = None
    if config.norm == "none":
        values |= dict.fromkeys(("norm_affine", "norm_place"))
    return values


def _fits(name: str, ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    if (name in _WIDENED and ours is False) or (name == "shared_norm" and ours):
        return True
    return bool(ours == theirs)
