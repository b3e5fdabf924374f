"""Weights that do not fit the memory: those of a layer are read when it runs, and dropped when the next one does.

A block that is not held has the shapes, dtype and device of its weights but no memory: one NaN, seen everywhere, so
that whatever read it by mistake would show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn


class LayerStream:
    """The weights of a model's blocks, in their files."""

    def __init__(self, read: Callable[[int], Mapping[str, Tensor]]) -> None:
        """Where they are.

        Args:
            read: the weights of a layer by their names in the block, in the dtype of the model or any other.
        """
        self.read = read
        self._held: nn.Module | None = None

    def hold(self, block: Any) -> None:
        """Give a block its weights, and take them from the one that had them before."""
        if block is self._held:
            return
        self._drop()
        weights = self.read(block.layer)
        for name, parameter in block.named_parameters():
            parameter.data = weights[name].to(parameter.device, parameter.dtype)
        self._held = block

    def convert(self, blocks: Iterable[nn.Module], change: Callable[[Tensor], Tensor]) -> None:
        """Change dtype and device of all blocks, none of which is held any more."""
        self._drop()
        assert isinstance(blocks, nn.Module)
        for module in blocks.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    one = change(parameter.data.as_strided((1,), (1,)))
                    module._parameters[name] = nn.Parameter(one.expand(parameter.shape), parameter.requires_grad)

    def _drop(self) -> None:
        if self._held is not None:
            for parameter in self._held.parameters():
                parameter.data = absent(parameter)
            self._held = None

    def __deepcopy__(self, _: Any) -> LayerStream:
        return LayerStream(self.read)  # of other blocks, out of the same files


def absent(weight: Tensor) -> Tensor:
    """A stand-in for a weight, in no memory: NaN everywhere."""
    return weight.new_full((1,), float("nan")).expand(weight.shape)
