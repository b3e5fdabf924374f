"""Which implementation of an op runs: the table behind `impl=` and `available_impls()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from icl_fast.ops import _backend
from icl_fast.ops._validate import check_one_of

PUBLIC_IMPLS = ("auto", "reference", "cpu", "cuda")
AUTO_ORDER = ("cuda", "cpu", "reference")  # best first; what is not listed (the emulator) is never chosen unasked


_OPS: dict[str, Kernels] = {}


def available_impls() -> dict[str, tuple[str, ...]]:
    """The impl names built here for every op, best first."""
    order = {name: place for place, name in enumerate(AUTO_ORDER)}
    return {
        op: tuple(sorted(kernels.kernels, key=lambda name: order.get(name, len(order))))
        for op, kernels in sorted(_OPS.items())
    }


@dataclass(frozen=True)
class Kernel:
    """One implementation of one op: the bodies of its forward and backward, and the tensors they take."""

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    device: str | None = None  # None: any
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

    def takes(self, tensor: Tensor) -> bool:
        return tensor.dtype in self.dtypes and self.device in (None, tensor.device.type)


class Kernels:
    """The implementations of one op that are built here, by impl name."""

    def __init__(self, op: str, **kernels: Kernel) -> None:
        self.op = op
        self.kernels = kernels
        _OPS[op] = self

    def add_compiled(self, forward: Callable[..., Any], backward: Callable[..., Any] | None = None) -> None:
        """Register the kernels of csrc in every place this build has; the bodies take the place as first argument."""
        for place, takes in _backend.places(self.op).items():
            self.kernels[place] = Kernel(partial(forward, place), backward and partial(backward, place), *takes)

    def choose(self, impl: str, tensor: Tensor) -> str:
        """The name of the implementation that `impl` means for an op on `tensor`; "auto" is the best one that takes it.

        Raises:
            ValueError: no such impl, or it does not run on the device of `tensor`.
            TypeError: it does not take the dtype of `tensor`.
            RuntimeError: it is not built.
        """
        if isinstance(impl, str) and impl == "auto":
            return next(name for name in AUTO_ORDER if name in self.kernels and self.kernels[name].takes(tensor))
        kernel = self[impl]
        if not kernel.takes(tensor):
            error = TypeError if tensor.dtype not in kernel.dtypes else ValueError
            dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in kernel.dtypes)
            raise error(
                f"{self.op}: impl={impl!r} takes {dtypes} on {kernel.device or 'any device'}, "
                f"got {str(tensor.dtype).removeprefix('torch.')} on {tensor.device.type}; use impl='auto'"
            )
        return impl

    def __getitem__(self, impl: str) -> Kernel:
        if isinstance(impl, str) and impl in self.kernels:
            return self.kernels[impl]
        check_one_of(self.op, "impl", impl, PUBLIC_IMPLS)
        why = _backend.why_no_cuda(self.op) if impl == "cuda" else ""
        raise RuntimeError(
            f"{self.op}: impl={impl!r} is not built here (built: {', '.join(self.kernels)}); "
            f"use impl='auto', which picks the best one that is{why and f' ({why})'}"
        )

    def backward(self, impl: str) -> Callable[..., Any]:
        backward = self[impl].backward
        if backward is None:
            raise RuntimeError(f"{self.op}: impl={impl!r} has no backward; use impl='reference'")
        return backward
