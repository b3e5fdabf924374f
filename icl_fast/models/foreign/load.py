"""Whatever kind of checkpoint a path is: its config, its model, its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.files import read_json
from icl_fast.memory import available, check_fits
from icl_fast.models.config import TransformerConfig
from icl_fast.models.foreign.checkpoint import CONFIG, Checkpoint, FoundWeights
from icl_fast.models.foreign.gguf_checkpoint import GGUFCheckpoint
from icl_fast.models.foreign.gguf_format import gguf_file
from icl_fast.models.foreign.hugging_face import HuggingFace
from icl_fast.models.foreign.lens_checkpoint import LensCheckpoint, is_lens_file
from icl_fast.models.foreign.own_checkpoint import OwnCheckpoint
from icl_fast.models.layer_stream import LayerStream, absent
from icl_fast.models.sizes import parameter_count
from icl_fast.models.transformer import Transformer

_MOST_HELD = 0.75  # of the free memory, that weights may take; the rest is for what is computed of them


def is_foreign(path: str | Path) -> bool:
    """Whether a path looks like other people's model.

    A folder with a config.json or one GGUF file; a GGUF file; a .pt or .pth file with a HookedTransformer's config
    inside, beside or above it.
    """
    path = Path(path)
    if path.is_dir():
        return (path / CONFIG).is_file() or gguf_file(path) is not None
    return path.is_file() and (path.suffix == ".gguf" or is_lens_file(path))


def foreign_config(path: str | Path) -> TransformerConfig:
    """The shape of the model at a path; its weights are not read.

    Raises:
        InputError: no model, one of a family that is not known, or with a field that is not understood.
    """
    return _open(path).config


def weight_files(path: str | Path) -> list[Path]:
    """The files with the weights of the model at a path, in order: what tells one checkpoint from another.

    Raises:
        InputError: as `foreign_config`, or there are none.
    """
    return _open(path).files


def describe(path: str | Path) -> str:
    """What the model at a path is, in a few words, such as `Llama (Hugging Face)`.

    Raises:
        InputError: as `foreign_config`.
    """
    return _open(path).kind


def load_foreign(path: str | Path, *, dtype: torch.dtype = torch.float32, stream: bool | None = None) -> Transformer:
    """The model at a path, its weights on the CPU. Nothing in it is executed.

    Args:
        path: see `is_foreign`.
        dtype: of the weights; files hold what they hold.
        stream: whether the weights of a layer are read again whenever it runs, instead of being held; None: where all
            of them would take most of the memory that is free. The numbers are the same.

    Raises:
        InputError: as `foreign_config`; weights that are missing, not used, damaged, not finite or of another shape
            than the config says; more than fits the memory.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype: must be that of floating-point numbers, such as torch.float32, got {dtype!r}")
    checkpoint = _open(path)
    config, source = checkpoint.config, checkpoint.source
    count = parameter_count(Transformer, config)
    if stream is None:
        stream = count * dtype.itemsize > _MOST_HELD * available()
    few = config.model_copy(update={"layers": min(2, config.layers), "windows": None})  # one runs, one is read
    held = parameter_count(Transformer, few) if stream else count
    check_fits(held * dtype.itemsize, f"{source}: {count:,.0f} weights" + (", read layer by layer" if stream else ""))
    model, shapes = _without_weights(config)
    found, weights = checkpoint.weights(shapes), {}
    for name, weight in found:
        if not weight.is_floating_point():
            raise InputError(f"{source}: {name} is {weight.dtype}; quantised weights are not understood")
        if weight.shape != shapes[name].shape:
            raise InputError(f"{source}: {name} is {list(weight.shape)}, its config says {list(shapes[name].shape)}")
        whole = weight.to(dtype).contiguous()
        if whole.dtype != weight.dtype and not bool(whole.isfinite().all()):
            raise InputError(f"{source}: {name} is not finite in {dtype}; take a wider one")
        weights[name] = absent(whole) if stream and name.startswith("blocks.") else whole
    if config.tied:
        weights["unembed.weight"] = weights["embed.weight"]
    model.load_state_dict(weights, assign=True)
    if config.tied:
        model.unembed.weight = model.embed.weight
    if stream:
        model.blocks.stream = LayerStream(_LayerWeights(Path(path).absolute(), dtype, found))
    return model.requires_grad_(True).eval()


def _without_weights(config: TransformerConfig) -> tuple[Transformer, dict[str, Tensor]]:
    """A model on the meta device, and what it needs by name."""
    with torch.device("meta"):
        model = Transformer(config)
    shapes = model.state_dict()
    if config.tied:
        del shapes["unembed.weight"]
    return model, shapes


class _LayerWeights:
    """Reads the weights of a layer. In another process, to which it is sent, it opens the files at the path again."""

    def __init__(self, path: Path, dtype: torch.dtype, found: FoundWeights | None = None) -> None:
        if found is None:
            checkpoint = _open(path)
            found = checkpoint.weights(_without_weights(checkpoint.config)[1])
        self._path, self._dtype, self._found = path, dtype, found

    def __call__(self, layer: int) -> dict[str, Tensor]:
        prefix = f"blocks.{layer}."
        weights = self._found.some(prefix)
        return {name.removeprefix(prefix): weight.to(self._dtype).contiguous() for name, weight in weights}

    def __reduce__(self) -> tuple[type[_LayerWeights], tuple[Path, torch.dtype]]:
        return _LayerWeights, (self._path, self._dtype)


def _open(path: str | Path) -> Checkpoint:
    path = Path(path)
    if (gguf := gguf_file(path)) is not None:
        return GGUFCheckpoint(gguf)
    if not path.is_dir():
        return LensCheckpoint(path)
    values = read_json(path / CONFIG, "model")
    kinds: dict[str, Callable[[Path], Checkpoint]]
    kinds = {"model_type": HuggingFace, "n_layers": LensCheckpoint, "layers": OwnCheckpoint}
    kind = next((kind for key, kind in kinds.items() if isinstance(values, dict) and key in values), None)
    if kind is None:
        raise InputError(
            f"model: {path / CONFIG}: is of no kind that is known, it has no field model_type (Hugging Face), "
            "n_layers (TransformerLens) or layers (icl_fast)"
        )
    return kind(path)
