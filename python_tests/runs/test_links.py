"""Runs and snapshots that are reached by links, in odd ways or under odd names: they work and keep the user's names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from icl_fast import InputError, load_snapshot
from icl_fast.measure.heads import evaluate
from icl_fast.runs import Run, open_series, run_names
from icl_fast.runs.run_series import run_of

NAME = "step_00000006.safetensors"


@pytest.fixture
def place(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run `two`, whose snapshots a store keeps under the names of their contents."""
    run = Run(shutil.copytree(tiny_run, tmp_path / "two"))
    (tmp_path / "store").mkdir()
    for step in run.snapshot_steps():
        kept = tmp_path / "store" / f"MD5-{step}"
        run.snapshot_path(step).rename(kept)
        run.snapshot_path(step).symlink_to(os.path.relpath(kept, run.path / "snapshots"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_linked_snapshots_are_those_of_the_run(place: Path) -> None:
    series = open_series(f"two/snapshots/{NAME}")
    assert (series.name, series.steps) == ("two", [6])
    assert series.readable()[0].steps == [6]
    assert open_series("two").readable()[0].steps == [0, 6, 12]
    assert load_snapshot(f"two/snapshots/{NAME}").step == 6


@pytest.mark.parametrize(
    ("ckpt", "name"),
    [
        ("two", "two"),
        ("two/", "two"),
        ("./two/.", "two"),
        ("two/snapshots/..", "two"),
        ("two/../two", "two"),
        ("linked", "linked"),
        ("linked/", "linked"),
        ("linked/.", "linked"),
        ("deep/linked", "linked"),
        (f"two/snapshots/{NAME}", "two"),
        (f"linked/snapshots/{NAME}", "linked"),
        (f"two/snapshots/../snapshots/./{NAME}", "two"),
        (f"elsewhere/snapshots/{NAME}", "elsewhere"),
        ("best.safetensors", "two"),
        ("better", "two"),
        (f"shots/{NAME}", "two"),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_every_way_to_a_run(place: Path, ckpt: str, name: str, absolute: bool) -> None:
    (place / "linked").symlink_to("two")
    (place / "deep").mkdir()
    (place / "deep" / "linked").symlink_to(place / "linked")
    (place / "shots").symlink_to("two/snapshots")
    (place / "best.safetensors").symlink_to(f"two/snapshots/{NAME}")
    (place / "better").symlink_to("best.safetensors")
    shutil.copytree(place / "two", place / "elsewhere", ignore=lambda *_: ["snapshots"])
    (place / "elsewhere" / "snapshots").symlink_to("../two/snapshots")
    series = open_series(place / ckpt if absolute else ckpt)
    assert series.name == name
    assert series.steps == ([0, 6, 12] if Path(ckpt).is_dir() else [6])
    assert series.load(6).step == 6
    assert run_of(ckpt).config == Run("two").config


@pytest.mark.parametrize(
    ("inside", "ckpt", "name"), [("two", ".", "two"), ("two/snapshots", NAME, "two"), ("two/snapshots", "..", "two")]
)
def test_from_within(place: Path, inside: str, ckpt: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / inside)
    assert open_series(ckpt).name == name


def test_results_of_a_linked_run_are_in_it(place: Path) -> None:
    (place / "linked").symlink_to("two")
    out = evaluate(open_series("linked", "last"))
    assert out.parent == Path("linked/results")
    assert (place / "two" / "results" / out.name).is_dir()


def test_figures_take_the_names_that_are_given(place: Path) -> None:
    (place / "linked").symlink_to("two")
    for number in "12":
        shutil.copytree(place / "two", place / number / "same", symlinks=True)
    assert run_names(["linked", "1/same"]) == {"linked": Path("linked"), "same": Path("1/same")}
    assert list(run_names(["1/same", "2/same", "1/same/.."])) == ["1/same", "2/same", "1"]
    with pytest.raises(InputError, match=r"^runs: (linked|two) is given twice$"):
        run_names(["two", "linked"])


def test_snapshots_that_are_of_no_run(place: Path) -> None:
    (place / "two" / "backup").mkdir()
    shutil.copy(place / "store" / "MD5-0", place / "two" / "backup" / NAME)  # another one than the run's of that name
    for ckpt in (f"two/backup/{NAME}", "store/MD5-6"):
        with pytest.raises(InputError, match=rf"^ckpt: {ckpt} is not in RUN/snapshots/ of a run folder"):
            open_series(ckpt)


def test_links_to_nowhere_and_what_is_no_snapshot(place: Path) -> None:
    (place / "store" / "MD5-6").unlink()
    (place / "gone").symlink_to("nowhere")
    os.mkfifo(place / "pipe")
    for ckpt, message in {
        f"two/snapshots/{NAME}": "is a link to a file that is gone",
        "gone": "is a link to a file that is gone",
        "pipe": "is a pipe; give a file",
        "/dev/null": "is a device; give a file",
        "nowhere": "does not exist",
        "x" * 300: r"cannot be read \(File name too long\)",
        "a\0b": r"cannot be read \(embedded null",
    }.items():
        with pytest.raises(InputError, match=rf"^ckpt: .* {message}"):
            open_series(ckpt)
    series, left_out = open_series("two").readable()
    assert (series.steps, left_out) == ([0, 12], {6: "missing"})
    with pytest.raises(InputError, match=rf"^snapshot: two/snapshots/{NAME} is a link to a file that is gone"):
        open_series("two").load(6)


@pytest.mark.parametrize("name", [b"\xff", b"[red]\xfe[b]", b"a\nb", "é\u202e".encode(), b"x" * 255])
def test_names_that_are_not_utf8_or_odd(name: bytes, place: Path) -> None:
    run = place / os.fsdecode(name)
    (place / "two").rename(run)
    series = open_series(run)
    assert series.name == name.decode(errors="backslashreplace")
    assert series.readable()[0].steps == [0, 6, 12]
    assert open_series(run / "snapshots" / NAME).load(6).step == 6
    assert evaluate(open_series(run, "last")).is_dir()
    assert list(run_names([run])) == [series.name]
