"""Token ids and labels, as integers of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from icl_fast.arguments import shown
from icl_fast.errors import InputError


def as_ids(
    argument: str,
    values: Any,
    count: int,
    dims: str,
    *,
    sizes: tuple[int | None, ...] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Integers from 0 to `count` - 1 as int64.

    Args:
        argument: what messages call them.
        values: a tensor or numpy array of integers of any width, or (nested) lists of them.
        dims: a letter for each dimension, such as "B,T".
        sizes: of the dimensions; None: any.
        device: where what is no tensor goes; None: the CPU. Tensors stay where they are.

    Raises:
        InputError: other numbers, another shape, an id out of range. On a GPU, and where values are traced
            (torch.compile, torch.func), the range is not looked at.
    """
    ids = values if isinstance(values, Tensor) else _tensor(argument, values, dims, device)
    letters = dims.split(",")
    sizes = sizes or (None,) * len(letters)
    fits = ids.ndim == len(letters) and all(size in (None, own) for size, own in zip(sizes, ids.shape, strict=True))
    if not fits or ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        wanted = ",".join(
            letter if size is None else f"{letter}={size}" for letter, size in zip(letters, sizes, strict=True)
        )
        raise InputError(f"{argument} must be integers [{wanted}], got {ids.dtype} {list(ids.shape)}")
    ids = ids.long()
    # only where looking is cheap: on a GPU it would wait for the device, under torch.compile break the graph
    if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
        _check_range(argument, ids, count)
    return ids


def _tensor(argument: str, values: Any, dims: str, device: torch.device | None) -> Tensor:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # lists of different lengths, tensors on a GPU
        array = np.array(None)
    if array.size == 0:
        array = array.astype(np.int64)  # of an empty list numpy makes floats
    if array.dtype.kind not in "iu":
        raise InputError(f"{argument} must be integers [{dims}], got {shown(values)}")
    return torch.from_numpy(array.astype(np.int64)).to(device or "cpu")


def _check_range(argument: str, ids: Tensor, count: int) -> None:
    try:
        low, high = (int(bound) for bound in ids.aminmax())
    except RuntimeError:  # traced by torch.func, or a fake tensor: there are no values to look at
        return
    if low < 0 or high >= count:
        unknown = low if low < 0 else high
        raise InputError(f"{argument} holds {unknown}, but there are {count} (0 to {count - 1})")
