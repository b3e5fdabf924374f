"""Weights in a safetensors file with a JSON header; nothing in them is ever executed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from icl_fast.errors import InputError
from icl_fast.files import atomic_write, disk_error


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


def read_weights(path: str | Path, kinds: Sequence[str]) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """The kind, the header and the weights that `write_weights` wrote.

    Raises:
        InputError: no such file, of none of these kinds, truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(f"snapshot {path}: {'is a folder, not a snapshot file' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"snapshot {path}: cannot be read, it is damaged or no safetensors file ({error})") from None
    kind = next((kind for kind in kinds if kind in metadata), None)
    if kind is None:
        raise InputError(f"snapshot {path}: not written by icl_fast (its header has no {kinds[0]!r})")
    try:
        return kind, dict(json.loads(metadata[kind])), weights
    except (TypeError, ValueError) as error:
        raise InputError(f"snapshot {path}: its header is damaged ({error})") from None


def assign_weights(path: str | Path, module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give a module (on the meta device) the weights read from a file.

    Raises:
        InputError: weights that are missing, unknown, of another shape or type, or not finite.
    """
    expected = module.state_dict()
    if unlike := sorted(expected.keys() ^ weights.keys()):
        raise InputError(f"snapshot {path}: missing or unknown weights: {', '.join(unlike[:5])}")
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise InputError(
                f"snapshot {path}: {name} is {list(weight.shape)}, its config says {list(expected[name].shape)}"
            )
        if weight.is_floating_point() != expected[name].is_floating_point():
            raise InputError(f"snapshot {path}: {name} is {weight.dtype}, but weights are floating-point numbers")
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"snapshot {path}: {name} holds NaN or infinity; that training run diverged before it")
    module.load_state_dict(weights, assign=True)
    module.requires_grad_(True).eval()
