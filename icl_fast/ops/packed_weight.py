"""A weight packed once for the matrix units that multiply bfloat16, and taken by many calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from icl_fast.ops import _backend
from icl_fast.ops._validate import PRODUCTS, check_one_of, check_shapes

PANEL_COLUMNS, DEPTH_STEP = 32, 32  # kPanelColumns and kDepthStep in csrc/cpu/bfloat16_tile.h


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight for products of bfloat16, of `pack_weight`. Ops take it in place of the weight, whose values must not
    change meanwhile.

    Attributes:
        weight: float32 [V,C].
        packed: the same rounded to bfloat16 and in the order in which the units read it; None where there is no unit.
    """

    weight: Tensor
    packed: Tensor | None

    def __len__(self) -> int:
        return len(self.weight)


def unpacked(op: str, weight: Tensor | PackedWeight, products: str | None) -> tuple[Tensor, Tensor | None, str | None]:
    """What an op is given as `weight` and `products`: weight [V,C], the same packed or None, and products.

    Raises:
        ValueError: other products than those the weight was packed for.
    """
    if not isinstance(weight, PackedWeight):
        return weight, None, products
    check_one_of(op, "products of a PackedWeight", products or "bfloat16", PRODUCTS[1:])
    return weight.weight, weight.packed, "bfloat16"


def rounded(tensor: Tensor) -> Tensor:
    """To bfloat16, in the dtype it has."""
    return tensor.bfloat16().to(tensor.dtype)


def pack_weight(weight: Tensor, products: str = "bfloat16") -> PackedWeight:
    """A weight in the order in which the processor's bfloat16 unit reads it, for the ops that take a `PackedWeight`.

    An op of many calls packs the same weight at each of them; this does it once, in half of the weight's memory.

    Args:
        weight: float32 [V,C], each row an output of the product.
        products: what its elements and those multiplied with them are rounded to: "bfloat16". Sums stay float32.

    Raises:
        ValueError: another shape, or other products.
        TypeError: not float32.
    """
    check_one_of("pack_weight", "products", products, PRODUCTS[1:])
    check_shapes("pack_weight", weight=(weight, "V C"))
    if weight.dtype != torch.float32:
        raise TypeError(f"pack_weight: weight must be float32, got {str(weight.dtype).removeprefix('torch.')}")
    weight = weight.detach()
    if weight.device.type != "cpu" or _backend.bfloat16_unit() is None:
        return PackedWeight(weight, None)
    m, c = weight.shape
    panels, depth = -(-m // PANEL_COLUMNS), -(-c // DEPTH_STEP) * DEPTH_STEP
    packed = torch.empty(panels, depth, PANEL_COLUMNS, dtype=torch.bfloat16, device="cpu")
    _backend.run("pack_weight", "cpu", {"packed": packed}, {"weight": weight}, m=m, c=c)
    return PackedWeight(weight, packed)
