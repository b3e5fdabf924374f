"""Configs by the names that they come with, from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from icl_fast.cli.main import cli
from icl_fast.errors import InputError
from icl_fast.runs import load_config
from icl_fast.shipped_configs import find, folder, names

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_name_is_a_config() -> None:
    assert {"demo/two_layer", "exemplars/chapter4", "paper/two_layer"} <= set(names())
    assert all(find(name) == folder() / f"{name}.yaml" for name in names())
    assert folder() == CONFIGS


@pytest.mark.parametrize("name", ["demo/two_layer", "demo/two_layer.yaml", "configs/demo/two_layer.yaml"])
def test_a_config_by_its_name(name: str) -> None:
    assert load_config(name) == load_config(CONFIGS / "demo" / "two_layer.yaml")


def test_a_file_of_that_name_comes_first(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "two_layer.yaml").write_text("training: {steps: 7}")
    assert load_config("demo/two_layer.yaml").training.steps == 7
    assert load_config("demo/one_layer") == load_config(CONFIGS / "demo" / "one_layer.yaml")


@pytest.mark.parametrize("name", ["demo/three", "demo", "two_layer", "../configs/demo/two_layer", "configs"])
def test_what_is_neither(name: str) -> None:
    with pytest.raises(InputError, match=rf"^config: {name} does not exist; `icl-fast train --list` names those that "):
        load_config(name)


def test_train_lists_them() -> None:
    listed = CliRunner().invoke(cli, ["train", "--list"])
    assert (listed.exit_code, listed.stdout.split()) == (0, names())
