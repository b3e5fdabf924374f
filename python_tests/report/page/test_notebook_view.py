"""The attention view as a notebook shows it, in an iframe, in a real browser: what is shown is what the model gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import icl_fast

OpenPage = Callable[..., Any]
TEXT = "so it is to be so it is"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_two_snapshots_side_by_side(tiny_run: Path, browser_page: OpenPage, tmp_path: Path, scheme: str) -> None:
    view = icl_fast.attention(tiny_run, TEXT, steps=[0, 12])
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><script>ICL = {{ready: 1}}</script>{view._repr_html_()}", encoding="utf-8")
    page = browser_page(path, color_scheme=scheme)
    frame = page.frames[1]
    frame.evaluate("ICL.ready")
    frame.evaluate("ICL.settled()")
    boxes = frame.locator(".texts-beside")
    assert boxes.count() == 2
    for at, step in enumerate((0, 12)):
        out = icl_fast.load(tiny_run, step).run(TEXT, record="1.pattern")
        last = out.ids.shape[1] - 1
        box = boxes.nth(at)
        box.locator("[data-texts-head='1.1']").click()
        box.locator(".texts-token").nth(last).focus()
        most = round(float(out["1.pattern"][0, 1, last - 1].max()) * 100)
        assert box.locator(".texts-attention-value").first.inner_text() == f"{most}%"
