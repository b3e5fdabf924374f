"""The further figures hold the stored arrays, or what is computed here once more."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from icl_fast.analysis import attribute_heads, correlate, opaque_heads
from icl_fast.report.panels.builders import over_seeds, slugs
from icl_fast.report.panels.family import ANTI_COPYING, family_panels
from icl_fast.report.panels.panel import Panel, Series
from icl_fast.report.panels.table import table_panels
from icl_fast.report.study import ModelStudy, Setting, Study

MadeStudy = Callable[..., Study]


def changed(study: Study, name: str, **values: object) -> Study:
    return replace(study, models=study.models | {name: replace(study.models[name], **values)})


def by_key(study: Study) -> dict[str, Panel]:
    panels = [panel for _, group in family_panels(study) for panel in group]
    found = {panel.key.removeprefix("family-"): panel for panel in panels}
    assert len(found) == len(panels)
    return found


@pytest.fixture(scope="module")
def study(made_study: MadeStudy) -> Study:
    return made_study((1, 2, 3))


@pytest.fixture(scope="module")
def panels(study: Study) -> dict[str, Panel]:
    return by_key(study)


def test_every_panel_is_there_and_named_apart_from_the_tables(study: Study, panels: dict[str, Panel]) -> None:
    assert len({heading for heading, _ in family_panels(study)}) == 10
    keys = [panel.key for panel in panels.values()]
    keys += [panel.key for of_model in table_panels(study).values() for panel in of_model]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[a-z0-9_-]+", key) for key in keys)
    absent = {key for key, panel in panels.items() if panel.absent}
    assert absent == {"ablation-full-before-after-one_layer", "odd-heads-one_layer"}
    for panel in panels.values():
        assert panel.caption
        assert panel.title
        assert bool(panel.series) == (panel.absent is None)


def test_keys_of_any_names_are_short_and_differ() -> None:
    keys = slugs(["x" * 300, "x" * 301, "日本", "é", "A b", "a-b"])
    assert [*keys.values()] == ["x" * 80, f"{'x' * 80}-2", "model", "model-2", "a-b", "a-b-2"]


def test_joint_pca(study: Study, panels: dict[str, Panel]) -> None:
    pca = study.groups[0].pca
    assert pca is not None
    paths = panels["pca"].series
    assert [path.model for path in paths] == list(study.models)
    for path in paths:
        np.testing.assert_array_equal(np.stack([path.x, path.y], 1), pca.coordinates[path.label])
    assert f"{pca.explained_variance_ratio[1]:.0%}" in panels["pca"].y_label


def test_losses_scores_and_slopes_of_all_models(study: Study, panels: dict[str, Panel]) -> None:
    for number, model in enumerate(study.models.values()):
        losses = model.losses.sel(ablation="none")
        loss, score, slope = (panels[key].series[number] for key in ("loss", "icl-score", "loss-slope"))
        curve = losses["loss"].values.astype(np.float64).mean(1)
        np.testing.assert_allclose(loss.y, curve, rtol=1e-12)
        np.testing.assert_array_equal(score.y, losses["icl_score"])
        np.testing.assert_array_equal(score.error, losses["icl_score_sem"])
        tokens = losses["tokens"].values
        np.testing.assert_allclose(slope.x, tokens[1:])  # six snapshots: each its own bin
        # the ends' differences are one-sided
        mean = losses["position_loss"].values.mean(1)
        first = (mean[2] - mean[1]) / np.log(tokens[2] / tokens[1])
        last = (mean[-1] - mean[-2]) / np.log(tokens[-1] / tokens[-2])
        np.testing.assert_allclose(slope.y[[0, -1]], (first, last), rtol=1e-9)
    assert panels["loss-slope"].log_x
    assert panels["loss-slope"].over_training


def test_icl_score_for_other_positions(study: Study, panels: dict[str, Panel]) -> None:
    panel, losses = (
        panels["icl-pairs-two_layer"],
        study.models["two_layer"].losses["position_loss"].sel(ablation="none"),
    )
    assert [series.label for series in panel.series] == [f"32 minus {early}" for early in (1, 2, 4, 8, 16)]
    for series, early in zip(panel.series, (1, 2, 4, 8, 16), strict=True):
        np.testing.assert_allclose(series.y, losses.sel(position=32) - losses.sel(position=early), atol=1e-12)
    ranges = {panels[f"icl-pairs-{name}"].y_range for name in study.models}
    assert len(ranges) == 1


def test_loss_by_position_compared_with_the_smallest_model(study: Study, panels: dict[str, Panel]) -> None:
    last = {name: model.losses.isel(snapshot=-1, ablation=0) for name, model in study.models.items()}
    for series in panels["loss-by-position"].series:
        np.testing.assert_array_equal(series.y, last[series.label]["position_loss"])
        np.testing.assert_array_equal(series.error, last[series.label]["position_loss_sem"])
    panel = panels["loss-by-position-compared"]
    assert [series.label for series in panel.series] == ["two_layer", "three_layer"]
    for series in panel.series:
        difference = last[series.label]["position_loss"].values - last["one_layer"]["position_loss"].values
        np.testing.assert_array_equal(series.y, difference)
        np.testing.assert_allclose(series.error, 0.02)
        formed, summed = difference[9] / difference[-1], difference[:10].sum() / difference.sum()
        said = panel.caption[panel.caption.index(f"{series.label}: ") :]
        assert re.findall(r"(\d+)%", said)[:2] == [f"{100 * formed:.0f}", f"{100 * summed:.0f}"]
    assert "one_layer" in panel.title


def test_where_heads_form(study: Study, panels: dict[str, Panel]) -> None:
    for name, model in study.models.items():
        matching = model.heads["prefix_matching"].values  # [snapshot, layer, head]
        depth = panels[f"depth-{name}"]
        assert depth.y_range is not None
        for series in depth.series:
            assert series.head is not None
            np.testing.assert_array_equal(series.y, matching[-1][series.head])
            np.testing.assert_array_equal(series.x, series.head[0])
        (formed,) = [series for series in panels["formation"].series if series.label == name]
        tokens, expected = model.losses["tokens"].values, []
        for layer in range(model.config.layers):
            past = [at for at in range(len(matching)) if matching[at, layer].max() > 0.2]
            if past:
                expected.append(((layer + 1) / model.config.layers, tokens[past[0]]))
        np.testing.assert_allclose(np.stack([formed.x, formed.y], 1), expected)
        assert len(formed.names) == len(expected)


def test_no_head_forms(study: Study) -> None:
    none = replace(study, models={name: _quiet(model) for name, model in study.models.items()})
    assert by_key(none)["formation"].absent == "N/A: no head's prefix-matching score is ever over 0.2"


def _quiet(model: ModelStudy) -> ModelStudy:
    return replace(model, heads=model.heads.assign(prefix_matching=model.heads["prefix_matching"] * 0.1))


def test_joint_scores_with_the_anti_copying_heads_marked(study: Study) -> None:
    model = study.models["two_layer"]
    heads = model.heads.copy(deep=True)
    heads["copying"].values[-1] = [[0.9, -0.1], [-0.3, 0.3]]
    heads["prefix_matching"].values[-1] = [[0.9, 0.1], [0.7, 0.8]]
    panel = by_key(changed(study, "two_layer", heads=heads))["joint-scores-two_layer"]
    *points, marked = panel.series
    assert {series.head: (*series.x, *series.y) for series in points} == {
        (0, 0): (0.9, 0.9),
        (0, 1): (-0.1, 0.1),
        (1, 0): (-0.3, 0.7),
        (1, 1): (0.3, 0.8),
    }
    assert (marked.label, marked.head, marked.names) == (ANTI_COPYING, None, ("head 1.0",))
    assert (*marked.x, *marked.y) == (-0.3, 0.7)
    assert (
        "under 0 on copying, as the paper's anti-copying heads do (1 of 4). Of this model those over" in panel.caption
    )


def test_evaluators_against_weights(study: Study, panels: dict[str, Panel]) -> None:
    for key, evaluator, weights, first in (
        ("copying-weights", "copying", "ov_copying", 0),
        ("prefix-weights", "prefix_matching", "qk_trace", 1),
    ):
        panel, pooled = panels[key], []
        for series in panel.series:
            last = study.models[series.label].heads.isel(snapshot=-1, layer=slice(first, None))
            np.testing.assert_array_equal(series.y, last[evaluator].values.ravel())
            np.testing.assert_array_equal(series.x, last[weights].values.ravel())
            assert series.names[0] == f"head {first}.0"
            pooled.append((series.x, series.y))
        x, y = (np.concatenate(values) for values in zip(*pooled, strict=True))
        found = correlate(x[:, None], y[:, None])
        assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
        exact = f"; p over all {math.factorial(len(x)):,} orders" if len(x) <= 8 else ""
        assert (
            f"All heads together: Pearson {found.pearson:.2f} (p = {found.pearson_p:.2g}), "
            f"Spearman {found.spearman:.2f} (p = {found.spearman_p:.2g}), n = {len(x)}{exact}."
        ) in panel.caption
    assert [series.label for series in panels["prefix-weights"].series] == ["two_layer", "three_layer"]
    assert "two_layer: too few heads for a correlation, n = 2." in panels["prefix-weights"].caption
    assert "one_layer: too few heads for a correlation, n = 2." in panels["copying-weights"].caption


def test_all_values_alike_correlate_with_nothing(study: Study) -> None:
    model = study.models["three_layer"]
    alike = model.heads.assign(copying=model.heads["copying"] * 0 + 0.5)
    caption = by_key(changed(study, "three_layer", heads=alike))["copying-weights"].caption
    assert "three_layer: no correlation (evaluator: all heads have the same value" in caption


def test_full_beside_pattern_preserving_ablation(study: Study, panels: dict[str, Panel]) -> None:
    for name, model in study.models.items():
        effects = {}
        for mode, sweep in model.ablations.items():
            loss, icl = sweep["loss"].astype(np.float64), sweep["icl_score"]
            effects[mode] = {
                "loss": loss - loss.sel(ablation="none", drop=True),
                "icl": icl - icl.sel(ablation="none", drop=True),
            }
        for of in ("loss", "icl"):
            full, pattern = effects["full"][of], effects["pattern-preserving"][of]
            for series in panels[f"ablation-{of}-{name}"].series:
                assert series.head is not None
                one = {"ablation": "{}.{}".format(*series.head), "snapshot": full["snapshot"][-1]}
                np.testing.assert_allclose(series.x, pattern.sel(one).mean(), rtol=1e-9)
                np.testing.assert_allclose(series.y, full.sel(one).mean(), rtol=1e-9)
            for series in panels[f"ablation-{of}-difference-{name}"].series:
                assert series.head is not None
                difference = (full - pattern).sel(ablation="{}.{}".format(*series.head))
                if of == "loss":
                    np.testing.assert_allclose(series.error, difference.std("example", ddof=1) / np.sqrt(20), rtol=1e-6)
                    difference = difference.mean("example")
                else:
                    np.testing.assert_allclose(series.error, 0.02)
                np.testing.assert_allclose(series.y, difference, atol=1e-9)
        if model.interval is not None:
            attributed = attribute_heads(model.ablations["full"], *model.interval)
            for key, of in ("before-after", "before_after"), ("icl", "icl"):
                for series in panels[f"ablation-full-{key}-{name}"].series:
                    one = attributed.sel(ablation=series.label.removeprefix("head "))
                    np.testing.assert_array_equal(series.y, one[of])
                    np.testing.assert_array_equal(series.error, one[f"{of}_sem"])


def test_no_full_sweep(study: Study) -> None:
    model = study.models["two_layer"]
    only = changed(study, "two_layer", ablations={"pattern-preserving": model.ablations["pattern-preserving"]})
    panels = by_key(only)
    for key in ("loss", "icl", "loss-difference", "icl-difference", "full-before-after", "full-icl"):
        assert "icl-fast ablate --mode full" in (panels[f"ablation-{key}-two_layer"].absent or "")
        assert not panels[f"ablation-{key}-two_layer"].series
    assert panels["ablation-loss-three_layer"].absent is None


def test_sweeps_of_other_text_are_refused_in_words(made_study: MadeStudy) -> None:
    study = made_study((2,))
    sweeps = study.models["two_layer"].ablations
    other = sweeps["full"].assign(loss=sweeps["full"]["loss"] + 0.5)
    panels = by_key(changed(study, "two_layer", ablations=sweeps | {"full": other}))
    assert "the whole model's losses differ" in (panels["ablation-loss-two_layer"].absent or "")


def test_one_model_of_one_layer(made_study: MadeStudy) -> None:
    panels = by_key(made_study((1,)))
    assert panels["loss-by-position-compared"].absent == "N/A: no two models are evaluated on the same examples"
    assert "all models have one layer" in (panels["prefix-weights"].absent or "")
    assert panels["pca"].absent is None


def test_a_model_that_is_refused_is_left_out_and_named(study: Study) -> None:
    model = study.models["two_layer"]
    panels = by_key(changed(study, "two_layer", heads=model.heads.drop_vars("ov_copying")))
    assert [series.label for series in panels["copying-weights"].series] == ["one_layer", "three_layer"]
    assert "Left out: ov_copying of two_layer was not measured" in panels["copying-weights"].caption


def test_models_of_other_contexts_are_not_compared_by_position(made_study: MadeStudy) -> None:
    long, short = made_study((1, 2)), made_study((3,), context=16)
    both = replace(long, models=long.models | short.models, groups=long.groups + short.groups)
    panels = by_key(both)
    panel = panels["loss-by-position-compared"]
    assert [series.label for series in panel.series] == ["two_layer"]
    assert "Left out: three_layer is evaluated on other examples than one_layer" in panel.caption
    by_hand = replace(both, groups=(replace(long.groups[0], models=tuple(both.models), pca=None),))
    panels = by_key(by_hand)
    assert "Left out: losses of three_layer: their positions are not" in panels["loss-by-position-compared"].caption
    assert (panels["pca"].absent or "").startswith("N/A: no plane: 3 snapshots or more")


def test_over_100_heads_a_sample_is_opaque(made_study: MadeStudy) -> None:
    study = made_study((3,), heads=40, examples=5)
    expected = opaque_heads(study.models["three_layer"].heads["prefix_matching"].isel(snapshot=-1))
    panels = by_key(study)
    for key in ("depth", "joint-scores", "ablation-loss", "ablation-icl-difference"):
        drawn = {series.head: series.opaque for series in panels[f"{key}-three_layer"].series if series.head}
        assert drawn == dict(np.ndenumerate(expected))


def test_runs_that_differ_in_their_seed_alone_are_one_curve_with_an_interval(made_study: MadeStudy) -> None:
    study = made_study((1, 2, 3))
    names = list(study.models)
    for name, folder in zip(names[:2], ("two", "elsewhere"), strict=True):
        study = changed(study, name, setting=Setting(folder, "abc"))
    study = changed(study, names[2], setting=Setting("three", "def"))
    panels = by_key(study)
    for key, of in (("loss", "loss"), ("icl-score", "icl_score")):
        mean, alone = panels[key].series
        curves = np.stack([study.models[name].losses[of].sel(ablation="none").values for name in names[:2]])
        curves = curves.astype(np.float64).mean(-1) if of == "loss" else curves
        assert (mean.label, mean.model) == ("two (2 seeds)", names[0])
        np.testing.assert_allclose(mean.y, curves.mean(0))
        # of two values half a 95% interval is 12.706 standard errors
        np.testing.assert_allclose(mean.error, 12.7062 * np.abs(np.subtract(*curves)) / 2, rtol=1e-5)
        assert alone.label == names[2]
        assert "2 seeds: mean and 95% interval" in panels[key].caption
    assert [one.label for one in panels["formation"].series] == names  # points stay each its own
    first, second = (Series(name, np.arange(4.0), np.arange(4.0) + at, None, name) for at, name in enumerate(names[:2]))
    (mean,), _ = over_seeds(study, [first, replace(second, x=second.x[1:], y=second.y[1:])])  # where both are known
    assert (mean.x.tolist(), mean.y.tolist()) == ([1, 2, 3], [1.5, 2.5, 3.5])
