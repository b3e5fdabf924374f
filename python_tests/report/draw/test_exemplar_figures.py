"""Figures of runs on exemplars: what is drawn is what was measured."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.measure.exemplar.measured_run import measure_wiring, open_measured
from icl_fast.report.draw.axes import end_at_data, label_points
from icl_fast.report.draw.exemplar_curves import facet_figure, population_figure, run_figure, strategies_figure
from icl_fast.report.draw.exemplar_heads import draw_heads, draw_wiring
from icl_fast.report.draw.figures import save_figure
from icl_fast.runs import Run, parse_config
from icl_fast.studies.exemplar_heads import measure_heads
from icl_fast.training import train

TINY: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 20, "label_pool": 5, "held_out_classes": 6, "held_out_label_pairs": 0.2},
    "model": {"width": 16, "heads": 4},
    "training": {"steps": 12, "batch": 4, "lr": 1e-2, "log_every": 4},
    "evaluation": {"every": 3, "sequences": 40},
    "snapshots": {"every": 6},
    "members": [{"name": f"{word} {i} | {clamp}"} for word in ("classes", "labels") for i in (1, 2) for clamp in "ab"],
}
FIXED = {"sequences": {"classes": 24}, "members": 1}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(parse_config(TINY), tmp_path_factory.mktemp("runs") / "grid")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(parse_config(TINY | FIXED), tmp_path_factory.mktemp("runs") / "fixed")


def drawn(axis: Any, label: str) -> np.ndarray:
    (line,) = (line for line in axis.get_lines() if line.get_label() == label)
    return np.asarray(line.get_ydata(), float)


def test_curves_of_one_run(fixed: Run) -> None:
    curves = training_curves(fixed).isel(member=0)
    axes = run_figure(curves, "fixed", 2).axes
    assert np.array_equal(drawn(axes[0], "train"), curves["training_loss"].values)
    for name in ("icl", "ciwl", "flip", "train"):
        assert np.array_equal(drawn(axes[1], name), curves["accuracy_in_context"].sel(evaluator=name).values)
    assert "iwl" not in [line.get_label() for line in axes[1].get_lines()]  # nothing in context is right there
    assert np.array_equal(drawn(axes[2], "iwl"), curves["accuracy"].sel(evaluator="iwl").values)
    assert np.array_equal(drawn(axes[6], "ciwl"), curves["loss"].sel(evaluator="ciwl").values)
    for axis, metric, layer in ((axes[3], "induction", 1), (axes[4], "previous_token", 0), (axes[5], "own", 0)):
        values = curves[metric].sel(evaluator="flip").isel(layer=layer)
        for head in range(4):
            assert np.array_equal(drawn(axis, str(head)), values.isel(head=head).values)


def test_curves_of_a_population(grid: Run) -> None:
    curves = training_curves(grid)
    axes = population_figure(curves, "grid", 2).axes
    for name in grid.population.names:
        assert np.array_equal(drawn(axes[0], name), curves["training_loss"].sel(member=name).values)
    assert [axis.get_title() for axis in axes[1:4]] == [
        f"{name}:\naccuracy among the labels in context" for name in ("icl", "held-out-classes", "held-out-label-pairs")
    ]


def test_a_name_is_no_formula_and_hides_no_line(grid: Run, tmp_path: Path) -> None:
    names = [r"a$\frac$b", "_hidden", "\udcff"]
    curves = training_curves(grid).isel(member=slice(0, 3)).assign_coords(setting=("member", names))
    figure = population_figure(curves, r"$\frac$", 2)
    save_figure(figure, tmp_path / "curves")  # matplotlib reads formulas when it draws
    drawn = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert r"<!-- $\frac$: 3 trainings of 48 sequences -->" in drawn
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.strip("\N{ZERO WIDTH SPACE}") for text in legend] == [r"a\$\frac\$b", "_hidden", "?", "log 2: a guess"]


def test_seeds_of_a_setting_are_one_band(grid: Run) -> None:
    curves = training_curves(grid).isel(member=slice(0, 5))
    curves = curves.assign_coords(setting=("member", ["a", "a", "b", "a", "b"]))
    figure = population_figure(curves, "seeds", 2)
    axes = figure.axes
    for name, members in (("a", [0, 1, 3]), ("b", [2, 4])):
        losses = curves["training_loss"].values[:, members]
        np.testing.assert_allclose(drawn(axes[0], name), losses.mean(1), rtol=1e-12)
        band = axes[0].collections["ab".index(name)].get_paths()[0].vertices[:, 1]
        for edge in losses.mean(1) - losses.std(1, ddof=1), losses.mean(1) + losses.std(1, ddof=1):
            assert all(np.isclose(band, value, rtol=1e-9).any() for value in edge)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "log 2: a guess"]
    assert len(axes[1].get_lines()) == len(axes[1].collections) == 2


def test_a_grid_has_a_row_a_word_and_a_column_a_clamp(grid: Run) -> None:
    curves = training_curves(grid)
    axes = np.array(facet_figure(curves, "grid", 2).axes).reshape(2, 2)
    for i, word in enumerate(("classes", "labels")):
        for j, clamp in enumerate("ab"):
            assert axes[i, j].get_title() == clamp
            for number in (1, 2):
                expected = curves["training_loss"].sel(member=f"{word} {number} | {clamp}").values
                assert np.array_equal(drawn(axes[i, j], f"{word} {number}"), expected)


def test_progress_measures(fixed: Run) -> None:
    sizes = {"snapshot": 3, "clamp": 2, "evaluator": 2}
    random = np.random.default_rng(0)
    results = xr.Dataset(
        {name: (tuple(sizes), random.random(tuple(sizes.values()))) for name in ("loss", "accuracy_in_context")},
        coords={"clamp": ["as trained", "match"], "evaluator": ["train", "icl"]},
    ).assign(sequences=("snapshot", [0, 8, 16]))
    axes = strategies_figure(results, "fixed", 2).axes
    for number, clamp in enumerate(results["clamp"].values):
        one = results.sel(clamp=clamp)
        assert np.array_equal(drawn(axes[0], clamp), one["loss"].sel(evaluator="train").values)
        assert np.array_equal(drawn(axes[1 + number], "icl"), one["accuracy_in_context"].sel(evaluator="icl").values)


@pytest.mark.parametrize("which", ["grid", "fixed"])
def test_wiring_and_heads_are_drawn(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(which)
    measured = open_measured(run.path, snapshots="last", evaluators=["train"], sequences=50)
    member = len(run.population.names) - 1
    files = draw_wiring(measure_wiring(measured), member, tmp_path / "wiring")
    files += draw_heads(measure_heads(measured), member, tmp_path / "heads")
    assert sorted(file.name for file in files) == ["heads.png", "heads.svg", "wiring.png", "wiring.svg"]
    for name in ("heads", "wiring"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert len(image.getcolors(2**24) or []) > 50
        text = (tmp_path / f"{name}.svg").read_text()
        assert text.startswith("<?xml")


def test_labels_of_points_lie_over_no_other() -> None:
    axis = Figure().subplots()
    x, y = np.array([0.2, 0.2, 0.21, 0.2, 0.8]), np.array([0.5, 0.5, 0.5, 0.51, 0.5])
    axis.plot(x, y, "o")
    axis.set(xlim=(0, 1), ylim=(0, 1))
    label_points(axis, x, y, list("abcde"))
    axis.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 5
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_axes_end_where_the_data_do() -> None:
    axis = Figure().subplots()
    axis.plot([0, 1, 2], [0.5, np.nan, 0.9])
    end_at_data(axis, [0.4])
    np.testing.assert_allclose(axis.get_ylim(), (0.38, 0.92))
