"""Models with hooks, adapters, replaced modules: measured as they are, by calling them, or refused.

What is right is what calling the model gives. Which changes are noticed is in `python_tests/models/test_plain.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from icl_fast import (
    ExemplarConfig,
    ExemplarTransformer,
    InputError,
    Intervention,
    Transformer,
    TransformerConfig,
    ablate,
)
from icl_fast.data.evaluation_sequences import EvaluationSequences, evaluation_sequences
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
from icl_fast.measure.exemplar.ablation import knock_out_each_head
from icl_fast.measure.exemplar.measured_model import MeasuredModel
from icl_fast.measure.exemplar.single_heads import single_heads
from icl_fast.measure.exemplar.strategies import evaluate_strategies
from icl_fast.measure.exemplar.superposition import attention_deltas
from icl_fast.measure.exemplar.wiring import composition_scores as exemplar_composition_scores
from icl_fast.measure.exemplar.wiring import wiring_map
from icl_fast.measure.heads import (
    TokenisedText,
    head_views,
    idealised_losses,
    template_attention,
    template_scores,
    token_losses,
)

N, T, V, C = 3, 12, 40, 12
TOKENS = torch.randint(V, (N, T + 1), generator=torch.Generator().manual_seed(1))
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]
TEXT = TokenisedText("x", "", "", "", INPUTS[0], TARGETS[0], tuple("a" * T), torch.full((T,), -1), 0)


class Adapter(nn.Module):
    """A projection and something besides, as LoRA has it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        more = torch.linspace(-1, 1, inner.in_features * inner.out_features, dtype=torch.float64).sin()
        self.inner, self.more = inner, nn.Parameter(more.view(inner.in_features, inner.out_features))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + x @ self.more
        return out


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Halved(Transformer):
    def hidden(self, tokens: Tensor, **options: Any) -> Any:
        hidden, sites = super().hidden(tokens, **options)
        return hidden * 0.5, sites


class Sharper(Transformer):
    def forward(self, tokens: Tensor, **options: Any) -> Any:  # type: ignore[override]
        return 2 * super().forward(tokens, **options)


