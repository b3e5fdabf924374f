"""`icl_fast.attention`: which views are shown of what; the page itself is tried in python_tests/report/page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import icl_fast
from icl_fast import InputError
from icl_fast.data import load_tokenizer
from icl_fast.runs import parse_config
from icl_fast.studies.attention import AttentionView
from icl_fast.training import train

TEXT = "so it is to be so it is"


def data(view: AttentionView) -> dict[str, Any]:
    """What the page's script reads."""
    found: dict[str, Any] = json.loads(re.search(r'id="manifest">(.*?)</script>', view.html)[1])  # type: ignore[index]
    return found


def views(view: AttentionView) -> list[tuple[str, int]]:
    return [(one["model"], one["step"]) for one in data(view)["views"]]


def steps_of(view: AttentionView) -> list[list[int]]:
    return [[one["step"] for one in model["viewed"]] for model in data(view)["texts"]["models"]]


def test_one_run_has_a_slider(tiny_run: Path) -> None:
    view = icl_fast.attention(tiny_run, TEXT)
    assert (views(view), steps_of(view)) == ([("tiny", 12)], [[6, 12]])
    (text,) = data(view)["texts"]["texts"]
    assert (text["title"], "".join(text["target"])) == (TEXT, TEXT)
    assert data(view)["texts"]["models"][0]["shown"] == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("steps", [[12, 0], np.array([12, 0]), (np.int64(12), np.int32(0))])
def test_snapshots_side_by_side(tiny_run: Path, steps: Any) -> None:
    view = icl_fast.attention(icl_fast.load(tiny_run), TEXT, heads="1.*", steps=steps)
    assert (views(view), steps_of(view)) == ([("tiny", 12), ("tiny", 0)], [[0, 12]])
    assert data(view)["texts"]["models"][0]["shown"] == [[1, 0], [1, 1]]


def test_models_side_by_side(tiny_run: Path, tmp_path: Path, write_llama: Callable[..., Path]) -> None:
    other = write_llama(tmp_path / "llama", 1, load_tokenizer(tiny_run))
    copied = shutil.copytree(tiny_run, tmp_path / "copy" / "tiny")
    view = icl_fast.attention([tiny_run, icl_fast.load(copied, "first"), icl_fast.open_series(other)], TEXT)
    assert views(view) == [("tiny", 12), ("tiny, step 0", 0), ("llama", 0)]
    assert icl_fast.attention(tiny_run, TEXT, steps=np.int64(6)).html != icl_fast.attention(tiny_run, TEXT).html


def test_what_a_notebook_shows(tiny_run: Path, tmp_path: Path) -> None:
    view = icl_fast.attention(tiny_run, TEXT, height=500)
    shown = view._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    assert shown.count("<") == 2
    assert "height: 500px" in shown
    assert repr(view).startswith("AttentionView of ")
    assert view.save(tmp_path / "view.html").read_text(encoding="utf-8") == view.html


def test_bad_input(tiny_run: Path, tmp_path: Path, write_llama: Callable[..., Path]) -> None:
    mute = write_llama(tmp_path / "mute", 1)
    exemplars = train(
        parse_config(
            {
                "exemplars": {"kind": "gaussian", "classes": 12, "exemplars": 3, "width": 8, "encoder": "none"},
                "sequences": {"classes": 8, "held_out_classes": 3},
                "model": {"width": 16, "heads": 4},
                "training": {"steps": 1, "batch": 4},
                "evaluation": {"every": 1, "sequences": 8},
            }
        ),
        tmp_path / "exemplars",
    )
    for arguments, message in {
        (tiny_run, ""): "text text: is empty",
        (tiny_run, 5): "text: must be text, got 5",
        (mute, TEXT): f"models: {mute} has no tokenizer",
        (exemplars.path, TEXT): f"models: {exemplars.path} has no tokenizer",
        (tmp_path / "nowhere", TEXT): "ckpt: ",
    }.items():
        with pytest.raises(InputError, match=f"^{re.escape(message)}"):
            icl_fast.attention(*arguments)  # type: ignore[arg-type]
    for keywords, message in (
        ({"steps": [5]}, rf"^steps: no snapshot at 5 of {tiny_run}; there are 0, 6, 12$"),
        ({"steps": True}, "^steps: must be a whole number"),
        ({"steps": []}, "^steps: name at least one"),
        ({"heads": "2.0"}, "^heads: '2.0' is not in this model"),
        ({"heads": "none"}, "^heads: 'none' is no set of heads"),
    ):
        with pytest.raises(InputError, match=message):
            icl_fast.attention(tiny_run, TEXT, **keywords)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^models: name at least one"):
        icl_fast.attention([], TEXT)
    with pytest.raises(InputError, match=rf"^models: {tiny_run} is given more than once"):
        icl_fast.attention([tiny_run] * 4, TEXT)


def test_more_than_a_page_shows(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_fast.studies.attention.MOST_NUMBERS", 100)
    with pytest.raises(InputError, match=r"^heads: 4 of them, at 2 snapshots, on \d+ tokens are more than a page"):
        icl_fast.attention(tiny_run, TEXT)
