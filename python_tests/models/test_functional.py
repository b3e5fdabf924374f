"""torch.func through the models: per-example gradients, ensembles, forward mode; and other ways to trace them.

By math, as torch's own fused attention on the CPU has neither rule; models with smeared keys run an op of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from icl_fast.errors import InputError
from icl_fast.models import ExemplarTransformer, Intervention, Transformer, make_clamps, stack_clamps

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func itself uses it

Build = Callable[..., Transformer]
Weights = dict[str, Tensor]
TOKENS = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))
SHAPES = [{}, {"position": "learned", "mlp": True}, {"position": "rotary", "windows": [[2, None, 3], [None, 1, 9]]}]
FORCED = [
    Intervention.zero("0.z", heads=[1], positions=[2]),
    Intervention.apply("1.scores", lambda scores: scores.index_fill(-1, torch.tensor([0]), -torch.inf)),
]


@pytest.fixture(autouse=True)
def _math() -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(params=SHAPES, ids=["", "learned", "windows"])
def model(request: pytest.FixtureRequest, build: Build) -> Transformer:
    return build(dtype=torch.float64, **request.param)


def text_loss(model: Transformer, **options: Any) -> Callable[[Weights, Tensor], Tensor]:
    def loss(weights: Weights, tokens: Tensor) -> Tensor:
        logits = functional_call(model, weights, (tokens[None, :-1],), options)
        return F.cross_entropy(logits[0], tokens[1:])

    return loss


def weights_of(model: torch.nn.Module) -> Weights:
    return {name: weight.detach() for name, weight in model.named_parameters()}


def check_forward_mode(loss: Callable[[Weights], Tensor], weights: Weights) -> None:
    """jvp along a random direction against central differences."""
    random = torch.Generator().manual_seed(0)
    along = {n: torch.randn(w.shape, generator=random, dtype=w.dtype) for n, w in weights.items()}
    _, derivative = jvp(loss, (weights,), (along,))
    after, before = (loss({n: w + step * along[n] for n, w in weights.items()}) for step in (1e-6, -1e-6))
    torch.testing.assert_close(derivative, (after - before) / 2e-6, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"interventions": FORCED}], ids=["", "forced"])
def test_per_example_gradients(model: Transformer, options: dict[str, Any]) -> None:
    loss, weights = text_loss(model, **options), weights_of(model)
    mapped = vmap(grad(loss), in_dims=(None, 0))(weights, TOKENS)
    for number, tokens in enumerate(TOKENS):
        for name, expected in grad(loss)(weights, tokens).items():
            torch.testing.assert_close(mapped[name][number], expected, rtol=1e-9, atol=1e-12)


def test_ensembles(build: Build, model: Transformer) -> None:
    shape = model.config.model_dump()
    models = [build(seed=seed, dtype=torch.float64, **shape) for seed in range(3)]
    weights, _ = stack_module_state(models)
    logits, sites = vmap(lambda one: functional_call(model, one, (TOKENS,), {"record": ["0.head_out"]}))(weights)
    each = vmap(grad(text_loss(model)))(weights, TOKENS)
    for number, one in enumerate(models):
        expected, recorded = one(TOKENS, record=["0.head_out"])
        torch.testing.assert_close(logits[number], expected)
        torch.testing.assert_close(sites["0.head_out"][number], recorded["0.head_out"])
        gradient = grad(text_loss(one))(weights_of(one), TOKENS[number])
        torch.testing.assert_close(each["embed.weight"][number], gradient["embed.weight"])


def test_forward_mode(model: Transformer) -> None:
    check_forward_mode(lambda weights: text_loss(model, interventions=FORCED)(weights, TOKENS[0]), weights_of(model))
    embeddings = torch.randn(1, 3, 12, dtype=torch.float64)
    of_embeddings = [jacobian(lambda e: model(e)[0, -1, :3])(embeddings) for jacobian in (jacfwd, jacrev)]
    torch.testing.assert_close(*of_embeddings)


@pytest.mark.parametrize("clamps", [[], ["match"], ["layer-1+copy"], ["pt-attend", "no-previous-token"]])
def test_exemplar_models(
    build_exemplars: Callable[..., ExemplarTransformer], draw_sequences: Any, clamps: list[Any]
) -> None:
    model = build_exemplars(1)
    exemplars, labels, target = (of_all[0] for of_all in draw_sequences(model))
    heads = {"previous_token_heads": [0], "induction_heads": [1]}
    forced, weights = stack_clamps([make_clamps(model.config, clamps, **heads)]), weights_of(model)

    def loss(weights: Weights, exemplars: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        inputs = (exemplars[None, None], labels[None, None], target[None, None])
        return F.cross_entropy(functional_call(model, weights, inputs, {"clamps": forced})[0][0], target[None])

    mapped = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, exemplars, labels, target)
    for number in range(len(target)):
        expected = grad(loss)(weights, exemplars[number], labels[number], target[number])
        for name, gradient in expected.items():
            torch.testing.assert_close(mapped[name][number], gradient, rtol=1e-9, atol=1e-12)
    of_labels = vmap(loss, in_dims=(None, None, 0, 0))(weights, exemplars[0], labels, target)
    each = [loss(weights, exemplars[0], *one) for one in zip(labels, target, strict=True)]
    torch.testing.assert_close(of_labels, torch.stack(each))
    check_forward_mode(lambda weights: loss(weights, exemplars[0], labels[0], target[0]), weights)


def test_other_ways_to_trace(model: Transformer) -> None:
    expected = model(TOKENS)
    torch.testing.assert_close(make_fx(model)(TOKENS)(TOKENS), expected)
    torch.testing.assert_close(torch.export.export(model, (TOKENS,)).module()(TOKENS), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(TOKENS)).shape == expected.shape
    for bad in (TOKENS + 11, TOKENS - 11):  # where values can be looked at, they still are
        with pytest.raises(InputError, match=r"^tokens holds"):
            model(bad)
