"""What a run may begin over, and a log line that the disk has no room for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from icl_fast.errors import InputError
from icl_fast.runs import Run, parse_config

NEW = "holds no run|exists and is not empty"


def begun(folder: Path, values: dict[str, Any]) -> Run:
    """A run as a kill before its first state leaves it."""
    run = Run(folder)
    run.begin(parse_config(values), resume=False, tokenizer_json="{}")
    return run


@pytest.mark.parametrize("resume", [False, True])
def test_what_was_killed_before_its_first_state_begins_anew(
    tiny_values: dict[str, Any], tmp_path: Path, resume: bool
) -> None:
    run = begun(tmp_path / "run", tiny_values)
    run.append_log({"step": 0})
    (run.path / "config.yaml").unlink()  # the last of its files that is written
    again = Run(run.path)
    assert again.begin(parse_config(tiny_values), resume=resume, tokenizer_json="{}") is None
    assert again.exists
    assert again.read_log() == []


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "snapshots/a.txt", ".tmp-notes", "snapshots/step_00000003.safetensors"])
def test_what_is_not_ours_is_never_begun_over(
    tiny_values: dict[str, Any], tmp_path: Path, name: str, resume: bool
) -> None:
    run = begun(tmp_path / "run", tiny_values)
    (run.path / "config.yaml").unlink()
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).write_text("mine")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=NEW):
        Run(run.path).begin(parse_config(tiny_values), resume=resume, tokenizer_json="{}")
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_config_that_a_user_changed_is_never_begun_over(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    run = begun(tmp_path / "run", tiny_values)
    run.path.joinpath("config.yaml").write_text("# mine\n")
    with pytest.raises(InputError, match="exists and is not empty"):
        Run(run.path).begin(parse_config(tiny_values), resume=False, tokenizer_json="{}")
    assert run.path.joinpath("config.yaml").read_text() == "# mine\n"


def test_a_log_line_is_whole_or_not_there(small_disk: Path) -> None:
    run = Run(small_disk)
    run.append_log({"step": 0})
    with pytest.raises(InputError, match=r"log\.jsonl: the disk is full"):
        run.append_log({"step": 1, "text": "x" * 2**19})
    assert run.read_log() == [{"step": 0}]
    run.append_log({"step": 1})
    assert [record["step"] for record in run.read_log()] == [0, 1]
