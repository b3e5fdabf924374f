"""To what the operands of the fast engine's products are rounded, beside the dtype of its streams."""

from __future__ import annotations

from torch import Tensor

from icl_fast.models import Transformer
from icl_fast.ops import PackedWeight, pack_weight


class Products:
    """The products of one model: its weights as the ops take them.

    Products of bfloat16 round their operands; streams, sums, norms and losses stay float32. In the delta form what is
    rounded is what was removed, so that errors are relative to the effect. Each weight is packed once; weights that are
    streamed layer by layer are packed by every call, as they would not fit the memory.

    Args:
        model: whose weights they are; they must not change meanwhile.
        rounded: whether operands are rounded to bfloat16; else they are as they are.
    """

    def __init__(self, model: Transformer, *, rounded: bool = False) -> None:
        self.rounded = rounded
        self._streamed = model.blocks.stream is not None
        self._packed: dict[Tensor, PackedWeight] = {}

    @property
    def name(self) -> str | None:
        """What the ops call them."""
        return "bfloat16" if self.rounded else None

    def of(self, weight: Tensor) -> Tensor | PackedWeight:
        """A weight [V,C] of the model, for `x @ weight.T`."""
        if not self.rounded:
            return weight
        if self._streamed:
            return PackedWeight(weight, None)
        if weight not in self._packed:
            self._packed[weight] = pack_weight(weight)
        return self._packed[weight]
