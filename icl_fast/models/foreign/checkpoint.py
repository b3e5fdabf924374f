"""What every kind of other people's checkpoint says of itself: its config, its files, where our weights are in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.files import regular_file
from icl_fast.models.config import TransformerConfig

Layout = Callable[[Tensor, TransformerConfig], Tensor]
Names = dict[str, "str | tuple[str, Layout]"]


class Checkpoint(ABC):
    """One model as somebody else wrote it. Nothing in it is ever executed.

    Attributes:
        source: what messages call it.
        kind: what it is, such as `Llama (Hugging Face)`.
        config: its shape in our words.
        files: those with its weights.
    """

    source: str
    kind: str
    config: TransformerConfig
    files: list[Path]

    @abstractmethod
    def weights(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Our weights by name, as they are stored, each of theirs read once; nothing is read before all are found.

        Args:
            names: of the weights of a Transformer of this config; but the unembedding where it is tied.

        Raises:
            InputError: weights that are missing, that are there and not used, or that cannot be read.
        """


def match_weights(
    names: Iterable[str],
    theirs_of: Callable[[str], tuple[str, Layout | None]],
    theirs: Mapping[str, Tensor],
    config: TransformerConfig,
    source: str,
    *,
    passed_over: Callable[[str], bool] = lambda _: False,
) -> Iterator[tuple[str, Tensor]]:
    """Our weights by name out of theirs: every one of theirs used, and read once, however many of ours it holds.

    Args:
        names: of our weights.
        theirs_of: the name of theirs that holds one of ours, and how it lies in it.
        theirs: read when asked for, so that it may be a file.
        passed_over: whether one of theirs is no weight, or one that is there twice.

    Raises:
        InputError: weights that are missing, or that are there and not used.
    """
    parts: dict[str, list[tuple[str, Layout | None]]] = {}
    for name in names:
        theirs_name, layout = theirs_of(name)
        if theirs_name not in theirs:
            raise InputError(f"{source}: weight {theirs_name!r} is missing")
        parts.setdefault(theirs_name, []).append((name, layout))
    for name in theirs:
        if name not in parts and not passed_over(name):
            raise InputError(f"{source}: weight {name!r} is not used; the model has a part that is not understood")
    for theirs_name, ours in parts.items():
        weight = theirs[theirs_name]
        for name, layout in ours:
            yield name, weight if layout is None else layout(weight, config)


def split_name(name: str) -> tuple[str, str, str]:
    """The layer ("" outside of the blocks), part and kind of one of our weights: `0`, `attention.q`, `weight`."""
    part, _, kind = name.rpartition(".")
    layer = ""
    if part.startswith("blocks."):
        layer, _, part = part.removeprefix("blocks.").partition(".")
    return layer, part, kind


class WeightFiles(Mapping[str, Tensor]):
    """The weights in safetensors files, or in torch's own, each read when it is asked for."""

    def __init__(self, paths: Collection[Path]) -> None:
        """The files that these are.

        Raises:
            InputError: one that is missing, damaged or neither.
        """
        self._files: dict[str, Any] = {}
        for path in paths:
            self._files.update(_safetensors(path) if path.suffix == ".safetensors" else read_torch(path))

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


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(regular_file(path, "model"), framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"model {path}: cannot be read, it is damaged or no safetensors file ({error})") from None
    return {name: file for name in file.keys()}  # noqa: SIM118 (not a dict)


def read_torch(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, if it is a dict of data; tensors stay in the file until they are used.

    Raises:
        InputError: it is damaged, or holds what only running it would give.
    """
    try:
        values = torch.load(regular_file(path, "model"), map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except Exception as error:  # torch raises whatever is wrong with the archive
        raise InputError(f"model {path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise InputError(f"model {path}: holds no weights by name, it is a {type(values).__name__}")
    return values
