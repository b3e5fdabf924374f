"""A series: ordered snapshots of one training, one model in memory at a time, and what they are evaluated on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from icl_fast.arguments import whole_numbers
from icl_fast.data import EvaluationSet, Exemplars
from icl_fast.errors import InputError
from icl_fast.models import ModelShape, Snapshot
from icl_fast.notebook import some, table
from icl_fast.runs.population import Population

if TYPE_CHECKING:
    from tokenizers import Tokenizer


Snapshots = str | int | Sequence[int]


class Series(ABC):
    """Snapshots of one training in order: all that measurements need, so that a run folder is one source among others.

    `for snapshot in series` loads one model at a time. `open_series` makes one from a run folder. A series may be
    empty, such as the `readable` part of one that is damaged; measurements refuse it.

    Attributes:
        name: its name in messages and figures.
        path: its folder, or its name on the hub.
        task: what the models were trained on, `text` or `exemplars`.
        steps: optimizer steps of its snapshots, rising.
    """

    name: str
    path: Path
    task: Literal["text", "exemplars"]
    steps: list[int]

    @abstractmethod
    def at(self, steps: Sequence[int]) -> Series:
        """The same series with only the snapshots at these steps."""

    @abstractmethod
    def whole(self) -> Series:
        """The series of every snapshot there is, of which this may be a part."""

    @abstractmethod
    def load(self, step: int) -> Snapshot[Any]:
        """The snapshot at a step.

        Raises:
            InputError: there is none, it is damaged, or its weights are not finite.
        """

    @abstractmethod
    def weights_hash(self, step: int) -> str:
        """SHA-256 (hex) of a snapshot's weights as they are stored."""

    @abstractmethod
    def missing(self) -> dict[int, str]:
        """Snapshots that are known to have existed and are gone: step -> "missing"."""

    @abstractmethod
    def why_not(self, step: int) -> str | None:
        """Why a snapshot cannot be used, in a few words without paths, or None if it can. Reads the whole file."""

    @abstractmethod
    def evaluation_set(self, examples: int | None = None) -> EvaluationSet:
        """On text: the fixed examples that the series is evaluated on, or the first `examples` of them.

        Raises:
            InputError: the text on this machine is not what the series was trained on, or has fewer examples.
        """

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """On text: the tokenizer.

        Raises:
            InputError: it is missing or damaged.
        """

    @property
    def reads_text(self) -> bool:
        """Whether there is a tokenizer."""
        return self.task == "text"

    @property
    @abstractmethod
    def shape(self) -> ModelShape:
        """On text: what the models have in common."""

    @property
    @abstractmethod
    def bos(self) -> int | None:
        """On text: id of the token that begins each example; None: none does."""

    @property
    @abstractmethod
    def ids(self) -> np.ndarray:
        """On text: ids of the tokens that stand in texts, int64, rising."""

    @property
    @abstractmethod
    def context(self) -> int:
        """On text: T, tokens to predict in an example."""

    @property
    @abstractmethod
    def corpus(self) -> str:
        """On text: the name of the corpus, or of the texts that the series is evaluated on."""

    @property
    @abstractmethod
    def results(self) -> Path:
        """Where measurements go by default."""

    def notes(self) -> list[str]:
        """What should be known of the series before its numbers are read, a sentence each."""
        return []

    @property
    @abstractmethod
    def population(self) -> Population:
        """On exemplars: the members."""

    @abstractmethod
    def exemplars(self, progress: Callable[[int, int, str], None] | None = None) -> Exemplars:
        """On exemplars: the exemplars, loaded or rendered again as the config says.

        Args:
            progress: called while glyphs are rendered.
        """

    def chosen(self, snapshots: Snapshots) -> Series:
        """The series of the snapshots that a `--snapshots` value selects.

        Args:
            snapshots: `all`, `last`, or steps, as text such as `0,50,100` or as whole numbers.

        Raises:
            InputError: not of that form, or a step without a snapshot.
        """
        return self.at(chosen_steps(self.steps, snapshots))

    def readable(self) -> tuple[Series, dict[int, str]]:
        """The snapshots that can be used, and why each of the others cannot. Loads every file, one at a time.

        Returns:
            The series of those that can be used; and, for the others and those that `missing` finds, step -> reason:
            "missing", "truncated", "damaged: its SHA-256 is not the one in manifest.json".
        """
        reasons = {step: self.why_not(step) for step in self.steps}
        left_out = self.missing() | {step: reason for step, reason in reasons.items() if reason is not None}
        return self.at([step for step in self.steps if reasons[step] is None]), dict(sorted(left_out.items()))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        on_text = self.task == "text"
        facts = {
            "from": self.path,
            "task": self.task,
            "evaluated on": f"{self.corpus}, {self.context} tokens an example" if on_text else None,
            "snapshots": some(self.steps),
            "results": self.results,
        }
        return table(f"Series {self.name}", facts)

    def hashes(self) -> dict[str, str]:
        """Step (as text, for JSON) -> `weights_hash`: what identifies the models that a measurement used."""
        return {str(step): self.weights_hash(step) for step in self.steps}

    def __iter__(self) -> Iterator[Snapshot[Any]]:
        """All snapshots in order; the next one is read in the background.

        Raises:
            InputError: as `load`, at that snapshot.
        """
        with ThreadPoolExecutor(1) as loader:
            upcoming = [loader.submit(self.load, step) for step in self.steps[:1]]
            for number in range(len(self.steps)):
                snapshot = upcoming.pop().result()
                upcoming += [loader.submit(self.load, step) for step in self.steps[number + 1 : number + 2]]
                yield snapshot


def chosen_steps(steps: Sequence[int], snapshots: Snapshots) -> list[int]:
    """The steps, of those available, that a `--snapshots` value selects.

    Args:
        snapshots: `all`, `last`, or steps, as text such as `0,50,100` or as whole numbers.

    Raises:
        InputError: not of that form, a step without a snapshot, or one that is given twice.
    """
    if isinstance(snapshots, str) and snapshots in ("all", "last"):
        return list(steps[-1:] if snapshots == "last" else steps)
    if isinstance(snapshots, str):
        items = [item.strip() for item in snapshots.split(",")]
        if not all(item.isdecimal() and len(item) < 19 for item in items):
            raise InputError(f"snapshots: {snapshots!r} is neither all, last nor steps such as 0,50,100")
        chosen = sorted(map(int, items))
    else:
        chosen = sorted(whole_numbers("snapshots", np.ravel(np.array(snapshots, dtype=object))))
        if not chosen:
            raise InputError("snapshots: name one or more; all means all of them")
    if doubled := [step for step, following in pairwise(chosen) if step == following]:
        raise InputError(f"snapshots: {doubled[0]} is given twice")
    if missing := [step for step in chosen if step not in steps]:
        raise InputError(f"snapshots: none at step {missing[0]}; there are {', '.join(map(str, steps))}")
    return chosen
