"""The demo from end to end on a tiny corpus: every file, a verdict from the rule, and nothing done twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from matplotlib.image import imread

from icl_fast import InputError
from icl_fast.analysis import find_phase_change
from icl_fast.cli.main import cli
from icl_fast.measure import open_results
from icl_fast.report.draw.figures import phase_change_figure, save_figure
from icl_fast.studies import demo


@pytest.fixture
def configs(tiny_values: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    for name in demo.MODELS:
        values = {**tiny_values, "model": dict(tiny_values["model"]), "data": {**tiny_values["data"], "context": 64}}
        values["snapshots"] = {"every": 1}
        values["model"]["layers"] = 2 if name == "two_layer" else 1
        values["model"]["key"] = "smeared" if name == "one_layer_smeared" else "plain"
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_the_whole_demo(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EXAMPLES", 6)
    out = tmp_path / "out"
    arguments = ["demo", "--configs", str(configs), "--out", str(out), "--seeds", "2"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    for seed in (0, 1):
        summary = json.loads((out / f"seed{seed}" / "summary.json").read_text())
        assert set(summary) == set(demo.MODELS)
        # twelve steps on made-up words teach no induction: the rule must say so
        assert not any(verdict["happened"] for verdict in summary.values())
        assert imread(out / f"seed{seed}" / "phase_change.png").shape[2] == 4
        ElementTree.parse(out / f"seed{seed}" / "phase_change.svg")
        results = open_results(out / f"seed{seed}" / "two_layer" / "results" / "ablation_pattern-preserving.zarr")
        assert results.sizes["ablation"] == 5
    assert "two_layer: phase change in 0 of 2 seeds" in result.output
    assert result.output.count("change: yes if") == 2
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == stamps


def test_the_figure_shows_the_stored_numbers(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EXAMPLES", 6)
    assert CliRunner().invoke(cli, ["demo", "--configs", str(configs), "--out", str(tmp_path / "out")]).exit_code == 0
    data = open_results(tmp_path / "out" / "seed0" / "two_layer" / "results" / "ablation_pattern-preserving.zarr")
    data["prefix_matching"] = (("snapshot", "layer_", "head_"), np.full((data.sizes["snapshot"], 2, 2), 0.25))
    scores = [0.0] * 4 + [-0.4] * 4
    change = replace(find_phase_change(range(1, 9), scores, [0.5] * 8), start=0, end=1)
    figure = phase_change_figure({"two_layer": data}, {"two_layer": change}, "two_layer")
    loss, score, matching, effects = figure.axes
    whole = data.sel(ablation="none")
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), whole["loss"].mean("example"))
    np.testing.assert_array_equal(score.lines[0].get_ydata(), whole["icl_score"])
    np.testing.assert_array_equal(matching.lines[0].get_ydata(), [0.25] * data.sizes["snapshot"])
    by_label = {line.get_label(): line.get_ydata() for line in effects.lines}
    for head in ("0.0", "0.1", "1.0", "1.1"):
        expected = data["icl_score"].sel(ablation=head) - whole["icl_score"]
        np.testing.assert_array_equal(by_label[f"head {head}"], expected)
    assert len(loss.patches) == 1  # the interval of the change
    with pytest.raises(InputError, match="cannot be written"):
        save_figure(figure, Path("/proc/nowhere/figure"))
