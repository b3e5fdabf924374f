"""What a caller has set in torch (autocast, default device and dtype, modes) changes no bit of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from icl_fast import ExemplarConfig, ExemplarTransformer, Intervention, Transformer, TransformerConfig, ablate
from icl_fast.data.evaluation_sequences import evaluation_sequences
from icl_fast.data.exemplars import gaussian_classes
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.data.sequences import output_labels
from icl_fast.measure import (
    composition_scores,
    copying_eigenvalues,
    copying_scores,
    logit_attribution,
    prefix_matching_scores,
    previous_token_scores,
    qk_trace,
)
from icl_fast.measure.exemplar.ablation import embedding_path, knock_out_each_head
from icl_fast.measure.exemplar.measured_model import MeasuredModel
from icl_fast.measure.exemplar.single_heads import attention_weight_curve, single_heads
from icl_fast.measure.exemplar.superposition import attention_deltas, temperature_curves
from icl_fast.measure.exemplar.wiring import composition_scores as exemplar_composition_scores
from icl_fast.measure.exemplar.wiring import wiring_map
from icl_fast.measure.heads import TokenisedText, head_views, idealised_losses, template_scores, token_losses
from icl_fast.models import make_clamps

V, T = 40, 33
TOKENS = torch.randint(V, (4, T + 1), generator=torch.Generator().manual_seed(1))
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]
TEXT = TokenisedText("x", "", "", "", INPUTS[0], TARGETS[0], tuple("a" * T), torch.full((T,), -1), 0)
LABELLED = replace(TEXT, categories=torch.where(torch.arange(T) % 3 == 0, torch.arange(T) % 2, -1))
SEQUENCES = SequenceConfig(labels_per_class=2)
EXEMPLARS = gaussian_classes(30, 3, 6, seed=1)
SETS = [evaluation_sequences(name, SEQUENCES, EXEMPLARS, 23) for name in ("train", "iwl")]


@contextmanager
def default(setter: Callable[[Any], None], value: object, before: object) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": lambda: default(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: default(torch.set_default_device, "meta", None),
    "device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": lambda: default(torch.use_deterministic_algorithms, True, False),
}


def of_text(model: Transformer) -> dict[str, Any]:
    previous = previous_token_scores(model, INPUTS, examples=3)
    found: dict[str, Any] = {
        "previous token": previous,
        "prefix matching": prefix_matching_scores(model),
        "copying": copying_scores(model),
        "QK": qk_trace(model, previous),
        "OV": copying_eigenvalues(model),
        "composition": composition_scores(model)["k"],
        "attribution": logit_attribution(model, INPUTS, TARGETS, 1, 0).logits,
        "losses": token_losses(model, TEXT),
        "templates": template_scores(model, [LABELLED]).right,
        "idealised patterns": idealised_losses(model, INPUTS, TARGETS)[2],
        "views": torch.stack(head_views(model, TEXT)),
    }
    for engine in ("fast", "definition"):
        for mode in ("full", "pattern-preserving"):
            for more in ({"positions": "paper"}, {"replacement": "mean"}):
                options: dict[str, Any] = {"engine": engine, "mode": mode, "heads": "all,embed,0.0+1.1", **more}
                found[str(options)] = ablate(model, TOKENS, **options)["position_loss"].values.copy()
    return found


def of_exemplars(model: ExemplarTransformer) -> dict[str, Any]:
    clamps = make_clamps(model.config, ["match"], without_heads=[(1, 0)], temperature=[((0, 1), 0.5)])
    features = EXEMPLARS.features
    measured, noisy = MeasuredModel.on_each(model, features, SETS, clamps)
    attention = measured.means(attention=True).attention
    assert attention is not None
    return {
        "attention": attention.query,
        "alone": single_heads(measured, perfect=True).accuracy,
        "knocked out": knock_out_each_head(noisy).loss,
        "embedding": embedding_path(measured)["removed"].loss,
        "weights": attention_weight_curve(measured, [0.0, 0.5]).loss,
        "temperatures": temperature_curves(measured, [0.5]).alone.loss,
        "deltas": attention_deltas(measured),
        "wiring": wiring_map(measured)["loss"].values.copy(),
        "composition": exemplar_composition_scores(model)["q"],
        "forced": measured.means(interventions=[Intervention.zero("0.z", heads=[1], positions=[2])]).loss,
    }


def same(one: Any, other: Any) -> bool:
    one, other = (value if isinstance(value, Tensor) else torch.from_numpy(value) for value in (one, other))
    return bool(one.dtype == other.dtype) and torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@pytest.fixture(scope="module", params=[{}, {"mlp": True, "position": "learned", "key": "smeared"}], ids=["", "more"])
def text_model(request: pytest.FixtureRequest) -> tuple[Transformer, dict[str, Any]]:
    torch.manual_seed(0)
    shape = {"layers": 2, "width": 16, "heads": 2, **request.param}
    model = Transformer(TransformerConfig(vocab=V, context=101, **shape))
    return model, of_text(model)


@pytest.fixture(scope="module")
def exemplar_model() -> tuple[ExemplarTransformer, dict[str, Any]]:
    outputs = output_labels(SEQUENCES, EXEMPLARS)
    shape = {"width": 16, "heads": 4, "features": 6, "outputs": outputs, "pairs": SEQUENCES.pairs, "mlp": True}
    model = ExemplarTransformer(ExemplarConfig(**shape))
    return model, of_exemplars(model)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_text(text_model: tuple[Transformer, dict[str, Any]], setting: Callable[[], Any]) -> None:
    model, expected = text_model
    with setting():
        found = of_text(model)
    assert [name for name, value in expected.items() if not same(found[name], value)] == []


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_exemplars(exemplar_model: tuple[ExemplarTransformer, dict[str, Any]], setting: Callable[[], Any]) -> None:
    model, expected = exemplar_model
    with setting():
        found = of_exemplars(model)
    assert [name for name, value in expected.items() if not same(found[name], value)] == []


def test_nothing_is_left_behind(text_model: tuple[Transformer, dict[str, Any]]) -> None:
    """Neither in torch, random numbers included, nor in the model; also after an error."""
    model = text_model[0]
    model.train()
    model.embed.weight.requires_grad_(False)
    before, random = {name: weight.clone() for name, weight in model.state_dict().items()}, torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        of_text(model)
        with pytest.raises(ValueError):
            ablate(model, TOKENS, heads="9.9")
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert not model.embed.weight.requires_grad
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.embed.weight.requires_grad_(True)
