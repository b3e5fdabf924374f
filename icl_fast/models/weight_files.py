"""Weights in a safetensors file with a JSON header; nothing in them is ever executed."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icl_fast.errors import InputError
from icl_fast.files import atomic_write, parse_json, regular_file
from icl_fast.memory import check_fits
from icl_fast.models.shards import SUFFIX, Shards

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_LONGEST_SHOWN = 80  # characters of a name or shape in a message


def write_weights(path: str | Path, weights: Mapping[str, Tensor], kind: str, header: dict[str, Any]) -> None:
    """Write weights; the file appears whole or not at all. Those that are one tensor are written once.

    Raises:
        InputError: weights that `read_weights` would refuse, or without numbers, on the meta device; the disk is full
            or the folder not writable.
    """
    for name, weight in weights.items():
        if weight.is_meta:
            raise InputError(f"snapshot {path}: {name} is on the meta device, which holds no numbers")
    check_numbers(path, weights, weights)
    first: dict[tuple[Any, ...], str] = {}
    for name, weight in weights.items():
        first.setdefault(_place(weight), name)
    tied = {name: other for name, weight in weights.items() if (other := first[_place(weight)]) != name}
    if tied:
        header = {**header, "tied": tied}
    kept = {name: weight for name, weight in weights.items() if name not in tied}
    with atomic_write(path) as temporary:
        # one entry: safetensors writes several in an order that changes from call to call
        save_tensors(temporary, kept, {kind: json.dumps(header)})


def save_tensors(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; what goes wrong with the disk is an `OSError`."""
    from safetensors import SafetensorError  # here: models, which seldom meet a file, need torch alone
    from safetensors.torch import save_file

    try:
        save_file({name: _whole(weight) for name, weight in weights.items()}, path, metadata=metadata)
    except SafetensorError as error:  # its wrapper of the I/O error hides the number
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def read_header(path: str | Path, kinds: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The kind and the header that `write_weights` wrote.

    Raises:
        InputError: no such file, of none of these kinds, truncated or damaged.
    """
    with _opened(path) as file:
        headers = file.kinds
    kind = next((kind for kind in kinds if kind in headers), None)
    if kind is None:
        raise InputError(f"snapshot {path}: not written by icl_fast (its header has no {kinds[0]!r})")
    header = headers[kind]
    if isinstance(header, str):  # metadata of safetensors are text
        header = parse_json(header, f"snapshot {path}: its header")
    if not isinstance(header, dict):
        raise InputError(f"snapshot {path}: its header is damaged (it is no JSON object)")
    return kind, header


def read_weights(path: str | Path, module: nn.Module, tied: Any) -> None:
    """Give a module (on the meta device) the weights of a file; nothing is read before all of them are known to fit.

    Args:
        tied: of the header: the names of weights that are not in the file, each with that of the one that they are.

    Raises:
        InputError: weights that are missing, unknown, of another shape or type, not finite, or more than memory.
    """
    expected = module.state_dict()
    ties = _checked_ties(path, expected, tied)
    with _opened(path) as file:
        shapes = file.shapes()
        if unlike := sorted((expected.keys() - ties.keys()) ^ shapes.keys()):
            names = ", ".join(name[:_LONGEST_SHOWN] for name in unlike[:5])
            raise InputError(f"snapshot {path}: missing or unknown weights: {names}")
        written = [name for name in expected if name not in ties]
        for name in written:
            shape, wanted = shapes[name], list(expected[name].shape)
            if shape != wanted:
                raise InputError(f"snapshot {path}: {name} is {str(shape)[:_LONGEST_SHOWN]}, its config says {wanted}")
        check_fits(file.size, f"snapshot {path}")
        weights = file.read(written)
    check_numbers(path, weights, expected)
    module.load_state_dict(weights | {name: weights[other] for name, other in ties.items()}, assign=True)
    for name, other in ties.items():
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, module.get_parameter(other))
    module.requires_grad_(True).eval()


def check_numbers(path: str | Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not floating-point numbers of one type, or not finite.

    Args:
        expected: by the same names, what they are to be: those that are no floating-point numbers are counts.
    """
    kind = next((weight.dtype for weight in weights.values() if weight.dtype in _FLOATS), torch.float32)
    for name, weight in weights.items():
        if weight.dtype != (kind if expected[name].is_floating_point() else expected[name].dtype):
            wanted = f"weights are floating-point numbers of one type, here {kind}, and counts {torch.int64}"
            raise InputError(f"snapshot {path}: {name} is {weight.dtype}, but {wanted}")
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"snapshot {path}: {name} holds NaN or infinity; that training run diverged before it")


def _checked_ties(path: str | Path, expected: Mapping[str, Tensor], tied: Any) -> dict[str, str]:
    shapes = {name: weight.shape for name, weight in expected.items() if weight.is_floating_point()}
    if not isinstance(tied, dict) or not all(
        isinstance(other, str) and other not in tied and shapes.get(name) == shapes.get(other, ())
        for name, other in tied.items()
    ):
        raise InputError(f"snapshot {path}: its header is damaged (tied {str(tied)[:_LONGEST_SHOWN]})")
    return tied


def _place(weight: Tensor) -> tuple[Any, ...]:
    """What two names of one tensor share."""
    return weight.data_ptr(), weight.shape, weight.stride(), weight.dtype


def _whole(weight: Tensor) -> Tensor:
    """On the CPU, with rows in order, and sharing memory with no other."""
    weight = weight.detach().cpu().contiguous()
    return weight if weight.nbytes == weight.untyped_storage().nbytes() else weight.clone()


class _File:
    """An open safetensors file, in the terms of `Shards`."""

    def __init__(self, file: Any, size: int) -> None:
        self.file, self.size = file, size
        self.kinds: dict[str, str] = file.metadata() or {}

    def shapes(self) -> dict[str, list[int]]:
        return {name: self.file.get_slice(name).get_shape() for name in self.file.keys()}  # noqa: SIM118

    def read(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: self.file.get_tensor(name) for name in names}


@contextmanager
def _opened(path: str | Path) -> Iterator[_File | Shards]:
    from safetensors import SafetensorError, safe_open

    if Path(path).name.endswith(SUFFIX):
        yield Shards(path)
        return
    regular_file(path, "snapshot")
    try:
        with open(path, "rb") as opened:
            is_utf8 = str(path).encode(errors="ignore") == os.fsencode(path)  # safetensors takes no other path
            with safe_open(path if is_utf8 else f"/dev/fd/{opened.fileno()}", framework="pt") as file:
                yield _File(file, os.fstat(opened.fileno()).st_size)
    except (SafetensorError, OSError) as error:
        raise InputError(f"snapshot {path}: cannot be read, it is damaged or no safetensors file ({error})") from None
