"""Progress in notebooks: one output, drawn anew, with every bar in it; in a stand-in for IPython and in a kernel."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import icl_fast
from icl_fast.cli.progress import counting, population_progress, progress
from icl_fast.runs import parse_config
from icl_fast.training import train


class Rows(HTMLParser):
    """The texts of a table, row by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag == "progress":
            self.rows[-1][-1] += "/".join(dict(attrs)[key] for key in ("value", "max")) if attrs else "?"

    def handle_data(self, data: str) -> None:
        self.rows[-1][-1] += data


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What a notebook is given: of each output, what it showed one after the other."""
    shown: list[list[str]] = []

    def display(html: str, display_id: bool) -> Any:
        assert display_id
        shown.append([html])
        return types.SimpleNamespace(update=shown[-1].append)

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=1)  # type: ignore[attr-defined]
    of_display = types.ModuleType("IPython.display")
    of_display.HTML, of_display.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", of_display)
    monkeypatch.setattr("icl_fast.cli.notebook_display._SECONDS_BETWEEN_DRAWINGS", -1.0)
    return shown


def test_nested_bars_are_one_output(outputs: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    with counting("rendering <glyphs>") as show, population_progress("run", 300):
        for done in range(1, 13):
            show(done, 100, "x & y")
    (states,) = outputs
    last = Rows(states[-1]).rows
    assert [row[0] for row in last] == ["rendering <glyphs>", "training run"]
    assert last[0][1:4] == ["12/100", "12/100", "x & y"]
    assert last[1][1] == "0/300"
    assert len(states) == 1 + 12 + 1
    assert capsys.readouterr() == ("", "")
    with counting("another") as show:
        show(1, 1, "")
    assert len(outputs) == 2  # a display of its own, once the first has ended


def test_whatever_tells_of_it(
    outputs: list[list[str]], tiny_values: dict[str, Any], tiny_run: Path, tmp_path: Path
) -> None:
    with progress("training") as show:
        icl_fast.train(parse_config(tiny_values), tmp_path / "run", on_progress=show)
    with progress("ablating") as show:
        icl_fast.sweep(tiny_run, heads="0.1", examples=3, out=tmp_path / "a.zarr", on_part=show)
    with progress("measuring") as show:
        icl_fast.evaluate(tiny_run, out=tmp_path / "b.zarr", on_snapshot=show)
    exemplars = {
        "exemplars": {"kind": "gaussian", "classes": 12, "exemplars": 3, "width": 8, "encoder": "none"},
        "sequences": {"classes": 8, "held_out_classes": 3},
        "model": {"width": 16, "heads": 4},
        "training": {"steps": 2, "batch": 4},
        "evaluation": {"every": 2, "sequences": 8},
    }
    with progress() as show:
        train(parse_config(exemplars), tmp_path / "exemplars", on_progress=show, on_exemplars=show)
    rows = [Rows(states[-1]).rows for states in outputs]
    assert [[(row[0], row[2]) for row in of_one] for of_one in rows] == [
        [("training", "12/12")], [("ablating", "3/3")], [("measuring", "3/3")], [("working", "2/2")],
    ]  # fmt: skip
    assert "loss " in rows[0][0][3]
    assert "loss " in rows[3][0][3]


def test_an_error_leaves_no_display(outputs: list[list[str]]) -> None:
    with pytest.raises(ZeroDivisionError), counting("one"):
        raise ZeroDivisionError
    with counting("two"):
        pass
    assert len(outputs) == 2


CELL = """
import icl_fast, time
from icl_fast.cli.progress import counting, population_progress
with counting("rendering glyphs") as show, population_progress("run", 300):
    for done in range(12):
        show(done, 100, "x")
        time.sleep(0.05)
"""


def test_in_a_real_kernel(tiny_run: Path, write_notebook: Callable[..., Any]) -> None:
    cells = write_notebook(
        CELL,
        f"icl_fast.Run({str(tiny_run)!r})",
        f"icl_fast.attention({str(tiny_run)!r}, 'so it is to be so it is')",
    )
    (shown,) = cells[0]
    assert shown["output_type"] == "display_data"
    rows = Rows(shown["data"]["text/html"]).rows
    assert [row[0] for row in rows] == ["rendering glyphs", "training run"]
    assert rows[0][2] == "11/100"
    ((of_run,), (of_view,)) = cells[1:]
    assert "12 of 12" in of_run["data"]["text/html"]
    assert of_view["data"]["text/html"].startswith("<iframe srcdoc=")
    assert of_view["data"]["text/plain"].startswith("AttentionView of")


@pytest.fixture
def write_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs cells in a kernel of this Python, and gives the outputs of each."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")

    def run(*cells: str) -> list[list[Any]]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
        return [cell["outputs"] for cell in notebook["cells"]]

    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    kernel = tmp_path / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    kernel.write_text(f'{{"argv": {argv}, "display_name": "Python", "language": "python"}}')
    return run
