"""Configs: defaults, overrides, and one clear message for each way to get one wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from icl_fast import InputError
from icl_fast.runs import TextRunConfig, load_config


def write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text)
    return path


def test_a_file_holds_only_what_differs(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "training: {lr: 8e-3, steps: 7}"))
    assert config.training.lr == 8e-3
    assert config.training.steps == 7
    assert config.training.batch == TextRunConfig().training.batch
    assert load_config(write(tmp_path, "")) == TextRunConfig()


def test_overrides_apply_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {lr: 8e-3}")
    config = load_config(path, ["training.lr=1", "training.lr=2e-4", "model.key=smeared", "training.clip=null"])
    assert (config.training.lr, config.model.key, config.training.clip) == (2e-4, "smeared", None)


def test_written_out_it_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "model: {layers: 1, windows: [[null, 3, 4, null]]}\ntraining: {lr: 1e-5}"))
    assert load_config(write(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("training: {learning_rate: 1}", [], "training.learning_rate: unknown key"),
        ("optimiser: {lr: 1}", [], "optimiser: unknown key"),
        ("training: {steps: many}", [], "training.steps: input should be a valid integer, got 'many'"),
        ("training: {steps: 2.5}", [], "training.steps: input should be a valid integer, got 2.5"),
        ("training: {lr: .inf}", [], "training.lr: input should be a finite number"),
        ("training: {lr: -1}", [], "training.lr: input should be greater than 0, got -1"),
        ("training: {betas: [0.9, 1.0]}", [], "betas must lie in"),
        ("training: {device: tpu}", [], "training.device"),
        ("model: {heads: 5, width: 128}", [], "model: heads=5 does not divide width=128"),
        ("model: {position: spiral}", [], "model.position: input should be 'learned'"),
        ("snapshots: {factor: 1.0}", [], "snapshots.factor"),
        ("data: {evaluation_context: 512}", [], "data.evaluation_context 512: model.position shortformer has a table"),
        ("- a list", [], "must be sections of keys and values, got list"),
        ("training: {", [], "not YAML"),
        ("", ["training.lr"], "write it as section.key=value"),
        ("", ["=3"], "write it as section.key=value"),
        ("", ["training.steps.more=3"], "training.steps: input should be a valid integer"),
        ("training: {steps: 3}", ["training.steps.more=3"], "'steps' is a value, not a section"),
        ("", ["training.nothing=3"], "training.nothing: unknown key"),
    ],
)
def test_bad_input(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, text), overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_models_without_a_position_table_are_evaluated_at_any_length(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {evaluation_context: 512}")
    assert load_config(path, ["model.position=rotary"]).data.evaluation_length == 512
    assert load_config(path, ["data.context=512"]).data.evaluation_length == 512
    assert load_config(path, ["data.evaluation_context=50"]).data.evaluation_length == 50


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml does not exist"):
        load_config(tmp_path / "none.yaml")


def test_the_shipped_configs_are_valid() -> None:
    folder = Path(__file__).parents[2] / "configs"
    configs = sorted({*folder.rglob("*.yaml")} - {*folder.glob("reproduction/*.yaml")})  # those are lists of trainings
    assert len(configs) >= 3
    assert all(load_config(path).training.steps > 0 for path in configs)