class Scaled(nn.Module):
    """In the place of an embedding, without a weight of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        return 1.5 * self.inner(tokens)


def sharpen(module: nn.Module, inputs: Any, output: Any) -> Any:
    return (
        tuple(sharpen(module, inputs, one) if one is output[0] else one for one in output)
        if isinstance(output, tuple)
        else 2 * output
    )


def patch(model: Any) -> None:
    before = model.blocks[0].forward
    model.blocks[0].forward = lambda resid, positions, taps: before(1.2 * resid, positions, taps)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "hook": lambda m: m.blocks[0].attention.register_forward_hook(lambda module, inputs, output: output * 0),
    "pre-hook": lambda m: m.blocks[1].norm1.register_forward_pre_hook(lambda module, inputs: (inputs[0].sin(),)),
    "hook on the model": lambda m: m.register_forward_hook(sharpen),
    "pre-hook on the model": lambda m: m.register_forward_pre_hook(lambda module, inputs: ((inputs[0] + 1) % V,)),
    "hook on the logits": lambda m: m.unembed.register_forward_hook(sharpen),
    "hook on positions": lambda m: m.position.register_forward_hook(sharpen),
    "norm": lambda m: setattr(m, "final_norm", nn.RMSNorm(C).double()),
    "MLP": lambda m: setattr(m.blocks[0], "mlp", nn.Linear(C, C).double()),
    "dropout": lambda m: m.blocks[0].mlp.append(nn.Dropout(1.0)),
    "adapter on values": lambda m: setattr(m.blocks[1].attention, "v", Adapter(m.blocks[1].attention.v)),
    "adapter on outputs": lambda m: setattr(m.blocks[0].attention, "out", Adapter(m.blocks[0].attention.out)),
    "adapter on logits": lambda m: setattr(m, "unembed", Adapter(m.unembed)),
    "embedding": lambda m: setattr(m, "embed", Scaled(m.embed)),
    "method": patch,
}


def make(kind: type[Transformer] = Transformer) -> Transformer:
    torch.manual_seed(0)
    shape = {"layers": 2, "width": C, "heads": 2, "mlp": True, "position": "learned"}
    return kind(TransformerConfig(vocab=V, context=40, **shape)).double()


def changed(name: str) -> Transformer:
    if name in ("hidden", "forward"):
        return make({"hidden": Halved, "forward": Sharper}[name])
    model = make()
    CHANGES[name](model)
    return model


def losses(model: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        logits = model(INPUTS, **options)
    return F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten(), reduction="none").view(N, T)


def state(model: nn.Module) -> Any:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    return hooks, [(p.requires_grad, p.grad) for p in model.parameters()]


@pytest.mark.parametrize("name", [*CHANGES, "hidden", "forward"])
def test_the_definition_is_the_model_and_the_fast_engine_refuses(name: str) -> None:
    model = changed(name)
    before, weights = state(model), copy.deepcopy(model.state_dict())
    whole = losses(model)
    assert (whole - losses(make())).abs().max() > 1e-3  # it is another model
    by_hand = {
        "none": whole,
        "0.1": losses(model, interventions=[Intervention.zero("0.z", heads=[1])]),
        "embed": losses(model, interventions=[Intervention.zero("embed")]),
    }
    found = ablate(model, TOKENS, heads="0.1,embed", mode="full", engine="definition")
    for ablation, expected in by_hand.items():
        np.testing.assert_allclose(found["position_loss"].sel(ablation=ablation), expected.mean(0), rtol=1e-10)
    frozen = ablate(model, TOKENS, heads="1.0", mode="pattern-preserving", engine="definition", positions=[3, 5])
    last = losses(model, interventions=[Intervention.zero("1.z", heads=[0])])  # nothing later is preserved
    np.testing.assert_allclose(frozen["position_loss"].sel(ablation="1.0"), last.mean(0)[[2, 4]], rtol=1e-10)
    means = ablate(model, TOKENS, heads="1.0", replacement="mean", engine="definition")
    np.testing.assert_allclose(means["position_loss"].sel(ablation="none"), whole.mean(0), rtol=1e-10)
    for mode in ("full", "pattern-preserving", "direct"):
        with pytest.raises(InputError, match=r"^engine: .* take engine definition"):
            ablate(model, TOKENS, mode=mode)
    assert state(model) == before
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def seen_by_heads(model: Transformer) -> Tensor:
    """Attention [H,T,T] of the first layer on TEXT."""
    seen: list[Tensor] = []
    interventions = [Intervention.apply("0.pattern", lambda pattern: seen.append(pattern[0]) or pattern)]
    losses(model, interventions=interventions)
    return seen[0]


@pytest.mark.parametrize("name", ["hook", "pre-hook on the model", "adapter on values", "method", "hidden", "forward"])
def test_heads_of_changed_models(name: str) -> None:
    model = changed(name)
    scores = previous_token_scores(model, INPUTS, examples=N)
    seen: list[Tensor] = []

    def keep(pattern: Tensor) -> Tensor:
        seen.append(pattern.diagonal(-1, dim1=2, dim2=3).mean((0, 2)))
        return pattern

    losses(model, interventions=[Intervention.apply(f"{layer}.pattern", keep) for layer in range(2)])
    torch.testing.assert_close(scores, torch.stack(seen), rtol=1e-10, atol=0)
    assert prefix_matching_scores(model).isfinite().all()
    torch.testing.assert_close(token_losses(model, TEXT), losses(model)[0].float())
    labels = torch.where(torch.arange(T) % 3 == 0, torch.arange(T) % 2, -1)
    scores = template_scores(model, [replace(TEXT, categories=labels)])
    torch.testing.assert_close(scores.right[0, :, 0], template_attention(seen_by_heads(model), labels)[0])
    whole, without, _ = idealised_losses(model, INPUTS, TARGETS)
    torch.testing.assert_close(whole, losses(model).mean(1))
    removed = losses(model, interventions=[Intervention.zero("1.z", heads=[0])])
    torch.testing.assert_close(without[1, 0], removed.mean(1))
    reading: dict[str, Callable[[], object]] = {
        "copying_scores": lambda: copying_scores(model),
        "logit_attribution": lambda: logit_attribution(model, INPUTS, TARGETS, 0, 0),
        "head_views": lambda: head_views(model, TEXT),
        "composition_scores": lambda: composition_scores(model),
        "copying_eigenvalues": lambda: copying_eigenvalues(model),
        "qk_trace": lambda: qk_trace(model, scores),
    }
    for what, measure in reading.items():
        with pytest.raises(InputError, match=rf"^model: .* which {what} would leave out; undo it"):
            measure()


def test_parametrized_and_tied_weights_are_what_they_make() -> None:
    """They are read through the same attribute by everything: the fast engine measures them too."""
    model, doubled = make(), make()
    for of in (model, doubled):
        attention, mlp = of.blocks[0].attention, of.blocks[1].mlp
        assert mlp is not None
        for module in (attention.q, attention.out, mlp[2], of.final_norm):
            if of is model:
                parametrize.register_parametrization(module, "weight", Doubled())
            else:
                module.weight.data.mul_(2)
        of.unembed.weight = of.embed.weight
    for mode in ("full", "pattern-preserving"):
        for engine in ("fast", "definition"):
            found, expected = (ablate(of, TOKENS, mode=mode, engine=engine) for of in (model, doubled))  # type: ignore[arg-type]
            np.testing.assert_array_equal(found["position_loss"], expected["position_loss"])
    np.testing.assert_allclose(found["position_loss"].sel(ablation="none"), losses(model).mean(0), rtol=1e-10)
    assert torch.equal(copying_scores(model), copying_scores(doubled))


def test_wrapped_models_are_what_is_inside() -> None:
    model = make()
    for wrapped in (torch.compile(model, backend="eager"), nn.DataParallel(model)):
        np.testing.assert_array_equal(ablate(wrapped, TOKENS)["position_loss"], ablate(model, TOKENS)["position_loss"])
        assert torch.equal(copying_scores(wrapped), copying_scores(model))


def test_a_changed_model_keeps_its_numbers() -> None:
    """What a user's closure holds would stay in the old dtype."""
    with pytest.raises(InputError, match=r"^dtype: blocks.0 has a method forward of its own, .* float64, is safe"):
        ablate(changed("method"), TOKENS, engine="definition", dtype="float32")


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda model, tokens: Transformer.forward(model, tokens), "does not take interventions"),
        (lambda model, tokens, **_: Transformer.forward(model, tokens), "does not pass interventions on"),
        (lambda model, tokens, **options: {"logits": Transformer.forward(model, tokens, **options)}, "return logits"),
    ],
)
def test_a_forward_that_cannot_be_measured(forward: Any, message: str) -> None:
    model = type("Own", (Transformer,), {"forward": forward})(make().config)
    with pytest.raises(InputError, match=rf"^model: its forward .*{message}|^model: its forward must {message}"):
        ablate(model, TOKENS, engine="definition")


