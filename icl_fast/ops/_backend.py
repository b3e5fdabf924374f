"""The only module that imports the compiled `icl_fast._C`. Importing this never fails: see `load_error()`.

A kernel's *place* is the implementation that runs it: "cpu", "cuda", or, in tests, the CUDA kernels on the emulator:
"emu" (those of every GPU since sm_80) and "emu_sm90" (Hopper's own where there are any).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # Dtype in csrc/ops.h

_module: ModuleType | None = None
_emulator: ModuleType | None = None
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
    # of wheels it is torch's, which older releases have under another name
    advice = (
        "install the system's (Debian: libgomp1) or a newer torch"
        if "libgomp" in str(error)
        else "install icl_fast again"
    )
    _load_error = f"icl_fast._C does not load ({error}); {advice}"
with suppress(ModuleNotFoundError):
    _emulator = import_module("icl_fast._emu")


def compiled() -> bool:
    """Whether the CPU kernels are built."""
    return _module is not None


def cuda_compiled() -> bool:
    """Whether the CUDA kernels are built. Says nothing about a device: see `cuda_device_count`."""
    return bool(build_info().get("cuda"))


def load_error() -> str | None:
    """Why `_C` is missing, in one line; None where it is not."""
    return _load_error


def build_info() -> dict[str, Any]:
    """How `_C` was built: compiler, pybind11, openmp, cuda, cuda_archs, nvcc, and not_built: the CUDA sources that did
    not compile (ICL_FAST_CUDA=keep-going), each with why and where the log is. Empty without `_C`.
    """
    if _module is None:
        return {}
    return {**_module.build_info(), "not_built": dict(_module.not_built()) if hasattr(_module, "not_built") else {}}


def why_no_cuda(op: str) -> str:
    """Which of the op's CUDA sources did not compile, and why; empty where all of them did, or none was to."""
    sources = (op, f"{op}_fwd", f"{op}_bwd")  # without Hopper's own (_sm90) an op runs on the others
    reasons = build_info().get("not_built", {})
    return "; ".join(f"{source}.cu did not compile: {reasons[source]}" for source in sources if source in reasons)


def isas() -> tuple[str, ...]:
    """The instruction sets this machine has CPU kernels for, best last. Empty without `_C`."""
    return tuple(_module.isas()) if _module else ()


def emulated_isas() -> tuple[str, ...]:
    """Instruction sets that any machine can run, slowly, for tests: those with a bfloat16 unit."""
    return tuple(_module.emulated_isas()) if _module else ()


def bfloat16_unit() -> str | None:
    """The instruction set in use, if it multiplies bfloat16; None where products of bfloat16 are those of float32."""
    name: str | None = _module.isa() if _module else None
    return None if name in (None, "baseline", "avx2", "avx512") else name


def has_wide_vectors() -> bool:
    """Whether the CPU kernels have vectors wider than the baseline's: without them torch is faster."""
    return isas()[-1:] not in ((), ("baseline",))


def set_isa(name: str) -> None:
    """Make the CPU kernels use this one, for tests and measurements; the best is in use from the start.

    Raises:
        ValueError: not one of `isas()` or `emulated_isas()`.
    """
    module().set_isa(name)


def cuda_device_count() -> int:
    """CUDA devices that `_C` can launch on; 0 with no driver or no CUDA kernels."""
    return int(_module.cuda_device_count()) if _module and cuda_compiled() else 0


def module() -> Any:
    """The compiled module.

    Raises:
        RuntimeError: it is missing; the message says why.
    """
    if _module is None:
        raise RuntimeError(_load_error)
    return _module


def emulator() -> ModuleType | None:
    """`icl_fast._emu`: the CUDA kernels compiled for a CPU, for tests. None where it was not built (ICL_FAST_EMU=1)."""
    return _emulator


class Place(NamedTuple):
    """What a place takes."""

    device: str
    dtypes: tuple[torch.dtype, ...]


def places(op: str) -> dict[str, Place]:
    """The places that have the op's kernels in this build."""
    found = {}
    if _module is not None:
        found["cpu"] = Place("cpu", (torch.float32, torch.bfloat16))
    if cuda_compiled() and not why_no_cuda(op):
        found["cuda"] = Place("cuda", DTYPES)
    if _emulator is not None:
        found |= dict.fromkeys(("emu", "emu_sm90"), Place("cpu", DTYPES))
    return found


