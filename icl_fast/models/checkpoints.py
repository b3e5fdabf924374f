"""Snapshots: the weights at one step, as safetensors with the model's config in the header."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from icl_fast.errors import InputError
from icl_fast.files import atomic_write, disk_error
from icl_fast.models.config import parse_transformer_config
from icl_fast.models.transformer import Transformer

FORMAT = "icl_fast.snapshot.1"


@dataclass(frozen=True)
class Snapshot:
    """A model as it was after `step` optimizer steps and `tokens` training tokens."""

    model: Transformer
    step: int
    tokens: int


def save_snapshot(path: str | Path, model: Transformer, *, step: int, tokens: int) -> None:
    """Write the model's weights; the file appears whole or not at all.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    header = {"config": model.config.model_dump(mode="json"), "step": step, "tokens": tokens}
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    with atomic_write(path) as temporary:
        try:
            # one entry: safetensors writes several in an order that changes from call to call
            save_file(weights, temporary, metadata={FORMAT: json.dumps(header)})
        except SafetensorError as error:  # its wrapper of the I/O error hides the number
            raise disk_error(path, OSError(28 if "os error 28" in str(error) else 5, str(error))) from error


def load_snapshot(path: str | Path) -> Snapshot:
    """Read a snapshot written by `save_snapshot` (no code is executed: safetensors).

    Raises:
        InputError: no such file, not a snapshot, truncated, weights that are missing, of another shape or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"snapshot {path}: {'is a folder, not a snapshot file' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"snapshot {path}: cannot be read, it is damaged or no safetensors file ({error})") from None
    if FORMAT not in metadata:
        raise InputError(f"snapshot {path}: not written by icl_fast (its header has no {FORMAT!r})")
    try:
        header = json.loads(metadata[FORMAT])
        values, step, tokens = dict(header["config"]), int(header["step"]), int(header["tokens"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"snapshot {path}: its header is damaged ({error})") from None
    config = parse_transformer_config(values, source=f"snapshot {path}: config")
    with torch.device("meta"):
        model = Transformer(config)
    _check_weights(path, model, weights)
    model.load_state_dict(weights, assign=True)
    return Snapshot(model.requires_grad_(True).eval(), step, tokens)


def _check_weights(path: Path, model: Transformer, weights: dict[str, torch.Tensor]) -> None:
    expected = model.state_dict()
    if unlike := sorted(expected.keys() ^ weights.keys()):
        raise InputError(f"snapshot {path}: missing or unknown weights: {', '.join(unlike[:5])}")
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise InputError(
                f"snapshot {path}: {name} is {list(weight.shape)}, its config says {list(expected[name].shape)}"
            )
        if not weight.is_floating_point():
            raise InputError(f"snapshot {path}: {name} is {weight.dtype}, but weights are floating-point numbers")
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"snapshot {path}: {name} holds NaN or infinity; that training run diverged before it")
