"""Whether a model computes what its config and weights say: then fast ways that read the weights are right for it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from icl_fast.arguments import shown
from icl_fast.errors import InputError
from icl_fast.models.architectures import make_exemplar_model
from icl_fast.models.changes import has_forward_hook, why_unlike, wrapping
from icl_fast.models.config import TransformerConfig
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.exemplar_model import ExemplarModel
from icl_fast.models.exemplar_transformer import ExemplarTransformer
from icl_fast.models.transformer import Transformer

Kind = TypeVar("Kind", Transformer, ExemplarModel, ExemplarTransformer)


def why_not_plain(model: Transformer | ExemplarModel, *, hooks: bool = True) -> str | None:
    """Why only calling a model gives what it computes, such as "blocks.0.attention has a forward hook"; None: its
    config and weights say it all.

    The one judge of what users change: hooks, replaced modules and methods, adapters, parametrizations that work by
    hooks. What torch.compile wraps, and `torch.nn.utils.parametrize`, are no changes.

    Args:
        hooks: whether forward hooks count.
    """
    if hooks and (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks):
        return "a forward hook is set on all modules"
    return why_unlike(model, made_like(model), hooks=hooks)


def made_like(model: Transformer | ExemplarModel) -> nn.Module:
    """A model of the same config on the meta device, without weights. It is shared: it must not be changed."""
    config = json.dumps(model.config.model_dump(mode="json"))
    return _made(config, model.members if isinstance(model, ExemplarModel) else None)


def model_of(kind: type[Kind], model: Any) -> Kind:
    """A model without what torch.compile or data parallelism wraps around it.

    Raises:
        InputError: it is not of that kind, or the wrapper, which is left out, has a forward hook.
    """
    *wrappers, inner = wrapping(model) if isinstance(model, nn.Module) else [model]
    if any(map(has_forward_hook, wrappers)):
        raise InputError("model: its wrapper has a forward hook, which would be left out; set it on the model inside")
    if not isinstance(inner, kind):
        raise InputError(f"model: must be a {kind.__name__}, such as load_snapshot(path).model, got {shown(model)}")
    first = next(inner.parameters())
    for name, weight in inner.named_parameters():
        if weight.is_meta or weight.layout != torch.strided:
            raise InputError(f"model: {name} is {weight.device}, {weight.layout}; weights must be dense, with numbers")
        if (weight.dtype, weight.device) != (first.dtype, first.device):
            raise InputError(
                f"model: {name} is {weight.dtype} on {weight.device}, others are {first.dtype} on {first.device}; "
                "convert the whole model"
            )
    return inner


@lru_cache(maxsize=8)
def _made(config: str, members: int | None) -> nn.Module:
    values = json.loads(config)
    with torch.device("meta"):
        if members is None:
            return Transformer(TransformerConfig(**values))
        return make_exemplar_model(ExemplarConfig(**values), [0] * members)
