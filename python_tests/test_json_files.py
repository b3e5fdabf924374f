"""JSON is read once and for all: plain data, or one line that says which file and why."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from icl_fast.errors import InputError
from icl_fast.files import parse_json, read_json


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"), ("{", "Expecting property name"), ('{"a": 1}x', "Extra data"), ("\x00", "Expecting"),
        ('{"a": 1, "a": 2}', "'a' is there twice"), ('[{"b": {"c": 1, "c": 1}}]', "'c' is there twice"),
        ("[" * 10**5, "nested too deeply"), ('{"a":' * 10**5, "nested too deeply"), ("1" * 5000, "4300 digits"),
        ("\ufeff{}", "BOM"), ('"a\nb"', "Invalid control character"), (b"\xff", "can't decode byte 0xff"),
    ],
)  # fmt: skip
def test_what_is_no_json(text: str | bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^it: is not JSON that can be read \(.*{why}") as caught:
        parse_json(text, "it")
    assert "\n" not in str(caught.value)
    path = tmp_path / "a.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError, match=rf"^claims: {path}: is not JSON that can be read \(.*{why}"):
        read_json(path, "claims")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(InputError, match=f"^claims: {path} {why}"):
            read_json(path, "claims")


def test_what_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, null, true, "é"], "b": -Infinity}', "it") == {
        "a": [1, 2.5, None, True, "é"],
        "b": -math.inf,
    }
    assert math.isnan(parse_json(b"NaN", "it"))
