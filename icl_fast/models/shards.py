"""Tensors in a safetensors file for each rank (`torch.distributed.checkpoint`), and an index that makes them one.

The index, `NAME.shards.json`, is written last and replaces the one before whole: what it names was written whole, and
what a killed training left beside it counts for nothing. It holds a header, and the SHA-256 of every file.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icl_fast import ranks
from icl_fast.errors import InputError
from icl_fast.files import atomic_write, disk_error, read_json, regular_file, remove, sha256

SUFFIX = ".shards.json"
_FOLDER = re.compile(r".+\.\d+-ranks")


def write_shards(index: Path, name: str, tensors: Mapping[str, Tensor], kind: str, header: dict[str, Any]) -> None:
    """Write tensors, each rank its part; every rank calls it, and the folder must be one that all of them see.

    Args:
        index: the file `*.shards.json`.
        name: of the folder beside it that holds the files; not that of an earlier one that the index may name.
        tensors: by the same names on all ranks: spread over them (`DTensor`), or whole and the same on each. None may
            be there twice.

    Raises:
        InputError: the disk is full or the folder not writable, on any rank; a torch that cannot write them.
    """
    folder = index.with_name(f"{name}.{ranks.count()}-ranks")
    with ExitStack() as stack:
        temporary = ranks.first(lambda: stack.enter_context(atomic_write(folder)))
        with ranks.together():
            _save(temporary, tensors)
        names = ranks.first(lambda: sorted(path.name for path in temporary.iterdir()))
        own = {name: sha256(temporary / name) for name in names[ranks.rank() :: ranks.count()]}
        digests = {name: digest for some in ranks.gathered(own) for name, digest in some.items()}
        ranks.first(stack.close)
    ranks.first(lambda: _write_index(index, folder.name, kind, header, digests))


def remove_stale(folder: Path) -> None:
    """Remove shards that no index in the folder names."""
    named = {name.partition("/")[0] for index in folder.glob(f"*{SUFFIX}") for name in _read_index(index)["shards"]}
    for path in folder.glob("*-ranks"):
        if path.name not in named and is_shards(path.name):
            remove(path)


def is_shards(name: str) -> bool:
    """Whether it is the name of a folder of shards."""
    return _FOLDER.fullmatch(name) is not None


class Shards:
    """What `write_shards` wrote, read by one process, or each rank its part.

    Attributes:
        index: its file.
        kinds: kind to header; there is one.
        size: bytes.
    """

    def __init__(self, index: str | Path) -> None:
        """Read the index; the tensors are read when they are asked for.

        Raises:
            InputError: no index, a damaged one, or a shard that is missing.
        """
        self.index = Path(index)
        found = _read_index(self.index)
        self.kinds: dict[str, Any] = found["kind"]
        self._digests: dict[str, str] = found["shards"]
        for path in self._paths():
            if not path.is_file():
                raise InputError(f"snapshot {self.index}: its shard {path} is missing; put back a copy")
        self.size = sum(path.stat().st_size for path in self._paths())

    def check(self, part: slice = slice(None)) -> None:
        """Compare the shards, or some of them, with their SHA-256.

        Raises:
            InputError: one is not as it was written.
        """
        for path in self._paths()[part]:
            if sha256(regular_file(path, "snapshot")) != self._digests[self._name(path)]:
                raise InputError(
                    f"snapshot {self.index}: its shard {path} is not as it was written (its SHA-256 is another); "
                    "put back a copy"
                )

    def shapes(self) -> dict[str, list[int]]:
        """Names of tensors to their shapes, all parts together.

        Raises:
            InputError: as `check`.
        """
        self.check()
        return {name: list(found.size) for name, found in self._metadata().items()}

    def read(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Whole tensors, on the CPU. Nothing is compared."""
        found = self._metadata()
        tensors = {name: torch.empty(tuple(found[name].size), dtype=found[name].properties.dtype) for name in names}
        self.read_into(tensors)
        return tensors

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors: of those that are spread over ranks each rank reads its part. Nothing is compared."""
        from torch.distributed.checkpoint.state_dict_loader import load

        with _one_process(), torch.no_grad():
            load(dict(tensors), storage_reader=self._reader(), no_dist=True)  # no rank needs the others

    def _metadata(self) -> dict[str, Any]:
        return dict(self._reader().read_metadata().state_dict_metadata)

    def _reader(self) -> Any:
        return _storage().HuggingFaceStorageReader(str(self._paths()[0].parent))

    def _paths(self) -> list[Path]:
        return [self.index.parent / name for name in sorted(self._digests)]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.index.parent).as_posix()


def _storage() -> Any:
    import torch.distributed.checkpoint as checkpoint

    if not hasattr(checkpoint, "HuggingFaceStorageWriter"):
        raise InputError(
            f"snapshots.sharded: torch {torch.__version__} cannot write safetensors from several ranks "
            "(torch.distributed.checkpoint.HuggingFaceStorageWriter); take a newer one, or leave it out"
        )
    return checkpoint


def _save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    detached = {name: tensor.detach() for name, tensor in tensors.items()}
    try:
        with _one_process():
            save(detached, storage_writer=_storage().HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # raised on all ranks, with what went wrong on each
        wrong = [caught for caught, _ in error.failures.values()]
        reason = next((one for one in wrong if isinstance(one, OSError)), OSError(str(wrong[0]).splitlines()[0]))
        raise disk_error(folder, reason) from error


def _write_index(index: Path, folder: str, kind: str, header: dict[str, Any], digests: Mapping[str, str]) -> None:
    shards = {f"{folder}/{name}": digest for name, digest in sorted(digests.items())}
    with atomic_write(index) as temporary:
        temporary.write_text(json.dumps({"kind": {kind: header}, "shards": shards}, indent=1), encoding="utf-8")
    remove_stale(index.parent)


def _read_index(index: Path) -> dict[str, Any]:
    found = read_json(index, "snapshot")
    parts = [found.get(part) for part in ("kind", "shards")] if isinstance(found, dict) else []
    if [type(part) for part in parts] != [dict, dict] or not parts[1] or not all(map(_is_name, parts[1])):
        raise InputError(f"snapshot {index}: is no index of shards, or a damaged one; put back a copy")
    return dict(found)


def _is_name(name: str) -> bool:
    folder, slash, file = name.partition("/")
    return is_shards(folder) and bool(slash) and file == Path(file).name


@contextmanager
def _one_process() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
