"""Whether a model computes what its config and weights say: then fast ways that read the weights are right for it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from icl_fast.models.changes import why_unlike
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.exemplar_transformer import ExemplarTransformer
from icl_fast.models.transformer import Transformer, TransformerConfig


def why_not_plain(model: nn.Module, *, hooks: bool = True) -> str | None:
    """Why only calling a model gives what it computes, such as "blocks.0.attention has a forward hook"; None: its
    config and weights say it all.

    The one judge of what users change: hooks, replaced modules and methods, adapters, parametrizations that work by
    hooks. What torch.compile or data parallelism wraps, and `torch.nn.utils.parametrize`, are no changes.

    Args:
        model: a `Transformer` or an `ExemplarTransformer`, or one that is wrapped.
        hooks: whether forward hooks count.
    """
    if hooks and (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks):
        return "a forward hook is set on all modules"
    return why_unlike(model, made_like(model), hooks=hooks)


def made_like(model: nn.Module) -> nn.Module:
    """A model of the same config on the meta device, without weights; it is shared, so do not change it."""
    text = json.dumps(model.config.model_dump(mode="json"))
    members = model.members if isinstance(model.config, ExemplarConfig) else None
    return _made(text, members)


@lru_cache(maxsize=8)
def _made(config: str, members: Any) -> nn.Module:
    values = json.loads(config)
    with torch.device("meta"):
        if members is None:
            return Transformer(TransformerConfig(**values))
        return ExemplarTransformer(ExemplarConfig(**values), [0] * members)
