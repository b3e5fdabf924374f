"""What a notebook shows of runs, series, loaded models and plans: their facts, as text, and never an exception."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import icl_fast
from icl_fast.measure import plan_sweep
from icl_fast.measure.exemplar.ablation_sweep import plan_ablations
from icl_fast.notebook import some, table
from icl_fast.runs import Run, open_series, parse_config
from icl_fast.training import train
from icl_fast.training.plan import plan_training


class Cells(HTMLParser):
    """The texts of a table's cells, and what stands before it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        if tag in ("b", "th", "td"):
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data


def facts(shown: Any) -> tuple[str, dict[str, str]]:
    title, *cells = Cells(shown._repr_html_()).texts
    return title, dict(zip(cells[::2], cells[1::2], strict=True))


def test_a_run(tiny_run: Path) -> None:
    title, found = facts(Run(tiny_run))
    assert title == f"Run {tiny_run}"
    assert found["model"] == "2 layers of 2 heads, width 16, attention-only"
    assert (found["steps done"], found["snapshots"]) == ("12 of 12", "0, 6, 12")
    assert found["last loss"] == f"{Run(tiny_run).read_log()[-1]['loss']:.3f} nats"


def test_runs_that_are_none(tiny_run: Path, tmp_path: Path) -> None:
    assert facts(Run(tmp_path))[1] == {"": f"run folder {tmp_path}: holds no run (no config.yaml)"}
    damaged = Path(shutil.copytree(tiny_run, tmp_path / "<b>damaged</b>"))
    (damaged / "log.jsonl").write_text("nonsense\n")
    title, found = facts(Run(damaged))
    assert title == f"Run {damaged}"
    assert "log.jsonl: line 1" in found[""]


def test_on_exemplars(tmp_path: Path) -> None:
    values = {
        "exemplars": {"kind": "gaussian", "classes": 12, "exemplars": 3, "width": 8, "encoder": "none"},
        "sequences": {"classes": 8, "held_out_classes": 3},
        "model": {"width": 16, "heads": 4},
        "training": {"steps": 2, "batch": 4, "log_every": 1},
        "evaluation": {"every": 2, "sequences": 8},
        "members": 2,
    }
    run = train(parse_config(values), tmp_path / "run")
    assert facts(run)[1]["data"] == "gaussian, 2 pairs, 2 members"
    assert facts(run)[1]["steps done"] == "2 of 2"
    assert "evaluated on" not in facts(open_series(run.path))[1]
    title, found = facts(icl_fast.load(run.path))
    assert (title, found["reads text"]) == ("LoadedModel", "no: it has no tokenizer")
    assert found["trained on"] == "8 sequences"
    plan = plan_ablations(run.population.config.model, modes=["full"], heads="all")
    assert facts(plan)[1]["ablations"] == "8"


def test_series_and_loaded_models(tiny_run: Path, tmp_path: Path, write_llama: Callable[..., Path]) -> None:
    title, found = facts(open_series(tiny_run))
    assert (title, found["snapshots"]) == ("Series tiny", "0, 6, 12")
    assert found["evaluated on"].endswith("24 tokens an example")
    other = write_llama(tmp_path / "llama", 1)
    assert facts(open_series(other))[1]["evaluated on"].startswith("repeated-random, ")
    _, found = facts(icl_fast.load(tiny_run, 6))
    weights = icl_fast.load(tiny_run, 6).model.parameters()
    assert (found["step"], found["parameters"]) == ("6", f"{sum(one.numel() for one in weights):,}")


@pytest.mark.parametrize("engine", ["fast", "definition"])
def test_plans(tiny_run: Path, engine: Any) -> None:
    title, found = facts(plan_sweep(tiny_run, heads="all", engine=engine, examples=5))
    assert title == "Sweep, planned"
    assert found["ablations"] == "4, pattern-preserving, by zero"
    assert found["examples"].startswith("5 of 24 tokens")
    title, found = facts(plan_training(Run(tiny_run).text_config))
    assert (title, found["snapshots"][:2]) == ("Training, planned", "3 ")


def test_text_is_text() -> None:
    shown = table("<i>", {"<script>": "a & <b>", "left out": None, "number": 5})
    assert Cells(shown).texts == ["<i>", "<script>", "a & <b>", "number", "5"]
    assert [some([]), some([1, 2000]), some(list(range(0, 90_000, 1000)))] == [
        "none", "1, 2,000", "90, from 0 to 89,000",
    ]  # fmt: skip
