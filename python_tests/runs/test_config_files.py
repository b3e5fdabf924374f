"""Config files nobody would write by mistake, and some that anybody does: read as meant, or refused in one line."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_fast import InputError
from icl_fast.runs import config_files
from icl_fast.runs.config_files import read_yaml, to_yaml

LETTERS = "abcdefghij"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise(LETTERS)
)
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(2000))
MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{i + 1}: &m{i + 1} {{<<: [{', '.join([f'*m{i}'] * 10)}]}}\n" for i in range(8))
REFUSED = [
    ("training: {lr: 1}\ntraining: {lr: 2}", "line 2: the key training is there twice"),
    ("training: {lr: 1, lr: 1}", "line 1: the key lr is there twice"),
    (BOMB, "line 6: more than 100,000 values"),
    (MERGES, "line 6: more than 100,000 values"),
    (CHAIN, "line 50: more than 50 levels"),
    ("[" * 10_000, "more than 50 levels"),
    ("{a: " * 10_000, "more than 50 levels"),
    ("- " * 5_000, "more than 50 levels"),
    ("a: &a [*a]", r"\*a stands for what it is in"),
    ("a: &a {b: {c: *a}}", r"\*a stands for what it is in"),
    ("a: *b", "undefined alias 'b'"),
    ("a: 1\n---\nb: 2", "line 2: expected a single document"),
    ("\ta: 1", r"line 1: .*'\\t'"),
    ("a: 1\n b: 2", "line 2: mapping values are not allowed here"),
    ("a: \0", "special characters are not allowed"),
    ("a: \x07", "special characters are not allowed"),
    ("a: " + "1" * 5_000, "line 1: a number of 5000 digits"),
    ("a: 0x" + "f" * 5_000, "line 1: a number of 5002 digits"),
    ("a: !!python/object/apply:os.system ['true']", "tags such as .*os.system are not read"),
    ("a: !!python/name:os.system", "tags such as .* are not read"),
    ("!!set {a}", "tags such as .*set are not read"),
    ("a: !!binary '%%'", "tags such as .*binary are not read"),
    ("a: !own x", "tags such as !own are not read"),
    *(
        (f"{key}: 1", f"the key {key} must be text; put it into quotes")
        for key in ("1", "1.5", "true", "no", "~", "null", ".nan", ".inf", "0x10", "1e3")
    ),
    ("? [a]\n: b", "the key of this line must be text"),
    ("? {a: 1}\n: b", "the key of this line must be text"),
    ("<<: 5", "expected a mapping"),
]


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "experiment.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(message: str, path: Path, *overrides: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(path, overrides)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=lambda value: value[:30])
def test_what_is_refused(tmp_path: Path, content: str, message: str) -> None:
    refused(rf"^config .*experiment\.yaml: not YAML \(.*{message}", written(tmp_path, content))
    if "\0" not in content:
        refused(rf"^--set a\.b=.*: the value is not YAML \(.*{message}", written(tmp_path, ""), f"a.b={content}")


def test_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_files, "_MOST_VALUES", 1000)
    for content in ("a: [" + "1," * 2000 + "]", "".join(f"k{i}: {i}\n" for i in range(600)), "a: [" + "[1]," * 600):
        refused(r"line \d+: more than 1,000 values", written(tmp_path, content))


@pytest.mark.parametrize("content", ["[]", "0", "false", "''", "text", "- a", "3"])
def test_no_sections(tmp_path: Path, content: str) -> None:
    refused("must be sections of keys and values, got", written(tmp_path, content))


@pytest.mark.parametrize("content", ["", "# nothing", "---", "null", "~", "\ufeff", "{}"])
def test_nothing_is_all_defaults(tmp_path: Path, content: str) -> None:
    assert read_yaml(written(tmp_path, content)) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("0100", "0100"), ("0o10", "0o10"), ("2020-01-01", "2020-01-01"),
        ("2020-01-01 10:00:00", "2020-01-01 10:00:00"), ("=", "="), ("٣", "٣"), ("1e", "1e"), ("0", 0), ("-0", 0),
        ("+5", 5), ("1_000", 1000), ("0x10", 16), ("0b11", 3), ("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0),
        ("1.e5", 1e5), ("-1.5e+3", -1500.0), ("1e400", float("inf")), ("-.inf", float("-inf")), ("yes", True),
        ("~", None), ("", None), ("'1'", "1"), ("9" * 40, int("9" * 40)),
    ],
)  # fmt: skip
def test_what_values_mean(tmp_path: Path, text: str, value: Any) -> None:
    assert read_yaml(written(tmp_path, f"a: {text}")) == {"a": value}
    assert read_yaml(written(tmp_path, ""), [f"a.b={text}"]) == {"a": {"b": value}}


def test_aliases_and_merges_stand_for_what_they_name(tmp_path: Path) -> None:
    found = read_yaml(written(tmp_path, "one: &one {x: 1, y: [1]}\ntwo: {<<: *one, x: 2}\nthree: *one"))
    assert found == {"one": {"x": 1, "y": [1]}, "two": {"x": 2, "y": [1]}, "three": {"x": 1, "y": [1]}}


def test_other_encodings(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "\ufeffa: é".encode())) == {"a": "é"}
    for content in ("a: é".encode("latin-1"), "a: 1".encode("utf-16"), b"a: \xff"):
        refused(r"not YAML \(not UTF-8, byte \d\)", written(tmp_path, content))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for path, message in (
        (tmp_path / "pipe", "is a pipe; give a file"),
        (tmp_path, "is a folder; give a file"),
        (Path("/dev/zero"), "is a device; give a file"),
        (tmp_path / "link", "is a link to a file that is gone"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / ("x" * 300), r"cannot be read \(File name too long\)"),
        (tmp_path / "a\0b", r"cannot be read \(embedded null byte\)"),
    ):
        refused(f"^config: .* {message}$", path)
    refused("is larger than 4 MiB; give a YAML file", written(tmp_path, "#" * (4 * 2**20 + 1)))


@pytest.mark.parametrize("key", ["", "a", ".", "a.", ".a", "a..b=1", ".=1", "=1", "a" + ".a" * 60 + "=1"])
def test_malformed_overrides(tmp_path: Path, key: str) -> None:
    refused(r"^--set .*: write it as section\.key=value, such as training\.lr=1e-3$", written(tmp_path, ""), key)


scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


@settings(max_examples=40)
@given(values=st.dictionaries(st.text(), values, max_size=5))
def test_what_we_write_is_read_back(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """As configs of runs are: whatever is in them, such as text that looks like a number."""
    path = written(tmp_path_factory.getbasetemp(), to_yaml(values))
    assert read_yaml(path) == values


@given(content=st.text(alphabet="ab01:-[]{}&*!#|>%@'\",.? \n\t~=", max_size=60))
def test_any_text_is_read_or_refused(content: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.getbasetemp(), content)
    try:
        found, said = read_yaml(path), ""
    except InputError as error:
        found, said = {}, str(error)
    assert isinstance(found, dict)
    assert not said or said.startswith(f"config {path}: ")
    assert "\n" not in said
