"""Snapshots: the weights at one step, as safetensors with the model's config in the header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from icl_fast.errors import InputError
from icl_fast.models.config import parse_transformer_config
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.exemplar_transformer import ExemplarTransformer
from icl_fast.models.transformer import Transformer
from icl_fast.models.weight_files import assign_weights, read_weights, write_weights
from icl_fast.schema import ValidationError, validation_message

Model = TypeVar("Model", bound=nn.Module, covariant=True)

TEXT_FORMAT = "icl_fast.snapshot.1"
EXEMPLAR_FORMAT = "icl_fast.exemplar_snapshot.1"


@dataclass(frozen=True)
class Snapshot(Generic[Model]):
    """A model as it was after some training.

    Attributes:
        model: a `Transformer`, or an `ExemplarTransformer` with all members of a population.
        step: optimizer steps made.
        seen: training tokens, or training sequences of each member.
    """

    model: Model
    step: int
    seen: int


def save_snapshot(path: str | Path, model: Transformer | ExemplarTransformer, *, step: int, seen: int) -> None:
    """Write the model's weights; the file appears whole or not at all.

    Args:
        seen: see `Snapshot`.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    header = {"config": model.config.model_dump(mode="json"), "step": step}
    if isinstance(model, ExemplarTransformer):
        header |= {"sequences": seen, "outputs": model.outputs.tolist()}
        write_weights(path, model, EXEMPLAR_FORMAT, header)
    else:
        write_weights(path, model, TEXT_FORMAT, header | {"tokens": seen})


def load_snapshot(path: str | Path) -> Snapshot[Any]:
    """Read a snapshot written by `save_snapshot` (no code is executed: safetensors).

    Raises:
        InputError: no such file, not a snapshot, truncated, weights that are missing, of another shape or not finite.
    """
    kind, header, weights = read_weights(path, (TEXT_FORMAT, EXEMPLAR_FORMAT))
    try:
        values, step = dict(header["config"]), int(header["step"])
        seen = int(header["tokens" if kind == TEXT_FORMAT else "sequences"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"snapshot {path}: its header is damaged ({error})") from None
    model: Transformer | ExemplarTransformer
    if kind == TEXT_FORMAT:
        with torch.device("meta"):
            model = Transformer(parse_transformer_config(values, source=f"snapshot {path}: config"))
    else:
        model = _exemplar_model(path, values, header.get("outputs"))
    assign_weights(path, model, weights)
    return Snapshot(model, step, seen)


def _exemplar_model(path: str | Path, values: dict[str, Any], outputs: Any) -> ExemplarTransformer:
    try:
        config = ExemplarConfig(**values)
    except ValidationError as error:
        raise InputError(validation_message(error, f"snapshot {path}: config")) from None
    if not isinstance(outputs, list) or not all(isinstance(count, int) for count in outputs):
        raise InputError(f"snapshot {path}: its header is damaged (outputs {outputs!r})")
    return ExemplarTransformer(config, seeds=[0] * len(outputs), outputs=outputs)
