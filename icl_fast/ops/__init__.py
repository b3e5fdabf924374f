"""The fused ops. They import with torch alone; every one has a plain torch definition, `impl="reference"`."""

from __future__ import annotations

from icl_fast.ops._registry import available_impls
from icl_fast.ops.activation_difference import activation_difference, gelu_difference
from icl_fast.ops.cross_entropy_difference import cross_entropy_difference
from icl_fast.ops.frozen_attention import frozen_attention
from icl_fast.ops.gated_difference import gated_difference
from icl_fast.ops.head_ablation_cross_entropy import head_ablation_cross_entropy
from icl_fast.ops.layer_norm_difference import layer_norm_difference
from icl_fast.ops.linear_cross_entropy import linear_cross_entropy
from icl_fast.ops.packed_weight import PackedWeight, pack_weight
from icl_fast.ops.position_loss import PositionLoss
from icl_fast.ops.smeared_attention import smeared_attention

__all__ = [
    "PackedWeight",
    "PositionLoss",
    "activation_difference",
    "available_impls",
    "cross_entropy_difference",
    "frozen_attention",
    "gated_difference",
    "gelu_difference",
    "head_ablation_cross_entropy",
    "layer_norm_difference",
    "linear_cross_entropy",
    "pack_weight",
    "smeared_attention",
]
