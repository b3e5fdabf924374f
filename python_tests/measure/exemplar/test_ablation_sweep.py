"""The sweep over exemplar snapshots: against interventions on the plain model, killed and gone on with, refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from icl_fast.data.evaluation_sequences import evaluation_sequences, evaluators
from icl_fast.data.exemplars import gaussian_classes
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.sequences import output_labels
from icl_fast.errors import InputError
from icl_fast.measure import OtherResults, measure_ablations, open_measured, open_results
from icl_fast.measure.ablation import MODES, AblationMode, parse_ablations
from icl_fast.measure.ablation.definition import preserved_sites, preserving, removing
from icl_fast.measure.exemplar.ablation import knock_out_each_head
from icl_fast.measure.exemplar.ablation_sweep import plan_ablations
from icl_fast.measure.exemplar.answers import METRICS, RunningMeans, StrategyMetrics, score_answers
from icl_fast.measure.exemplar.measured_model import MeasuredModel
from icl_fast.measure.over_snapshots import SnapshotProgress
from icl_fast.models import (
    Clamps,
    ExemplarConfig,
    ExemplarTransformer,
    make_clamps,
    stack_clamps,
)
from icl_fast.runs import Run, parse_config
from icl_fast.training import train

SEQUENCES = SequenceConfig(labels_per_class=2, noise=0.2)
EXEMPLARS = gaussian_classes(12, 2, 6, seed=1)
SETS = [evaluation_sequences(name, SEQUENCES, EXEMPLARS, 13) for name in evaluators(SEQUENCES, EXEMPLARS)]
HEADS = "all,0.*,~0.1,embed,embed+0.0,*"
VALUES: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"classes": 20},
    "model": {"width": 16, "heads": 2},
    "training": {"steps": 12, "batch": 4, "lr": 1e-2, "log_every": 4, "engine": "plain"},
    "evaluation": {"every": 6, "sequences": 40},
    "snapshots": {"every": 4},
    "members": [{"name": "free"}, {"name": "one head", "set": {"interventions.only_heads": ["1.1"]}}],
}


def noisy_model(**shape: Any) -> ExemplarTransformer:
    values: dict[str, Any] = {"width": 12, "heads": 3, **shape}
    config = ExemplarConfig(features=6, outputs=output_labels(SEQUENCES, EXEMPLARS), pairs=SEQUENCES.pairs, **values)
    model = ExemplarTransformer(config, [0, 1]).double()
    torch.manual_seed(3)
    with torch.no_grad():
        model.embed_label.weight.mul_(50)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@torch.no_grad()
def by_interventions(measured: MeasuredModel, mode: str, heads: str) -> list[StrategyMetrics]:
    """The whole model, then each ablation: run it, run it again with nothing but interventions."""
    model, how = measured.model, AblationMode.parse(mode)
    ablations = parse_ablations(heads, model.config)
    means = [RunningMeans() for _ in range(len(ablations) + 1)]
    for part in measured.chunks():
        given = part.exemplars, part.labels, part.target
        whole, sites = model.from_embedded(*given, clamps=measured.clamps, record=preserved_sites(how, model.config))
        means[0].add_answers(score_answers(whole, part))
        shape = part.target.numel(), model.config.length
        for mean, ablation in zip(means[1:], ablations, strict=True):
            forced = [*preserving(how, sites), *removing(ablation, None, shape)]
            logits, _ = model.from_embedded(*given, clamps=measured.clamps, interventions=forced)
            mean.add_answers(score_answers(logits, part))
    return [mean.metrics for mean in means]


def clamped(model: ExemplarTransformer) -> Clamps:
    names = ["match"] if model.config.layers == 1 else ["layer-1", "copy"]
    first = make_clamps(model.config, names, induction_heads=[1])
    other = make_clamps(
        model.config, ["pt-attend"], previous_token_heads=[0], without_heads=[(0, 1)], temperature=[((0, 2), 0.5)]
    )
    return stack_clamps([first, other])


@pytest.mark.parametrize("mode", [*MODES, "pattern+k"])
@pytest.mark.parametrize("shape", [{}, {"layers": 3, "mlp": True}, {"layers": 1, "position": "learned"}])
@pytest.mark.parametrize("is_clamped", [False, True])
def test_every_mode_and_evaluator_is_the_definition(mode: str, shape: dict[str, Any], is_clamped: bool) -> None:
    model = noisy_model(**shape)
    on_each = MeasuredModel.on_each(
        model, EXEMPLARS.features.double(), SETS, clamped(model) if is_clamped else None, chunk=8
    )
    plan = plan_ablations(model.config, modes=[mode], heads=HEADS)
    arrays = plan.arrays(on_each)
    assert arrays["loss"].shape == (1, len(SETS), len(plan.ablations), 2)
    for number, measured in enumerate(on_each):
        for place, expected in enumerate(by_interventions(measured, mode, HEADS)):
            for name in METRICS:
                found = torch.from_numpy(arrays[name][0, number, place])
                torch.testing.assert_close(found, getattr(expected, name), equal_nan=True)


def test_all_modes_together_are_each_alone() -> None:
    model = noisy_model(layers=3)
    on_each = MeasuredModel.on_each(model, EXEMPLARS.features.double(), SETS[:2])
    together = plan_ablations(model.config, heads=HEADS).arrays(on_each)
    for number, mode in enumerate(MODES):
        alone = plan_ablations(model.config, modes=[mode], heads=HEADS).arrays(on_each)
        for name in METRICS:
            assert np.array_equal(together[name][number], alone[name][0], equal_nan=True), (mode, name)


def test_a_pass_serves_all_modes_that_cannot_differ() -> None:
    shape = noisy_model().config
    plan = plan_ablations(shape)
    assert [one.name for one in plan.ablations] == ["none", *(f"{layer}.{head}" for layer in (0, 1) for head in "012")]
    assert len(plan.passes) == 1 + 3 + 3 * len(MODES)
    assert (plan.pass_of[:, 4:] == plan.pass_of[0, 4:]).all()
    assert len(np.unique(plan.pass_of[:, 1:4])) == 3 * len(MODES)
    assert len(plan_ablations(shape, heads="none").passes) == 1
    assert len(plan_ablations(shape, modes=["full"], heads="embed,1.0+0.1").passes) == 3


def test_what_is_not_understood_is_refused() -> None:
    shape = noisy_model().config
    for arguments, message in (
        ({"modes": []}, "modes"),
        ({"modes": ["full", "full"]}, "modes: full asked for more than once"),
        ({"modes": "full,full"}, "modes: full asked for more than once"),
        ({"modes": [""]}, "modes: '' is not understood"),
        ({"modes": None}, "modes: must be text"),
        ({"heads": []}, "heads: names none"),
        ({"modes": ["frozen"]}, "mode: 'frozen' is neither"),
        ({"heads": "2.0"}, "heads: '2.0' is not in this model; it has layers 0 to 1 and heads 0 to 2"),
        ({"heads": "0.0,0.0"}, "asked for more than once"),
    ):
        with pytest.raises(InputError, match=message):
            plan_ablations(shape, **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(parse_config(VALUES), tmp_path_factory.mktemp("runs") / "two").path


def test_every_snapshot(trained: Path, tmp_path: Path) -> None:
    measured = open_measured(trained, sequences=30)
    found = open_results(measure_ablations(measured, out=tmp_path / "a.zarr"))
    assert found["loss"].dims == ("snapshot", "mode", "evaluator", "ablation", "member")
    assert found["snapshot"].values.tolist() == [0, 4, 8, 12]
    assert found["sequences"].values.tolist() == [0, 16, 32, 48]
    assert found["mode"].values.tolist() == list(MODES)
    assert found["evaluator"].values.tolist() == [one.name for one in measured.evaluators]
    assert found["ablation"].values.tolist() == ["none", "0.0", "0.1", "1.0", "1.1"]
    assert (found["layer"].values.tolist(), found["head"].values.tolist()) == ([-1, 0, 0, 1, 1], [-1, 0, 1, 0, 1])
    assert found["member"].values.tolist() == ["free", "one head"]
    assert (found.attrs["evaluated"], found["loss"].attrs["units"]) == (30, "nats")
    for model in measured.on_each(Run(trained).load_snapshot(8).model):
        one = found.sel(snapshot=8, mode="full", evaluator=model.evaluator.name)
        expected = knock_out_each_head(model)
        for name in METRICS:
            assert np.array_equal(one[name].values[1:], getattr(expected, name).flatten(0, 1), equal_nan=True)
        whole = model.means()
        for mode in MODES:
            same = found["loss"].sel(snapshot=8, mode=mode, evaluator=model.evaluator.name, ablation="none")
            torch.testing.assert_close(torch.from_numpy(same.values), whole.loss)
    kept_out = found["loss"].sel(member="one head", ablation=["none", "1.0"])  # it was trained without that head
    assert np.array_equal(kept_out[..., 0], kept_out[..., 1])


def test_where_results_go(trained: Path) -> None:
    measured = open_measured(trained, snapshots="0", sequences=3, evaluators=["icl"])
    results = trained / "results"
    assert measure_ablations(measured, heads="none") == results / "ablation.zarr"
    assert measure_ablations(measured, modes=["pattern+k"], heads="none") == results / "ablation_pattern+k.zarr"


KILLED = """
import os, signal, sys, torch
from icl_fast.measure import measure_ablations, open_measured

