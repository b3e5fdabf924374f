"""The static twins: every file is there and readable, and the axes hold what the panels hold."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from icl_fast import InputError
from icl_fast.report import colours
from icl_fast.report.colours import (
    depth_colour,
    head_colours,
    model_colours,
    series_colours,
)
from icl_fast.report.draw.figures import save_figure
from icl_fast.report.draw.static import draw, draw_table, edges, short, write_static
from icl_fast.report.panels.builders import filled
from icl_fast.report.panels.exemplars import exemplar_panels
from icl_fast.report.panels.family import family_panels
from icl_fast.report.panels.panel import Heatmap, Panel, Series
from icl_fast.report.panels.table import ROWS, table_panels
from icl_fast.report.study import ExemplarStudy, Study

MadeStudy = Callable[..., Study]


@pytest.fixture(scope="module")
def study(made_study: MadeStudy) -> Study:
    return made_study((1, 2))


@pytest.fixture(scope="module")
def panels(study: Study) -> dict[str, Panel]:
    of_table = [panel for of_model in table_panels(study).values() for panel in of_model]
    return {panel.key: panel for panel in of_table + [one for _, group in family_panels(study) for one in group]}


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text")))


def test_every_panel_and_the_table_is_written(made_study: MadeStudy, tmp_path: Path) -> None:
    study = made_study((1,))
    table, family = table_panels(study), family_panels(study)
    seen = []
    written = write_static(study, table, family, tmp_path / "static", lambda done, of: seen.append((done, of)))
    keys = [panel.key for of_model in table.values() for panel in of_model]
    keys += [panel.key for _, group in family for panel in group]
    expected = {f"{key}.{ending}" for key in [*keys, "table"] for ending in ("png", "svg")}
    assert {path.name for path in written} == expected == {path.name for path in (tmp_path / "static").iterdir()}
    for path in written:
        if path.suffix == ".png":
            assert imread(path).shape[2] == 4
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    count = len(keys) + 1
    assert seen == [(done, count) for done in range(1, count + 1)]


def test_lines_are_the_panels_values(study: Study, panels: dict[str, Panel]) -> None:
    for panel in panels.values():
        if panel.kind not in ("lines", "points") or panel.absent:
            continue
        axis = draw(panel, study).axes[0]
        drawn = axis.lines[: len(panel.series)]
        shades = [series for series in panel.series if series.error is not None]
        assert len(axis.collections) == len(shades)
        for line, series, colour in zip(drawn, panel.series, series_colours(study, panel), strict=True):
            keep = series.x > 0 if panel.log_x else np.ones(len(series.x), dtype=bool)
            np.testing.assert_array_equal(line.get_xdata(), series.x[keep])
            np.testing.assert_array_equal(line.get_ydata(), series.y[keep])
            drawn_in = line.get_markeredgecolor() if line.get_markerfacecolor() == "none" else line.get_color()
            assert drawn_in == colour
        if panel.y_range is not None:
            np.testing.assert_allclose(axis.get_ylim(), panel.y_range)
        assert axis.get_xscale() == ("log" if panel.log_x else "linear")


def test_paths_and_heatmaps(study: Study, panels: dict[str, Panel]) -> None:
    path = panels["table-1-pca-two_layer"]
    drawn = [line.get_xydata() for line in draw(path, study).axes[0].lines]
    for series in path.series:
        assert any(np.array_equal(one, np.stack([series.x, series.y], 1)) for one in drawn)
    panel = panels["table-3-loss_by_position-two_layer"]
    assert panel.heatmap is not None
    axis = draw(panel, study).axes[0]
    (mesh,) = [one for one in axis.collections if isinstance(one, QuadMesh)]
    np.testing.assert_array_equal(mesh.get_array(), panel.heatmap.z)
    assert mesh.get_clim() == (panel.heatmap.low, panel.heatmap.high)


def test_maps_have_the_names_of_their_rows_and_columns(study: Study) -> None:
    for count, shown in (3, ["0.0", "0.1", "0.2"]), (41, [f"0.{head}" for head in range(0, 41, 3)]):
        columns, rows = tuple(f"0.{head}" for head in range(count)), ("held-out-label-pairs", "icl")
        z = np.arange(2.0 * count).reshape(2, count)
        heatmap = Heatmap(np.arange(float(count)), np.arange(2.0), z, "sequential", 0, 9, "share", columns, rows)
        figure = draw(Panel("wiring", "heatmap", "Wiring", "", "head", "evaluator", heatmap=heatmap), study)
        axis = figure.axes[0]
        assert [text.get_text() for text in axis.get_xticklabels()] == shown
        assert [text.get_text() for text in axis.get_yticklabels()] == list(rows)
        assert axis.get_xticks().tolist() == [columns.index(name) for name in shown]
        (mesh,) = [one for one in axis.collections if isinstance(one, QuadMesh)]
        np.testing.assert_array_equal(mesh.get_array(), z)
        figure.draw_without_rendering()
        within = figure.bbox
        for text in (*axis.get_yticklabels(), axis.yaxis.label):
            box = text.get_window_extent()
            assert within.x0 <= box.x0 < box.x1 <= within.x1


def test_a_legend_of_many_names_the_first(study: Study) -> None:
    of = tuple(Series(f"member {i}", np.arange(2.0), np.arange(2.0)) for i in range(30))
    figure = draw(Panel("many", "lines", "Many", "", "x", "y", series=of), study)
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == [*(f"member {i}" for i in range(18)), "and 12 more"]
    figure.draw_without_rendering()
    assert figure.axes[0].get_legend().get_window_extent().y0 >= 0


def test_runs_on_exemplars_alone(exemplar_runs: dict[str, ExemplarStudy], tmp_path: Path) -> None:
    """Every panel, drawn in the page's colours, and no table."""
    runs = Study("Runs", {}, (), (), {"alone": exemplar_runs["alone"]})
    groups = exemplar_panels(runs)["alone"]
    written = write_static(runs, {}, groups, tmp_path)
    panels = [panel for _, of_group in groups for panel in of_group]
    assert {path.stem for path in written} == {panel.key for panel in panels}
    assert len(written) == 2 * len(panels)
    for panel in panels:
        lines = draw(panel, runs).axes[0].lines[: len(panel.series)]
        for line, series, colour in zip(lines, panel.series, series_colours(runs, panel), strict=True):
            shown = series.x > 0 if panel.log_x else np.ones(len(series.x), dtype=bool)
            np.testing.assert_array_equal(line.get_ydata(), series.y[shown])
            assert line.get_color() == colour


