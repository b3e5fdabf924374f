"""The exemplar configs that come with the source are read, and their members can be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from icl_fast import InputError
from icl_fast.data import Exemplars, gaussian_classes
from icl_fast.runs import ExemplarRunConfig, Population, TextRunConfig, load_config, parse_config
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


def parsed(values: dict[str, Any]) -> ExemplarRunConfig:
    config = parse_config({"sequences": {}, **values})
    assert isinstance(config, ExemplarRunConfig)
    return config


def test_seeds_of_every_member() -> None:
    listed = [{"name": "p 0.5", "set": {"sequences.p_bursty": 0.5}}, {"name": "p 1", "set": {"training.seed": 20}}]
    values = {"training": {"seed": 9}, "members": listed, "seeds": 3}
    population = Population(parsed(values))
    assert population.config.member_count == 6
    assert population.names == [f"p 0.5 | seed {i}" for i in (9, 10, 11)] + [f"p 1 | seed {i}" for i in (20, 21, 22)]
    assert [one.config.training.seed for one in population.all] == [9, 10, 11, 20, 21, 22]
    assert [one.p_bursty for one in population.sequences] == [0.5] * 3 + [1.0] * 3
    assert population.settings == ["p 0.5"] * 3 + ["p 1"] * 3
    assert Population(parsed({"members": 3})).settings == ["3 seeds"] * 3
    assert Population(parsed({"members": 1})).settings == ["run"]
    again = parsed(values | {"seeds": 1})
    assert Population(again).settings == ["p 0.5", "p 1"]
    for seeds, message in ((0, r"seeds: .*greater than or equal to 1"), (2, r"seeds=2: .* write members: 2")):
        with pytest.raises(InputError, match=message):
            parsed({"seeds": seeds})


def test_members_of_one_setting_are_the_same_but_for_seeds() -> None:
    """Neither others with the same name, nor others with the same config."""
    one = {"name": "a | seed 1", "set": {"training.seed": 1}}
    other = {"name": "a | seed 2", "set": {"training.seed": 2, "sequences.seed": 5}}
    assert Population(parsed({"members": [one, other]})).settings == ["a", "a"]
    warm = {"name": "a | seed 2", "set": {"training.seed": 2, "training.warmup": 5}}
    assert Population(parsed({"members": [one, warm]})).settings == ["a | seed 1", "a | seed 2"]
    named = {"name": "b", "set": {"training.seed": 3}}
    assert Population(parsed({"members": [one, named]})).settings == ["a | seed 1", "b"]


def test_what_members_share_is_named() -> None:
    for key in ("model.layers", "training.batch", "sequences.pairs", "exemplars.seed"):
        with pytest.raises(InputError, match=rf"members: wide: {key} is one for all members.*; make it another run$"):
            Population(parsed({"members": [{"name": "wide", "set": {key: 1}}]}))


def test_an_unknown_clamp_is_named() -> None:
    with pytest.raises(InputError, match=r"interventions\.clamps\.0: input should be 'pt-attend'.*got 'mtach'"):
        load_config(FOLDER / "exemplars" / "chapter4.yaml", ["interventions.clamps=[mtach]"])
