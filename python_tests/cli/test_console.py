"""Cells of tables: what is shown, what --json has; and which heads are said to raise the ICL score."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from icl_fast.cli.console import Cell, echo, echo_files, is_quiet, number, output, print_facts, print_table
from icl_fast.cli.tables import _raising

FINITE = st.floats(-1e6, 1e6)


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@given(FINITE, st.none() | st.floats(0, 1e6))
def test_a_number_and_its_error(value: float, error: float | None) -> None:
    cell = number(value, "+.3f", error)
    shown, sign, shown_error = cell.partition("±")
    assert abs(float(shown) - value) <= 0.0005001
    assert shown[0] in "+-"
    assert (sign == "±") == (error is not None)
    assert (cell.value, cell.error) == (value, error)
    if error is not None:
        assert abs(float(shown_error) - error) <= 0.0005001


def test_no_number() -> None:
    assert number(math.nan, ".3f", math.nan) == "-"
    assert number(np.float32(0.5), ".2f", math.nan) == "0.50"


def test_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("head", "change", "word", title="a [title]")
    table.add_row("0.1", number(1 / 3, "+.2f", 1 / 7, bold=True), Cell("two words", {"head": "0.1", "x": math.inf}))
    table.add_row("0.2", number(math.nan, "+.2f"), "plain")
    with output("it", as_json=True, quiet=False):
        echo("so it is", facts={"so": np.pi})
        print_table(table)
        print_facts({"files": Cell("1,000", 1000)})
        echo_files("written:", Path("a"), Path("b"))
        echo("a warning", err=True)
        assert capsys.readouterr().out == ""
    assert document(capsys) == {
        "command": "it",
        "facts": {"so": math.pi, "files": 1000},
        "tables": [
            {
                "title": "a [title]",
                "columns": ["head", "change", "change standard error", "word"],
                "rows": [["0.1", 1 / 3, 1 / 7, {"head": "0.1", "x": None}], ["0.2", None, None, "plain"]],
            }
        ],
        "lines": ["so it is", "written: a, b"],
        "files": ["a", "b"],
    }


def test_quiet_and_the_end_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with output("it", as_json=False, quiet=True):
        echo("a line")
        print_table(Table("a"))
        echo("a warning", err=True)
        assert is_quiet()
    echo("another")
    found = capsys.readouterr()
    assert (found.out, found.err) == ("another\n", "a warning\n")


def test_no_document_of_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        with output("it", as_json=True, quiet=False):
            echo("a line")
            raise ValueError("it")

    with pytest.raises(ValueError, match="it"):
        fails()
    assert capsys.readouterr().out == ""


@given(st.lists(st.tuples(FINITE, st.floats(1e-3, 1e6)), min_size=1, max_size=8))
def test_only_heads_that_raise_the_score_are_said_to(effects: list[tuple[float, float]]) -> None:
    names = [f"0.{head}" for head in range(len(effects))]
    change, error = (("ablation", list(values)) for values in zip(*effects, strict=True))
    changes = xr.Dataset(
        {"icl_score_change": change, "icl_score_change_sem": error}, coords={"ablation": np.array(names)}
    )
    sure = {name: value for name, (value, sem) in zip(names, effects, strict=True) if value > 2 * sem}
    found = _raising(changes)
    if not sure:
        assert found == "no head (by more than two standard errors)"
        return
    said = [part.split(" by ")[0] for part in found.split(", ")]
    assert len(said) == min(3, len(sure))
    assert [sure[name] for name in said] == sorted(sure.values(), reverse=True)[:3]
