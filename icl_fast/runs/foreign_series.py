"""Other people's checkpoints as a series: a folder of snapshots, one model, or revisions on the hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icl_fast.arguments import whole_number, whole_numbers
from icl_fast.data import EvaluationSet, EvaluationText, Exemplars
from icl_fast.data.evaluation_text import RANDOM, random_examples, text_examples
from icl_fast.data.foreign_tokenizer import ForeignTokenizer, foreign_tokenizer, ordinary_ids, read_tokenizer
from icl_fast.errors import InputError
from icl_fast.files import read_json, regular_file, sha256
from icl_fast.models import ModelShape, Snapshot, TransformerConfig
from icl_fast.models.foreign import (
    foreign_config,
    gguf_bos,
    gguf_file,
    gguf_tokenizer,
    load_foreign,
    weight_files,
)
from icl_fast.runs.foreign_places import Place, in_order, local_places, order_notes, place
from icl_fast.runs.hub import HubModel, hub_name
from icl_fast.runs.names import run_name
from icl_fast.runs.population import Population
from icl_fast.runs.series import Series

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class ForeignOptions:
    """What can be said of other people's models.

    Attributes:
        text: what they are evaluated on.
        revisions: names or patterns, such as `step0,step512` or `step*000`; None: all whose names say a step.
        keep_downloads: whether what comes from the hub stays in its cache, or goes after use; None: it stays.
        tokenizer: a tokenizer.json; None: the model's own.
    """

    text: EvaluationText = field(default_factory=EvaluationText)
    revisions: str | None = None
    keep_downloads: bool | None = None
    tokenizer: Path | None = None


class ForeignSeries(Series):
    """Snapshots of other people's training.

    Attributes:
        options: as given.
        text: what the models are evaluated on, nothing left open.
    """

    task = "text"

    def __init__(self, ckpt: str | Path, options: ForeignOptions | None = None) -> None:
        """All snapshots in a folder, or of `hf:ORG/NAME`.

        Raises:
            InputError: no model there, or none that is understood; a tokenizer that cannot be read; texts and no
                tokenizer; a context that is too long.
        """
        self.options = options or ForeignOptions()
        text = str(ckpt)
        self._hub = None
        if (name := hub_name(ckpt)) is not None:
            self._hub = HubModel(name, self.options.keep_downloads is not False)
            self.path = Path(name)
            named = [place(name, None, of_pythia="pythia" in text.lower()) for name in self._hub.revisions()]
            places = in_order(named, self.options.revisions, text, single=len(named) == 1)
        else:
            self.path = Path(ckpt)
            if self.options.keep_downloads is not None:
                raise InputError(f"keep_downloads: {ckpt} is on this machine, nothing is downloaded; leave it out")
            places = local_places(self.path, self.options.revisions)
        self.name = run_name(self.path.with_suffix("") if self.path.is_file() else self.path)
        self._places = {place.step: place for place in places}
        self.steps = list(self._places)
        self._hashes: dict[int, str] = {}
        home = self._folder(places[0], weights=False)
        self.config = foreign_config(home)
        self._tokenizer = self._own_tokenizer(home)
        self._bos = self._tokenizer.bos if self._tokenizer is not None else self._given_bos()
        self.text = self.options.text.resolved(self.config.context, self._tokenizer, self.path)

    def at(self, steps: Sequence[int]) -> ForeignSeries:
        part = object.__new__(ForeignSeries)
        part.__dict__.update(vars(self), steps=sorted(whole_numbers("steps", steps)))
        return part

    def whole(self) -> ForeignSeries:
        return self.at(list(self._places))

    def load(self, step: int) -> Snapshot[Any]:
        where = self._places[step]
        try:
            model = load_foreign(self._folder(where))
        finally:
            self._drop(where)
        if model.config != self.config:
            raise InputError(f"snapshot {step} ({where.name}): {_difference(self.config, model.config)}")
        return Snapshot(model, step, where.tokens or 0)

    def weights_hash(self, step: int) -> str:
        if step not in self._hashes:
            where = self._places[step]
            digests = self._hub.weight_digests(where.name) if self._hub is not None else None
            if digests is None:
                try:
                    files = weight_files(self._folder(where))
                    digests = {path.name: sha256(regular_file(path, "snapshot")) for path in files}
                finally:
                    self._drop(where)
            each = [digests[name] for name in sorted(digests)]
            self._hashes[step] = each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode()).hexdigest()
        return self._hashes[step]

    def hashes(self) -> dict[str, str]:
        """Step -> a digest of the weights and of what config.json says they are."""
        config = json.dumps(self.config.model_dump(mode="json"), sort_keys=True)
        return {
            str(step): hashlib.sha256(f"{self.weights_hash(step)}\n{config}".encode()).hexdigest()
            for step in self.steps
        }

    def missing(self) -> dict[int, str]:
        """Nothing says which snapshots there should be."""
        return {}

    def why_not(self, step: int) -> str | None:
        try:
            self.load(step)
        except InputError as error:
            where = self._places[step]
            message = str(error).replace(str(where.path), where.name)
            for prefix in (f"snapshot {step} ({where.name}): ", f"model {where.name}: "):
                message = message.removeprefix(prefix)
            return message.partition("; ")[0]
        return None

    def evaluation_set(self, examples: int | None = None) -> EvaluationSet:
        wanted = self.text.examples if examples is None else whole_number("examples", examples, 1)
        text = replace(self.text, examples=wanted)
        if text.sources == (RANDOM,):
            return random_examples(text, self.bos, self.ids)
        assert self._tokenizer is not None
        found = text_examples(text, self._tokenizer, self.config.vocab)
        if examples is not None and len(found.inputs) < examples:
            raise InputError(
                f"examples: must be from 1 to {len(found.inputs)}, what {text.name} holds at context {text.context}; "
                f"got {examples}"
            )
        return found

    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise InputError(f"tokenizer: {self.path} has no {TOKENIZER}; put it there, or give --tokenizer FILE")
        return self._tokenizer.tokenizer

    @property
    def reads_text(self) -> bool:
        return self._tokenizer is not None

    @property
    def shape(self) -> ModelShape:
        return self.config

    @property
    def bos(self) -> int | None:
        return self._bos

    @property
    def ids(self) -> np.ndarray:
        """Ids of tokens that stand in texts, int64: those that random sequences are drawn from."""
        vocab = self.config.vocab
        return np.arange(vocab) if self._tokenizer is None else ordinary_ids(self._tokenizer.tokenizer, vocab)

    @property
    def context(self) -> int:
        assert self.text.context is not None
        return self.text.context

    @property
    def results(self) -> Path:
        """`results/NAME` in the working directory: a folder of other people's is not written to."""
        return Path("results") / self.name

    @property
    def corpus(self) -> str:
        return self.text.name

    @property
    def population(self) -> Population:
        raise InputError(f"ckpt: {self.path} is no run on exemplars")

    def exemplars(self, progress: Callable[[int, int, str], None] | None = None) -> Exemplars:
        raise InputError(f"ckpt: {self.path} is no run on exemplars")

    def notes(self) -> list[str]:
        """What they are evaluated on, and what in this series cannot be. Reads every file once.

        Published series have had snapshots with the same weights, and in the wrong order.
        """
        said = self._tokenizer.said if self._tokenizer is not None else "no tokenizer: tokens are drawn at random"
        notes = [f"{self.corpus}, {self.context} tokens an example; {said}"]
        if len(self._places) == 1 and next(iter(self._places.values())).step == 0:
            notes.append("nothing says how many steps this snapshot had: it is called 0")
        notes += order_notes([self._places[step] for step in self.steps])
        by_hash: dict[str, list[int]] = {}
        for step in self.steps:
            with suppress(InputError):  # what is wrong with it is said when it is loaded
                by_hash.setdefault(self.weights_hash(step), []).append(step)
        for same in by_hash.values():
            if len(same) > 1:
                between = [step for step in self.steps if same[0] < step < same[-1] and step not in same]
                wrong = f"; those between differ ({between[0]}, ...), which no training does" if between else ""
                notes.append(f"snapshots {', '.join(map(str, same))} hold the same weights{wrong}")
        return notes

    def _folder(self, where: Place, *, weights: bool = True) -> Path:
        if where.path is not None:
            return where.path
        assert self._hub is not None
        return self._hub.fetch(where.name, weights=weights)

    def _drop(self, where: Place) -> None:
        if self._hub is not None:
            self._hub.drop(where.name)

    def _given_bos(self) -> int | None:
        """What is to begin examples of random tokens, without a tokenizer to know."""
        asked, vocab = self.options.text.bos, self.config.vocab
        if asked in ("auto", "none"):
            return None
        if not (asked.isdecimal() and len(asked) < 10 and int(asked) < vocab):
            raise InputError(f"bos: {asked!r} is neither auto, none nor one of the tokens 0 to {vocab - 1}")
        return int(asked)

    def _own_tokenizer(self, home: Path) -> ForeignTokenizer | None:
        """That of the options, of the first snapshot, or of the folder that holds all of them."""
        folders = (home if home.is_dir() else home.parent, self.path)
        beside = [path for folder in folders if os.path.lexists(path := folder / TOKENIZER)]
        found, in_gguf = self.options.tokenizer or next(iter(beside), None), gguf_file(home) is not None
        tokenizer = read_tokenizer(found) if found is not None else gguf_tokenizer(home) if in_gguf else None
        if tokenizer is None:
            return None
        config = home / "config.json"
        fields = read_json(config, "model") if config.is_file() else {}
        begins = gguf_bos(home) if in_gguf else None
        return foreign_tokenizer(tokenizer, fields, self.options.text.bos, begins=begins)


def _difference(first: TransformerConfig, other: TransformerConfig) -> str:
    """How the shape of a snapshot is another than that of its series."""
    ours, theirs = first.model_dump(), other.model_dump()
    name = next(name for name in ours if ours[name] != theirs[name])
    return f"is another model than the first snapshot ({name} {theirs[name]}, not {ours[name]}); a series has one shape"
