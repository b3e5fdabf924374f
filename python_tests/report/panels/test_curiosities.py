"""The panels of "Unexplained Curiosities" show the study's numbers, or say that there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from icl_fast.analysis import icl_score_variants
from icl_fast.report.panels.builders import seen
from icl_fast.report.panels.curiosities import curiosity_panels, score_comparisons
from icl_fast.report.study import EvaluationGroup, Study

MadeStudy = Callable[..., Study]


@pytest.fixture(scope="module")
def study(made_study: MadeStudy) -> Study:
    return made_study((3, 1, 2))


def test_scores_of_all_models_by_size_for_several_pairs(study: Study) -> None:
    (panel,) = score_comparisons(study)
    own, *others = panel.series
    in_order = ["one_layer", "two_layer", "three_layer"]
    assert own.names == tuple(in_order)
    for at, name in enumerate(in_order):
        model = study.models[name]
        last = model.losses.isel(snapshot=-1).sel(ablation="none")
        assert own.x[at] == model.parameters
        assert own.y[at] == float(last["icl_score"])
        assert own.error is not None
        assert own.error[at] == float(last["icl_score_sem"])
        for series in others:
            late, early = map(int, series.label.split(" minus "))
            expected = icl_score_variants(model.losses, [(early, late)])[-1, 0]
            assert series.y[at] == pytest.approx(expected)
    assert len(others) == 5  # 1, 2, 4, 8 and 16 of 32; 32 / 64 is nearest to 1 too
    changed = [study.models[name] for name in in_order[1:]]
    lasts = [float(model.losses["icl_score"][-1, 0]) for model in changed]
    assert (
        f"Of the 2 models that went through the change the scores lie within {np.ptp(lasts):.2f} nats" in panel.caption
    )


def test_models_on_other_examples_are_not_compared(study: Study) -> None:
    pairs = ("one_layer", "two_layer"), ("three_layer",)
    apart = replace(study, groups=tuple(EvaluationGroup("made up", 32, "<bos>", names, None) for names in pairs))
    both, alone = score_comparisons(apart)
    assert both.series[0].names == pairs[0]
    assert alone.absent is not None
    assert both.key != alone.key


def test_spikes_and_odd_heads_are_those_of_the_study(study: Study) -> None:
    spikes, *odd = curiosity_panels(study)
    assert {series.label for series in spikes.series} == {"two_layer", "three_layer"}
    model = study.models["two_layer"]
    spike, head = model.curiosities
    (of_model,) = (series for series in spikes.series if series.label == "two_layer")
    at = model.losses["snapshot"].values.tolist().index(spike.step)
    assert of_model.x.tolist() == [seen(model)[at]]
    assert of_model.y.tolist() == [spike.size]
    by_name = dict(zip(study.models, odd, strict=True))
    assert by_name["one_layer"].absent == "N/A: no odd head"
    (series,) = by_name["two_layer"].series
    assert series.head == (1, 0)
    np.testing.assert_array_equal(series.y, model.heads["prefix_matching"].values[:, 1, 0])
    assert head.what in by_name["two_layer"].caption


def test_nothing_odd(study: Study) -> None:
    models = {name: replace(model, curiosities=()) for name, model in study.models.items()}
    panels = curiosity_panels(replace(study, models=models))
    assert panels[0].absent == "N/A: no model's loss has a spike"
    assert all(panel.absent == "N/A: no odd head" for panel in panels[1:])
