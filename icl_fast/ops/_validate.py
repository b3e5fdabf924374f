"""Checks shared by the ops. Every message names the op and the argument, what was wrong and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LARGEST = torch.finfo(torch.float32).max
# asked once: torch.compile does not follow is_autocast_available in every torch
_AUTOCAST_DEVICES = {
    device for device in ("cpu", "cuda", "mps", "xpu", "hpu", "xla", "mtia") if torch.amp.is_autocast_available(device)
}


def check_shapes(op: str, **tensors: tuple[Tensor, str]) -> dict[str, int]:
    """Check each `name=(tensor, "B H T D")`: the same letter is the same size everywhere. Returns the sizes.

    Raises:
        TypeError: not a tensor, or a sparse or nested one.
        ValueError: wrong number of dimensions, or sizes that disagree.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, dims) in tensors.items():
        letters = dims.split()
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor [{','.join(letters)}], got {type(tensor).__name__}")
        check_dense(op, name, tensor)
        if tensor.ndim != len(letters) or any(
            sizes.setdefault(letter, size) != size for letter, size in zip(letters, tensor.shape, strict=True)
        ):
            known = ", ".join(f"{letter}={sizes[letter]}" for letter in letters if letter in sizes)
            expected = f"[{','.join(letters)}]" + (f" with {known}" if known else "")
            raise ValueError(f"{op}: {name} must be {expected}, got {list(tensor.shape)}")
    return sizes


def check_dense(op: str, name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be a dense tensor, got a {kind} one; see torch.Tensor.to_dense")


def check_floating(op: str, **tensors: Tensor | None) -> None:
    """Check that the tensors given are floating, of one dtype and on one device (those of the first).

    Raises:
        TypeError: a dtype that is not float32, bfloat16, float16 or float64, or differs from the first.
        ValueError: a device that differs from the first.
    """
    present = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    first_name, first = present[0]
    for name, tensor in present:
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{op}: {name} must have the dtype of {first_name}, {first.dtype}, got {tensor.dtype}")
        check_device(op, name, tensor, first_name, first)


def check_device(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{op}: {name} must be on the device of {like_name}, {like.device}, got {tensor.device}")


def on_device_of(op: str, name: str, values: Any, like: Any) -> Any:
    """Integers of a numpy array or (nested) lists as a tensor on the device of `like`; a tensor as it is.

    Raises:
        TypeError: other numbers, or lists of different lengths.
    """
    if not isinstance(values, list | tuple | np.ndarray) or not isinstance(like, Tensor):
        return values  # what it is instead is said where shapes are checked
    try:
        array = np.asarray(values)
    except ValueError:
        raise TypeError(f"{op}: {name} must be of integers, got lists of different lengths") from None
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} must be of integers, got {array.dtype}")
    return torch.from_numpy(array.astype(np.int64)).to(like.device)


def as_index(op: str, name: str, tensor: Tensor) -> Tensor:
    """`tensor` as int64.

    Raises:
        TypeError: not of integers.
    """
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized or tensor.dtype == torch.bool:
        raise TypeError(f"{op}: {name} must be of integers, got {tensor.dtype}")
    return tensor.long()


def as_number(op: str, name: str, value: Any, *, positive: bool = False, least: float = -LARGEST) -> float:
    """`value` as a float.

    Raises:
        TypeError: not a number. A tensor is none either: its gradient would be lost.
        ValueError: not finite in float32, in which kernels take it, or not positive, or below `least`.
    """
    if not isinstance(value, Real) or isinstance(value, bool):  # True is not taken for 1
        raise TypeError(f"{op}: {name} must be a number, got {_shown(value)}")
    number: Any = value  # as it is: an integer may be too large for a float
    if not least <= number <= LARGEST or (positive and number <= 0):
        wanted = "positive and finite" if positive else "finite" if least < 0 else f"{least:g} or more and finite"
        raise ValueError(f"{op}: {name} must be {wanted} (in float32), got {_shown(value)}")
    return float(number)


def as_integer(op: str, name: str, value: Any) -> int:
    """`value` as an int.

    Raises:
        TypeError: not an integer.
        ValueError: more than an int64 holds.
    """
    number = _index(value)
    if number is None:
        raise TypeError(f"{op}: {name} must be an integer, got {_shown(value)}")
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{op}: {name} must fit in 64 bits, got {_shown(value)}")
    return number


def check_one_of(op: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Check that `value` is one of `choices`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {_shown(value)}")


PRODUCTS = ("float32", "bfloat16")


def check_products(op: str, products: str | None, like: Tensor) -> None:
    """Check `products`, to which the operands of matrix products are rounded; `like` is one of the inputs.

    Raises:
        ValueError: not one of `PRODUCTS`, or "bfloat16" on a GPU.
        TypeError: "bfloat16" for other inputs than float32 or bfloat16.
    """
    if products is None:
        return
    check_one_of(op, "products", products, PRODUCTS)
    if products == "float32" or like.dtype == torch.bfloat16:
        return
    if like.dtype != torch.float32:
        raise TypeError(f"{op}: products='bfloat16' takes float32 and bfloat16, got {like.dtype}; leave products out")
    if like.device.type != "cpu":
        raise ValueError(f"{op}: products='bfloat16' of float32 is not built for {like.device.type}; cast the inputs")


def _index(value: Any) -> int | None:
    """An integer, as Python, numpy or torch have them; None: it is none. True is not taken for 1."""
    if type(value) is int:
        return value
    boolean = isinstance(value, bool) or getattr(value, "dtype", None) in (torch.bool, np.bool_)
    if boolean or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError, ValueError):  # torch: an array; a tensor of several numbers
        return None


def _shown(value: Any) -> str:
    """A value on part of a line: only what is short is written out."""
    if isinstance(value, int) and value.bit_length() > 64:  # Python does not write out one of 5,000 digits
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, str | bytes | Real | complex):
        return repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}..."
    return type(value).__name__


