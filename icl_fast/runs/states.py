"""The state that a resumed run needs, in one file that tells whether it is as it was written."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.files import atomic_write, regular_file
from icl_fast.memory import check_fits

State = dict[str, Any]

STATE_FORMAT = "icl_fast.state.1"  # of a sharded one
_DIGEST = "sha256"  # in the state itself, so that no kill can come between the two
_ADVICE = "put back a copy of the file, or start the run anew"


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state (dicts and lists of numbers, text and tensors) in place of the one written before.

    Raises:
        InputError: the disk is full or the folder not writable.
    """
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(_interned({**state, _DIGEST: _digest(state)}), file)
        except RuntimeError as error:  # torch wraps what the file raised, such as a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def read_state(path: Path) -> State:
    """What `write_state` wrote, on the CPU; nothing in it is executed.

    Raises:
        InputError: no file, not a state, or not as it was written.
    """
    size = regular_file(path, "state").stat().st_size
    check_fits(size, f"state {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it is a {type(state).__name__}")
        noted = state.pop(_DIGEST, None)  # none: an earlier version wrote it
        if noted is not None and noted != _digest(state):
            raise ValueError("it is not as it was written")
    except Exception as error:  # torch's readers raise whatever they meet in bytes that nobody wrote
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: damaged ({reason:.200}); {_ADVICE}") from None
    return state


def check_state(state: Any, like: Any, source: str) -> None:
    """Compare a state with one of the run that it is read for: the same names, types and shapes, and finite numbers.

    Args:
        like: a state of that run at any step; counts in it are compared, but for those that change from step to step.
        source: what messages call the state.

    Raises:
        InputError: it is another's; it names the part.
    """
    if isinstance(like, dict):
        _demand(isinstance(state, dict), source, f"is {_kind(state)}, the run's has parts")
        unlike = sorted(map(str, state.keys() ^ like.keys()))
        _demand(not unlike, source, f"missing or unknown: {', '.join(unlike[:5])}")
        for name, part in like.items():
            check_state(state[name], part, f"{source}: {name}")
    elif isinstance(like, Tensor):
        _demand(_kind(state) == _kind(like), source, f"is {_kind(state)}, the run's is {_kind(like)}")
        _demand(bool(torch.isfinite(state).all()), source, "holds NaN or infinity")
        _demand(like.is_floating_point() or torch.equal(state, like.cpu()), source, "has other counts than the run's")
    else:
        _demand(type(state) is type(like), source, f"is {_kind(state)}, the run's is {_kind(like)}")
        _demand(not isinstance(state, float) or math.isfinite(state), source, f"is {state}")


def check_count(count: int, least: int, most: int, source: str) -> None:
    """Refuse a count of a state that is out of range.

    Raises:
        InputError: it is.
    """
    _demand(least <= count <= most, source, f"is {count}, and in this run it is {least} to {most}")


def _demand(holds: bool, source: str, problem: str) -> None:
    if not holds:
        raise InputError(f"{source} {problem}; {_ADVICE}")


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _interned(value: Any) -> Any:
    """The same for pickle, which writes text that is one object once: equal states give equal bytes."""
    if isinstance(value, str):
        return sys.intern(value)
    if type(value) is dict:
        return {_interned(key): _interned(one) for key, one in value.items()}
    return type(value)(map(_interned, value)) if type(value) in (list, tuple) else value


def _digest(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    _feed(digest, state)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError("a tensor is larger than what is stored of it")
        digest.update(f"{_kind(value)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, (Mapping, list, tuple)):
        digest.update(f"{len(value)} parts;".encode())
        for part in value.items() if isinstance(value, Mapping) else value:
            _feed(digest, part)
    else:
        digest.update(f"{value!r};".encode())
