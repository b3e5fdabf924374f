"""A series: ordered snapshots of one training, one model in memory at a time, and what they are evaluated on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from icl_fast.data import EvaluationSet, Exemplars
from icl_fast.errors import InputError
from icl_fast.models import Snapshot
from icl_fast.runs.population import Population

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Series(ABC):
    """Ordered snapshots. Measurements ask for nothing else, so that a run of ours is one kind among others.

    Attributes:
        name: what it is called in messages and figures.
        path: where it lies; measurements of it go to `results/` below.
        task: what the models were trained on: `text` or `exemplars`.
        steps: of its snapshots, rising.
    """

    name: str
    path: Path
    task: Literal["text", "exemplars"]
    steps: list[int]

    @abstractmethod
    def at(self, steps: Sequence[int]) -> Series:
        """The series of these of its snapshots."""

    @abstractmethod
    def load(self, step: int) -> Snapshot[Any]:
        """One snapshot.

        Raises:
            InputError: none at that step, damaged, or with weights not finite.
        """

    @abstractmethod
    def weights_hash(self, step: int) -> str:
        """SHA-256 (hex) of a snapshot's weights as they are stored."""

    @abstractmethod
    def missing(self) -> dict[int, str]:
        """Snapshots that are known to have been, and are not there: step -> "missing"."""

    @abstractmethod
    def why_not(self, step: int) -> str | None:
        """Why a snapshot cannot be used, in a few words without paths; None: it can. Its file is read whole."""

    @abstractmethod
    def evaluation_set(self, examples: int | None = None) -> EvaluationSet:
        """Of a series on text: the fixed examples that it is evaluated on, all or the first so many.

        Raises:
            InputError: the text on this machine is not the series', or has fewer examples.
        """

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Of a series on text.

        Raises:
            InputError: it is not there, or damaged.
        """

    @property
    @abstractmethod
    def corpus(self) -> str:
        """What a series on text was trained on, by name."""

    @property
    @abstractmethod
    def population(self) -> Population:
        """The members of a series on exemplars."""

    @abstractmethod
    def exemplars(self, progress: Callable[[int, int, str], None] | None = None) -> Exemplars:
        """What a series on exemplars was trained on, made anew from what its config names.

        Args:
            progress: called while glyphs are rendered.
        """

    def chosen(self, which: str) -> Series:
        """The series of the snapshots that a `--snapshots` value means.

        Args:
            which: `all`, `last`, or steps such as `0,50,100`.

        Raises:
            InputError: none of these, or a step that is not there.
        """
        return self.at(chosen_steps(self.steps, which))

    def readable(self) -> tuple[Series, dict[int, str]]:
        """The snapshots that can be used, and why each other cannot; every file is loaded, one at a time.

        Returns:
            The series of those that can be used; and for the others, and for those that `missing` finds, step ->
            reason, such as "missing", "truncated", "damaged: its SHA-256 is not the one in manifest.json".
        """
        reasons = {step: self.why_not(step) for step in self.steps}
        left_out = self.missing() | {step: reason for step, reason in reasons.items() if reason is not None}
        return self.at([step for step in self.steps if reasons[step] is None]), dict(sorted(left_out.items()))

    def hashes(self) -> dict[str, str]:
        """Step (as text, for JSON) -> `weights_hash`: what the results of a measurement depend on."""
        return {str(step): self.weights_hash(step) for step in self.steps}

    def __iter__(self) -> Iterator[Snapshot[Any]]:
        """All snapshots in order; the next is read while the present one is worked on.

        Raises:
            InputError: as `load`, when it is that snapshot's turn.
        """
        with ThreadPoolExecutor(1) as loader:
            upcoming = [loader.submit(self.load, step) for step in self.steps[:1]]
            for number in range(len(self.steps)):
                snapshot = upcoming.pop().result()
                upcoming += [loader.submit(self.load, step) for step in self.steps[number + 1 : number + 2]]
                yield snapshot


def chosen_steps(steps: Sequence[int], which: str) -> list[int]:
    """The steps that a `--snapshots` value means, of those that are there.

    Args:
        which: `all`, `last`, or steps such as `0,50,100`.

    Raises:
        InputError: none of these, or a step that is not there.
    """
    if which == "all":
        return list(steps)
    if which == "last":
        return list(steps[-1:])
    items = [item.strip() for item in which.split(",")]
    if not all(item.isdecimal() for item in items):
        raise InputError(f"snapshots: {which!r} is neither all, last nor steps such as 0,50,100")
    chosen = sorted({int(item) for item in items})
    if missing := [step for step in chosen if step not in steps]:
        raise InputError(f"snapshots: none at step {missing[0]}; there are {', '.join(map(str, steps))}")
    return chosen
