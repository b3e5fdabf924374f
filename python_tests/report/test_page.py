"""The report page in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from icl_fast.report.page import write_page
from icl_fast.report.study import Study


def test_opens(made_study: Callable[..., Study], browser_page: Callable[..., Any], tmp_path: Path) -> None:
    study = made_study()
    path = write_page(study, {}, [], [], tmp_path / "page.html")
    page = browser_page(path)
    assert page.title() == study.title
