"""The figures of runs on exemplars: their numbers are those that were measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr

from icl_fast.analysis import learning_time
from icl_fast.report.colours import EVALUATORS, MODELS, series_colours
from icl_fast.report.panels.exemplars import MOST_MEMBERS, exemplar_panels, learning_times
from icl_fast.report.panels.panel import Panel
from icl_fast.report.study import ExemplarStudy, Study

Runs = dict[str, ExemplarStudy]
STRATEGIES = {"icl", "ciwl", "flip", "iwl"}


def panels_of(run: ExemplarStudy) -> dict[str, Panel]:
    """By key without what all keys of the run begin with."""
    study = Study("Runs", {}, (), (), {run.name: run})
    panels = [panel for _, of_group in exemplar_panels(study)[run.name] for panel in of_group]
    return {panel.key.removeprefix(f"exemplars-{run.name}-"): panel for panel in panels}


def drawn(panel: Panel) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {series.label: (series.x, series.y) for series in panel.series}


def same(panel: Panel, expected: dict[str, xr.DataArray], seen: xr.DataArray) -> None:
    """A line for each that is defined, and no other."""
    known = {name: values for name, values in expected.items() if np.isfinite(values).any()}
    lines = drawn(panel)
    assert set(lines) == set(known)
    for name, values in known.items():
        np.testing.assert_array_equal(lines[name][0], seen.values)
        np.testing.assert_array_equal(lines[name][1], values.values)


def test_training_curves_of_one_run(exemplar_runs: Runs) -> None:
    run, panels = exemplar_runs["alone"], panels_of(exemplar_runs["alone"])
    curves = run.curves.isel(member=0)
    lines = drawn(panels["loss"])
    np.testing.assert_array_equal(lines["train"][1], curves["training_loss"].values)
    np.testing.assert_array_equal(lines["train"][0], curves["logged_sequences"].values)
    held_out = curves["loss"].sel(evaluator="held-out-classes")
    np.testing.assert_array_equal(lines["held-out-classes"][1], held_out.values)
    assert all(name == "train" or name.startswith("held-out") for name in lines)
    for metric in ("accuracy_in_context", "accuracy"):
        expected = {str(name): curves[metric].sel(evaluator=name) for name in curves["evaluator"].values}
        assert set(expected) >= STRATEGIES
        panel = panels[f"curves-{metric.replace('_', '-')}"]
        same(panel, expected, curves["sequences"])
        assert ("iwl" in drawn(panel)) == (metric == "accuracy")  # nothing in context is right there


def test_strategies_over_snapshots_of_one_run(exemplar_runs: Runs) -> None:
    run, panels = exemplar_runs["alone"], panels_of(exemplar_runs["alone"])
    found = run.strategies.isel(clamp=0, member=0)
    for metric in ("probability_in_context", "probability", "loss"):
        expected = {str(name): found[metric].sel(evaluator=name) for name in found["evaluator"].values}
        same(panels[f"strategies-{metric.replace('_', '-')}"], expected, found["sequences"])


def test_seeds_are_a_mean_with_its_standard_error(exemplar_runs: Runs) -> None:
    run, panels = exemplar_runs["seeds"], panels_of(exemplar_runs["seeds"])
    assert run.of_seeds
    curves = run.curves
    same(panels["loss"], {"3 seeds": curves["training_loss"].mean("member")}, curves["logged_sequences"])
    (band,) = panels["loss"].series
    np.testing.assert_allclose(band.error, curves["training_loss"].std("member", ddof=1).values, rtol=1e-12)
    for panel, values in (
        (panels["curves-accuracy"], curves["accuracy"].transpose("member", "evaluator", ...)),
        (panels["strategies-probability"], run.strategies["probability"].isel(clamp=0).transpose("member", ...)),
    ):
        for series in panel.series:
            of = values.sel(evaluator=series.label).values
            np.testing.assert_allclose(series.y, of.mean(0), rtol=1e-12)
            assert series.error is not None
            np.testing.assert_allclose(series.error, of.std(0, ddof=1) / np.sqrt(3), rtol=1e-12, atol=1e-15)
        assert "Mean over 3 seeds" in panel.caption


def test_other_members_are_a_line_each(exemplar_runs: Runs) -> None:
    run, panels = exemplar_runs["clamped"], panels_of(exemplar_runs["clamped"])
    assert not run.of_seeds
    for name in run.curves["evaluator"].values:
        metric = "accuracy" if name == "iwl" else "accuracy_in_context"
        values = run.curves[metric].sel(evaluator=name)
        same(panels[f"accuracy-{name}"], {m: values.sel(member=m) for m in run.members}, run.curves["sequences"])
        metric = metric.replace("accuracy", "probability")
        values = run.strategies[metric].isel(clamp=0).sel(evaluator=name)
        expected = {m: values.sel(member=m) for m in run.members}
        same(panels[f"probability-{name}"], expected, run.strategies["sequences"])
        assert panels[f"probability-{name}"].series[0].error is None


def test_where_heads_attend(exemplar_runs: Runs) -> None:
    run = exemplar_runs["clamped"]
    panels = panels_of(run)
    for member, suffix in (("free", "-free"), ("one <b>head</b>", "-one-b-head-b")):
        found = run.strategies.isel(clamp=0).sel(member=member, evaluator="flip")
        for key, metric, layer in (
            ("induction", "induction", 1),
            ("previous-token", "previous_token", 0),
            ("own", "own", 0),
        ):
            expected = {f"head {layer}.{head}": found[metric].isel(layer=layer, head=head) for head in range(2)}
            same(panels[f"attention-{key}{suffix}"], expected, found["sequences"])


def test_wiring_reads_as_a_printed_matrix(exemplar_runs: Runs) -> None:
    run, panels = exemplar_runs["alone"], panels_of(exemplar_runs["alone"])
    assert run.wiring is not None
    one = run.wiring.isel(member=0)
    for name, preserve in ("match", "value-preserving"), ("copy", "pattern-preserving"):
        of = one["accuracy"].sel(preserve=preserve)
        expected = {
            "removed": of.sel(kind="single") - one["accuracy_alone"],
            "alone": of.sel(kind="single-pair"),
        }
        for key, values in expected.items():
            heatmap = panels[f"wiring-{name}-{key}"].heatmap
            assert heatmap is not None
            for column, reader in enumerate(heatmap.x_names):
                for row, writer in enumerate(heatmap.y_names):
                    assert heatmap.z[row, column] == values.sel(reader=reader, writer=writer)
            assert heatmap.x_names == ("1.0", "1.1")
            assert heatmap.y_names == ("0.1", "0.0")  # from below
            assert (heatmap.scale == "diverging") == (key == "removed") == (heatmap.low == -heatmap.high)
    for matrix in "kv":
        heatmap = panels[f"wiring-composition-{matrix}"].heatmap
        assert heatmap is not None
        values = one["composition"].sel(matrix=matrix)
        assert heatmap.z[0, 1] == values.sel(writer="0.1", reader="1.1")
        assert (heatmap.low, heatmap.high) == (values.min(), values.max())


def test_removing_each_head(exemplar_runs: Runs) -> None:
    run, panels = exemplar_runs["alone"], panels_of(exemplar_runs["alone"])
    found = run.ablations.isel(member=0)
    heads = ["0.0", "0.1", "1.0", "1.1"]
    largest = 0.0
    for mode in found["mode"].values:
        heatmap = panels[f"removed-{mode}"].heatmap
        assert heatmap is not None
        assert list(heatmap.x_names) == heads
        assert set(heatmap.y_names) == set(found["evaluator"].values)
        last = found.isel(snapshot=-1).sel(mode=mode)
        for row, evaluator in enumerate(heatmap.y_names):
            accuracy = last["accuracy" if evaluator == "iwl" else "accuracy_in_context"].sel(evaluator=evaluator)
            expected = accuracy.sel(ablation=heads).values - float(accuracy.sel(ablation="none"))
            np.testing.assert_array_equal(heatmap.z[row], expected)
            largest = max(largest, float(np.abs(expected).max()))
    ends = {(of.low, of.high) for key, panel in panels.items() if key.startswith("removed-") and (of := panel.heatmap)}
    assert ends == {(-largest, largest)}
    for evaluator in ("icl", "ciwl", "flip", "train"):
        of = found["accuracy_in_context"].sel(mode="full", evaluator=evaluator)
        expected = {f"head {head}": of.sel(ablation=head) - of.sel(ablation="none") for head in heads}
        same(panels[f"removed-over-training-{evaluator}"], expected, found["sequences"])


def test_of_labels_drawn_anew_all_outputs_count(exemplar_runs: Runs) -> None:
    run = exemplar_runs["alone"]
    sequences = run.config.sequences.model_copy(update={"p_icl": 1.0})
    panels = panels_of(replace(run, config=run.config.model_copy(update={"sequences": sequences})))
    of = run.ablations["accuracy"].isel(member=0).sel(mode="full", evaluator="train")
    heads = ["0.0", "0.1", "1.0", "1.1"]
    expected = {f"head {head}": of.sel(ablation=head) - of.sel(ablation="none") for head in heads}
    same(panels["removed-over-training-train"], expected, run.ablations["sequences"])
    assert "Change of accuracy among all outputs when" in panels["removed-full"].caption


def test_learning_times(exemplar_runs: Runs) -> None:
    """Made-up losses: one learns, one never does, one forgets again."""
    run = exemplar_runs["seeds"]
    curves = run.curves.copy(deep=True)
    curves["training_loss"][:] = np.array(
        [[1, 1, 1], [0.1, 1, 0.1], [0.1, 1, 1], [0.1, 1, 0.1], [0.1, 1, 0.1], [0.1] * 3]
    )
    curves["training_loss"][-1, 1] = 1
    made = replace(run, curves=curves)
    seen = curves["logged_sequences"].values
    np.testing.assert_array_equal(learning_times(made), [seen[1], np.nan, seen[3]])
    np.testing.assert_array_equal(learning_times(made), learning_time(seen, curves["training_loss"].values))
    panel = panels_of(made)["learning-times"]
    dots, first = panel.series
    assert first.y.tolist() == [seen[1], seen[1]]
    assert dots.x.tolist() == [1, 3]
    assert dots.y.tolist() == [seen[1], seen[3]]
    assert dots.names == (run.members[0], run.members[2])
    assert f"Not by the end of training: {run.members[1]}." in panel.caption
    assert panel.y_range == (0, 1.05 * seen[3])
    assert "In 2 of 3 members" in panels_of(made)["loss"].caption
    curves["training_loss"][2, 0] = np.nan  # what came after is not known to be learned
    np.testing.assert_array_equal(learning_times(made), [np.nan, np.nan, seen[3]])
    curves["training_loss"][:] = 1
    assert panels_of(made)["learning-times"].absent == "N/A: no member has learned"
    alone = exemplar_runs["alone"]
    curves = alone.curves.copy(deep=True)
    curves["training_loss"][:] = 0.1
    said = panels_of(replace(alone, curves=curves))["loss"].caption
    assert f"From {int(seen[0])} sequences on the training loss stays below" in said


def test_of_many_members_the_first_have_figures_of_their_heads(exemplar_runs: Runs) -> None:
    run = exemplar_runs["seeds"]
    names = [f"seed {i}" for i in range(MOST_MEMBERS + 2)]
    many = [0, 1, 2] * (MOST_MEMBERS + 2)

    def grown(data: xr.Dataset) -> xr.Dataset:
        return data.isel(member=many[: len(names)]).assign_coords(member=names)

    assert run.wiring is not None
    made = replace(
        run,
        curves=grown(run.curves),
        strategies=grown(run.strategies),
        ablations=grown(run.ablations),
        wiring=grown(run.wiring),
    )
    panels = panels_of(made)
    assert [key for key in panels if key.startswith("attention-own")] == [
        f"attention-own-seed-{i}" for i in range(MOST_MEMBERS)
    ]
    assert "the first 6 of 8 members" in panels["attention-own-seed-0"].caption
    assert len(panels["loss"].series) == 1


def test_evaluators_have_one_colour_everywhere(exemplar_runs: Runs) -> None:
    run = exemplar_runs["alone"]
    study = Study("Runs", {}, (), (), {run.name: run})
    for panel in panels_of(run).values():
        for series, colour in zip(panel.series, series_colours(study, panel), strict=True):
            if series.evaluator is not None:
                assert colour == EVALUATORS[series.label]
    assert set(run.curves["evaluator"].values) <= set(EVALUATORS)
    assert len(set(EVALUATORS.values())) == len(EVALUATORS)
    heads = panels_of(run)["attention-own"]
    assert series_colours(study, heads) == list(MODELS[:2])


def test_a_run_that_has_only_begun(exemplar_runs: Runs) -> None:
    """Its log holds the evaluation before the first step, and no loss of training yet."""
    run = exemplar_runs["alone"]
    begun = replace(run, curves=run.curves.isel(logged=slice(0), evaluation=slice(1)))
    assert np.isnan(learning_times(begun)).all()
    panels = panels_of(begun)
    assert [series.label for series in panels["loss"].series] == ["held-out-classes"]
    assert panels["curves-accuracy"].series[0].x.tolist() == [0]
    none = replace(
        run, curves=run.curves[["training_loss", "logged_sequences"]].drop_vars("evaluator", errors="ignore")
    )
    assert [series.label for series in panels_of(none)["loss"].series] == ["train"]
    assert "curves-accuracy" not in panels_of(none)


def test_a_layer_cut_from_the_output_costs_what_the_direct_ablation_says(exemplar_runs: Runs) -> None:
    run = exemplar_runs["alone"]
    panel = panels_of(run)["cut-from-output"]
    loss = run.ablations["loss"].isel(member=0).sel(mode="direct", evaluator="train")
    assert [series.label for series in panel.series] == ["layer 0", "layer 1"]
    for layer, series in enumerate(panel.series):
        removed = loss.sel(ablation=f"{layer}.*") - loss.sel(ablation="none")
        np.testing.assert_array_equal(series.y, removed.values)


def test_one_layer_has_no_wiring(exemplar_runs: Runs) -> None:
    panels = panels_of(replace(exemplar_runs["alone"], wiring=None))
    assert [key for key in panels if key.startswith("wiring")] == ["wiring"]
    assert panels["wiring"].absent == "N/A: one layer; there is nothing before it to read"


def test_without_attention_there_are_no_heads(exemplar_runs: Runs) -> None:
    run = exemplar_runs["alone"]
    shape = run.config.model.model_copy(update={"architecture": "lstm"})
    config = run.config.model_copy(update={"model": shape})
    panels = panels_of(replace(run, config=config, ablations=None, wiring=None))
    assert panels["attention"].absent == "N/A: a model of architecture lstm has no attention"
    assert not [key for key in panels if key.startswith(("removed", "wiring", "attention-"))]
    assert "curves-accuracy" in panels


def test_the_loss_with_its_l2_term(exemplar_runs: Runs) -> None:
    run = exemplar_runs["alone"]
    assert "total-loss" not in panels_of(run)
    total = run.curves["training_loss"] + 1
    panel = panels_of(replace(run, curves=run.curves.assign(total_loss=total)))["total-loss"]
    assert panel.series[0].y.tolist() == total.isel(member=0).values.tolist()


def test_keys_are_unique(exemplar_runs: Runs) -> None:
    study = Study("Runs", {}, (), (), exemplar_runs)
    panels = [one for groups in exemplar_panels(study).values() for _, of_group in groups for one in of_group]
    keys = [panel.key for panel in panels]
    assert len(set(keys)) == len(keys)
    assert all(panel.absent is None for panel in panels if "learning-times" not in panel.key)
    assert all("Singh 2025" in panel.caption for panel in panels)
