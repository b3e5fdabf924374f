"""What options take: a value is what was typed, or a line names the option and says what is wrong."""

from __future__ import annotations

import math
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from icl_fast.cli.commands import Commands
from icl_fast.cli.parameters import (
    Number,
    PathType,
    WholeNumber,
    parse_letters,
    parse_list,
    parse_numbers,
    parse_sizes,
)
from icl_fast.errors import InputError

WORDS = st.lists(st.text("abc+-.", min_size=1, max_size=3), min_size=1, max_size=4)


def given_to(type_: click.ParamType, value: str) -> Result:  # type: ignore[type-arg]
    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    @click.option("--it", type=type_)
    def command(it: object) -> None:
        click.echo(repr(it))

    return CliRunner().invoke(group, ["command", "--it", value])


@given(WORDS)
def test_a_list_is_its_items(items: list[str]) -> None:
    if len(set(items)) == len(items):
        assert parse_list("--it", " , ".join(items)) == items
    else:
        with pytest.raises(InputError, match=r"--it: .* is given twice"):
            parse_list("--it", ",".join(items))


@given(WORDS, st.integers(0, 4))
def test_an_empty_item(items: list[str], at: int) -> None:
    items.insert(at, " ")
    with pytest.raises(InputError, match="--it: "):
        parse_list("--it", ",".join(items))


@given(st.lists(st.floats(), min_size=1, max_size=4))
def test_numbers(values: list[float]) -> None:
    text = ",".join(map(repr, values))
    if all(map(math.isfinite, values)) and len(set(values)) == len(values):
        assert parse_numbers("--it", text) == values
    else:
        with pytest.raises(InputError, match="--it: "):
            parse_numbers("--it", text)


@pytest.mark.parametrize("text", ["", ",", "1,", "1,x", "1e9", "2.5", "-1", "0", "9" * 5000, "nan"])
def test_sizes(text: str) -> None:
    with pytest.raises(InputError, match=r"--it: .*whole numbers from 1 on"):
        parse_sizes("--it", text)
    assert parse_sizes("--it", "20, 20,3") == [20, 20, 3]


def test_letters() -> None:
    assert parse_letters("--it", "cab") == "abc"
    assert parse_letters("--it", "none") == ""
    for text in ("", "aa"):
        with pytest.raises(InputError, match="--it: "):
            parse_letters("--it", text)


@given(st.integers() | st.integers(-(2**70), 2**70))
def test_whole_numbers(value: int) -> None:
    found = given_to(WholeNumber(1), str(value))
    assert found.output == (f"{value}\n" if 1 <= value < 2**63 else found.stderr)
    assert found.exit_code == (0 if 1 <= value < 2**63 else 2)


@pytest.mark.parametrize(
    ("type_", "text", "message"),
    [
        (WholeNumber(1), "9" * 5000, "is not a whole number"),
        (WholeNumber(1), "1.0", "'1.0' is not a whole number"),
        (WholeNumber(1, 4), "5", "must be at most 4, got 5"),
        (Number(), "nan", "must be a finite number, got nan"),
        (Number(), "1e400", "must be a finite number, got 1e400"),
        (Number(0), "-1", "must be 0 or more, got -1"),
        (Number(), "fast", "'fast' is not a number"),
        (PathType(), "", "'' is no path"),
        (PathType(), "a\0b", r"'a\x00b' is no path"),
        (PathType(), "~no-such-user/x", "there is no such user"),
        (PathType(), "x" * 300, "File name too long"),
        (PathType(), "x/" * 3000, "File name too long"),
        (PathType(), "loop", "Too many levels of symbolic links"),
        (PathType(), "pipe", "pipe is a pipe; give a file or a folder"),
        (PathType(), "/dev/null", "/dev/null is a device"),
        (PathType("file"), "folder", "folder is a folder; give a file"),
        (PathType("folder"), "file", "file is a file; give a folder"),
        (PathType("file"), "file/below", "file/below is below "),
        (PathType("folder"), "file/far/below", "which is a file"),
        (PathType("folder"), "/", "/ is no place for results"),
        (PathType("folder", ".zarr"), "x.txt", "x.txt must be NAME.zarr"),
    ],
)
def test_what_cannot_be(
    type_: click.ParamType,  # type: ignore[type-arg]
    text: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    found = given_to(type_, text)
    assert found.exit_code == 2
    assert found.stderr.startswith("error: --it: ")
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
    assert len(found.stderr) < 400


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for text, path in {
        "~": tmp_path / "home",
        "~/runs/a~b": tmp_path / "home" / "runs" / "a~b",
        "./~": Path("~"),
        ".": tmp_path,
        "..": tmp_path.parent,
        "-x/[bold]\udcff\n": Path("-x/[bold]\udcff\n"),
    }.items():
        for type_ in (PathType(), PathType("folder")):
            assert given_to(type_, text).stdout == f"{path!r}\n"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "does not allow it" in given_to(PathType("file"), str(tmp_path / "closed" / "x")).stderr