def test_whole_logits_are_in_the_memory_plan() -> None:
    model = changed("hook on the logits")
    with pytest.raises(InputError, match=r"^memory: one example of 12 tokens needs about"):
        ablate(model, TOKENS, engine="definition", positions=[1], memory=12 * T * V)
    ablate(model, TOKENS, engine="definition", positions=[1], memory="64MiB")


# --- exemplar models -------------------------------------------------------------------------------------------------

SEQUENCES = SequenceConfig(labels_per_class=2)
EXEMPLARS = gaussian_classes(30, 3, 6, seed=1)
FEATURES = EXEMPLARS.features.double()


class OtherLogits(ExemplarTransformer):
    def forward(self, *args: Any, **options: Any) -> Any:
        logits, sites = super().forward(*args, **options)
        return 3 * logits, sites


EXEMPLAR_CHANGES: dict[str, Callable[[Any], Any]] = {
    "hook": lambda m: m.blocks[0].attention.register_forward_hook(lambda module, inputs, output: output * 0),
    "hook on the model": lambda m: m.register_forward_hook(sharpen),
    "hook on the encoder": lambda m: m.embed_exemplar.register_forward_hook(sharpen),
    "norm": lambda m: setattr(m, "final_norm", nn.Identity()),
    "adapter": lambda m: setattr(m, "unembed", nn.Sequential(m.unembed, nn.Tanh())),
    "activation": lambda m: m.blocks[1].mlp.__setitem__(1, nn.ReLU()),
    "forward": lambda m: None,
}


@pytest.fixture(scope="module")
def evaluator() -> EvaluationSequences:
    return evaluation_sequences("train", SEQUENCES, EXEMPLARS, 37)


@pytest.mark.parametrize("name", EXEMPLAR_CHANGES)
def test_exemplar_models_are_called_or_refused(name: str, evaluator: EvaluationSequences) -> None:
    config = ExemplarConfig(
        features=6, outputs=output_labels(SEQUENCES, EXEMPLARS), pairs=SEQUENCES.pairs, width=16, heads=4, mlp=True
    )
    model = (OtherLogits if name == "forward" else ExemplarTransformer)(config, range(2)).double()
    measured = MeasuredModel(model, FEATURES, evaluator)
    plain = measured.means().loss
    EXEMPLAR_CHANGES[name](model)
    assert torch.equal(MeasuredModel(model, FEATURES, evaluator).means().loss, measured.means().loss)
    shown = evaluator.sequences
    exemplars = FEATURES[shown.classes, shown.exemplars].expand(2, -1, -1, -1)
    labels, target = shown.labels.expand(2, -1, -1), shown.target.expand(2, -1)
    with torch.no_grad():
        logits, sites = model(exemplars, labels, target, record=["0.pattern"])
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(2, -1).mean(-1)
    found = evaluate_strategies(model, FEATURES, [evaluator], attention=True)["train"]
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(measured.means().loss, expected, rtol=1e-10, atol=0)  # also changed after it was made
    own = sites["0.pattern"].view(2, -1, 4, 5, 5)[..., [1, 3], [1, 3]].mean((1, -1))
    assert found.attention is not None
    torch.testing.assert_close(found.attention.own[:, 0], own, rtol=1e-10, atol=0)
    if name != "forward":
        assert (expected - plain).abs().max() > 1e-4
    for measure in (single_heads, knock_out_each_head, wiring_map, attention_deltas):
        with pytest.raises(InputError, match=r"^model: .* would leave out; undo it"):
            measure(measured)
    with pytest.raises(InputError, match=r"^model: .* composition_scores would leave out"):
        exemplar_composition_scores(model)
