"""A training run on disk (docs/design.md, "Run folders")."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import sys
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from icl_fast.errors import InputError
from icl_fast.files import atomic_write, disk_error, is_temporary, locked, regular_file, sha256, sweep
from icl_fast.models import ExemplarTransformer, Snapshot, Transformer, load_snapshot, save_snapshot
from icl_fast.runs.config import RunConfig, differing_keys, load_config
from icl_fast.runs.exemplar_config import ExemplarRunConfig
from icl_fast.runs.population import Population
from icl_fast.runs.text_config import TextRunConfig

_SNAPSHOT_NAME = re.compile(r"^step_(\d{8})\.safetensors$")
TOKENIZER = "tokenizer.json"
_MANIFEST, _LOCK = "manifest.json", ".lock-training"
# what else a run has written before its first state
_EARLY = ("config.yaml", TOKENIZER, "log.jsonl", "snapshots/step_00000000.safetensors")


class Run:
    """The folder of one run, or of a population of runs, on text or on exemplars.

        run = Run("runs/two_layer")
        run.config, run.snapshot_steps(), run.load_snapshot(150).model

    Every file but the log appears whole or not at all. `config.task` says what the run is trained on: `text` or
    `exemplars`. Nothing is read before it is asked for: `exists` says whether there is a run at all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run, finished or not."""
        return (self.path / "config.yaml").is_file()

    @cached_property
    def config(self) -> RunConfig:
        """The run's config.

        Raises:
            InputError: no run here, or its config is damaged.
        """
        if not self.exists:
            raise InputError(f"run folder {self.path}: holds no run (no config.yaml)")
        return load_config(self.path / "config.yaml")

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

    def writing(self) -> AbstractContextManager[None]:
        """Keeps other processes from training here meanwhile.

        Raises:
            InputError: another process does, or the folder cannot be written.
        """
        return locked(self.path / _LOCK, f"run folder {self.path}")

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Check that a run with this config can start here or, with `resume`, continue.

        A run that was killed before its first state was saved is no hindrance to another, nor to its own start.

        Raises:
            InputError: the folder holds something else; with `resume`: it holds no run, or one with another config.
        """
        if resume and self.exists:
            if differing := differing_keys(self.config, config):
                raise InputError(f"--resume: {self.path} was begun with other values of {', '.join(differing)}")
        elif resume:
            if not self._is_half_begun() or set(os.listdir(self.path)) <= {_LOCK}:
                raise InputError(f"--resume: {self.path} holds no run to resume; leave --resume out to begin one")
        elif self.path.exists() and not self._is_half_begun():
            raise InputError(f"run folder {self.path}: exists and is not empty; use --resume or another --out")

    def begin(self, config: RunConfig, *, resume: bool, tokenizer_json: str | None = None) -> dict[str, Any] | None:
        """Start a run here, or continue the one that is here.

        Args:
            tokenizer_json: of a run on text.

        Returns:
            The state saved last, or None where the run starts from scratch.

        Raises:
            InputError: as `check`; the folder cannot be written; the saved state is damaged or gone, or belongs to
                another corpus.
        """
        self.check(config, resume=resume)
        # config.yaml comes last, so that a folder that has one is a run that can be resumed
        files = {} if tokenizer_json is None else {TOKENIZER: tokenizer_json}
        files["config.yaml"] = config.to_yaml()
        if resume and self.exists:
            kept = None if tokenizer_json is None else regular_file(self.tokenizer_path, "--resume").read_text("utf-8")
            if kept != tokenizer_json:
                corpus = self.text_config.data.corpus
                raise InputError(f"--resume: the corpus {corpus} is not the one {self.path} was begun with")
            state = self.load_state()
            if state is None:
                if self.snapshot_steps()[1:]:
                    raise InputError(f"--resume: {self.path} has snapshots, but optimizer.pt is gone; start it anew")
                self.note(*files)
            return state
        for name in _EARLY:
            (self.path / name).unlink(missing_ok=True)
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
        if not names:
            return True
        try:
            noted = self.manifest()
        except InputError:
            return False
        unlike = [name for name in names & {"config.yaml", TOKENIZER} if noted.get(name) != sha256(self.path / name)]
        return names <= {_MANIFEST, *_EARLY} and "config.yaml" in noted and not unlike

    def snapshot_path(self, step: int) -> Path:
        """The file of the snapshot after `step` steps."""
        return self.path / "snapshots" / f"step_{step:08d}.safetensors"

    def snapshot_steps(self) -> list[int]:
        """The steps that have a snapshot, in order."""
        folder = self.path / "snapshots"
        names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
        return sorted(int(match[1]) for name in names if (match := _SNAPSHOT_NAME.match(name)))

    def save_snapshot(self, model: Transformer | ExemplarTransformer, *, step: int, seen: int) -> None:
        """Write a snapshot and record its hash."""
        path = self.snapshot_path(step)
        save_snapshot(path, model, step=step, seen=seen)
        self.note(str(path.relative_to(self.path)))

    def load_snapshot(self, step: int) -> Snapshot[Any]:
        """Read a snapshot.

        Raises:
            InputError: no snapshot at that step, a damaged one (its hash is compared), or weights that are not finite.
        """
        path = self.snapshot_path(step)
        noted = self.manifest().get(str(path.relative_to(self.path)))
        if path.is_file() and noted is not None and noted != sha256(path):
            raise InputError(f"snapshot {path}: its SHA-256 is not the one in manifest.json; the file is damaged")
        return load_snapshot(path)

    def save_state(self, state: dict[str, Any]) -> None:
        """Write what a resumed run needs, weights included, in place of the state saved before."""
        with atomic_write(self.path / "optimizer.pt") as temporary, open(temporary, "wb") as file:
            try:
                torch.save(_interned(state), file)
            except RuntimeError as error:  # torch wraps what the file raised, such as a full disk
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    def load_state(self) -> dict[str, Any] | None:
        """The state written last, or None if the run was stopped before its first.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / "optimizer.pt"
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
            raise InputError(f"{path}: damaged ({str(error).splitlines()[0]}); start the run anew") from None
        return state

    def append_log(self, record: dict[str, Any]) -> None:
        """Add a line to log.jsonl, or none of it.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        path = self.path / "log.jsonl"
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
        """All complete lines of log.jsonl; a last line that a killed run left incomplete is skipped."""
        path = self.path / "log.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        return [json.loads(line) for line in lines]

    def cut_log(self, step: int) -> None:
        """Drop the log's lines after `step`, and temporary files of a killed run: a resumed run writes them anew."""
        kept = [record for record in self.read_log() if record["step"] <= step]
        with atomic_write(self.path / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        for folder in (self.path, self.path / "snapshots"):
            sweep(folder)

    def finish(self) -> None:
        """Record the hashes of the files that stop changing when the run ends."""
        self.note("log.jsonl", "optimizer.pt")

    def manifest(self) -> dict[str, str]:
        """File name to SHA-256 (hex).

        Raises:
            InputError: manifest.json is damaged.
        """
        path = self.path / _MANIFEST
        if not path.is_file():
            return {}
        try:
            entries: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: damaged ({error})") from None
        return entries

    def note(self, *names: str) -> None:
        """Record the hashes of files, by their names in the folder, in the manifest."""
        self._write_manifest(self.manifest() | {name: sha256(self.path / name) for name in names})

    def _write_manifest(self, entries: dict[str, str]) -> None:
        with atomic_write(self.path / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(entries, indent=1, sort_keys=True), encoding="utf-8")


def _interned(value: Any) -> Any:
    """The same state for pickle, which writes text that is one object once: equal states give equal bytes."""
    if isinstance(value, str):
        return sys.intern(value)
    if type(value) is dict:
        return {_interned(key): _interned(one) for key, one in value.items()}
    return type(value)(map(_interned, value)) if type(value) in (list, tuple) else value
