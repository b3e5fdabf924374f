"""The Model Analysis Table's panels hold the stored arrays, or what is computed here once more."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from icl_fast.analysis import opaque_heads
from icl_fast.report.colours import PHASE_CHANGE
from icl_fast.report.panels.panel import Panel
from icl_fast.report.panels.table import ROWS, table_panels
from icl_fast.report.study import ModelStudy, Study

MadeStudy = Callable[..., Study]
HEAD_ROWS = ("prefix_matching", "qk_trace", "ablation_before_after", "ablation_icl")


@pytest.fixture(scope="module")
def study(made_study: MadeStudy) -> Study:
    return made_study((1, 2, 3))


@pytest.fixture(scope="module")
def table(study: Study) -> dict[str, list[Panel]]:
    return table_panels(study)


def row(panels: list[Panel], key: str) -> Panel:
    return panels[[of.key for of in ROWS].index(key)]


def changed(study: Study, name: str, **values: object) -> Study:
    return replace(study, models=study.models | {name: replace(study.models[name], **values)})


def by_head(panel: Panel) -> dict[tuple[int, int], np.ndarray]:
    return {series.head: series.y for series in panel.series if series.head is not None}


def test_nine_rows_a_model_in_the_papers_order(study: Study, table: dict[str, list[Panel]]) -> None:
    assert list(table) == list(study.models)
    panels = [panel for of_model in table.values() for panel in of_model]
    assert all(len(of_model) == len(ROWS) == 9 for of_model in table.values())
    keys = [panel.key for panel in panels]
    # a dot would be taken for a file's ending
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[a-z0-9_-]+", key) for key in keys)
    for name, of_model in table.items():
        for number, (of_row, panel) in enumerate(zip(ROWS, of_model, strict=True), start=1):
            assert panel.title == f"{of_row.title}: {name}"
            assert panel.key.startswith(f"table-{number}-")
            assert panel.caption
            assert panel.over_training == (number > 1)
            for series in panel.series:
                assert series.model in study.models
                if number > 1:
                    np.testing.assert_array_equal(series.x, study.models[name].losses["tokens"])


def test_path_of_the_joint_pca(study: Study, table: dict[str, list[Panel]]) -> None:
    pca = study.groups[0].pca
    assert pca is not None
    for name, panels in table.items():
        panel, model = row(panels, "pca"), study.models[name]
        own, *rest = panel.series
        np.testing.assert_array_equal(np.stack([own.x, own.y], 1), pca.coordinates[name])
        assert own.opaque
        assert own.model == name
        assert own.names[1] == "step 10, 20,480 tokens"
        inside = [series for series in rest if series.label == PHASE_CHANGE]
        assert len(inside) == (model.interval is not None)
        if model.interval is not None:
            steps = model.losses["snapshot"].values
            chosen = [at for at, step in enumerate(steps) if model.interval[0] <= step <= model.interval[1]]
            np.testing.assert_array_equal(inside[0].x, own.x[chosen])
            assert inside[0].names == tuple(own.names[at] for at in chosen)
        others = [series for series in rest if series.label != PHASE_CHANGE]
        assert [series.label for series in others] == [other for other in study.models if other != name]
        assert not any(series.opaque for series in others)
        assert f"{pca.explained_variance_ratio[0]:.0%} of the variance" in panel.x_label
        assert panel.band is None


def test_losses_and_scores(study: Study, table: dict[str, list[Panel]]) -> None:
    for name, panels in table.items():
        losses = study.models[name].losses.sel(ablation="none")
        (loss,) = row(panels, "loss").series
        values = losses["loss"].values.astype(np.float64)  # [snapshot, example]
        np.testing.assert_allclose(loss.y, values.sum(1) / values.shape[1], rtol=1e-12)
        scatter = ((values - values.mean(1, keepdims=True)) ** 2).sum(1) / (values.shape[1] - 1)
        np.testing.assert_allclose(loss.error, np.sqrt(scatter / values.shape[1]), rtol=1e-9)
        (score,) = row(panels, "icl_score").series
        np.testing.assert_array_equal(score.y, losses["icl_score"])
        np.testing.assert_array_equal(score.error, losses["icl_score_sem"])
        assert "token 31 minus token 4" in row(panels, "icl_score").caption


def test_heatmaps(study: Study, table: dict[str, list[Panel]]) -> None:
    for name, panels in table.items():
        losses = study.models[name].losses.sel(ablation="none")
        heat, slope = row(panels, "loss_by_position").heatmap, row(panels, "slope_by_position").heatmap
        assert heat is not None
        assert slope is not None
        np.testing.assert_array_equal(heat.z, losses["position_loss"].values.T)
        np.testing.assert_array_equal(heat.x, losses["tokens"])
        np.testing.assert_array_equal(heat.y, np.arange(1, 33))
        # the made-up losses are linear in ln(position): one slope a snapshot
        expected = (heat.z[-1] - heat.z[0]) / np.log(32)
        np.testing.assert_allclose(slope.z, np.broadcast_to(expected, slope.z.shape), atol=1e-12)
        assert (heat.scale, slope.scale) == ("sequential", "diverging")


def test_one_scale_a_row(study: Study, table: dict[str, list[Panel]]) -> None:
    for index, of_row in enumerate(ROWS):
        panels = [of_model[index] for of_model in table.values()]
        assert len({panel.y_range for panel in panels}) == 1
        assert len({(panel.heatmap.low, panel.heatmap.high) for panel in panels if panel.heatmap}) <= 1
        for panel in panels:
            for series in panel.series:
                error = 0 if series.error is None else series.error
                assert panel.y_range is not None, of_row.key
                assert panel.y_range[0] <= (series.y - error).min()
                assert (series.y + error).max() <= panel.y_range[1]
    values = np.concatenate([row(panels, "loss_by_position").heatmap.z[:, 1:].ravel() for panels in table.values()])
    heat, slope = (row(table["two_layer"], key).heatmap for key in ("loss_by_position", "slope_by_position"))
    assert heat is not None
    assert slope is not None
    np.testing.assert_allclose((heat.low, heat.high), np.percentile(values, (2, 98)))
    assert slope.low == -slope.high < 0


def test_outliers_leave_the_colours_as_they_are(study: Study, table: dict[str, list[Panel]]) -> None:
    model = study.models["two_layer"]
    losses = model.losses.copy(deep=True)
    losses["position_loss"].values[3, 0, 0] = 1000.0
    far = table_panels(changed(study, "two_layer", losses=losses))
    for key in ("loss_by_position", "slope_by_position"):
        before, after = (row(panels["three_layer"], key).heatmap for panels in (table, far))
        assert before is not None
        assert after is not None
        assert after.high < 2 * before.high
    heat = row(far["two_layer"], "loss_by_position").heatmap
    assert heat is not None
    assert heat.z[0, 3] == 1000.0


def test_heads(study: Study, table: dict[str, list[Panel]]) -> None:
    for name, panels in table.items():
        model = study.models[name]
        for key in ("prefix_matching", "qk_trace"):
            lines = by_head(row(panels, key))
            first = 0 if key == "prefix_matching" else 1
            assert list(lines) == [(layer, head) for layer in range(first, model.config.layers) for head in range(2)]
            for (layer, head), values in lines.items():
                np.testing.assert_array_equal(values, model.heads[key].sel(layer=layer, head=head))
        for key, of in ("ablation_before_after", "before_after"), ("ablation_icl", "icl"):
            panel = row(panels, key)
            if of not in model.attributions:
                assert panel.absent is not None
                continue
            assert len(panel.series) == model.config.layers * model.config.heads
            for series in panel.series:
                assert series.head is not None
                assert series.label == "head {}.{}".format(*series.head)
                one = model.attributions.sel(ablation="{}.{}".format(*series.head))
                np.testing.assert_array_equal(series.y, one[of])
                np.testing.assert_array_equal(series.error, one[f"{of}_sem"])


def test_the_fitted_change_and_its_uncertainty_are_said(study: Study, table: dict[str, list[Panel]]) -> None:
    change = study.models["two_layer"].change
    assert change is not None
    assert change.window is not None
    caption = row(table["two_layer"], "icl_score").caption
    assert f"begins at step {change.window[0]:.0f} (" in caption
    assert "end over begin is 1.9 (1.5 to 2.5), of a smooth fall 7.0. Evidence against a smooth fall: 50" in caption
    assert "98% of resampled curves pass the rule. Intervals: 95%, over snapshots." in caption
    assert "begins at step" not in row(table["one_layer"], "icl_score").caption


def test_what_is_not_defined_says_so(study: Study, table: dict[str, list[Panel]]) -> None:
    one, two = table["one_layer"], table["two_layer"]
    assert row(one, "qk_trace").absent == "N/A: one layer; the trace needs earlier heads to compose with"
    absent = row(one, "ablation_before_after").absent
    assert absent is not None
    assert absent.startswith("N/A: no phase change: the ICL score fell by 0.00 nats")
    assert not row(one, "ablation_before_after").series
    assert all(panel.absent is None for panel in two)
    alone = table_panels(replace(study, groups=(replace(study.groups[0], pca=None),)))["two_layer"]
    assert "no plane: 3 snapshots or more" in (row(alone, "pca").absent or "")
    assert row(alone, "loss").absent is None


def test_what_an_analysis_refuses_is_no_exception(study: Study) -> None:
    model = study.models["two_layer"]
    losses = model.losses.copy(deep=True)
    losses["position_loss"].values[2] = np.nan
    broken = changed(study, "two_layer", losses=losses, heads=model.heads.drop_vars("qk_trace"))
    panels = table_panels(broken)["two_layer"]
    assert "not finite" in (row(panels, "loss_by_position").absent or "")
    assert "not finite" in (row(panels, "slope_by_position").absent or "")
    assert "qk_trace of two_layer was not measured" in (row(panels, "qk_trace").absent or "")
    assert row(panels, "prefix_matching").absent is None


def test_points_that_are_not_finite_are_left_out(study: Study) -> None:
    model = study.models["two_layer"]
    heads = model.heads.copy(deep=True)
    heads["qk_trace"].values[2, 1, 0] = np.nan
    sems = model.attributions.copy(deep=True)
    sems["icl_sem"].values[:, 1] = np.nan
    panels = table_panels(changed(study, "two_layer", heads=heads, attributions=sems))["two_layer"]
    line, whole = row(panels, "qk_trace").series
    np.testing.assert_array_equal(line.x, np.delete(whole.x, 2))
    np.testing.assert_array_equal(line.y, np.delete(heads["qk_trace"].values[:, 1, 0], 2))
    assert [series.error is None for series in row(panels, "ablation_icl").series] == [False, True, False, False]


def test_band(study: Study, table: dict[str, list[Panel]]) -> None:
    model: ModelStudy = study.models["two_layer"]
    assert model.interval is not None
    assert {panel.band for panel in table["one_layer"]} == {None}
    expected = tuple(step * 2048.0 for step in model.interval)
    assert {panel.band for panel in table["two_layer"][1:]} == {expected}
    # one set by hand need not lie on snapshots
    by_hand = table_panels(changed(study, "two_layer", interval=(15, 32)))["two_layer"]
    assert by_hand[1].band == (15 * 2048.0, 32 * 2048.0)


def test_axis_is_logarithmic_where_snapshots_are_spaced_exponentially(study: Study) -> None:
    model = study.models["two_layer"]
    seen = ("snapshot", [0, 1000, 2000, 4000, 8000, 16000])
    exponential = table_panels(changed(study, "two_layer", losses=model.losses.assign_coords(tokens=seen)))
    assert all(panel.log_x for panel in exponential["two_layer"][1:])
    assert not any(panel.log_x for panel in exponential["three_layer"])
    assert row(exponential["two_layer"], "loss").series[0].x[0] == 0  # the axis leaves it out, not the data


def test_over_100_heads_a_sample_is_opaque(made_study: MadeStudy) -> None:
    study = made_study((3,), heads=40, examples=5)
    model = study.models["three_layer"]
    expected = opaque_heads(model.heads["prefix_matching"].isel(snapshot=-1))
    assert expected.sum() == 100
    for key in HEAD_ROWS:
        panel = row(table_panels(study)["three_layer"], key)
        assert {series.head for series in panel.series if series.opaque} == {
            (layer, head) for layer, head in np.argwhere(expected).tolist() if key != "qk_trace" or layer > 0
        }
        assert "Of 120 heads 100 are drawn opaque" in panel.caption


def test_one_model(made_study: MadeStudy) -> None:
    (panels,) = table_panels(made_study((2,))).values()
    assert [series.label for series in row(panels, "pca").series] == ["two_layer", PHASE_CHANGE]


def test_names_that_differ_in_signs_alone_have_their_own_keys(study: Study) -> None:
    models = {
        name: replace(model, name=name)
        for name, model in zip(("a.b", "A b", "日本"), study.models.values(), strict=True)
    }
    groups = (replace(study.groups[0], models=tuple(models)),)
    keys = [panels[1].key for panels in table_panels(replace(study, models=models, groups=groups)).values()]
    assert keys == ["table-2-loss-a-b", "table-2-loss-a-b-2", "table-2-loss-model"]