def test_a_logarithmic_axis_leaves_out_what_came_before_training(study: Study, panels: dict[str, Panel]) -> None:
    loss = replace(panels["table-2-loss-two_layer"], log_x=True)
    line = draw(loss, study).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), loss.series[0].y[1:])
    heat = replace(panels["table-3-loss_by_position-two_layer"], log_x=True)
    assert heat.heatmap is not None
    (mesh,) = [one for one in draw(heat, study).axes[0].collections if isinstance(one, QuadMesh)]
    np.testing.assert_array_equal(mesh.get_array(), heat.heatmap.z[:, 1:])


def test_band_is_drawn_where_there_is_one(study: Study, panels: dict[str, Panel]) -> None:
    for name, count in ("two_layer", 1), ("one_layer", 0):
        panel = panels[f"table-2-loss-{name}"]
        bands = draw(panel, study).axes[0].patches
        assert len(bands) == count
        if panel.band is not None:
            assert (bands[0].get_x(), bands[0].get_x() + bands[0].get_width()) == panel.band
    early = replace(panels["table-2-loss-two_layer"], log_x=True, band=(0.0, 40960.0))
    axis = draw(early, study).axes[0]
    assert axis.patches[0].get_x() == axis.get_xlim()[0] > 0


def test_absent_panels_say_why(study: Study, panels: dict[str, Panel]) -> None:
    panel = panels["table-8-ablation_before_after-one_layer"]
    figure = draw(panel, study)
    assert not figure.axes[0].axison
    assert " ".join(texts(figure).split()).count(panel.absent or "?") == 1


def test_caption_and_legend_are_on_the_figure(study: Study, panels: dict[str, Panel]) -> None:
    for key, labels in {
        "table-6-prefix_matching-two_layer": ("layer 0", "layer 1", "phase change"),
        "table-1-pca-two_layer": ("two_layer", "start of training", "phase change"),
        "family-loss": ("one_layer", "two_layer"),
    }.items():
        figure = draw(panels[key], study)
        assert " ".join(panels[key].caption.split()) in " ".join(texts(figure).split())
        legend = figure.axes[0].get_legend()
        assert legend is not None
        shown = [text.get_text() for text in legend.get_texts()]
        assert set(labels) <= set(shown)
    kinds = {str(kind) for kind in study.models["two_layer"].types.types.ravel()}
    legend = draw(panels["table-9-ablation_icl-two_layer"], study).axes[0].get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == kinds | {"phase change"}


def test_the_whole_table(study: Study) -> None:
    table = table_panels(study)
    figure = draw_table(study, table)
    assert len(figure.axes) == 9 * 2 + 2  # and two colour bars
    shown = " ".join(texts(figure).split())
    for number, row in enumerate(ROWS, start=1):
        for words in (f"{number} {row.title}", row.explanation, row.reading):
            assert words in shown
    assert "one_layer 1 layer, 1,234 parameters" in shown
    assert "N/A: one layer" in shown
    for index, panel in enumerate(table["two_layer"]):
        assert figure.axes[[0, 2, 4, 7, 10, 12, 14, 16, 18][index] + 1].get_ylabel() == "", panel.key


