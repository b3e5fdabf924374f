"""A folder as Hugging Face's transformers writes it: `config.json`, and weights in one file or in those of an index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.files import read_json
from icl_fast.models.foreign.checkpoint import (
    CONFIG,
    Checkpoint,
    FoundWeights,
    named_tensors,
    read_safetensors,
    read_torch,
)
from icl_fast.models.foreign.families import FAMILIES
from icl_fast.models.foreign.family_fields import Fields

_QUANTISED = ("quantization_config", "quantization")
_REFUSED = {
    "gemma3": "it reads images too: save its text part alone, as a Gemma3ForCausalLM",
    "smollm3": "some of its layers have positions and some have none",
}


class HuggingFace(Checkpoint):
    """A model of one of `FAMILIES`."""

    def __init__(self, folder: Path) -> None:
        path = folder / CONFIG
        values = read_json(path, "model")
        kind = values.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            other = f": {_REFUSED[kind]}" if isinstance(kind, str) and kind in _REFUSED else ""
            raise InputError(f"model: {path}: model_type {kind!r} is not known{other}; known are {', '.join(FAMILIES)}")
        if quantised := next((name for name in _QUANTISED if values.get(name)), None):
            raise InputError(f"model: {path}: {quantised}: the weights are quantised; give those they were made of")
        self.folder, self.source, self.kind = folder, f"model {folder}", f"{kind} (Hugging Face)"
        self.family = FAMILIES[kind]
        self.config = self.family.config(Fields(values, f"model {path}"))

    @property
    def files(self) -> list[Path]:  # type: ignore[override]
        found = _files(self.folder, "model", ".safetensors") or _files(self.folder, "pytorch_model", ".bin")
        if not found:
            raise InputError(f"{self.source}: holds no weights (model.safetensors, pytorch_model.bin, or their index)")
        return found

    def weights(self, names: Iterable[str]) -> FoundWeights:
        files = self.files
        theirs: Mapping[str, Tensor]
        if files[0].suffix == ".safetensors":
            theirs = read_safetensors(*files)
        else:
            theirs = {name: weight for path in files for name, weight in named_tensors(read_torch(path), path).items()}
        return self.family.weights(names, self.config, theirs, self.source)


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
