"""Runs that this machine cannot hold are refused before anything of them is built, by the keys that say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from icl_fast import InputError
from icl_fast.data import Exemplars
from icl_fast.measure import open_measured
from icl_fast.runs import Population, parse_config
from icl_fast.training import train
from icl_fast.training.exemplars import ExemplarTrainer

EXEMPLARS: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 20, "exemplars": 2, "width": 6, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 12, "label_pool": 3, "held_out_classes": 4},
    "model": {"width": 8, "heads": 2},
    "training": {"steps": 4, "batch": 2, "lr": 1e-2},
    "evaluation": {"sequences": 10},
}
NEEDS = r".* needs .* of memory and .* are free; make it smaller$"


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return {**values, section: {**values.get(section, {}), name: value} if name else value}


def refused(values: dict[str, Any], out: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train(parse_config(values), out)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert not out.exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.layers", 10**9, "model.layers: input should be less than or equal to 1000"),
        ("model.width", 10**9, "^model.layers 2, model.width 1000000000,.*:" + NEEDS),
        ("model.head_width", 10**9, "model.head_width 1000000000,.*:" + NEEDS),
        ("model.heads", 10**30, "model.heads: input should be less than"),
        ("data.vocab", 10**9, "data.vocab 1000000000,.*:" + NEEDS),
        ("data.context", 10**9, "data.context 1000000000:" + NEEDS),
        ("training.batch", 10**9, "^training.batch 1000000000,.*:" + NEEDS),
        ("training.batch", 10**400, "training.batch: input should be less than"),
        ("training.steps", 10**15, "training.steps: input should be less than or equal to 99999999"),
        ("training.warmup", 10**400, "training.warmup: input should be less than"),
        ("training.seed", 2**64, "training.seed: input should be less than"),
        ("training.log_every", 10**30, "training.log_every: input should be less than"),
        ("snapshots.every", 10**30, "snapshots.every: input should be less than"),
    ],
)
def test_on_text(tiny_values: dict[str, Any], tmp_path: Path, key: str, value: int, message: str) -> None:
    refused(changed(tiny_values, key, value), tmp_path / "run", message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.layers", 10**9, "model.layers: input should be less than or equal to 1000"),
        ("model.width", 2 * 10**8, "^model.layers 2, model.width 200000000,.*:" + NEEDS),
        ("members", 10**9, "members: must be 1 to 65536, as each has a seed of its own"),
        ("members", 10**4000, "members: must be 1 to 65536"),
        ("training.batch", 10**9, "^training.batch 1000000000,.*:" + NEEDS),
        ("training.steps", 10**15, "training.steps: input should be less than"),
        ("training.seed", 65_536, "training.seed: input should be less than 65536"),
        ("evaluation.sequences", 10**9, "^evaluation.sequences 1000000000,.*:" + NEEDS),
        ("evaluation.sequences", 10**15, "evaluation.sequences: input should be less than"),
        ("evaluation.every", 10**400, "evaluation.every: input should be less than"),
        ("graft.member", 10**9, "graft.member: input should be less than"),
        ("interventions.only_heads", ["1." + "9" * 5000], "interventions: head '1.9+' is not understood"),
    ],
)
def test_on_exemplars(tmp_path: Path, key: str, value: Any, message: str) -> None:
    refused(changed(EXEMPLARS, key, value), tmp_path / "run", message)


def test_many_members_are_refused_before_they_are_made(tmp_path: Path) -> None:
    values = changed(changed(EXEMPLARS, "members", 65_536), "model.width", 1024)
    refused(values, tmp_path / "run", "65536 members:" + NEEDS)


def test_a_batch_of_the_plain_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps of a step is far more than the sequences."""
    values = changed(changed(EXEMPLARS, "training.engine", "plain"), "training.batch", 10**5)
    monkeypatch.setattr("icl_fast.memory.available", lambda: 10**8)
    refused(values, tmp_path / "run", "^training.batch 100000, model.layers 2,.*:" + NEEDS)


def test_evaluation_of_a_run(tmp_path: Path) -> None:
    run = train(parse_config(EXEMPLARS), tmp_path / "run")
    with pytest.raises(InputError, match="^sequences 1000000000 of each of 3 evaluators, 1 members:" + NEEDS):
        open_measured(run.path, sequences=10**9)


def test_what_is_due_is_found_without_listing_it() -> None:
    """Every multiple of every period, every snapshot and the end; in a run of any length."""
    config = parse_config({**EXEMPLARS, "training": {**EXEMPLARS["training"], "steps": 97, "log_every": 10}})
    values = config.model_dump(mode="json")
    values["training"] |= {"checkpoint_every": 25}
    values["evaluation"] |= {"every": 40}
    values["snapshots"] |= {"every": 33}
    trainer = ExemplarTrainer(parse_config(values))  # type: ignore[arg-type]
    found = []
    while trainer.step < trainer.steps:
        trainer.step = trainer._next()
        found.append(trainer.step)
    every = {step for period in (10, 25, 40, 33) for step in range(period, 97, period)}
    assert found == sorted(every | {97})
    values["training"] |= {"steps": 99_999_999, "log_every": 1}
    values["snapshots"] |= {"every": 10**6}
    assert ExemplarTrainer(parse_config(values))._next() == 1  # type: ignore[arg-type]


def test_populations_of_many_members_are_made() -> None:
    population = Population(parse_config(changed(EXEMPLARS, "members", 1000)))  # type: ignore[arg-type]
    exemplars = Exemplars(torch.zeros(20, 2, 6), torch.arange(20))
    assert population.model(exemplars).members == len(population.names) == 1000
