"""Weights in a safetensors file with a JSON header; nothing in them is ever executed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from icl_fast.errors import InputError
from icl_fast.files import atomic_write, disk_error, parse_json, regular_file
from icl_fast.memory import check_fits

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_LONGEST_SHOWN = 80  # characters of a name or shape in a message


def write_weights(path: str | Path, module: nn.Module, kind: str, header: dict[str, Any]) -> None:
    """Write a module's state; the file appears whole or not at all.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    from safetensors import SafetensorError  # here: models, which seldom meet a file, need torch alone
    from safetensors.torch import save_file

    weights = {name: weight.detach().cpu().contiguous() for name, weight in module.state_dict().items()}
    with atomic_write(path) as temporary:
        try:
            # one entry: safetensors writes several in an order that changes from call to call
            save_file(weights, temporary, metadata={kind: json.dumps(header)})
        except SafetensorError as error:  # its wrapper of the I/O error hides the number
            raise disk_error(path, OSError(28 if "os error 28" in str(error) else 5, str(error))) from error


def read_header(path: str | Path, kinds: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The kind and the header that `write_weights` wrote.

    Raises:
        InputError: no such file, of none of these kinds, truncated or damaged.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    kind = next((kind for kind in kinds if kind in metadata), None)
    if kind is None:
        raise InputError(f"snapshot {path}: not written by icl_fast (its header has no {kinds[0]!r})")
    header = parse_json(metadata[kind], f"snapshot {path}: its header")
    if not isinstance(header, dict):
        raise InputError(f"snapshot {path}: its header is damaged (it is no JSON object)")
    return kind, header


def read_weights(path: str | Path, module: nn.Module) -> None:
    """Give a module (on the meta device) the weights of a file; nothing is read before all of them are known to fit.

    Raises:
        InputError: weights that are missing, unknown, of another shape or type, not finite, or more than memory.
    """
    expected = module.state_dict()
    with _opened(path) as file:
        if unlike := sorted(expected.keys() ^ set(file.keys())):
            names = ", ".join(name[:_LONGEST_SHOWN] for name in unlike[:5])
            raise InputError(f"snapshot {path}: missing or unknown weights: {names}")
        for name, wanted in expected.items():
            shape = file.get_slice(name).get_shape()
            if shape != list(wanted.shape):
                shown = str(shape)[:_LONGEST_SHOWN]
                raise InputError(f"snapshot {path}: {name} is {shown}, its config says {list(wanted.shape)}")
        check_fits(Path(path).stat().st_size, f"snapshot {path}")
        weights = {name: file.get_tensor(name) for name in expected}
    kind = next((weight.dtype for weight in weights.values() if weight.dtype in _FLOATS), torch.float32)
    for name, weight in weights.items():
        if weight.dtype != (kind if expected[name].is_floating_point() else expected[name].dtype):
            wanted = f"weights are floating-point numbers of one type, here {kind}, and counts {torch.int64}"
            raise InputError(f"snapshot {path}: {name} is {weight.dtype}, but {wanted}")
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"snapshot {path}: {name} holds NaN or infinity; that training run diverged before it")
    module.load_state_dict(weights, assign=True)
    module.requires_grad_(True).eval()


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    regular_file(path, "snapshot")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"snapshot {path}: cannot be read, it is damaged or no safetensors file ({error})") from None
