"""What the study of an exemplar run's heads holds: the measurements, of every member, under what was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icl_fast.measure.exemplar.ablation import composition, cut_output_connections, embedding_path, keep_one_head
from icl_fast.measure.exemplar.ablation import knock_out_each_head as knock_out
from icl_fast.measure.exemplar.measured_model import MeasuredModel
from icl_fast.measure.exemplar.measured_run import MeasuredRun, open_measured
from icl_fast.measure.exemplar.single_heads import attention_weight_curve, residual_heads, single_heads
from icl_fast.measure.exemplar.superposition import attention_deltas, temperature_curves
from icl_fast.runs import parse_config
from icl_fast.studies.exemplar_heads import TEMPERATURES, WEIGHTS, measure_heads
from icl_fast.training import train

VALUES: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 20, "label_pool": 5},
    "model": {"width": 16, "heads": 4},
    "training": {"steps": 12, "batch": 4, "lr": 1e-2, "log_every": 4, "engine": "plain"},
    "evaluation": {"every": 12, "sequences": 20},
    "snapshots": {"every": 6},
    "members": [{"name": "free"}, {"name": "clamped", "set": {"interventions.without_heads": ["1.1"]}}],
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> MeasuredRun:
    folder: Path = train(parse_config(VALUES), tmp_path_factory.mktemp("runs") / "two").path
    return open_measured(folder, evaluators=["train"], sequences=40)


@pytest.fixture(scope="module")
def found(measured: MeasuredRun) -> xr.Dataset:
    return measure_heads(measured)


@pytest.fixture(scope="module")
def model(measured: MeasuredRun) -> MeasuredModel:
    (one,) = measured.on_each(measured.snapshot(12).model)
    return one


def same(found: xr.DataArray, dims: tuple[str, ...], expected: Any) -> None:
    assert np.array_equal(found.transpose(*dims).values, np.asarray(expected), equal_nan=True), found.name


def test_each_head_removed_alone_and_forced(found: xr.Dataset, model: MeasuredModel) -> None:
    attention = model.means(attention=True).attention
    assert attention is not None
    same(found["induction"], ("member", "head"), attention.induction[:, 1])
    same(found["query"], ("member", "head", "place", "position"), attention.query[:, 1])
    same(found["without_first"], ("head", "member"), knock_out(model).accuracy[0])
    same(found["without"], ("head", "member"), knock_out(model).accuracy[1])
    same(found["overall"].sel(patterns="as it is"), ("head", "member"), keep_one_head(model).accuracy)
    same(found["overall"].sel(patterns="perfect"), ("head", "member"), keep_one_head(model.with_match()).accuracy)
    forced = attention_weight_curve(model, WEIGHTS).accuracy_in_context
    same(found["forced_attention"], ("weight", "head", "member"), forced)
    curves = temperature_curves(model, TEMPERATURES)
    for name, metrics in (("temperature_alone", curves.alone), ("temperature_among_all", curves.among_all)):
        same(found[name], ("temperature", "head", "member"), metrics.accuracy_in_context)
    same(found["delta"], ("member", "head", "sequence"), attention_deltas(model))
    # without head 1.1 from the start, removing it changes nothing
    assert float(found["without"].sel(member="clamped", head=1)) == float(found["whole"].sel(member="clamped"))


def test_copying(found: xr.Dataset, model: MeasuredModel) -> None:
    for patterns, perfect in (("as it is", False), ("perfect", True)):
        heads = single_heads(model, perfect=perfect)
        table, one = residual_heads(heads), found.sel(patterns=patterns)
        for name in ("overall", "on_mistakes"):
            same(one[name], ("member", "head"), getattr(table, name))
        for name in ("reference", "mistakes"):
            same(one[name], ("member",), getattr(table, name))
        for name in ("label_accuracy", "label_mistakes"):
            same(one[name], ("member", "head", "label"), getattr(heads, name))


def test_paths(found: xr.Dataset, model: MeasuredModel) -> None:
    cut, read, path = cut_output_connections(model), composition(model), embedding_path(model)
    expected = {f"layer {layer} to output cut": cut.accuracy_in_context[layer] for layer in (0, 1)}
    expected |= {f"layer 0 to {name} cut": read[f"all but {name}"].accuracy_in_context for name in "qkv"}
    expected |= {f"embedding to output {name}": path[name].accuracy_in_context for name in ("alone", "removed")}
    expected["nothing removed"] = path["whole"].accuracy_in_context
    assert found["path"].values.tolist() == list(expected)
    for name, values in expected.items():
        same(found["path_accuracy"].sel(path=name), ("member",), values)
    assert found.attrs == {"step": 12, "sequences": 48, "evaluator": "train", "pairs": 2}
    assert found["member"].values.tolist() == ["free", "clamped"]
