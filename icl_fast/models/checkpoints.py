"""Snapshots: the weights at one step, as safetensors with the model's config in the header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from icl_fast.errors import InputError
from icl_fast.models.config import parse_transformer_config
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.exemplar_transformer import ExemplarTransformer
from icl_fast.models.transformer import Transformer
from icl_fast.models.weight_files import assign_weights, read_weights, write_weights
from icl_fast.schema import ValidationError, validation_message

FORMAT = "icl_fast.snapshot.1"
EXEMPLAR_FORMAT = "icl_fast.exemplar_snapshot.1"


@dataclass(frozen=True)
class Snapshot:
    """A model as it was after `step` optimizer steps and `tokens` training tokens."""

    model: Transformer
    step: int
    tokens: int


@dataclass(frozen=True)
class ExemplarSnapshot:
    """A population as it was after `step` optimizer steps and `sequences` training sequences a member."""

    model: ExemplarTransformer
    step: int
    sequences: int


def save_snapshot(path: str | Path, model: Transformer, *, step: int, tokens: int) -> None:
    """Write the model's weights; the file appears whole or not at all.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    header = {"config": model.config.model_dump(mode="json"), "step": step, "tokens": tokens}
    write_weights(path, model, FORMAT, header)


def load_snapshot(path: str | Path) -> Snapshot:
    """Read a snapshot written by `save_snapshot` (no code is executed: safetensors).

    Raises:
        InputError: no such file, not a snapshot, truncated, weights that are missing, of another shape or not finite.
    """
    header, weights = read_weights(path, FORMAT)
    values, step, tokens = _header(path, header, "tokens")
    config = parse_transformer_config(values, source=f"snapshot {path}: config")
    with torch.device("meta"):
        model = Transformer(config)
    assign_weights(path, model, weights)
    return Snapshot(model, step, tokens)


def save_exemplar_snapshot(path: str | Path, model: ExemplarTransformer, *, step: int, sequences: int) -> None:
    """Write the weights of all members; the file appears whole or not at all.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    header = {"config": model.config.model_dump(mode="json"), "step": step, "sequences": sequences}
    write_weights(path, model, EXEMPLAR_FORMAT, header | {"outputs": model.outputs.tolist()})


def load_exemplar_snapshot(path: str | Path) -> ExemplarSnapshot:
    """Read a snapshot written by `save_exemplar_snapshot`.

    Raises:
        InputError: as `load_snapshot`.
    """
    header, weights = read_weights(path, EXEMPLAR_FORMAT)
    values, step, sequences = _header(path, header, "sequences")
    try:
        config = ExemplarConfig(**values)
    except ValidationError as error:
        raise InputError(validation_message(error, f"snapshot {path}: config")) from None
    outputs = header.get("outputs")
    if not isinstance(outputs, list) or not all(isinstance(count, int) for count in outputs):
        raise InputError(f"snapshot {path}: its header is damaged (outputs {outputs!r})")
    model = ExemplarTransformer(config, seeds=[0] * len(outputs), outputs=outputs)
    assign_weights(path, model, weights)
    return ExemplarSnapshot(model, step, sequences)


def _header(path: str | Path, header: dict[str, Any], seen: str) -> tuple[dict[str, Any], int, int]:
    try:
        return dict(header["config"]), int(header["step"]), int(header[seen])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"snapshot {path}: its header is damaged ({error})") from None
