"""What every kind of other people's checkpoint says of itself: its config, its files, where our weights are in it."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.files import regular_file
from icl_fast.models.config import TransformerConfig

CONFIG = "config.json"
Names = dict[str, "str | tuple[str, Layout]"]
Split = Callable[[Tensor, TransformerConfig], Sequence[Tensor]]
Join = Callable[[Sequence[Tensor], TransformerConfig], Tensor]


class Layout(NamedTuple):
    """How some of our weights lie in one of theirs.

    Attributes:
        split: theirs into ours.
        join: ours into theirs; None: nothing is written so.
        number: which of those that are in it is meant.
    """

    split: Split
    join: Join | None = None
    number: int = 0

    def each(self, count: int) -> list[Layout]:
        """Those of the first, the second, ... of all that are in it."""
        return [self._replace(number=number) for number in range(count)]


def one(split: Callable[[Tensor, TransformerConfig], Tensor], join: Any = None) -> Layout:
    """The layout of one of ours in one of theirs, by a function of a weight either way."""
    back = None if join is None else lambda parts, config: join(parts[0], config)
    return Layout(lambda weight, config: [split(weight, config)], back)


class FoundWeights:
    """Our weights in a checkpoint: iterated, name and weight of all of them, each of theirs read once."""

    def __init__(
        self,
        parts: Mapping[str, list[tuple[str, Layout | None]]],
        theirs: Mapping[str, Tensor],
        config: TransformerConfig,
        source: str,
    ) -> None:
        """By the names of theirs, those of ours that are in each, and how."""
        self._parts, self._theirs, self._config, self._source = parts, theirs, config, source

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in self._parts:
            weight = self._theirs[name]
            if weight.is_floating_point() and weight.itemsize > 1 and not bool(weight.isfinite().all()):
                raise InputError(f"{self._source}: {name} holds NaN or infinity; that training run diverged before it")
            yield from self._split(name, weight)

    def some(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Those whose names begin so; nothing else is read."""
        for name, ours in self._parts.items():
            if any(own.startswith(prefix) for own, _ in ours):
                found = self._split(name, self._theirs[name])
                yield from ((own, weight) for own, weight in found if own.startswith(prefix))

    def _split(self, name: str, weight: Tensor) -> list[tuple[str, Tensor]]:
        ours = self._parts[name]
        layout = ours[0][1]
        try:
            pieces = [weight] if layout is None else layout.split(weight, self._config)
            return [(own, pieces[0 if layout is None else layout.number]) for own, layout in ours]
        except (RuntimeError, IndexError):
            shape = list(weight.shape)
            raise InputError(f"{self._source}: {name} is {shape}, which its config does not say") from None
        except ValueError as error:
            raise InputError(f"{self._source}: {name} {error}") from None


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
    def weights(self, names: Iterable[str]) -> FoundWeights:
        """Our weights by name, as they are stored; nothing is read before all are found.

        Args:
            names: of the weights of a Transformer of this config; but the unembedding where it is tied.

        Raises:
            InputError: weights that are missing, that are there and not used, that cannot be read or are not finite.
        """


def match_weights(
    places: Mapping[str, tuple[str, Layout | None]],
    theirs: Mapping[str, Tensor],
    config: TransformerConfig,
    source: str,
    *,
    passed_over: tuple[str, ...] = (),
) -> FoundWeights:
    """Our weights by name out of theirs: every one of theirs used, and read once, however many of ours it holds.

    Args:
        places: by the names of our weights, the name of theirs that holds it, and how it lies in it.
        theirs: read when asked for, so that it may be a file.
        passed_over: ends of the names of theirs that are no weights, or that are there twice.

    Raises:
        InputError: weights that are missing, or that are there and not used.
    """
    parts: dict[str, list[tuple[str, Layout | None]]] = {}
    for name, (theirs_name, layout) in places.items():
        if theirs_name not in theirs:
            raise InputError(f"{source}: weight {theirs_name!r} is missing")
        parts.setdefault(theirs_name, []).append((name, layout))
    for name in theirs:
        if name not in parts and not name.endswith(passed_over):
            raise InputError(f"{source}: weight {name!r} is not used; the model has a part that is not understood")
    return FoundWeights(parts, theirs, config, source)


def join_weights(
    places: Mapping[str, tuple[str, Layout | None]], weights: Mapping[str, Tensor], config: TransformerConfig
) -> dict[str, Tensor]:
    """Their weights by name out of ours: what `match_weights` undoes.

    Raises:
        InputError: a weight that theirs has no room for.
    """
    parts: dict[str, dict[int, Tensor]] = {}
    layouts: dict[str, Layout] = {}
    joined = {}
    for name, (theirs_name, layout) in places.items():
        if layout is None:
            joined[theirs_name] = weights[name]
        else:
            layouts[theirs_name] = layout
            parts.setdefault(theirs_name, {})[layout.number] = weights[name]
    for theirs_name, layout in layouts.items():
        assert layout.join is not None
        try:
            joined[theirs_name] = layout.join([part for _, part in sorted(parts[theirs_name].items())], config)
        except ValueError as error:
            raise InputError(f"to: {theirs_name} {error}") from None
    return joined


def place(names: Names, name: str) -> tuple[str, Layout | None]:
    """Where one of our weights is, and how it lies there.

    Args:
        names: by the part of the model, such as `attention.q`, theirs without `.weight` or `.bias`, `{}` its layer; or,
            by part and kind, such as `attention.q.weight`, the whole of it.
    """
    layer, own = "", name
    if name.startswith("blocks."):
        layer, _, own = name.removeprefix("blocks.").partition(".")
    part, dot, kind = own.rpartition(".")
    entry, end = (names[own], "") if own in names else (names[part], dot + kind)
    theirs, layout = (entry, None) if isinstance(entry, str) else entry
    return theirs.format(layer) + end, layout


class Safetensors(Mapping[str, Tensor]):
    """The weights in safetensors files, each read when it is asked for."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        weight: Tensor = self._files[name].get_tensor(name)
        return weight

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read_safetensors(*paths: Path) -> Safetensors:
    """The weights in these files.

    Raises:
        InputError: one that is missing, damaged, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    files: dict[str, Any] = {}
    for path in paths:
        try:
            file: Any = safe_open(regular_file(path, "model"), framework="pt")
        except (SafetensorError, OSError) as error:
            raise InputError(f"model {path}: cannot be read, it is damaged or no safetensors file ({error})") from None
        files.update((name, file) for name in file.keys())  # noqa: SIM118 (not a dict)
    return Safetensors(files)


def read_torch(path: Path) -> dict[str, Any]:
    """The dict that `torch.save` wrote; its tensors stay in the file until they are used.

    Raises:
        InputError: it is damaged, or holds what only running it would give.
    """
    try:
        in_file = zipfile.is_zipfile(regular_file(path, "model"))  # torch wrote another format before 1.6
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=in_file)
    except InputError:
        raise
    except Exception as error:  # torch raises whatever is wrong with the archive
        raise InputError(f"model {path}: cannot be read ({str(error).partition(chr(10))[0]})") from None
    if not isinstance(values, dict):
        raise InputError(f"model {path}: holds no weights by name, it is a {type(values).__name__}")
    return values


def named_tensors(values: Any, path: Path) -> dict[str, Tensor]:
    """The same, if it is weights by name.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(values, dict):
        raise InputError(f"model {path}: holds no weights by name, it is a {type(values).__name__}")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"model {path}: holds {name!r}, which is no weight but a {type(value).__name__}")
    return values
