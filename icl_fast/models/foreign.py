"""Other people's models: a folder with a `config.json` and weights, as Hugging Face's transformers writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.files import read_json, regular_file
from icl_fast.memory import check_fits
from icl_fast.models.config import TransformerConfig
from icl_fast.models.families import FAMILIES, Family
from icl_fast.models.family_fields import Fields
from icl_fast.models.transformer import Transformer
from icl_fast.models.weight_files import check_numbers

CONFIG = "config.json"


def is_foreign(folder: Path) -> bool:
    """Whether a folder looks like a model of this kind."""
    return (folder / CONFIG).is_file()


def foreign_config(folder: str | Path) -> TransformerConfig:
    """The shape of the model in a folder.

    Raises:
        InputError: no config.json, of a family that is not known, or with a field that is not understood.
    """
    fields, family = _read_config(Path(folder))
    return family.config(fields)


def load_foreign(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Transformer:
    """The model in a folder, its weights on the CPU. Nothing in the folder is executed.

    Args:
        dtype: of the weights; files hold what they hold.

    Raises:
        InputError: as `foreign_config`; weights that are missing, not used, damaged, not finite or of another shape
            than the config says; more than fits the memory.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype: must be that of floating-point numbers, such as torch.float32, got {dtype!r}")
    folder = Path(folder)
    fields, family = _read_config(folder)
    config = family.config(fields)
    with torch.device("meta"):
        model = Transformer(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    check_fits(count * dtype.itemsize, f"model {folder}: {count:,} weights")
    shapes = model.state_dict()
    weights = family.weights(shapes, config, _Weights(folder), f"model {folder}")
    for name, weight in weights.items():
        if not weight.is_floating_point():
            raise InputError(f"model {folder}: {name} is {weight.dtype}; quantised weights are not understood")
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    for name, expected in shapes.items():
        if weights[name].shape != expected.shape:
            wrong, wanted = list(weights[name].shape), list(expected.shape)
            raise InputError(f"model {folder}: {name} is {wrong}, its config says {wanted}")
    check_numbers(folder, weights, weights)
    model.load_state_dict(weights, assign=True)
    if config.tied:
        model.unembed.weight = model.embed.weight
    return model.requires_grad_(True).eval()


def _read_config(folder: Path) -> tuple[Fields, Family]:
    path = folder / CONFIG
    values = read_json(path, "model")
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"model: {path}: model_type {kind!r} is not known; known are {', '.join(FAMILIES)}")
    return Fields(values, f"model {path}"), FAMILIES[kind]


def _files(folder: Path, name: str, suffix: str) -> list[Path]:
    """The files with a model's weights: one, or those of an index; whatever else lies beside them is something else."""
    index = folder / f"{name}{suffix}.index.json"
    if not index.is_file():
        return [path] if (path := folder / f"{name}{suffix}").is_file() else []
    values = read_json(index, "model")
    files = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"model: {index}: is no index of weights; put back a copy")
    return [folder / Path(file).name for file in sorted(set(files.values()))]


class _Weights(Mapping[str, Tensor]):
    """The weights in a folder's files, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._files: dict[str, Any] = {}
        paths = _files(folder, "model", ".safetensors")
        try:
            for path in paths:
                file: Any = safe_open(regular_file(path, "model"), framework="pt")
                self._files.update((name, file) for name in file.keys())  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise InputError(f"model {path}: cannot be read, it is damaged or no safetensors file ({error})") from None
        for path in () if paths else _files(folder, "pytorch_model", ".bin"):
            try:
                self._files.update(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
            except Exception as error:  # torch raises whatever is wrong with the archive
                raise InputError(f"model {path}: cannot be read ({str(error).splitlines()[0]})") from None
        if not self._files:
            raise InputError(f"model {folder}: holds no weights (model.safetensors, pytorch_model.bin, or their index)")

    def __getitem__(self, name: str) -> Tensor:
        holder = self._files[name]
        weight: Tensor = holder if isinstance(holder, Tensor) else holder.get_tensor(name)
        return weight

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
