"""Snapshots: the weights at one step, as safetensors with the model's config in the header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from icl_fast.errors import InputError
from icl_fast.models.config import TransformerConfig
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.exemplar_transformer import ExemplarTransformer
from icl_fast.models.transformer import Transformer
from icl_fast.models.weight_files import read_header, read_weights, write_weights
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
    kind, header = read_header(path, (TEXT_FORMAT, EXEMPLAR_FORMAT))
    step = _count(path, header, "step")
    seen = _count(path, header, "tokens" if kind == TEXT_FORMAT else "sequences")
    values, outputs = header.get("config"), header.get("outputs")
    if not isinstance(values, dict):
        raise InputError(f"snapshot {path}: its header is damaged (config {values!r:.80})")
    model: Transformer | ExemplarTransformer
    try:
        with torch.device("meta"):
            if kind == TEXT_FORMAT:
                model = Transformer(TransformerConfig.model_validate(values))
            else:
                model = _exemplar_model(path, ExemplarConfig.model_validate(values), outputs)
    except ValidationError as error:
        raise InputError(validation_message(error, f"snapshot {path}: config")) from None
    except RuntimeError as error:  # more numbers in a weight than torch can count
        raise InputError(f"snapshot {path}: its config is of no model that could be in a file ({error})") from None
    read_weights(path, model)
    if isinstance(model, ExemplarTransformer) and model.outputs.tolist() != outputs:
        raise InputError(f"snapshot {path}: its header is damaged (outputs are others than in its weights)")
    return Snapshot(model, step, seen)


def _count(path: str | Path, header: dict[str, Any], name: str) -> int:
    count = header.get(name)
    if type(count) is not int or not 0 <= count < 2**63:
        raise InputError(f"snapshot {path}: its header is damaged ({name} {count!r:.80})")
    return count


def _exemplar_model(path: str | Path, config: ExemplarConfig, outputs: Any) -> ExemplarTransformer:
    if not isinstance(outputs, list) or not all(type(count) is int for count in outputs):
        raise InputError(f"snapshot {path}: its header is damaged (outputs {outputs!r:.80})")
    try:
        return ExemplarTransformer(config, seeds=[0] * len(outputs), outputs=outputs)
    except InputError as error:
        raise InputError(f"snapshot {path}: config: {error}") from None
