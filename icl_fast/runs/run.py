"""A training run on disk (docs/design.md, "Run folders")."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from icl_fast import ranks
from icl_fast.data import Exemplars
from icl_fast.data.exemplar_source import settled
from icl_fast.data.fingerprint import fingerprint, is_same
from icl_fast.errors import InputError
from icl_fast.files import (
    atomic_write,
    disk_error,
    is_temporary,
    locked,
    parse_json,
    read_json,
    regular_file,
    sha256,
    sweep,
    to_json,
)
from icl_fast.models import ExemplarModel, Snapshot, Transformer, load_snapshot, save_snapshot
from icl_fast.models.checkpoints import save_sharded_snapshot
from icl_fast.models.shards import SUFFIX, Shards, is_shards, remove_stale, write_shards
from icl_fast.notebook import some, table
from icl_fast.runs.config import RunConfig, differing_keys, load_config
from icl_fast.runs.exemplar_config import ExemplarRunConfig
from icl_fast.runs.population import Population
from icl_fast.runs.states import STATE_FORMAT, State, read_state, write_state
from icl_fast.runs.text_config import HOW_COMPUTED, TextRunConfig

_SNAPSHOT_NAME = re.compile(rf"step_([0-9]{{8}})(\.safetensors|{re.escape(SUFFIX)})")
_SHA256 = re.compile("[0-9a-f]{64}")
CONFIG, TOKENIZER, LOG, STATE, MANIFEST = "config.yaml", "tokenizer.json", "log.jsonl", "optimizer.pt", "manifest.json"
SHARDED_STATE = f"optimizer{SUFFIX}"
EXEMPLARS = "exemplars.json"
_LOCK = ".lock-training"
# what else a run has written before its first state
_FIRST = "snapshots/step_00000000"
_EARLY = (CONFIG, TOKENIZER, EXEMPLARS, LOG, f"{_FIRST}.safetensors", f"{_FIRST}{SUFFIX}")


class Run:
    """The folder of one run, or of a population of runs, on text or on exemplars.

        run = Run("runs/two_layer")
        run.config, run.snapshot_steps(), run.load_snapshot(150).model

    Every file but the log appears whole or not at all. `config.task` says what the run is trained on: `text` or
    `exemplars`. Nothing is read before it is asked for: `exists` says whether there is a run at all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def _repr_html_(self) -> str:
        """What a notebook shows; of a folder without a run, or with a damaged one, what is wrong."""
        try:
            return table(f"Run {self.path}", self._facts())
        except InputError as error:
            return table(f"Run {self.path}", {"": error})

    def _facts(self) -> dict[str, Any]:
        config, log = self.config, self.read_log()
        model, training = config.model, config.training
        if isinstance(config, TextRunConfig):
            data = f"{config.data.corpus}, vocabulary {config.data.vocab:,}, context {config.data.context}"
        else:
            data = f"{config.exemplars.kind}, {config.sequences.pairs} pairs, {config.member_count} members"
        losses = [line["loss"] for line in log if "loss" in line]
        return {
            "task": config.task,
            "data": data,
            "model": f"{model.layers} layers of {model.heads} heads, width {model.width}"
            + (", with MLPs" if model.mlp else ", attention-only"),
            "training": f"{training.steps:,} steps of {training.batch}, lr {training.lr:g}, seed {training.seed}",
            "steps done": f"{log[-1]['step']:,} of {training.steps:,}" if log else "none",
            "last loss": f"{np.mean(losses[-1]):.3f} nats" if losses else None,
            "snapshots": some(self.snapshot_steps()),
            "results": ", ".join(path.stem for path in sorted(self.path.glob("results/*.zarr"))) or None,
        }

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return os.path.lexists(self.path / CONFIG)

    @cached_property
    def config(self) -> RunConfig:
        """The run's config.

        Raises:
            InputError: no run here, or its config is damaged or was changed.
        """
        if not self.exists:
            allowed = not self.path.is_dir() or os.access(self.path, os.R_OK | os.X_OK)
            why = "holds no run (no config.yaml)" if allowed else "cannot be read, its permissions do not allow it"
            raise InputError(f"run folder {self.path}: {why}")
        return load_config(self.intact(CONFIG))

    @property
    def text_config(self) -> TextRunConfig:
        """The config of a run on text.

        Raises:
            InputError: as `config`, or the run is on exemplars.
        """
        if not isinstance(self.config, TextRunConfig):
            raise InputError(f"run folder {self.path}: was trained on exemplars; this needs a run on text")
        return self.config

    @cached_property
    def population(self) -> Population:
        """The members of a run on exemplars.

        Raises:
            InputError: as `config`, or the run is on text.
        """
        if not isinstance(self.config, ExemplarRunConfig):
            raise InputError(f"run folder {self.path}: was trained on text; this needs a run on exemplars")
        return Population(self.config)

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.json of a run on text."""
        return self.path / TOKENIZER

    @property
    def state_path(self) -> Path:
        """What a resumed run goes on from, of a sharded state the index."""
        sharded = self.path / SHARDED_STATE
        return sharded if sharded.exists() else self.path / STATE

    def tokenizer_json(self) -> str:
        """What tokenizer.json of a run on text holds.

        Raises:
            InputError: it is missing, damaged or was changed.
        """
        try:
            return self.intact(TOKENIZER).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{self.tokenizer_path}: is not UTF-8, and so no tokenizer of this run") from None

    def intact(self, name: str) -> Path:
        """The path of a file of the run that is as manifest.json says, if that lists it.

        Raises:
            InputError: it is missing or cannot be read; its SHA-256 is another; manifest.json is damaged.
        """
        path = regular_file(self.path / name, "run folder")
        if self.manifest().get(name, digest := sha256(path)) != digest:
            raise InputError(
                f"{path}: is not as the run wrote it (its SHA-256 is not the one in manifest.json); put back a "
                "copy, or take its line out of manifest.json if the change is meant"
            )
        return path

    def writing(self) -> AbstractContextManager[None]:
        """Keeps other processes from training here meanwhile.

        Raises:
            InputError: another process does, or the folder cannot be written.
        """
        return locked(self.path / _LOCK, f"run folder {self.path}")

    def settled(
        self, config: RunConfig, *, resume: bool, progress: Callable[[int, int, str], None] | None = None
    ) -> RunConfig:
        """The config with what `exemplars.kind=auto` stands for: what the run took that goes on here, or what this
        machine has.

        Args:
            progress: called while glyphs are rendered.

        Raises:
            InputError: as `check`.
        """
        if not isinstance(config, ExemplarRunConfig) or config.exemplars.kind != "auto":
            return config
        self.check(config, resume=resume)  # before fonts are looked for
        begun = self.config if resume and self.exists else None
        if isinstance(begun, ExemplarRunConfig) and not differing_keys(begun, config):
            return config.model_copy(update={"exemplars": begun.exemplars})
        return config.model_copy(update={"exemplars": settled(config.exemplars, progress)})

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Check that a run with this config can start here or, with `resume`, continue.

        A run that was killed before its first state was saved is no hindrance to another, nor to its own start.

        Raises:
            InputError: the folder holds something else; with `resume`: it holds no run, or one with another config.
        """
        if resume and self.exists:
            differing = [key for key in differing_keys(self.config, config) if key not in HOW_COMPUTED]
            if differing:
                raise InputError(f"--resume: {self.path} was begun with other values of {', '.join(differing)}")
        elif resume:
            if not self._is_half_begun() or set(os.listdir(self.path)) <= {_LOCK}:
                raise InputError(f"--resume: {self.path} holds no run to resume; leave --resume out to begin one")
        elif self.path.exists() and not self._is_half_begun():
            raise InputError(f"run folder {self.path}: exists and is not empty; use --resume or another --out")

    def check_exemplars(self, exemplars: Exemplars) -> None:
        """Refuse exemplars that are not those that the run was trained on, as far as it says which those were.

        Raises:
            InputError: they are others; exemplars.json is damaged.
        """
        if not (self.path / EXEMPLARS).exists():  # of a run that an earlier version wrote
            return
        noted = parse_json(self.intact(EXEMPLARS).read_bytes(), f"{self.path / EXEMPLARS}")
        if not isinstance(noted, dict) or not is_same(fingerprint(exemplars), noted):
            raise InputError(
                f"exemplars: {self.path} was trained on others than {exemplars.source or 'these'}; fonts, images or "
                "the file that its config names have changed, or are others on this machine"
            )

    def begin(
        self,
        config: RunConfig,
        *,
        resume: bool,
        tokenizer_json: str | None = None,
        exemplars: Exemplars | None = None,
    ) -> State | Shards | None:
        """Start a run here, or continue the one that is here.

        Args:
            tokenizer_json: of a run on text.
            exemplars: of a run on exemplars.

        Returns:
            The state saved last, or None where the run starts from scratch.

        Raises:
            InputError: as `check`; the folder cannot be written; the saved state is damaged or gone, or belongs to
                another corpus or other exemplars.
        """
        self.check(config, resume=resume)
        # config.yaml comes last, so that a folder that has one is a run that can be resumed
        files = {} if tokenizer_json is None else {TOKENIZER: tokenizer_json}
        if exemplars is not None:
            files[EXEMPLARS] = to_json(fingerprint(exemplars))
        files[CONFIG] = config.to_yaml()
        if resume and self.exists:
            if tokenizer_json is not None and self.tokenizer_json() != tokenizer_json:
                corpus = self.text_config.data.corpus
                raise InputError(f"--resume: the corpus {corpus} is not the one {self.path} was begun with")
            if exemplars is not None:
                self.check_exemplars(exemplars)
            state = self.load_state()
            if state is None and self.snapshot_steps()[1:]:
                raise InputError(f"--resume: {self.path} has snapshots, but {STATE} is gone; start it anew")
            there = {name for name in files if (self.path / name).exists()}
            if unlisted := there - self.manifest().keys():  # of a run that an earlier version began
                self.note(*unlisted)
            return state
        for name in _EARLY:
            (self.path / name).unlink(missing_ok=True)
        remove_stale(self.path / "snapshots")
        # the manifest comes first: by it they are known as ours, whenever the process is killed
        self._write_manifest({name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()})
        for name, text in files.items():
            with atomic_write(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return None

    def _is_half_begun(self) -> bool:
        """Whether the folder holds nothing, or nothing but what a run has written that has no state yet."""
        if not self.path.is_dir():
            return False
        paths = [*self.path.glob("*"), *self.path.glob("snapshots/*")]
        names = {path.relative_to(self.path).as_posix() for path in paths if not is_temporary(path.name)}
        names -= {_LOCK, "snapshots"}
        names = {name for name in names if not (name.startswith(f"{_FIRST}.") and is_shards(name))}
        if not names:
            return True
        try:
            noted = self.manifest()
        except InputError:
            return False
        unlike = [
            name for name in names & {CONFIG, TOKENIZER, EXEMPLARS} if noted.get(name) != sha256(self.path / name)
        ]
        return names <= {MANIFEST, *_EARLY} and CONFIG in noted and not unlike

    def snapshot_path(self, step: int) -> Path:
        """The file of the snapshot after `step` steps, of a sharded one the index."""
        sharded = self._sharded_path(step)
        return sharded if sharded.exists() else self.path / "snapshots" / f"step_{step:08d}.safetensors"

    def _sharded_path(self, step: int) -> Path:
        return self.path / "snapshots" / f"step_{step:08d}{SUFFIX}"

    def snapshot_steps(self) -> list[int]:
        """The steps that have a snapshot, in order.

        Raises:
            InputError: the folder may not be read.
        """
        folder = self.path / "snapshots"
        try:
            names = os.listdir(folder) if os.path.lexists(folder) else []
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
        return sorted(int(match[1]) for name in names if (match := _SNAPSHOT_NAME.fullmatch(name)))

    def save_snapshot(self, model: Transformer | ExemplarModel, *, step: int, seen: int) -> None:
        """Write a snapshot and record its hash."""
        path = self.snapshot_path(step)
        save_snapshot(path, model, step=step, seen=seen)
        self.note(self._name(path))

    def save_sharded_snapshot(self, model: Transformer, *, step: int, seen: int) -> None:
        """Write a snapshot, each rank the part of the weights that it holds; all ranks call it."""
        path = self._sharded_path(step)
        save_sharded_snapshot(path, model, step=step, tokens=seen)
        ranks.first(lambda: self.note(self._name(path)))

    def load_snapshot(self, step: int) -> Snapshot[Any]:
        """Read a snapshot.

        Raises:
            InputError: no snapshot at that step, a damaged one (its hash is compared), one of another run or step, or
                weights that are not finite.
        """
        path, manifest = self.snapshot_path(step), self.manifest()
        regular_file(path, "snapshot")
        if manifest.get(self._name(path), digest := sha256(path)) != digest:
            raise InputError(f"snapshot {path}: its SHA-256 is not the one in manifest.json; the file is damaged")
        snapshot = load_snapshot(path)
        self.check_own(snapshot, step)
        return snapshot

    def check_own(self, snapshot: Snapshot[Any], step: int) -> None:
        """Refuse a snapshot that is not the one that this run takes after `step` steps.

        Raises:
            InputError: its step, what it has seen or its shape is not what config.yaml says; or manifest.json lists
                later ones and not it.
        """
        path, config = self.snapshot_path(step), self.config
        name, listed = self._name(path), self.manifest()
        # the newest may be unlisted: a kill can come between a snapshot and its line
        if name not in listed and any(other > name for other in listed if other.startswith("snapshots/")):
            raise InputError(f"snapshot {path}: is not in manifest.json, so that another run wrote it; take it away")
        seen, expected = step * config.training.batch, config.model.model_dump()
        found = snapshot.model.config.model_dump() | {"step": snapshot.step, "seen": snapshot.seen}
        if isinstance(config, TextRunConfig):
            seen *= config.data.context
            expected |= {"vocab": config.data.vocab, "context": config.data.context}
        else:
            found["members"] = snapshot.model.members
            expected |= {"pairs": config.sequences.pairs, "members": config.member_count}
        for key, value in (expected | {"step": step, "seen": seen}).items():
            if found.get(key) != value:
                raise InputError(
                    f"snapshot {path}: its {key} is {found.get(key)!r:.80} and that of {self.path / CONFIG} "
                    f"{value!r:.80}; one of the two is another run's"
                )

    def save_state(self, state: State) -> None:
        """Write what a resumed run needs, weights included, in place of the state saved before."""
        self.forget(STATE)  # of a finished run; first: a kill must not leave a state that looks damaged
        write_state(self.path / STATE, state)

    def save_sharded_state(self, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
        """The same, each rank the part that it holds; all ranks call it. `header` has `step`."""
        ranks.first(lambda: self.forget(SHARDED_STATE))
        write_shards(self.path / SHARDED_STATE, f"optimizer_{header['step']:08d}", tensors, STATE_FORMAT, header)

    def load_state(self) -> State | Shards | None:
        """The state written last, of a sharded one what reads it, or None if the run was stopped before its first.

        Raises:
            InputError: the file is damaged; or it is gone, and the run was finished.
        """
        if self._is_there(SHARDED_STATE):
            return Shards(self.intact(SHARDED_STATE))
        return read_state(self.intact(STATE)) if self._is_there(STATE) else None

    def append_log(self, record: dict[str, Any]) -> None:
        """Add a line to log.jsonl, or none of it.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        path = self.path / LOG
        try:
            end = path.stat().st_size if path.exists() else 0
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError:
                os.truncate(path, end)
                raise
        except OSError as error:
            raise disk_error(path, error) from error

    def read_log(self) -> list[dict[str, Any]]:
        """All complete lines of log.jsonl; a last line that a killed run left incomplete is skipped.

        Raises:
            InputError: a line that the run did not write, by its number; a log that is not as manifest.json says.
        """
        path = self.path / LOG
        if not self._is_there(LOG):
            return []
        lines = regular_file(path, "run folder").read_bytes().split(b"\n")[:-1]
        records = [parse_json(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]
        for number, record in enumerate(records, 1):
            if not isinstance(record, dict) or type(step := record.get("step")) is not int or not 0 <= step < 2**63:
                raise InputError(
                    f"{path}: line {number}: is no record of a step; take the line out, or put back a copy"
                )
        self.intact(LOG)
        return records

    def cut_log(self, step: int) -> None:
        """Drop the log's lines after `step`, and temporary files of a killed run: a resumed run writes them anew."""
        kept = "".join(json.dumps(record) + "\n" for record in self.read_log() if record["step"] <= step)
        path = self.path / LOG
        if not path.is_file() or path.read_text(encoding="utf-8") != kept:
            self.forget(LOG)  # first: a kill must not leave a log that looks damaged
            with atomic_write(path) as temporary:
                temporary.write_text(kept, encoding="utf-8")
        for folder in (self.path, self.path / "snapshots"):
            sweep(folder)
            remove_stale(folder)

    def finish(self) -> None:
        """Record the hashes of the files that stop changing when the run ends."""
        self.note(LOG, self.state_path.name)

    def manifest(self) -> dict[str, str]:
        """File name to SHA-256 (hex).

        Raises:
            InputError: manifest.json is damaged, or may not be read.
        """
        path = self.path / MANIFEST
        if not os.path.lexists(path):
            return {}
        entries = read_json(path, "run folder")
        if not isinstance(entries, dict):
            raise InputError(f"{path}: damaged (it is no JSON object); put back a copy")
        for name, digest in entries.items():
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise InputError(f"{path}: damaged ({name:.80} has no SHA-256); put back a copy")
        return entries

    def note(self, *names: str) -> None:
        """Record the hashes of files, by their names in the folder, in the manifest."""
        self._write_manifest(
            self.manifest() | {name: sha256(regular_file(self.path / name, "run folder")) for name in names}
        )

    def forget(self, *names: str) -> None:
        """Take files that will change out of the manifest."""
        manifest = self.manifest()
        kept = {name: digest for name, digest in manifest.items() if name not in names}
        if kept != manifest:
            self._write_manifest(kept)

    def _write_manifest(self, entries: dict[str, str]) -> None:
        with atomic_write(self.path / MANIFEST) as temporary:
            temporary.write_text(json.dumps(entries, indent=1, sort_keys=True), encoding="utf-8")

    def _is_there(self, name: str) -> bool:
        if os.path.lexists(self.path / name):
            return True
        if name in self.manifest():
            raise InputError(
                f"{self.path / name}: is gone, and manifest.json lists it; put it back, or start the run anew"
            )
        return False

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()
