"""What does the tasks of a piece of work, which say what they need and not where they run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Needs:
    """What one task takes where it runs.

    Attributes:
        memory: bytes, beside its value and the program.
        device: type of the device that it computes on, `cpu` or `cuda`.
        threads: of OpenMP and torch. Sums are rounded by it, so it is 1 wherever bits are to be the same.
    """

    memory: int = 0
    device: str = "cpu"
    threads: int = 1


class Runner(ABC):
    """Does tasks, each of which is a value that several share, such as a snapshot, and a key, such as a shard of
    examples.

    Tasks must be pure: what one gives depends on its value and key alone, so that it may be done anywhere, at any time
    and, where a worker was lost, again. Whoever asks for them must not mind in which order they end.
    """

    @abstractmethod
    def run(
        self,
        compute: Callable[[Value, Key], Result],
        work: Iterable[tuple[Value, Sequence[Key]]],
        needs: Needs,
    ) -> Iterator[tuple[Key, Result]]:
        """Yield each key with what `compute` gives of it, as they end.

        Args:
            compute: the same for all tasks; it may keep what tasks of one value have in common.
            work: values, each with its keys; they are asked for a little before they are needed.
            needs: of each task.

        Raises:
            InputError: of a task, as soon as it is known; the others are given up.
        """

    @property
    @abstractmethod
    def workers(self) -> int | None:
        """How many tasks run at a time, as it is now; None: there are no workers, this process does them."""


class Here(Runner):
    """This process does the tasks, in their order and with its own threads."""

    @property
    def workers(self) -> None:
        return None

    def run(
        self,
        compute: Callable[[Value, Key], Result],
        work: Iterable[tuple[Value, Sequence[Key]]],
        needs: Needs,
    ) -> Iterator[tuple[Key, Result]]:
        for value, keys in work:
            for key in keys:
                yield key, compute(value, key)


HERE = Here()


def by_workers(workers: int | None) -> str:
    """What is said of workers behind how far something is; nothing where there are none."""
    return "" if workers is None else f", {workers} worker{'s' * (workers != 1)}"
