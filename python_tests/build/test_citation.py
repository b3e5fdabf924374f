"""CITATION.cff agrees with the package."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import icl_fast

ROOT = Path(__file__).parents[2]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_it_is_of_this_version_of_this_package() -> None:
    assert CITATION["version"] == icl_fast.__version__
    assert CITATION["title"].startswith("icl_fast: ")
    assert CITATION["license"] == re.search(r'^license = "(.*)"$', PROJECT, re.MULTILINE)[1]
    assert CITATION["authors"][0]["name"] == re.search(r'^authors = \[\{ name = "(.*)" \}\]$', PROJECT, re.MULTILINE)[1]


def test_it_has_what_its_schema_requires() -> None:
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys()
    for reference in CITATION["references"]:
        assert {"type", "title", "authors"} <= reference.keys()


def test_both_works_are_named() -> None:
    named = {(work["authors"][0]["family-names"], work["year"]) for work in CITATION["references"]}
    assert named == {("Olsson", 2022), ("Singh", 2025)}