def stop(at):
    if at.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
measured = open_measured(sys.argv[1], sequences=20, evaluators=["train", "ciwl"])
measure_ablations(measured, modes=["direct", "full"], heads="all,embed", out=sys.argv[2], on_snapshot=stop)
"""


def test_killed_and_gone_on_with(trained: Path, tmp_path: Path) -> None:
    """The same bits as in one go; what was measured otherwise is not touched."""
    out = tmp_path / "parts.zarr"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(trained), str(out)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    measured = open_measured(trained, sequences=20, evaluators=["train", "ciwl"])
    told: list[SnapshotProgress] = []
    asked: dict[str, Any] = {"modes": ["direct", "full"], "heads": "all,embed"}
    for other, difference in (
        ({**asked, "modes": ["full", "direct"]}, "modes"),
        ({**asked, "heads": "all"}, "ablations"),
    ):
        with pytest.raises(OtherResults, match=f"a measurement with other {difference};"):
            measure_ablations(measured, **other, out=out)
    parts = open_results(measure_ablations(measured, **asked, out=out, on_snapshot=told.append))
    assert told == [SnapshotProgress(done, 4, step) for done, step in ((2, 0), (3, 8), (4, 12))]
    assert parts.identical(open_results(measure_ablations(measured, **asked, out=tmp_path / "whole.zarr")))
    told.clear()
    measure_ablations(measured, **asked, out=out, on_snapshot=told.append)
    assert told == []  # it was there
    with pytest.raises(OtherResults, match="evaluators"):
        measure_ablations(open_measured(trained, sequences=20, evaluators=["train"]), **asked, out=out)
    assert open_results(out).identical(parts)