def run(
    kernel: str,
    place: str,
    outputs: Mapping[str, Tensor | None],
    inputs: Mapping[str, Tensor | None],
    dtype: torch.dtype | None = None,
    **numbers: float | str,
) -> None:
    """Run a kernel of csrc.

    Args:
        kernel: its name in csrc/ops.h.
        place: where; see the module's docstring.
        outputs: what it writes into, by the name of the argument in csrc/ops.h; contiguous.
        inputs: what it reads, likewise; any strides.
        dtype: what the kernel computes with; None for a kernel that has no choice.
        numbers: the other arguments, among them `products`, a name; `num_threads` is torch's where it is left out.

    Raises:
        ValueError: an output is not contiguous: what is written into a copy would be lost.
        TypeError: the arguments are not those of csrc/ops.h: a name, or the type of a number or of a tensor's elements.
    """
    for name, tensor in outputs.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(
                f"{kernel}: {name} is written into, so it must be contiguous, got {list(tensor.shape)} "
                f"with strides {list(tensor.stride())}"
            )
    # a name for every copy: what is not named is freed before the call
    tensors = {**outputs, **{name: None if tensor is None else tensor.contiguous() for name, tensor in inputs.items()}}
    arguments: dict[str, Any] = {name: _pointer(tensor) for name, tensor in tensors.items()}
    arguments |= {"num_threads": torch.get_num_threads(), **numbers}
    if dtype is not None:
        arguments["dtype"] = _name(dtype)
    if place == "cpu":
        getattr(module(), kernel + "_cpu")(**arguments)
        return
    compiled = module() if place == "cuda" else _emulator
    device = next(tensor.device for tensor in tensors.values() if tensor is not None)
    with _on(device):
        arguments["arch"] = _arch(place, device)
        workspace = torch.empty(getattr(compiled, kernel + "_workspace")(**arguments), dtype=torch.uint8, device=device)
        arguments.update(workspace=workspace.data_ptr(), stream=_stream(device))
        launch = getattr(compiled, kernel + "_cuda")
        if place == "cuda":
            launch(**arguments)
        else:
            _emulate(launch, arguments, {**tensors, "workspace": workspace})


def _pointer(tensor: Tensor | None) -> tuple[int, str] | None:
    """A tensor as csrc/arguments.h takes it."""
    return None if tensor is None else (tensor.data_ptr(), _name(tensor.dtype))


@cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _emulate(launch: Callable[..., None], arguments: dict[str, Any], tensors: Mapping[str, Tensor | None]) -> None:
    """Run a kernel on copies of the tensors, far enough apart that what runs off one does not reach another."""
    assert _emulator is not None
    gap = 1 << 16
    copies = {}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        room = torch.empty(tensor.nbytes + 2 * gap + 256, dtype=torch.uint8, device="cpu")
        begin = gap + (tensor.data_ptr() - room.data_ptr()) % 256  # aligned as the tensor is
        copies[name] = room[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    _emulator.set_buffers([(copy.data_ptr(), copy.nbytes, name) for name, copy in copies.items()])
    pointers = {name: _pointer(copy) for name, copy in copies.items() if name != "workspace"}
    launch(**{**arguments, **pointers, "workspace": copies["workspace"].data_ptr()})
    for name, copy in copies.items():
        if (tensor := tensors[name]) is not None:
            tensor.data.copy_(copy)  # .data: to autograd an input stays as it was


def _arch(place: str, device: torch.device) -> int:
    if place == "cuda":
        return 90 if torch.cuda.get_device_capability(device) == (9, 0) else 80
    return 90 if place == "emu_sm90" else 80


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


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
            raise RuntimeError(
                _load_error or "axpy: icl_fast._C has no CUDA kernels; install icl_fast with ICL_FAST_CUDA=on"
            )
        if why := why_no_cuda("axpy"):
            raise RuntimeError(why)
        with _on(x.device):
            module().axpy_cuda(*pointers, _stream(x.device))
    elif x.device.type == "cpu":
        module().axpy_cpu(*pointers, torch.get_num_threads())
    else:
        raise ValueError(f"axpy: no kernel for {x.device}")
    return out
