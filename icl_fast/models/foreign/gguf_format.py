"""The GGUF file format, version 2 and 3: metadata, and tensors that are dequantised when they are asked for.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Read here rather than by
`gguf.GGUFReader`, which takes seconds for a vocabulary; what quantised bytes mean is left to that package.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.files import regular_file
from icl_fast.models.foreign.checkpoint import CONFIG

_SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DAMAGE = (  # what turned bytes can lead to: counts, kinds, places and texts that cannot be
    struct.error, ValueError, ArithmeticError, TypeError, LookupError, RecursionError, NotImplementedError
)  # fmt: skip


def gguf_file(path: str | Path) -> Path | None:
    """The GGUF file that a path is, or the only one in a folder that has no config.json; None: there is none."""
    path = Path(path)
    if not path.is_dir():
        return path if path.suffix == ".gguf" else None  # which need not exist: whoever reads it says so
    found = [] if (path / CONFIG).exists() else [file for file in path.glob("*.gguf") if file.is_file()]
    return found[0] if len(found) == 1 else None


class _Place(NamedTuple):
    shape: tuple[int, ...]
    kind: int
    offset: int


class GGUFFile(Mapping[str, Tensor]):
    """A file; as a mapping, its tensors by name in float32 (float64 where they are), rows first.

    Attributes:
        metadata: by key; numbers of single precision as they are written in decimals.
    """

    def __init__(self, path: Path) -> None:
        """Reads the metadata and where the tensors are.

        Raises:
            InputError: there is no such file, it is damaged, or no GGUF file.
        """
        self.path = regular_file(path, "model")
        self.metadata: dict[str, Any] = {}
        self._places: dict[str, _Place] = {}
        self._at = 0
        try:
            with open(path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._read_header()
        except _DAMAGE as error:
            raise InputError(f"model {path}: cannot be read, it is damaged or no GGUF file ({error})") from None

    def _read_header(self) -> None:
        magic, version, tensors, entries = self._take("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"begins with {magic!r}, version {version}")
        for _ in range(entries):
            key = self._string()
            self.metadata[key] = self._value(*self._take("I"))
        for _ in range(tensors):
            name = self._string()
            (dims,) = self._take("I")
            *shape, kind, offset = self._take(f"{dims}QIQ")
            self._places[name] = _Place(tuple(reversed(shape)), kind, offset)
        alignment = self.metadata.get("general.alignment", 32)
        self._data = -(-self._at // alignment) * alignment

    def _take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + form, self._bytes, self._at)
        self._at += struct.calcsize("<" + form)
        return found

    def _string(self) -> str:
        (length,) = self._take("Q")
        if length > len(self._bytes) - self._at:
            raise ValueError("it ends in a text")
        self._at += length
        return self._bytes[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            of, count = self._take("IQ")
            if of in _SCALARS:
                return list(self._take(f"{count}{_SCALARS[of]}"))
            return [self._value(of) for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"a value of the unknown kind {kind}")
        (number,) = self._take(_SCALARS[kind])
        return float(str(np.float32(number))) if _SCALARS[kind] == "f" else number

    def __getitem__(self, name: str) -> Tensor:
        shape, kind, offset = self._places[name]
        gguf = _package()
        try:
            of = gguf.GGMLQuantizationType(kind)
            block, size = gguf.constants.GGML_QUANT_SIZES[of]
            count = int(np.prod(shape, dtype=object)) // block * size
            stored = np.frombuffer(self._bytes, np.uint8, count, self._data + offset)
            stored = stored.reshape(*shape[:-1], shape[-1] // block * size)
            plain = {"F32": np.float32, "F64": np.float64}.get(of.name)
            values = stored.view(plain).copy() if plain else gguf.quants.dequantize(stored, of)
        except _DAMAGE as error:
            raise InputError(f"model {self.path}: tensor {name!r} cannot be read ({error})") from None
        return torch.from_numpy(values)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        return self._places[name].shape


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise InputError("model: reading a GGUF file needs the package gguf: pip install icl_fast[hf]") from None
    return gguf