def test_names_are_no_formulas(study: Study, tmp_path: Path) -> None:
    name = r"a_$x^2$_{b \frac"
    model = replace(study.models["two_layer"], name=name)
    odd = replace(study, models={name: model}, groups=(replace(study.groups[0], models=(name,)),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for panel in (
            table_panels(odd)[name][1],
            next(p for _, g in family_panels(odd) for p in g if p.key.endswith("loss")),
        ):
            figure = draw(panel, odd)
            save_figure(figure, tmp_path / panel.key)
            assert name in texts(figure)
        save_figure(draw_table(odd, table_panels(odd)), tmp_path / "table")


def test_a_full_disk_is_an_input_error(made_study: MadeStudy) -> None:
    study = made_study((1,))
    table = table_panels(study)
    with pytest.raises(InputError, match="cannot be written"):
        write_static(study, table, [], "/proc/nowhere")


def test_cells_meet_half_way() -> None:
    np.testing.assert_allclose(edges(np.array([0.0, 2.0, 6.0]), False), [-1, 1, 4, 8])
    np.testing.assert_allclose(edges(np.array([1.0, 4.0, 16.0]), True), [0.5, 2, 8, 32])
    np.testing.assert_allclose(edges(np.array([3.0]), False), [2.5, 3.5])


def test_short_numbers() -> None:
    assert [short(value) for value in (0, 500, 20_000, 1.5e6, 2e9)] == ["0", "500", "20k", "1.5M", "2B"]


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_colours_are_readable_on_white_and_on_near_black() -> None:
    drawn = [
        *colours.MODELS,
        *colours.EVALUATORS.values(),
        *colours.TYPES.values(),
        *(depth_colour(layer, 12) for layer in range(12)),
        colours.MARK,
    ]
    for colour in drawn:
        for ground in ("#FFFFFF", "#16181D"):
            ends = sorted((luminance(colour), luminance(ground)))
            assert (ends[1] + 0.05) / (ends[0] + 0.05) >= 3, (colour, ground)


def test_types_and_depths_differ_with_any_colour_vision() -> None:
    # Viénot, Brettel and Mollon 1999: what remains of linear RGB without red or green cones
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    for group in (list(colours.TYPES.values()), [colours.DEPTH[0], colours.DEPTH[-1]]):
        for matrix in (np.eye(3), protan, deutan):
            seen = [(matrix @ np.power(to_rgb(colour), 2.2)).clip(0, 1) ** (1 / 2.2) for colour in group]
            for first, second in combinations(seen, 2):
                assert np.abs(first - second).max() > 0.2


def test_colours_of_series(study: Study, panels: dict[str, Panel]) -> None:
    two = study.models["two_layer"]
    assert head_colours(two, "depth") == [[colours.DEPTH[0]] * 2, [colours.DEPTH[-1]] * 2]
    assert head_colours(two, "type") == [[colours.TYPES[kind] for kind in layer] for layer in two.types.types.tolist()]
    by_model = model_colours(study)
    assert series_colours(study, panels["family-loss"]) == [by_model["one_layer"], by_model["two_layer"]]
    assert series_colours(study, panels["table-1-pca-two_layer"]) == [
        by_model["two_layer"],
        colours.BAND,
        colours.OTHERS,
    ]
    pairs = series_colours(study, panels["family-icl-pairs-two_layer"])
    assert len(set(pairs)) == len(pairs)  # all of one model, and yet told apart
    heads = panels["table-6-prefix_matching-two_layer"]
    assert series_colours(study, heads) == [colours.DEPTH[0]] * 2 + [colours.DEPTH[-1]] * 2
    assert series_colours(study, heads, "type") == [colour for layer in head_colours(two, "type") for colour in layer]
    ablated = panels["table-9-ablation_icl-two_layer"]
    assert series_colours(study, ablated) == series_colours(study, ablated, "type")


def test_more_models_than_colours_are_told_apart_by_dashes(study: Study) -> None:
    model = study.models["two_layer"]
    names = [f"model {number}" for number in range(10)]
    many = replace(study, models={name: replace(model, name=name) for name in names})
    series = tuple(Series(name, np.arange(3.0), np.arange(3.0), model=name) for name in names)
    lines = draw(Panel("k", "lines", "t", "c", "x", "y", series=series), many).axes[0].lines[:10]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 10


def test_a_refusal_empties_the_panel() -> None:
    def refuse() -> dict[str, object]:
        raise InputError("losses: too few")

    panel = filled(Panel("k", "lines", "t", "c", "x", "y"), refuse)
    assert (panel.absent, panel.series) == ("N/A: losses: too few", ())
