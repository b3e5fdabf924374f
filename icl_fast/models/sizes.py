"""How large a model is, before it is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from icl_fast.memory import check_fits

LARGEST = 2**31 - 1  # of a dimension in a config: far beyond any memory, and small enough to be reckoned with
MOST_LAYERS = 1000  # each takes its time to be built, whatever its size
_UNCOUNTABLE = 2.0**62  # more numbers than torch can count


def parameter_count(build: Callable[[Any], nn.Module], config: Any) -> float:
    """How many numbers the weights of `build(config)` are, from models of one and of two such layers that hold none."""
    whole = {"windows": None} if getattr(config, "windows", None) else {}
    counts = []
    for layers in (1, 2):
        try:
            with torch.device("meta"):
                model = build(config.model_copy(update={"layers": layers, **whole}))
        except RuntimeError:  # the product of a weight's dimensions is no integer of torch any more
            return _UNCOUNTABLE
        counts.append(sum(weight.numel() for weight in model.parameters()))
    return float(counts[0] + (config.layers - 1) * (counts[1] - counts[0]))


def check_weights_fit(build: Callable[[Any], nn.Module], config: Any, members: int = 1) -> None:
    """Refuse a model whose weights this machine cannot hold, where they would be on the CPU.

    Args:
        build: what makes one member of a config.

    Raises:
        InputError: too large; it names the dimensions.
    """
    number = torch.empty(())  # as the weights will be: there may be another default device or type
    if number.device.type == "cpu":
        what = dimensions(config) + (f", {members} members" if members > 1 else "")
        check_fits(parameter_count(build, config) * members * number.element_size(), what)


def dimensions(config: Any, prefix: str = "") -> str:
    """The integers of a config, such as `layers 2, width 128`."""
    return ", ".join(f"{prefix}{key} {value}" for key, value in config.model_dump().items() if type(value) is int)
