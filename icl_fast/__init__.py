"""icl_fast: how in-context learning forms in small transformers, measured fast.

Public names load on first use, so that `import icl_fast` costs nothing and each part needs only its own dependencies.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from icl_fast.errors import InputError

if TYPE_CHECKING:
    from icl_fast.measure import LoadedModel, ablate, evaluate, load, open_results, sweep
    from icl_fast.models import (
        ExemplarConfig,
        ExemplarTransformer,
        Intervention,
        Transformer,
        TransformerConfig,
        load_snapshot,
    )
    from icl_fast.ops import (
        PositionLoss,
        activation_difference,
        cross_entropy_difference,
        frozen_attention,
        gated_difference,
        gelu_difference,
        head_ablation_cross_entropy,
        layer_norm_difference,
        linear_cross_entropy,
        smeared_attention,
    )
    from icl_fast.runs import Run, Series, load_config
    from icl_fast.runs.open_series import open_series
    from icl_fast.studies.attention import attention
    from icl_fast.training import train

__version__ = "0.1.0"

__all__ = [
    "ExemplarConfig",
    "ExemplarTransformer",
    "InputError",
    "Intervention",
    "LoadedModel",
    "PositionLoss",
    "Run",
    "Series",
    "Transformer",
    "TransformerConfig",
    "ablate",
    "activation_difference",
    "attention",
    "cross_entropy_difference",
    "evaluate",
    "frozen_attention",
    "gated_difference",
    "gelu_difference",
    "head_ablation_cross_entropy",
    "layer_norm_difference",
    "linear_cross_entropy",
    "load",
    "load_config",
    "load_snapshot",
    "open_results",
    "open_series",
    "smeared_attention",
    "sweep",
    "train",
]

# The ops that have kernels, by name, each a function and a module of icl_fast.ops: the one list of them
OPS = (
    "linear_cross_entropy",
    "frozen_attention",
    "smeared_attention",
    "head_ablation_cross_entropy",
    "cross_entropy_difference",
    "layer_norm_difference",
    "activation_difference",
    "gated_difference",
)

_HOME = {
    **dict.fromkeys(("LoadedModel", "ablate", "evaluate", "load", "open_results", "sweep"), "measure"),
    **dict.fromkeys(("ExemplarConfig", "ExemplarTransformer", "Intervention"), "models"),
    **dict.fromkeys(("Transformer", "TransformerConfig", "load_snapshot"), "models"),
    **dict.fromkeys(("PositionLoss", "gelu_difference", *OPS), "ops"),
    **dict.fromkeys(("Run", "Series", "load_config", "open_series"), "runs"),
    "attention": "studies.attention",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
