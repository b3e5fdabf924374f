"""What users change in a model is noticed and named; what leaves it what its weights say is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from icl_fast.errors import InputError
from icl_fast.models import ExemplarTransformer, Intervention, Transformer
from icl_fast.models.changes import original
from icl_fast.models.plain import model_of, why_not_plain

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")  # deprecated, and used

Build = Callable[..., Transformer]
Change = Callable[[Transformer], Any]
TOKENS = torch.arange(8).view(2, 4)


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Adapter(nn.Module):
    """A projection and something besides, as LoRA has it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.down = inner, nn.Parameter(torch.zeros(inner.in_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + x @ self.down
        return out


class Halved(Transformer):
    def hidden(self, tokens: Tensor, **options: Any) -> Any:
        hidden, sites = super().hidden(tokens, **options)
        return hidden * 0.5, sites


class WithLoss(Transformer):
    """Adds what takes no part in computing."""

    def loss(self, tokens: Tensor) -> Tensor:
        return self(tokens).logsumexp(-1).mean()

    def reset_parameters(self) -> None:
        super().reset_parameters()


def observe(*_: Any) -> None:
    """A hook that changes nothing; nobody can tell."""


CHANGES: dict[str, tuple[Change, str]] = {
    "hook": (lambda m: m.blocks[0].attention.register_forward_hook(observe), "blocks.0.attention has a forward hook"),
    "pre-hook": (lambda m: m.blocks[1].mlp[1].register_forward_pre_hook(observe), "blocks.1.mlp.1 has a forward hook"),
    "hook on it all": (lambda m: m.register_forward_hook(observe), "the model has a forward hook"),
    "hook on a list": (lambda m: m.blocks.register_forward_hook(observe), "blocks has a forward hook"),
    "norm": (lambda m: setattr(m, "final_norm", nn.RMSNorm(12)), "final_norm is a RMSNorm, no LayerNorm"),
    "eps": (lambda m: setattr(m.blocks[0].norm1, "eps", 0.1), "blocks.0.norm1 is not as configured"),
    "activation": (lambda m: m.blocks[0].mlp.__setitem__(1, nn.ReLU()), "blocks.0.mlp.1 is a ReLU, no GELU"),
    "tanh": (lambda m: m.blocks[0].mlp.__setitem__(1, nn.GELU("tanh")), "blocks.0.mlp.1 is not as configured"),
    "dropout": (lambda m: m.blocks[0].mlp.append(nn.Dropout()), "blocks.0.mlp has other parts"),
    "no MLP": (lambda m: setattr(m.blocks[0], "mlp", None), "blocks.0 has other parts"),
    "adapter": (lambda m: setattr(m, "unembed", Adapter(m.unembed)), "unembed is a Adapter, no Linear"),
    "forward": (lambda m: setattr(m.blocks[0], "forward", m.blocks[0].forward), "blocks.0 has a method forward of its"),
    "another": (lambda m: setattr(m.blocks[0].attention, "queries", None), "blocks.0.attention has a method queries"),
    "clipped": (lambda m: setattr(m.embed, "max_norm", 1.0), "embed is not as configured"),
    "shape": (lambda m: setattr(m.unembed, "weight", nn.Parameter(torch.zeros(3, 12))), "unembed has no weight of"),
    "twice": (lambda m: m.blocks.__setitem__(1, m.blocks[0]), "blocks has other parts"),
    "config": (lambda m: setattr(m, "config", m.config.model_copy(update={"layers": 1})), "blocks has other parts"),
    "weight norm": (lambda m: weight_norm(m.blocks[0].attention.q), "blocks.0.attention.q has a forward hook"),
    "pruned": (lambda m: prune.random_unstructured(m.unembed, "weight", 0.5), "unembed has a forward hook"),
}
NO_CHANGES: dict[str, Change] = {
    "nothing": lambda m: None,
    "backward hook": lambda m: m.blocks[0].register_full_backward_hook(observe),
    "frozen, evaluated": lambda m: m.eval().requires_grad_(False),
    "copied": lambda m: copy.deepcopy(m),
    "other numbers": lambda m: m.bfloat16(),
    "tied": lambda m: setattr(m.unembed, "weight", m.embed.weight),
    "parametrized": lambda m: parametrize.register_parametrization(m.blocks[0].attention.out, "weight", Doubled()),
    "orthogonal": lambda m: parametrizations.orthogonal(m.blocks[0].attention.q),
    "weight norm": lambda m: parametrizations.weight_norm(m.unembed),
    "compiled": lambda m: m.compile(backend="eager"),
    "compiled block": lambda m: m.blocks.__setitem__(0, torch.compile(m.blocks[0], backend="eager")),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_changes_are_named(build: Build, change: Change, reason: str) -> None:
    model = build(mlp=True, position="learned")
    change(model)
    assert str(why_not_plain(model)).startswith(reason)


@pytest.mark.parametrize("change", NO_CHANGES.values(), ids=NO_CHANGES)
def test_no_changes(build: Build, change: Change) -> None:
    model = build(mlp=True, key="smeared")
    change(model)
    assert why_not_plain(model) is None


def test_subclasses(build: Build) -> None:
    config = build().config
    assert why_not_plain(WithLoss(config)) is None
    assert why_not_plain(Halved(config)) == "the model has a method hidden of its own"


def test_a_hook_on_all_modules(build: Build) -> None:
    model, hook = build(), register_module_forward_hook(observe)
    try:
        assert why_not_plain(model) == "a forward hook is set on all modules"
        assert why_not_plain(model, hooks=False) is None
    finally:
        hook.remove()


def test_hooks_do_not_count_where_only_weights_matter(build: Build) -> None:
    model = build()
    model.blocks[0].register_forward_hook(observe)
    assert why_not_plain(model, hooks=False) is None
    weight_norm(model.unembed)
    assert str(why_not_plain(model, hooks=False)).startswith("unembed has weights of its own (weight_g, weight_v)")


@pytest.mark.parametrize("shape", [{}, {"mlp": True, "position": "learned"}, {"encoder": "resnet", "image": (1, 7)}])
def test_exemplar_models(build_exemplars: Callable[..., ExemplarTransformer], shape: dict[str, Any]) -> None:
    model = build_exemplars(3, **shape)
    assert why_not_plain(model) is None
    model.final_norm = nn.Identity()
    assert why_not_plain(model) == "final_norm is a Identity, no MemberNorm"


def test_looking_draws_no_random_numbers(build: Build) -> None:
    model = build(vocab=13)  # a config that is new to it
    state = torch.get_rng_state()
    why_not_plain(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_wrappers(build: Build) -> None:
    model = build()
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    assert original(wrapped) is model
    assert model_of(Transformer, wrapped) is model
    wrapped.register_forward_hook(observe)
    with pytest.raises(InputError, match=r"^model: its wrapper has a forward hook"):
        model_of(Transformer, wrapped)
    for other in (None, "runs/x", nn.Linear(2, 2), model.config):
        with pytest.raises(InputError, match=r"^model: must be a Transformer"):
            model_of(Transformer, other)


def test_forward_goes_through_hidden(build: Build) -> None:
    """A subclass that changes `hidden` changes the logits."""
    model = build(unembed_bias=False)
    halved = Halved(model.config)
    halved.load_state_dict(model.state_dict())
    torch.testing.assert_close(halved(TOKENS), 0.5 * model(TOKENS))


def test_what_a_head_writes_needs_its_weights(build: Build) -> None:
    """head_out is computed from W_O: with another output projection it would silently be another model."""
    model = build()
    model.blocks[1].attention.out = Adapter(model.blocks[1].attention.out)
    assert model(TOKENS).isfinite().all()
    with pytest.raises(InputError, match=r"^site '1.head_out': attention.out is a Adapter, no Linear"):
        model(TOKENS, record=["1.head_out"])


def test_sites_that_are_gone_are_named(build: Build) -> None:
    """An intervention at a site of a replaced module must not silently do nothing."""

    class Other(nn.Module):
        def forward(self, normed: Tensor, positions: Any, taps: Any) -> Tensor:
            return normed * 2

    model = build()
    model.blocks[1].attention = Other()
    assert model(TOKENS, record=["0.z", "1.attn_out"])[1].keys() == {"0.z", "1.attn_out"}
    for options in ({"record": ["1.z"]}, {"interventions": [Intervention.zero("1.z")]}):
        with pytest.raises(InputError, match=r"^site '1.z' is nowhere in this pass"):
            model(TOKENS, **options)
