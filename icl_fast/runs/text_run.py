"""A run on text, on disk: what every run folder holds, and tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from icl_fast.models import Snapshot, Transformer, load_snapshot, save_snapshot
from icl_fast.runs.folder import RunFiles
from icl_fast.runs.text_config import RunConfig, load_config


class RunFolder(RunFiles):
    """Reads and writes the run folder of a Transformer on text."""

    def create(self, config: RunConfig, tokenizer_json: str) -> None:
        """Begin a run.

        Raises:
            InputError: the folder holds something already, or cannot be written.
        """
        self.begin(config.to_yaml(), {"tokenizer.json": tokenizer_json})

    def config(self) -> RunConfig:
        """The run's config.

        Raises:
            InputError: no run here, or its config is damaged.
        """
        return load_config(self.config_path)

    @property
    def tokenizer_path(self) -> Path:
        """The run's tokenizer.json."""
        return self.path / "tokenizer.json"

    def save_snapshot(self, model: Transformer, *, step: int, tokens: int) -> None:
        """Write a snapshot and note its hash."""
        path = self.snapshot_path(step)
        save_snapshot(path, model, step=step, tokens=tokens)
        self.note(str(path.relative_to(self.path)))

    def load_snapshot(self, step: int) -> Snapshot:
        """Read a snapshot.

        Raises:
            InputError: none at that step, damaged (also where only its hash shows it), or with weights not finite.
        """
        return load_snapshot(self.check_snapshot(step))
