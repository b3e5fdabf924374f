"""Snapshots: the weights at one step, as safetensors with the model's config in the header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from icl_fast import ranks
from icl_fast.arguments import shown, whole_number
from icl_fast.errors import InputError
from icl_fast.models.architectures import make_exemplar_model
from icl_fast.models.changes import original
from icl_fast.models.config import TransformerConfig
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.exemplar_model import ExemplarModel
from icl_fast.models.plain import made_like, why_not_plain
from icl_fast.models.shards import SUFFIX, write_shards
from icl_fast.models.transformer import Transformer
from icl_fast.models.weight_files import check_numbers, read_header, read_weights, write_weights
from icl_fast.schema import ValidationError, validation_message

Model = TypeVar("Model", bound=nn.Module, covariant=True)

TEXT_FORMAT = "icl_fast.snapshot.1"
EXEMPLAR_FORMAT = "icl_fast.exemplar_snapshot.1"
_MOST = 2**63 - 1  # of steps, and of what was seen


@dataclass(frozen=True)
class Snapshot(Generic[Model]):
    """A model as it was after some training.

    Attributes:
        model: a `Transformer`, or an `ExemplarModel` with all members of a population.
        step: optimizer steps made.
        seen: training tokens, or training sequences of each member.
    """

    model: Model
    step: int
    seen: int


def save_snapshot(
    path: str | Path,
    model: Transformer | ExemplarModel,
    *,
    step: int,
    seen: int | None = None,
    tokens: int | None = None,
    sequences: int | None = None,
) -> None:
    """Write the model's weights, so that `load_snapshot` gives the same model; the file appears whole or not at all.

    What torch.compile or data parallelism wraps is written as if it were not wrapped, parametrized weights as they are
    in use, weights that are tied once. Forward hooks are no part of a snapshot.

    Args:
        seen: see `Snapshot`; `tokens` (of a model on text) and `sequences` (on exemplars) are its older names.

    Raises:
        InputError: no count of what was seen, or a wrong one; a model that is more than its config and weights; weights
            that are not finite, of several types, or on the meta device; the disk is full or the folder not writable.
    """
    inner = original(model) if isinstance(model, nn.Module) else model
    if not isinstance(inner, (Transformer, ExemplarModel)):
        raise InputError(f"model: must be a Transformer or an ExemplarModel, got {shown(model)}")
    if reason := why_not_plain(inner, hooks=False):
        raise InputError(f"model: {reason}, which no snapshot can hold; undo it, or make it part of the weights")
    on_text = isinstance(inner, Transformer)
    counts = {"seen": seen, "tokens": tokens} if on_text else {"seen": seen, "sequences": sequences}
    given = {name: count for name, count in counts.items() if count is not None}
    if len(given) != 1:
        raise InputError(f"seen: give how many {'tokens' if on_text else 'sequences'} the model was trained on, once")
    count = whole_number(*given.popitem(), 0, _MOST)
    header = {"config": inner.config.model_dump(mode="json"), "step": whole_number("step", step, 0, _MOST)}
    weights = weights_of(inner)
    if isinstance(inner, ExemplarModel):
        header |= {"sequences": count, "outputs": inner.outputs.tolist()}
        write_weights(path, weights, EXEMPLAR_FORMAT, header)
    else:
        write_weights(path, weights, TEXT_FORMAT, header | {"tokens": count})


def save_sharded_snapshot(index: Path, model: Transformer, *, step: int, tokens: int) -> None:
    """Write the weights of a model that ranks hold together, each its part; every rank calls it.

    `load_snapshot(index)` gives the model in one process, without torchrun.

    Args:
        index: see `icl_fast.models.shards.write_shards`.

    Raises:
        InputError: weights that are not finite; the disk is full or the folder not writable.
    """
    weights = weights_of(model)
    names: dict[int, str] = {}
    for name, weight in weights.items():
        names.setdefault(id(weight), name)
    tied = {name: other for name, weight in weights.items() if (other := names[id(weight)]) != name}
    kept = {name: weight for name, weight in weights.items() if name not in tied}
    with ranks.together():
        own = {name: weight.to_local() if hasattr(weight, "to_local") else weight for name, weight in kept.items()}
        check_numbers(index, own, own)
    header = {"config": model.config.model_dump(mode="json"), "step": step, "tokens": tokens}
    write_shards(index, index.name.removesuffix(SUFFIX), kept, TEXT_FORMAT, header | ({"tied": tied} if tied else {}))


def weights_of(model: Transformer | ExemplarModel) -> dict[str, Tensor]:
    """The weights of a model by the names of a snapshot, without those of wrappers inside it."""
    return {name: _weight(model, name) for name in made_like(model).state_dict()}


def _weight(module: nn.Module, name: str) -> Tensor:
    *parts, last = name.split(".")
    for part in parts:
        module = original(getattr(module, part))
    weight: Tensor = getattr(module, last)
    return weight


def load_snapshot(path: str | Path) -> Snapshot[Any]:
    """Read a snapshot, a file of `save_snapshot` or a sharded one by its index `*.shards.json` (no code is executed:
    safetensors).

    Raises:
        InputError: no such file, not a snapshot, truncated, a shard that is missing or changed, weights that are
            missing, of another shape or not finite.
    """
    kind, header = read_header(path, (TEXT_FORMAT, EXEMPLAR_FORMAT))
    step = _count(path, header, "step")
    seen = _count(path, header, "tokens" if kind == TEXT_FORMAT else "sequences")
    values, outputs = header.get("config"), header.get("outputs")
    if not isinstance(values, dict):
        raise InputError(f"snapshot {path}: its header is damaged (config {values!r:.80})")
    model: Transformer | ExemplarModel
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
    read_weights(path, model, header.get("tied", {}))
    if isinstance(model, ExemplarModel) and model.outputs.tolist() != outputs:
        raise InputError(f"snapshot {path}: its header is damaged (outputs are others than in its weights)")
    return Snapshot(model, step, seen)


def _count(path: str | Path, header: dict[str, Any], name: str) -> int:
    count = header.get(name)
    if type(count) is not int or not 0 <= count <= _MOST:
        raise InputError(f"snapshot {path}: its header is damaged ({name} {count!r:.80})")
    return count


def _exemplar_model(path: str | Path, config: ExemplarConfig, outputs: Any) -> ExemplarModel:
    if not isinstance(outputs, list) or not all(type(count) is int for count in outputs):
        raise InputError(f"snapshot {path}: its header is damaged (outputs {outputs!r:.80})")
    try:
        return make_exemplar_model(config, seeds=[0] * len(outputs), outputs=outputs)
    except InputError as error:
        raise InputError(f"snapshot {path}: config: {error}") from None
