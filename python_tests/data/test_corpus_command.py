from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from icl_fast.cli.main import cli
from icl_fast.data import DataConfig, load_text


def test_prints_what_is_there(corpus_folder: Path) -> None:
    result = CliRunner().invoke(cli, ["corpus", str(corpus_folder), "--vocab", "280", "--context", "24"])
    assert result.exit_code == 0, result.output
    text = load_text(DataConfig(corpus=str(corpus_folder), vocab=280, context=24))
    size = sum(file.stat().st_size for file in corpus_folder.iterdir())
    facts = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert facts == {
        "corpus": str(corpus_folder),
        "text": f"in     {corpus_folder}",
        "files": "40",
        "bytes": f"{size:,}",
        "documents": "40",
        "tokens": f"{text.tokens:,} at vocab 280",
        "training": f"{text.train_windows:,} windows of 24 tokens ({text.train_tokens:,} tokens)",
        "evaluation": f"{text.evaluation_windows:,} examples of {text.evaluation_windows:,} held-out windows",
    }


def test_odd_names_and_what_is_left_out(corpus_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(corpus_folder, tmp_path / os.fsdecode(b"[red] \xff [/blue]"))
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "binary.md").write_bytes(b"\0")
    command = [sys.executable, "-m", "icl_fast", "corpus", folder, "--vocab", "280", "--context", "24"]
    result = subprocess.run(command, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"41; 1 binary, left out; 1 with bytes that are not UTF-8" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-place"], "error: data.corpus no-such-place: no such folder"),
        ([""], "error: corpus: is empty"),
        (["stdlib", "--vocab", "256"], "error: --vocab: 256 is too small"),
        (["stdlib", "--context", "0"], "error: --context: input should be greater than or equal to 1, got 0"),
        (["stdlib", "--vocab", "many"], "'many' is not a whole number"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["corpus", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout


def test_missing_corpus_names_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where no folder is called docs
    monkeypatch.setattr("icl_fast.data.corpora._newest", lambda source, root: None)
    result = CliRunner().invoke(cli, ["corpus", "docs"])
    assert result.exit_code == 2
    assert result.stderr.rstrip().endswith("apt-get install --no-install-recommends linux-doc python3-doc perl-doc")
