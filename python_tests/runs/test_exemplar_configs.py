"""The exemplar configs that come with the source are read, and their members can be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from icl_fast import InputError
from icl_fast.data import Exemplars, gaussian_classes
from icl_fast.runs import ExemplarRunConfig, Population, TextRunConfig, load_config
from icl_fast.runs.population import members

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted((FOLDER / "exemplars").glob("*.yaml"))


@pytest.fixture(scope="module")
def exemplars() -> Exemplars:
    return gaussian_classes(12_984, 20, 4)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_can_be_trained(path: Path, exemplars: Exemplars) -> None:
    config = load_config(path, ["model.encoder=linear"])  # the ResNet's images are not made here
    assert isinstance(config, ExemplarRunConfig)
    population = Population(config)
    assert population.clamps().members == population.model(exemplars).members == len(population.names)
    names = [one.name for one in population.evaluators(exemplars, count=2)]
    assert "train" in names
    fixed = population.sequences[0].p_icl < 1
    assert ({"icl", "ciwl", "flip", "iwl"} <= set(names)) == fixed


def test_text_configs_are_no_exemplar_configs() -> None:
    assert isinstance(load_config(FOLDER / "demo" / "two_layer.yaml"), TextRunConfig)


def test_the_grid_of_figure_4_9_is_every_combination() -> None:
    config = load_config(FOLDER / "exemplars" / "grid.yaml")
    values = [
        (m.config.sequences.classes, m.config.sequences.label_pool, *m.config.interventions.clamps)
        for m in members(config)
    ]
    clamps = [(), ("layer-1+copy",), ("match",), ("layer-1",)]
    expected = [(classes, 5, *clamp) for classes in (50, 100, 200, 400) for clamp in clamps]
    expected += [(50, labels, *clamp) for labels in (5, 10, 15, 20) for clamp in clamps]
    assert values == expected


def test_overrides_reach_every_member() -> None:
    config = load_config(FOLDER / "exemplars" / "seeds.yaml", ["members=3", "interventions.clamps=[match]"])
    assert [(m.name, m.config.training.seed) for m in members(config)] == [("seed 5", 5), ("seed 6", 6), ("seed 7", 7)]
    assert all(m.config.interventions.clamps == ["match"] for m in members(config))


def test_an_unknown_clamp_is_named() -> None:
    with pytest.raises(InputError, match=r"interventions\.clamps\.0: input should be 'pt-attend'.*got 'mtach'"):
        load_config(FOLDER / "exemplars" / "chapter4.yaml", ["interventions.clamps=[mtach]"])
