"""Runs and results that commit 62586c4 wrote are read, go on and are recognised as before.

`runs_of_62586c4.tar.gz` holds a run on text with an ablation and head scores, and a population on exemplars with its
strategies, all from that commit's own commands; the corpus is `corpus_folder`, whose path the tests fill in.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from icl_fast.measure import OtherResults, evaluate, measure_strategies, open_measured, open_results, sweep
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.models import ExemplarTransformer
from icl_fast.runs import Run, open_series
from icl_fast.training import train

# read from the stores by that commit's own `open_results`
SCORES = [[-0.12659156, -0.15231758, -0.09451781], [0.02621724, 0.05182668, -0.03720988]]  # [snapshot, ablation]
PREFIX_MATCHING = [[0.15576060950756074, 0.14348963807026544], [0.13330556094646454, 0.14161296248435973]]
LOSSES = [
    2.707347410917282,
    2.876706099510193,
    2.882619845867157,
    3.0730737805366517,
    3.332311528921127,
    3.30336634516716,
]


@pytest.fixture
def text(tmp_path: Path, corpus_folder: Path) -> Run:
    run = Run(unpacked(tmp_path) / "text")
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("CORPUS", str(corpus_folder)))
    run.note("config.yaml")
    return run


@pytest.fixture
def exemplars(tmp_path: Path) -> Run:
    return Run(unpacked(tmp_path) / "exemplars")


def unpacked(folder: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("runs_of_62586c4.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_text_snapshots(text: Run) -> None:
    series, left_out = open_series(text.path).readable()
    assert (series.task, series.steps, left_out) == ("text", [0, 12], {})
    first, last = series
    assert (first.seen, last.step, last.seen) == (0, 12, 12 * 2 * 24)
    logits, _ = last.model(torch.arange(24)[None] * 7 % 280, record=[])
    expected = [  # printed by that commit
        [-1.49674177, -0.89717960, -1.61451423, -0.55127770],
        [-0.76532328, -1.11895907, -1.25581896, -0.79676020],
        [-1.36578023, -0.65144926, -1.48508167, -0.40492117],
    ]
    torch.testing.assert_close(logits[0, :3, :4], torch.tensor(expected))


def test_text_results_are_kept_as_they_are(text: Run) -> None:
    """An equal sweep finds the old store finished; head scores, of other tokens, open and are not new ones."""

    def measured(_: object) -> None:
        raise AssertionError("it is measured again")

    store = sweep(text.path, heads="0.1,*", on_part=measured)
    found = open_results(store)
    assert found["ablation"].values.tolist() == ["none", "0.1", "*"]
    np.testing.assert_allclose(found["icl_score"].values, SCORES, atol=1e-8)
    heads = open_results(text.path / "results" / "heads.zarr")
    np.testing.assert_allclose(heads["prefix_matching"].values[-1], PREFIX_MATCHING, rtol=1e-6)
    with pytest.raises(OtherResults, match="belongs to a measurement with other measured"):
        evaluate(text.path, on_snapshot=measured)


def test_a_finished_run_on_text_is_resumed_to_nothing(text: Run) -> None:
    before = text.snapshot_path(12).read_bytes()
    train(text.config, text.path, resume=True)
    assert text.snapshot_path(12).read_bytes() == before


def test_exemplars(exemplars: Run) -> None:
    assert exemplars.population.names == ["seed 0", "seed 1"]
    model = exemplars.load_snapshot(8).model
    assert isinstance(model, ExemplarTransformer)
    assert model.members == 2
    assert training_curves(exemplars)["training_loss"].shape == (2, 2)
    found = open_results(exemplars.path / "results" / "strategies.zarr")
    np.testing.assert_allclose(found["loss"].values[-1, 0, :, 0], LOSSES, rtol=1e-6)
    measured = open_measured(exemplars.path, sequences=20)
    means = [model.means().loss[0] for model in measured.on_each(exemplars.load_snapshot(8).model)]
    np.testing.assert_allclose(means, LOSSES, rtol=1e-6)
    with pytest.raises(OtherResults, match="of a version that did not note its measurement"):
        measure_strategies(measured)
    assert train(exemplars.config, exemplars.path, resume=True).snapshot_steps() == [0, 8]
