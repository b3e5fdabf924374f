"""What every run folder holds: config.yaml, snapshots/, log.jsonl, optimizer.pt, manifest.json."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from icl_fast.errors import InputError
from icl_fast.files import TEMPORARY_PREFIX, atomic_write, disk_error, sha256

_SNAPSHOT_NAME = re.compile(r"^step_(\d{8})\.safetensors$")


class RunFiles:
    """Reads and writes the files of one run folder. Every file but the log appears whole or not at all.

    `manifest.json` maps each file that will not change any more to its SHA-256.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "config.yaml").is_file()

    def begin(self, config_yaml: str, others: Mapping[str, str] | None = None) -> None:
        """Begin a run: write its config, and before it other text files (name to contents).

        Raises:
            InputError: the folder holds something already, or cannot be written.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(f"run folder {self.path}: exists and is not empty; use --resume or another --out")
        # config.yaml comes last, so that a folder that has one is a run that can be resumed
        files = {**(others or {}), "config.yaml": config_yaml}
        for name, text in files.items():
            with atomic_write(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        self.note(*files)

    @property
    def config_path(self) -> Path:
        """The run's config.yaml.

        Raises:
            InputError: no run here.
        """
        if not self.exists:
            raise InputError(f"run folder {self.path}: holds no run (no config.yaml)")
        return self.path / "config.yaml"

    def snapshot_path(self, step: int) -> Path:
        """Where the snapshot after `step` steps lies."""
        return self.path / "snapshots" / f"step_{step:08d}.safetensors"

    def snapshot_steps(self) -> list[int]:
        """The steps that have a snapshot, in order."""
        folder = self.path / "snapshots"
        names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
        return sorted(int(match[1]) for name in names if (match := _SNAPSHOT_NAME.match(name)))

    def check_snapshot(self, step: int) -> Path:
        """The path of a snapshot that is what was written.

        Raises:
            InputError: its hash is not the one noted.
        """
        path = self.snapshot_path(step)
        noted = self.manifest().get(str(path.relative_to(self.path)))
        if path.is_file() and noted is not None and noted != sha256(path):
            raise InputError(f"snapshot {path}: its SHA-256 is not the one in manifest.json; the file is damaged")
        return path

    def save_state(self, state: dict[str, Any]) -> None:
        """Write what a resumed run needs (weights included), replacing what was there."""
        with atomic_write(self.path / "optimizer.pt") as temporary, open(temporary, "wb") as file:
            try:
                torch.save(state, file)
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
        """Add a line to log.jsonl."""
        try:
            with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise disk_error(self.path / "log.jsonl", error) from error

    def read_log(self) -> list[dict[str, Any]]:
        """All whole lines of log.jsonl; a last line cut off by a kill is left out."""
        path = self.path / "log.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        return [json.loads(line) for line in lines]

    def cut_log(self, step: int) -> None:
        """Forget the lines after `step`, and leftovers of a killed run: what follows is done again."""
        kept = [record for record in self.read_log() if record["step"] <= step]
        with atomic_write(self.path / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        for folder in (self.path, self.path / "snapshots"):
            for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
                leftover.unlink()

    def finish(self) -> None:
        """Note the hashes of the files that stop changing when the run ends."""
        self.note("log.jsonl", "optimizer.pt")

    def manifest(self) -> dict[str, str]:
        """File name to SHA-256 (hex).

        Raises:
            InputError: manifest.json is damaged.
        """
        path = self.path / "manifest.json"
        if not path.is_file():
            return {}
        try:
            entries: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: damaged ({error})") from None
        return entries

    def note(self, *names: str) -> None:
        """Put the hashes of files, by their names in the folder, into the manifest."""
        manifest = self.manifest() | {name: sha256(self.path / name) for name in names}
        with atomic_write(self.path / "manifest.json") as temporary:
            temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