def check_index_range(op: str, name: str, tensor: Tensor, size: int, ignore_index: int | None = None) -> None:
    """Check that every value is in 0..size-1 or `ignore_index`. Looks at CPU tensors only: elsewhere it would sync.

    Raises:
        ValueError: a value is out of range.
    """
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return
    lowest, highest = tensor.aminmax()  # one pass settles the usual case: this check is paid at every call
    if int(lowest) >= 0 and int(highest) < size:
        return
    wrong = (tensor < 0) | (tensor >= size)
    if ignore_index is not None:
        wrong &= tensor != ignore_index
    if wrong.any():
        ignored = "" if ignore_index is None else f" (or ignore_index={ignore_index})"
        raise ValueError(f"{op}: {name} must be in 0..{size - 1}{ignored}, got {int(tensor[wrong][0])}")


def window_per_head(
    op: str, window: int | Sequence[int | None] | Tensor | None, heads: int, device: torch.device
) -> Tensor | None:
    """`window` of the attention ops as int64 [H] (0: dense), or None when all heads are dense.

    Raises:
        TypeError: not an int, a sequence of ints and Nones, or a tensor of integers.
        ValueError: a negative size, not one size per head, or a tensor on another device.
    """
    if window is None:
        return None
    if isinstance(window, Tensor) and window.ndim:
        check_shapes(op, window=(window, "H"))
        if window.shape != (heads,):
            raise ValueError(f"{op}: window must be [H] with H={heads}, got {list(window.shape)}")
        if window.device != device:
            raise ValueError(f"{op}: window must be on the device of v, {device}, got {window.device}")
        return as_index(op, "window", window)
    sizes = window.tolist() if isinstance(window, np.ndarray) else window
    sizes = sizes if (size := _index(sizes)) is None else [size] * heads
    if not isinstance(sizes, Sequence) or isinstance(sizes, str | bytes):
        raise TypeError(f"{op}: window must be None, an int, or an int or None per head, got {_shown(window)}")
    reach = [0 if size is None else as_integer(op, "window", size) for size in sizes]
    if len(reach) != heads:
        raise ValueError(f"{op}: window must have one size per head, H={heads}, got {len(reach)}")
    if min(reach, default=0) < 0:
        raise ValueError(f"{op}: window must not be negative (0 or None: dense), got {min(reach)}")
    return torch.tensor(reach, dtype=torch.int64, device=device) if any(reach) else None


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors as torch's own matmul would take them under `torch.autocast`: unchanged when it is off."""
    present = [tensor for tensor in tensors if tensor is not None]
    if not autocast_is_on(present[0]) or any(tensor.dtype == torch.float64 for tensor in present):
        return tensors
    return _cast(tensors, torch.get_autocast_dtype(present[0].device.type))


def autocast_promote(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the widest of their dtypes where `torch.autocast` is on: a model there has several of them."""
    present = [tensor for tensor in tensors if tensor is not None]
    if not autocast_is_on(present[0]):
        return tensors
    dtypes = {tensor.dtype for tensor in present if tensor.dtype in FLOATING}
    return _cast(tensors, reduce(torch.promote_types, dtypes)) if len(dtypes) > 1 else tensors


def _cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    return tuple(t if t is None or t.dtype not in FLOATING else t.to(dtype) for t in tensors)


def autocast_is_on(tensor: Tensor) -> bool:
    device = tensor.device.type
    return device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype an op computes in: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32
