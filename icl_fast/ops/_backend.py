"""The only module that imports the compiled `icl_fast._C`. Importing this never fails: see `load_error()`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_module: ModuleType | None = None
_load_error: str | None = None

try:
    _module = import_module("icl_fast._C")
except ModuleNotFoundError as error:
    if error.name != "icl_fast._C":
        raise
    _load_error = (
        "icl_fast._C is not there: icl_fast was installed without a C++ compiler, or for another Python; "
        "install g++ and install icl_fast again"
    )
except Exception as error:  # a truncated file, a missing symbol, another libstdc++: plain torch still works
    _load_error = f"icl_fast._C does not load ({error}); install icl_fast again"


def compiled() -> bool:
    """Whether the CPU kernels are there."""
    return _module is not None


def cuda_compiled() -> bool:
    """Whether the CUDA kernels are there. Says nothing of a device: see `cuda_device_count`."""
    return bool(build_info().get("cuda"))


def load_error() -> str | None:
    """Why `_C` is not there, in one line; None where it is."""
    return _load_error


def build_info() -> dict[str, Any]:
    """How `_C` was built: compiler, pybind11, openmp, cuda, cuda_archs, nvcc. Empty where it is not there."""
    return dict(_module.build_info()) if _module else {}


def isas() -> tuple[str, ...]:
    """The instruction sets this machine has CPU kernels for, best last. Empty where `_C` is not there."""
    return tuple(_module.isas()) if _module else ()


def set_isa(name: str) -> None:
    """Make the CPU kernels use this one of `isas()`, for tests and measurements; the best is in use from the start.

    Raises:
        ValueError: not one of `isas()`.
    """
    module().set_isa(name)


def cuda_device_count() -> int:
    """CUDA devices that `_C` can launch on; 0 with no driver or no CUDA kernels."""
    return int(_module.cuda_device_count()) if _module else 0


def module() -> Any:
    """The compiled module.

    Raises:
        RuntimeError: it is not there; the message says why.
    """
    if _module is None:
        raise RuntimeError(_load_error)
    return _module


def axpy(a: float, x: Tensor, y: Tensor) -> Tensor:
    """`a * x + y` by the compiled kernel of x's device: the self-test of `icl-fast info`.

    Args:
        x, y: float32, the same shape and device, CPU or CUDA.

    Raises:
        TypeError: not float32.
        ValueError: shapes or devices differ, or a device that has no kernels.
        RuntimeError: the kernel was not built, or its launch failed.
    """
    if x.dtype != torch.float32 or y.dtype != torch.float32:
        raise TypeError(f"axpy: x and y must be float32, got {x.dtype} and {y.dtype}")
    if x.shape != y.shape or x.device != y.device:
        raise ValueError(f"axpy: x {tuple(x.shape)} on {x.device} and y {tuple(y.shape)} on {y.device} must agree")
    x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    pointers = (out.data_ptr(), x.data_ptr(), y.data_ptr(), x.numel(), a)
    if x.is_cuda:
        if not cuda_compiled():
            raise RuntimeError(_load_error or "axpy: icl_fast._C was built without CUDA; install icl_fast with nvcc")
        with torch.cuda.device(x.device):
            module().axpy(*pointers, torch.cuda.current_stream(x.device).cuda_stream)
    elif x.device.type == "cpu":
        module().axpy_cpu(*pointers, torch.get_num_threads())
    else:
        raise ValueError(f"axpy: no kernel for {x.device}")
    return out
