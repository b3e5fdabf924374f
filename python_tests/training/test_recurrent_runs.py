"""Runs of recurrent models: members are as alone, they resume, they are evaluated and drawn; heads are refused."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from icl_fast import InputError
from icl_fast.measure import measure_ablations, measure_strategies, open_measured, open_results
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.measure.exemplar.measured_run import measure_wiring
from icl_fast.models import Intervention
from icl_fast.report.draw.exemplar_curves import draw_curves
from icl_fast.runs import Run, parse_config
from icl_fast.studies.collect_exemplars import study_exemplars
from icl_fast.training import ExemplarProgress, train

VALUES: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 20, "exemplars": 3, "width": 6, "encoder": "none"},
    "model": {"architecture": "lstm", "layers": 2, "width": 8, "position": "sinusoidal"},
    "training": {"steps": 6, "batch": 4, "lr": 1e-3, "log_every": 2, "seed": 3},
    "evaluation": {"every": 3, "sequences": 20},
    "snapshots": {"every": 3},
    "members": 2,
}


def changed(**changes: Any) -> Any:
    values = copy.deepcopy(VALUES)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return parse_config(values)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(changed(), tmp_path_factory.mktemp("runs") / "lstm")


@pytest.mark.parametrize("architecture", ["rnn", "lstm"])
def test_members_are_what_they_are_alone(architecture: str, tmp_path: Path) -> None:
    together = train(changed(model__architecture=architecture), tmp_path / "both").load_snapshot(6).model
    alone = train(changed(model__architecture=architecture, members=1, training__seed=4), tmp_path / "one")
    for name, weight in alone.load_snapshot(6).model.named_parameters():
        assert (weight[0] - together.get_parameter(name)[1]).abs().mean() < 1e-6, name


def test_interrupted_and_resumed_gives_the_same_bits(done: Run, tmp_path: Path) -> None:
    def interrupt(progress: ExemplarProgress) -> None:
        if progress.step >= 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(changed(), tmp_path / "run", on_progress=interrupt)
    again = train(changed(), tmp_path / "run", resume=True)
    for name, weight in done.load_snapshot(6).model.named_parameters():
        assert torch.equal(weight, again.load_snapshot(6).model.get_parameter(name)), name


def test_evaluators_are_those_of_the_log(done: Run) -> None:
    curves = training_curves(done)
    assert "induction" not in curves
    measured = open_measured(done.path, sequences=20)
    found = open_results(measure_strategies(measured))
    assert not {"induction", "previous_token", "own", "query"} & set(found)
    for name in curves["evaluator"].values:
        for metric in ("accuracy", "loss"):
            theirs = found[metric].isel(clamp=0).sel(evaluator=name)
            assert theirs.values == pytest.approx(curves[metric].sel(evaluator=name).values, abs=2e-6)


def test_heads_are_refused(done: Run, tmp_path: Path) -> None:
    measured = open_measured(done.path, sequences=20)
    with pytest.raises(InputError, match=r"^ablations: a model of architecture lstm has no attention$"):
        measure_ablations(measured, out=tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"^clamp match: a model of architecture lstm has no attention$"):
        measure_strategies(measured, clamps=["match"], out=tmp_path / "b.zarr")
    with pytest.raises(InputError, match=r"^this measurement: a model of architecture lstm has no attention$"):
        measure_wiring(measured)
    with pytest.raises(InputError, match=r"^training.engine fused: needs attention-only transformers"):
        train(changed(training__engine="fused"), tmp_path / "fused")
    with pytest.raises(InputError, match=r"interventions: a model of architecture lstm has no attention$"):
        train(changed(interventions__without_heads=["0.1"]), tmp_path / "clamped")
    with pytest.raises(InputError, match=r"^interventions: a model of architecture lstm has no attention$"):
        train(changed(), tmp_path / "forced", interventions=[Intervention.zero("embed")])
    assert list(tmp_path.iterdir()) == []


def test_figures_have_what_there_is(done: Run, tmp_path: Path) -> None:
    one = training_curves(done).isel(member=[0])
    assert draw_curves(one, "lstm", 2, tmp_path / "curves").exists()

    class Quiet:
        def __enter__(self) -> Any:
            return lambda *_: None

        def __exit__(self, *_: object) -> None:
            pass

    from icl_fast.runs import open_series

    study = study_exemplars("lstm", open_series(done.path), {}, lambda _: Quiet(), sequences=20)
    assert study.ablations is None
    assert study.wiring is None
