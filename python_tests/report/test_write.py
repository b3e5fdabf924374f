"""A report's files: all of them with their checksums, or none where the page cannot be made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from icl_fast import InputError
from icl_fast.files import sha256
from icl_fast.report.study import Study
from icl_fast.report.write import write_report

MakeStudy = Callable[..., Study]


def test_nothing_is_written_of_a_page_that_cannot_be(made_study: MakeStudy, tmp_path: Path) -> None:
    study = made_study((1,))
    models = {name: replace(model, parameters=float("nan")) for name, model in study.models.items()}
    with pytest.raises(InputError, match="the page's data"):
        write_report(replace(study, models=models), tmp_path / "out", static=False)
    assert not (tmp_path / "out").exists()


def test_a_title_that_is_not_utf8(made_study: MakeStudy, tmp_path: Path) -> None:
    page = write_report(replace(made_study((1,)), title="\udcff</title>[/]"), tmp_path, static=False)
    assert "<title>?&lt;/title&gt;[/]</title>" in page.read_text(encoding="utf-8")


def test_checksums_of_the_page_and_of_its_figures(
    made_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_static(study: Study, table: object, groups: object, folder: Path, on_figure: object) -> list[Path]:
        folder.mkdir()
        (folder / "one.svg").write_text("<svg/>")
        return [folder / "one.svg"]

    monkeypatch.setattr("icl_fast.report.write.write_static", write_static)
    write_report(made_study((1,)), tmp_path)
    noted = json.loads((tmp_path / "checksums.json").read_text())
    assert noted == {name: sha256(tmp_path / name) for name in ("index.html", "figures/one.svg")}
