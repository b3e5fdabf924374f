"""The processes that torchrun started for one training: which of them this is, and what they tell each other.

Outside `joined`, and without torchrun, there is one rank, and nothing here asks anybody.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from icl_fast.errors import InputError

Value = TypeVar("Value")


class RefusedElsewhere(InputError):
    """What another rank refused: its own message, which that rank's program prints."""


@contextmanager
def joined() -> Iterator[None]:
    """Joins the ranks of torchrun until the body ends; within another `joined`, or alone, it does nothing.

    Raises:
        InputError: another rank died, so that this one cannot go on.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(here() % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            reason = str(error).splitlines()[0]
            raise InputError(
                f"torchrun: rank {rank()} lost another ({reason:.120}); see why it ended, then go on with --resume"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def here() -> int:
    """Which of the ranks on this machine this is, from 0."""
    return int(os.environ["LOCAL_RANK"])


def count_here() -> int:
    """How many ranks share this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if count() > 1 else 1


@contextmanager
def together() -> Iterator[None]:
    """What one rank refuses in the body, all of them do; in the body none may wait for another.

    Raises:
        InputError: the body's own, or `RefusedElsewhere` where only another rank's body raised one.
    """
    if count() == 1:
        yield
        return
    mine: InputError | None = None
    try:
        yield
    except InputError as error:
        mine = error
    messages = gathered(None if mine is None else str(mine))
    # of ranks that refuse alike, the first says it
    if mine is not None and str(mine) not in messages[: rank()]:
        raise mine
    if refused := [message for message in messages if message is not None]:
        raise RefusedElsewhere(refused[0])


def first(make: Callable[[], Value]) -> Value:
    """What `make` returns on the first rank, on all of them.

    Raises:
        InputError: as `together`.
    """
    values: list[Any] = [None]
    with together():
        if rank() == 0:
            values[0] = make()
    if count() > 1:
        dist.broadcast_object_list(values)
    value: Value = values[0]
    return value


def gathered(value: Value) -> list[Value]:
    """The values of all ranks, in their order."""
    values: list[Any] = [value] * count()
    if count() > 1:
        dist.all_gather_object(values, value)
    return values


def anywhere(flag: bool) -> bool:
    """Whether it is true on some rank."""
    if count() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def average(value: Tensor) -> Tensor:
    """The mean of a tensor over the ranks, in its place."""
    if count() > 1:
        dist.all_reduce(value)
        value /= count()
    return value
