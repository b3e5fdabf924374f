"""The snapshots of a run folder as a series."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icl_fast.arguments import whole_number, whole_numbers
from icl_fast.data import EvaluationSet, Exemplars, load_text, load_tokenizer
from icl_fast.data.exemplar_source import load_exemplars
from icl_fast.data.tokenizer import BOS_ID
from icl_fast.errors import InputError
from icl_fast.files import regular_file, sha256
from icl_fast.models import ModelShape, Snapshot, load_snapshot
from icl_fast.models.shards import SUFFIX
from icl_fast.runs.names import run_name
from icl_fast.runs.population import Population
from icl_fast.runs.run import TOKENIZER, Run
from icl_fast.runs.series import Series, Snapshots

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LISTED = re.compile(rf"^snapshots/step_(\d{{8}})(\.safetensors|{re.escape(SUFFIX)})$")
_LONGEST_HEADER = 100_000_000  # of safetensors; a file that claims a longer one is none


class RunSeries(Series):
    """Snapshots of a `Run`, all of them or some."""

    def __init__(self, run: Run, steps: Sequence[int] | None = None) -> None:
        """The snapshots of `run` at `steps`; by default all of them.

        Raises:
            InputError: the folder holds no run, or its config is damaged.
        """
        self.run, self.task = run, run.config.task
        self.name, self.path = run_name(run.path), run.path
        self.steps = run.snapshot_steps() if steps is None else sorted(whole_numbers("steps", steps))

    def at(self, steps: Sequence[int]) -> RunSeries:
        return RunSeries(self.run, steps)

    def whole(self) -> RunSeries:
        return RunSeries(self.run)

    def load(self, step: int) -> Snapshot[Any]:
        return self.run.load_snapshot(step)

    def weights_hash(self, step: int) -> str:
        return sha256(regular_file(self.run.snapshot_path(step), "snapshot"))

    def missing(self) -> dict[int, str]:
        """Snapshots that manifest.json lists and whose files are gone: step -> "missing". Empty for a selection of a
        run's snapshots, as the others were not asked for.

        Raises:
            InputError: manifest.json is damaged.
        """
        if self.steps != self.run.snapshot_steps():
            return {}
        listed = {int(match[1]) for name in self.run.manifest() if (match := _LISTED.match(name))}
        return {step: "missing" for step in sorted(listed.difference(self.run.snapshot_steps()))}

    def chosen(self, snapshots: Snapshots) -> Series:
        last = isinstance(snapshots, str) and snapshots == "last"
        if last and (gone := [step for step in self.missing() if step > self.steps[-1]]):
            raise InputError(
                f"snapshots: last is that of step {gone[-1]}, which manifest.json of {self.path} lists and is missing; "
                f"put it back, or give {self.steps[-1]}"
            )
        return super().chosen(snapshots)

    def why_not(self, step: int) -> str | None:
        path = self.run.snapshot_path(step)
        if not path.is_file():
            return "missing"
        if _cut_off(path):
            return "truncated"
        if self.run.manifest().get(str(path.relative_to(self.path)), digest := sha256(path)) != digest:
            return "damaged: its SHA-256 is not the one in manifest.json"
        try:
            self.run.check_own(load_snapshot(path), step)
        except InputError as error:
            reason = str(error).removeprefix(f"snapshot {path}: ").partition(";")[0]
            return f"weights not finite: {reason}" if "holds NaN or infinity" in reason else reason
        return None

    def evaluation_set(self, examples: int | None = None) -> EvaluationSet:
        text = load_text(self.run.text_config.data)
        if text.tokenizer.to_str() != self.run.tokenizer_json():
            raise InputError(f"ckpt: the corpus {self.corpus} on this machine is not the one of {self.path}")
        whole = text.evaluation()
        count = len(whole.inputs)
        if examples is not None and not 1 <= whole_number("examples", examples) <= count:
            raise InputError(f"examples: must be from 1 to {count}, what the evaluation set holds; got {examples}")
        chosen = slice(0, count if examples is None else examples)
        return EvaluationSet(whole.inputs[chosen], whole.targets[chosen], whole.random_position[chosen], whole.digest)

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.run.intact(TOKENIZER))

    @property
    def shape(self) -> ModelShape:
        return self.run.text_config.model

    @property
    def bos(self) -> int | None:
        return BOS_ID

    @property
    def ids(self) -> np.ndarray:
        return np.arange(self.run.text_config.data.vocab)

    @property
    def context(self) -> int:
        return self.run.text_config.data.evaluation_length

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def corpus(self) -> str:
        return self.run.text_config.data.corpus

    @property
    def population(self) -> Population:
        return self.run.population

    def exemplars(self, progress: Callable[[int, int, str], None] | None = None) -> Exemplars:
        found = load_exemplars(self.population.config.exemplars, progress)
        self.run.check_exemplars(found)
        return found


def run_of(ckpt: str | Path) -> Run:
    """The run that a run folder, or a snapshot file in its `snapshots/`, belongs to; it need not exist."""
    path = Path(ckpt)
    place = place_in_run(path) if os.path.isfile(path) else None
    return Run(path if place is None else place.parent.parent)


def place_in_run(snapshot: Path) -> Path | None:
    """RUN/snapshots/FILE of a snapshot file, as it is given or where links lead to it.

    Not where the links end: FILE may be one to where a store keeps its contents, under another name.
    """
    place = snapshot.absolute()
    while True:
        for path in (place, place.parent.resolve() / place.name):
            if path.parent.name == "snapshots" and Run(path.parent.parent).exists:
                return path
        if not place.is_symlink():
            return None
        place = place.parent / place.readlink()


def _cut_off(path: Path) -> bool:
    """Whether a safetensors file is shorter than it says: 8 bytes (little-endian) with the length of the header, the
    header (JSON), which says where each tensor ends, the tensors."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _LONGEST_HEADER))
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        return bool(size < 8 + length + max(ends, default=0))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):  # cut off in the header, or another format
        return size < 8 + length <= 8 + _LONGEST_HEADER
