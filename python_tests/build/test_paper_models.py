"""The configs of the paper's own models are what the paper says, and docs/paper_models.md what `plan` says of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from icl_fast.models import Transformer, TransformerConfig
from icl_fast.runs import TextRunConfig, load_config
from icl_fast.runs.config_files import read_yaml
from icl_fast.runs.snapshot_schedule import snapshot_steps
from icl_fast.training import train
from icl_fast.training.plan import plan_training

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("paper_models", ROOT / "docs" / "paper_models.py")
assert _SPEC is not None
assert _SPEC.loader is not None
paper_models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(paper_models)
CONFIGS: dict[str, TextRunConfig] = paper_models.configs()
FULL = {name: config for name, config in CONFIGS.items() if paper_models.is_full(name)}
# keys that say how a step is computed, not what
_HOW = {"accumulate", "parallel", "checkpoint_activations"}


def test_the_page_says_what_plan_says() -> None:
    text = paper_models.PAGE.read_text(encoding="utf-8")
    assert paper_models.page(text) == text, "run python docs/paper_models.py"


def test_which_models_there_are() -> None:
    small = [(c.model.layers, c.model.mlp, c.model.key) for name, c in CONFIGS.items() if name not in FULL]
    plain = [(layers, mlp, "plain") for layers in range(1, 7) for mlp in (False, True)]
    assert sorted(small) == sorted([*plain, (1, False, "smeared"), (2, False, "smeared")])
    assert [config.model.layers for config in FULL.values()] == [4, 6, 10, 16, 24, 40]


def test_the_ablations_of_the_small_models_are_the_papers() -> None:
    """Olsson et al. 2022, Data Collection (2): 100,800 ablations."""
    plain = [c for name, c in CONFIGS.items() if name not in FULL and c.model.key == "plain"]
    assert sum(c.model.layers * c.model.heads for c in plain) * 200 == 100_800


@pytest.mark.parametrize("name", FULL)
def test_parameters_of_the_full_scale_models(name: str) -> None:
    config, (parameters, width, heads, _, _) = FULL[name], paper_models.FULL[FULL[name].model.layers]
    model, plan = config.model, plan_training(config)
    assert plan.matrices == 12 * model.layers * model.width**2
    assert paper_models.rounded(plan.matrices) == parameters
    assert width == str(model.width) == str(128 * model.layers)
    assert heads in ("", f"{model.heads} of {model.d_head}")
    windows = [window for row in model.windows or [] for window in row]
    assert (windows.count(None), windows.count(256)) == (model.layers * model.heads // 2,) * 2


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        model = Transformer(TransformerConfig(**config.model.model_dump(), vocab=2**16, context=8192))
    linear = [one for one in model.modules() if isinstance(one, torch.nn.Linear)]
    plan = plan_training(config)
    assert plan.parameters == sum(weights.numel() for weights in model.parameters())
    assert plan.multiplied == sum(one.weight.numel() for one in linear)
    assert plan.matrices == plan.multiplied - 2**16 * config.model.width


@pytest.mark.parametrize("name", CONFIGS)
def test_training_is_the_papers(name: str) -> None:
    config = CONFIGS[name]
    assert (config.data.vocab, config.data.context, config.training.batch) == (2**16, 8192, 128)
    steps = snapshot_steps(config.training.steps, config.snapshots)
    if name in FULL:
        assert steps == [0, *(2**n for n in range(5, 19)), config.training.steps]
    else:
        assert steps == list(range(0, 10_001, 50))
        assert abs(config.training.warmup * 2**20 - 1.5e9) < 0.1e9
        assert config.training.weight_decay_change_step == 4750


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in FULL])
def test_reproduction_trains_the_same(name: str) -> None:
    """`icl-fast reproduce olsson` at the paper's scale, but for its text and how a step is computed."""
    listed = read_yaml(ROOT / "configs" / "reproduction" / "olsson.yaml")
    of_name = {Path(one["config"]).stem: one for one in listed.values()}[name]
    other = load_config(ROOT / "configs" / of_name["config"], of_name["paper"]["set"])
    assert isinstance(other, TextRunConfig)
    for section in ("model", "data", "training", "snapshots"):
        ours, theirs = (getattr(config, section).model_dump() for config in (CONFIGS[name], other))
        assert {key for key in ours if ours[key] != theirs[key]} <= {"corpus", *_HOW}


def test_one_trains(corpus_folder: Path, tmp_path: Path) -> None:
    small = [f"data.corpus={corpus_folder}", "data.vocab=300", "data.context=300", "model.width=32"]
    few = ["training.steps=2", "training.batch=4", "training.precision=float32"]
    run = train(load_config(ROOT / "configs" / "paper" / "four_layer_full.yaml", [*small, *few]), tmp_path / "run")
    assert run.snapshot_steps() == [0, 2]
