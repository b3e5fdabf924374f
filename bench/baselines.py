"""What several benches measure against, and not one of them alone."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from harness import Candidate, Inputs, Options
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda u: F.gelu(u, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


def compiled(function: Callable[..., Any], call: Callable[[Callable[..., Any], Inputs], Any], on: bool) -> Candidate:
    """torch.compile of an op's definition in plain torch (the op itself is opaque to it); `call(compiled, inputs)`."""
    fast = torch.compile(function, dynamic=False) if on else function
    missing = "" if on else "torch.compile is switched off"
    return Candidate("torch.compile", lambda x: call(fast, x), memory=False, missing=missing)


def flex_attention(length: int, scale: float, options: Options) -> Candidate:
    """Compiled FlexAttention with a causal block mask, on inputs q, k and v."""
    name = "FlexAttention"
    if not options.compile:
        return Candidate(name, lambda x: None, missing="torch.compile is switched off")
    flex = module_or_none("torch.nn.attention.flex_attention")
    if flex is None:
        return Candidate(name, lambda x: None, missing=f"torch {torch.__version__} has none")
    fast = torch.compile(flex.flex_attention, dynamic=False)
    mask: list[Any] = []

    def causal(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return row >= column

    def call(x: Inputs) -> Tensor:
        if not mask:  # in the first call, which is not timed
            mask.append(flex.create_block_mask(causal, None, None, length, length, device=options.device))
        out: Tensor = fast(x.q, x.k, x.v, block_mask=mask[0], scale=scale)
        return out

    return Candidate(name, call, memory=False)


def module_or_none(name: str) -> Any:
    """A module of a package that need not be installed."""
    try:
        return import_module(name)
    except Exception:  # a package can also be there and not import: it is missing all the same
        return None
