"""A run knows the exemplars again that it was trained on: others are refused, not measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_fast import InputError, Run, load_config, open_series, train
from icl_fast.data import Exemplars
from icl_fast.data.fingerprint import fingerprint, is_same
from icl_fast.measure import open_measured

CONFIG = """
exemplars: {kind: gaussian, classes: 80, exemplars: 3, width: 6, encoder: none}
sequences: {}
model: {layers: 1, width: 8, heads: 2}
training: {steps: 4, log_every: 2, seed: 5, checkpoint_every: 2}
evaluation: {every: 4, sequences: 10}
snapshots: {every: 2}
"""


def made(seed: int, classes: int = 80) -> Exemplars:
    features = torch.randn(classes, 3, 6, generator=torch.Generator().manual_seed(seed))
    return Exemplars(features, torch.arange(classes))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 200))
def test_the_same_up_to_rounding_and_no_others(seed: int, classes: int) -> None:
    one = made(seed, classes)
    noted = json.loads(json.dumps(fingerprint(one)))
    assert is_same(fingerprint(one), noted)
    assert is_same(fingerprint(replace(one, features=one.features * (1 + 1e-6))), noted)
    assert not is_same(fingerprint(made(seed + 1, classes)), noted)
    assert not is_same(fingerprint(made(seed, classes + 1)), noted)
    changed = one.features.clone()
    changed[0] += 0.1  # the first class is always looked at
    assert not is_same(fingerprint(replace(one, features=changed)), noted)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return train(load_config(tmp_path / "config.yaml"), tmp_path / "run")


def other(run: Run) -> None:
    """Notes that the run was trained on other exemplars."""
    noted = json.loads((run.path / "exemplars.json").read_text())
    (run.path / "exemplars.json").write_text(json.dumps(noted | {"mean": [1.0] * 64}))
    run.note("exemplars.json")


def test_a_run_measures_its_own(run: Run) -> None:
    assert run.manifest().keys() >= {"config.yaml", "exemplars.json"}
    assert open_measured(run.path, sequences=10).count == 10


def test_others_are_refused(run: Run) -> None:
    other(run)
    with pytest.raises(InputError, match=r"^exemplars: .*run was trained on others than .*; fonts, images or the"):
        open_series(run.path).exemplars()
    with pytest.raises(InputError, match=r"^exemplars: "):
        train(run.config, run.path, resume=True)


def test_a_note_that_was_changed_is_refused(run: Run) -> None:
    (run.path / "exemplars.json").write_text("{}")
    with pytest.raises(InputError, match=r"exemplars.json: is not as the run wrote it"):
        open_series(run.path).exemplars()


def test_runs_of_before_have_no_note(run: Run) -> None:
    (run.path / "exemplars.json").unlink()
    assert len(open_series(run.path).exemplars().features) == 80
    train(run.config, run.path, resume=True)
