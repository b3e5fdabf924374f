"""Other people's checkpoints, made up: a Pythia-like series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icl_fast.data.tokenizer import train_tokenizer

STEPS = (0, 1, 2, 8, 64, 1000)


@pytest.fixture(scope="session")
def foreign_tokenizer_json(corpus_folder: Path) -> Any:
    return train_tokenizer([(corpus_folder / "00.txt").read_text()], 290)


@pytest.fixture(scope="session")
def foreign(
    write_llama: Callable[..., Path], foreign_tokenizer_json: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with snapshots step0 to step1000, of which steps 2 and 64 are the same; tests must not change it."""
    folder = tmp_path_factory.mktemp("foreign") / "tiny"
    for step in STEPS:
        write_llama(folder / f"step{step}", 2 if step == 64 else step, foreign_tokenizer_json)
    return folder
