"""Checks shared by the ops. Every message names the op and the argument, what was wrong and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_shapes(op: str, **tensors: tuple[Tensor, str]) -> dict[str, int]:
    """Check each `name=(tensor, "B H T D")`: the same letter is the same size everywhere. Returns the sizes.

    Raises:
        TypeError: not a tensor.
        ValueError: wrong number of dimensions, or sizes that disagree.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, dims) in tensors.items():
        letters = dims.split()
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor [{','.join(letters)}], got {type(tensor).__name__}")
        if tensor.ndim != len(letters) or any(
            sizes.setdefault(letter, size) != size for letter, size in zip(letters, tensor.shape, strict=True)
        ):
            known = ", ".join(f"{letter}={sizes[letter]}" for letter in letters if letter in sizes)
            expected = f"[{','.join(letters)}]" + (f" with {known}" if known else "")
            raise ValueError(f"{op}: {name} must be {expected}, got {list(tensor.shape)}")
    return sizes


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


def check_index_dtype(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64, got {tensor.dtype}")


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


def check_no_gradient(op: str, *tensors: Tensor | None) -> None:
    """Refuse inputs that would record a gradient, for the ops that are forward only.

    Raises:
        RuntimeError: grad mode is on and an input requires grad.
    """
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            f"{op}: forward only, it has no gradient; call it under torch.no_grad() or detach the inputs"
        )


def window_per_head(
    op: str, window: int | Sequence[int | None] | Tensor | None, heads: int, device: torch.device
) -> Tensor | None:
    """`window` of the attention ops as int64 [H] (0: dense), or None when all heads are dense.

    Raises:
        TypeError: not an int, a sequence of ints and Nones, or an int64 tensor.
        ValueError: a negative size, not one size per head, or a tensor on another device.
    """
    if window is None:
        return None
    if isinstance(window, Tensor):
        check_index_dtype(op, "window", window)
        if window.shape != (heads,):
            raise ValueError(f"{op}: window must be [H] with H={heads}, got {list(window.shape)}")
        if window.device != device:
            raise ValueError(f"{op}: window must be on the device of v, {device}, got {window.device}")
        return window
    sizes = [window] * heads if isinstance(window, int) else window
    if not isinstance(sizes, Sequence) or not all(size is None or isinstance(size, int) for size in sizes):
        raise TypeError(f"{op}: window must be None, an int, or an int or None per head, got {window!r}")
    if len(sizes) != heads:
        raise ValueError(f"{op}: window must have one size per head, H={heads}, got {len(sizes)}")
    reach = [size or 0 for size in sizes]
    if any(size < 0 for size in reach):
        raise ValueError(f"{op}: window must not be negative (0 or None: dense), got {window!r}")
    return torch.tensor(reach, dtype=torch.int64, device=device) if any(reach) else None


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as torch's own matmul would take them under `torch.autocast`: unchanged when it is off."""
    if not autocast_is_on(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(t if t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype) for t in tensors)


def autocast_is_on(tensor: Tensor) -> bool:
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype an op computes in: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32
