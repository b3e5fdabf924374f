"""exemplar_steps against its definition: ExemplarTransformer, autograd and torch.optim.Adam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models.clamps import Clamps, make_clamps, no_clamps, stack_clamps
from icl_fast.models.exemplar_config import ExemplarConfig
from icl_fast.models.exemplar_transformer import ExemplarTransformer
from icl_fast.ops import _backend
from icl_fast.training.exemplar_steps import (
    Architecture,
    Batches,
    Optimizer,
    Weights,
    exemplar_steps,
    exemplar_steps_supported,
)

pytestmark = pytest.mark.skipif(not _backend.compiled(), reason="the CPU kernels are not built")

SMALL = {"width": 16, "heads": 4, "features": 10, "outputs": 7, "pairs": 2}
CLAMPS: dict[str, dict[str, Any]] = {
    "none": {},
    "pt-attend": {"names": ["pt-attend"], "previous_token_heads": (1, 2)},
    "layer-1": {"names": ["layer-1"]},
    "match": {"names": ["match"]},
    "copy": {"names": ["copy"]},
    "layer-1+copy": {"names": ["layer-1+copy"]},
    "no-previous-token": {"names": ["no-previous-token"]},
    "pt-attend, match": {"names": ["pt-attend", "match"], "only_heads": [(1, 3)]},
    "layer-1, match": {"names": ["layer-1", "match"], "without_heads": [(1, 0)]},
    "pt-attend, copy": {"names": ["pt-attend", "copy"], "temperature": [((1, 3), 0.5), ((0, 1), 3.0)]},
    "heads": {"names": [], "without_heads": [(0, 1), (1, 2)], "temperature": [((1, 0), 2.0)]},
    "no-previous-token, match": {"names": ["no-previous-token", "match"]},
}


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set the kernel uses."""
    _backend.set_isa(request.param)
    yield request.param
    _backend.set_isa(_backend.isas()[-1])


@dataclass
class Case:
    """Models, what they are trained on, and how."""

    config: ExemplarConfig
    clamps: list[Clamps]
    classes: int = 6
    exemplars: int = 2
    batch: int = 5
    steps: int = 1
    known: list[int] | None = None  # labels of each member
    trainable: dict[str, Tensor] = field(default_factory=dict)
    l2: dict[str, float] = field(default_factory=dict)
    learning_rate: float = 1e-3

    def model(self) -> ExemplarTransformer:
        """Members of different weights, larger than at the start of training; gains and biases are not trivial."""
        model = ExemplarTransformer(self.config, range(len(self.clamps)), self.known)
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 0.5 if name == "embed_label.weight" else 0.1
                parameter += scale * torch.randn(parameter.shape, generator=random)
        return model

    def data(self) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(7)
        s, p, b, n = self.steps, len(self.clamps), self.batch, self.config.pairs

        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=random)

        few = min([self.config.outputs, *(self.known or [])])
        labels = draw(few, s, p, b, n)
        which = draw(n, s, p, b, 1)
        return {
            "features": torch.randn(self.classes, self.exemplars, self.config.features, generator=random),
            "classes": draw(self.classes, s, p, b, n + 1),
            "exemplars": draw(self.exemplars, s, p, b, n + 1),
            "labels": labels,
            "target": labels.gather(-1, which)[..., 0],
        }


OWN = set(Case.__dataclass_fields__) - {"config", "clamps"}


def case(clamps: str | Clamps | None = "none", members: int = 1, **changes: Any) -> Case:
    own = {name: changes.pop(name) for name in list(changes) if name in OWN}
    config = ExemplarConfig(**{**SMALL, **changes})
    made = make_clamps(config, **CLAMPS[clamps]) if isinstance(clamps, str) else clamps or no_clamps(config)
    return Case(config, [made] * members, **own)


def penalised(of: Case, model: ExemplarTransformer, data: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy `[P]` of a step by the definition, and the whole loss."""
    parameters = dict(model.named_parameters())
    dtype = model.unembed.weight.dtype
    clamps = stack_clamps(of.clamps)
    clamps = replace(clamps, heads=clamps.heads.to(dtype), temperature=clamps.temperature.to(dtype))
    exemplars = data["features"].to(dtype)[data["classes"][step], data["exemplars"][step]]
    target = data["target"][step]
    logits, _ = model(exemplars, data["labels"][step], target, clamps=clamps)
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(1)
    squares = [factor * parameters[name].square().sum() for name, factor in of.l2.items()]
    return each.detach(), each.sum() + sum(squares, torch.zeros(()))


def gradients(of: Case, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses `[P]` and gradients of the first step, by the definition."""
    model = of.model().to(dtype)
    losses, total = penalised(of, model, of.data(), 0)
    total.backward()
    return losses, {
        name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in model.named_parameters()
    }


def by_torch(of: Case, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses `[S,P]` and the weights afterwards, by the definition."""
    model, data = of.model().to(dtype), of.data()
    optimizer = torch.optim.Adam(model.parameters(), lr=of.learning_rate, foreach=True)
    losses = []
    for step in range(of.steps):
        each, total = penalised(of, model, data, step)
        losses.append(each)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return torch.stack(losses), {name: value.detach() for name, value in model.named_parameters()}


@dataclass
class Fused:
    """What exemplar_steps gives for a case."""

    losses: Tensor
    weights: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        return [self.losses, *self.weights.values(), *self.first.values(), *self.second.values()]


def run(threads: int = 1, **given: Any) -> Tensor:
    """exemplar_steps of the fields of its arguments."""
    kinds = (Weights, Batches, Architecture, Optimizer)
    grouped = [
        kind(**{each.name: given.pop(each.name) for each in fields(kind) if each.name in given}) for kind in kinds
    ]
    assert not given
    return exemplar_steps(*grouped, threads=threads)


def arguments(of: Case, members: slice = slice(None)) -> dict[str, Any]:
    """Of `run`, for all steps."""
    model, data = of.model(), of.data()
    weights = {name: value.detach()[members].clone() for name, value in model.named_parameters()}
    sequences = ("classes", "exemplars", "labels", "target")
    return {
        "parameters": weights,
        "first_moments": {name: torch.zeros_like(value) for name, value in weights.items()},
        "second_moments": {name: torch.zeros_like(value) for name, value in weights.items()},
        "features": data["features"],
        **{name: data[name][:, members].contiguous() for name in sequences},
        "step": 0,
        "learning_rates": torch.full((of.steps,), of.learning_rate, dtype=torch.float64),
        "heads": of.config.heads,
        "position": of.config.position,
        "rotary_base": of.config.rotary_base,
        "norm_eps": of.config.norm_eps,
        "outputs": model.outputs[members],
        "clamps": stack_clamps(of.clamps)[members],
        "trainable": {name: value[members] for name, value in of.trainable.items()},
        "l2": of.l2,
        "threads": 1,
    }


def fused(of: Case, threads: int = 1, calls: tuple[int, ...] = (), members: slice = slice(None)) -> Fused:
    """exemplar_steps, in calls of so many steps."""
    given = arguments(of, members)
    losses, done = [], 0
    for count in calls or (of.steps,):
        part = slice(done, done + count)
        steps = ("classes", "exemplars", "labels", "target", "learning_rates")
        own = {**given, **{name: given[name][part] for name in steps}, "step": done, "threads": threads}
        losses.append(run(**own))
        done += count
    return Fused(torch.cat(losses), given["parameters"], given["first_moments"], given["second_moments"])


def check_step(of: Case) -> None:
    """One step: gradients as near to float64 as those of float32 torch, and exactly Adam's update of them."""
    exact_losses, exact = gradients(of, torch.float64)
    plain_losses, plain = gradients(of, torch.float32)
    before = {name: value.detach() for name, value in of.model().named_parameters()}
    made = fused(of)
    eps = torch.finfo(torch.float32).eps
    error = (made.losses[0].double() - exact_losses).abs().max()
    assert error <= 3 * (plain_losses.double() - exact_losses).abs().max() + 4 * eps * exact_losses.abs().max()
    for name, truth in exact.items():
        keeps = of.trainable.get(name, torch.ones(len(of.clamps), dtype=torch.bool))
        for member, kept in enumerate(keeps):
            first, second = made.first[name][member].double(), made.second[name][member].double()
            start, end = before[name][member].double(), made.weights[name][member].double()
            if not kept:
                assert not first.any(), name
                assert not second.any(), name
                assert torch.equal(start, end), name
                continue
            error = (first / 0.1 - truth[member]).abs().max()
            size = truth[member].abs().max()
            allowed = 3 * (plain[name][member].double() - truth[member]).abs().max() + 8 * eps * size
            assert error <= allowed, (name, member, error, allowed)
            torch.testing.assert_close(second / 0.001, (first / 0.1).square(), rtol=1e-5, atol=1e-30)
            step = of.learning_rate * (first / 0.1) / ((second / 0.001).sqrt() + 1e-8)
            torch.testing.assert_close(end, start - step, rtol=2 * eps, atol=4e-6 * of.learning_rate)
            assert (end[truth[member] == 0] == start[truth[member] == 0]).all()


@pytest.mark.parametrize("isa", _backend.isas(), indirect=True)
@pytest.mark.parametrize("clamps", CLAMPS)
def test_one_step_with_every_clamp(clamps: str, isa: str) -> None:
    check_step(case(clamps))


@pytest.mark.parametrize("clamps", ["none", "pt-attend", "match", "copy", "no-previous-token", "pt-attend, copy"])
def test_one_layer(clamps: str) -> None:
    named = CLAMPS[clamps] | {"temperature": [((0, 3), 0.5)]}
    config = ExemplarConfig(**SMALL, layers=1)
    check_step(case(make_clamps(config, **named), layers=1))
    check_step(case(make_clamps(config, **named), layers=1, position="learned"))


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary", "none"])
@pytest.mark.parametrize("clamps", ["none", "layer-1", "pt-attend, copy"])
def test_every_position(clamps: str, position: str) -> None:
    check_step(case(clamps, position=position, rotary_base=100.0, pairs=3))


@pytest.mark.parametrize("isa", _backend.isas(), indirect=True)
@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 20, "heads": 10, "pairs": 5, "features": 37, "batch": 33},
        {"width": 6, "heads": 1, "pairs": 1, "features": 1, "outputs": 2, "batch": 1},
        {"width": 64, "heads": 8, "features": 130, "outputs": 300, "batch": 32, "classes": 50, "exemplars": 1},
        {"width": 33, "heads": 3, "pairs": 16, "features": 19, "outputs": 17, "position": "learned"},
        {"width": 256, "heads": 2, "features": 24, "outputs": 513, "batch": 18},
    ],
    ids=lambda sizes: "-".join(f"{name}{size}" for name, size in sizes.items()),
)
def test_any_shape(sizes: dict[str, Any], isa: str) -> None:
    check_step(case(None, **sizes))


def test_a_member_with_fewer_outputs_is_a_model_of_that_many() -> None:
    of = case(members=3, known=[7, 3, 2])
    check_step(of)
    made, start = fused(of), of.model()
    for name in ("unembed.weight", "unembed.bias"):
        assert torch.equal(made.weights[name][1, 3:], start.get_parameter(name)[1, 3:])
        assert (made.weights[name][1, :3] != start.get_parameter(name)[1, :3]).all()


def test_frozen_parameters_and_l2() -> None:
    keeps = torch.tensor([True, False, True])
    names = [name for name, _ in case().model().named_parameters()]
    for frozen in (names[::2], names[1::2]):
        check_step(case(members=3, trainable={name: keeps for name in frozen}, l2=dict.fromkeys(names, 0.01)))
    check_step(case("layer-1+copy", members=3, l2=dict.fromkeys(names, 0.01)))


@pytest.mark.parametrize("clamps", ["none", "match", "copy"])
def test_a_target_that_the_context_lacks(clamps: str) -> None:
    class Lacking(Case):
        def data(self) -> dict[str, Tensor]:
            data = super().data()
            data["labels"][data["labels"] == 0] = 1
            data["target"][:, :, 0] = 0
            return data

    of = case(clamps)
    check_step(Lacking(of.config, of.clamps))


def many_steps(of: Case) -> None:
    """After many steps: as near to a float64 run as a float32 run of torch is."""
    exact_losses, exact = by_torch(of, torch.float64)
    plain_losses, plain = by_torch(of, torch.float32)
    made = fused(of)
    for member in range(len(of.clamps)):

        def far(one: dict[str, Tensor], at: int = member) -> float:
            return sum(float((one[name][at].double() - exact[name][at]).square().sum()) for name in exact) ** 0.5

        moved = sum(
            float((exact[name][member] - value.detach()[member]).square().sum())
            for name, value in of.model().named_parameters()
        )
        assert far(made.weights) <= 4 * far(plain) + 1e-6 * moved**0.5, member
        error = (made.losses[:, member].double() - exact_losses[:, member]).square().mean().sqrt()
        allowed = (plain_losses[:, member].double() - exact_losses[:, member]).square().mean().sqrt()
        assert error <= 4 * allowed + 1e-6, member


def every_clamp(**changes: Any) -> Case:
    of = case(**changes)
    return replace(of, clamps=[make_clamps(of.config, **named) for named in CLAMPS.values()])


@pytest.mark.parametrize("steps", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_steps_with_every_clamp(steps: int) -> None:
    many_steps(every_clamp(steps=steps, batch=4, learning_rate=1e-4))


@pytest.mark.slow
def test_a_thousand_steps_of_one_layer() -> None:
    many_steps(case(steps=1000, layers=1, width=12, heads=2, position="learned", clamps=None, learning_rate=1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("clamps", CLAMPS)
def test_a_thousand_steps_of_chapter_4(clamps: str) -> None:
    shape = {"width": 64, "heads": 8, "features": 512, "outputs": 5}
    many_steps(case(clamps, **shape, classes=50, exemplars=1, batch=32, steps=1000, learning_rate=1e-5))


@pytest.mark.slow
def test_a_hundred_steps_of_chapter_5() -> None:
    shape = {"width": 64, "heads": 8, "features": 512, "outputs": 12_800, "position": "learned"}
    many_steps(case(**shape, classes=12_800, exemplars=2, batch=32, steps=100, learning_rate=1e-5))


@pytest.mark.parametrize("isa", _backend.isas(), indirect=True)
@pytest.mark.parametrize("changes", [{}, {"outputs": 600, "position": "learned", "batch": 40}], ids=["few", "many"])
def test_same_bits_alone_and_among_others_by_any_threads_in_any_calls(changes: dict[str, Any], isa: str) -> None:
    of = case(steps=6, **changes)
    names = ["none", "pt-attend", "layer-1", "copy", "match"]
    of = replace(of, clamps=[make_clamps(of.config, **CLAMPS[name]) for name in names])
    together = fused(of)
    for threads in (2, 3):
        for one, two in zip(fused(of, threads).tensors(), together.tensors(), strict=True):
            assert torch.equal(one, two)
    for one, two in zip(fused(of, 2, calls=(1, 3, 2)).tensors(), together.tensors(), strict=True):
        assert torch.equal(one, two)
    for member in range(len(names)):
        alone = fused(of, threads=member % 3 + 1, members=slice(member, member + 1))
        assert torch.equal(alone.losses[:, 0], together.losses[:, member])
        for kind in ("weights", "first", "second"):
            for name, value in getattr(alone, kind).items():
                assert torch.equal(value[0], getattr(together, kind)[name][member])


def test_nan_shows_in_the_losses() -> None:
    for clamps in ("none", "copy", "match"):
        given = arguments(case(clamps, steps=2))
        given["parameters"]["embed_exemplar.weight"][0, 3, 4] = torch.nan
        assert run(**given).isnan().all()


def test_denormal_numbers_are_flushed_here_and_nowhere_else() -> None:
    of = case(steps=3)
    given = arguments(of)
    moments = given["first_moments"]["embed_label.weight"].fill_(1e-39)
    run(**given)
    assert not moments[moments.abs() < 1e-38].any()
    assert float(torch.tensor([1e-39]) * 0.5) > 0


BAD: list[tuple[str, Any, str]] = [
    ("classes", lambda x: x + 5, "classes must be in 0..5, got"),
    ("exemplars", lambda x: x - 1, "exemplars must be in 0..1, got -1"),
    ("labels", lambda x: x + 7, "labels must be in 0..6, got"),
    ("target", lambda x: x - 7, "target must be in 0..6, got"),
    ("target", lambda x: x[..., :-1], r"target must be int64 \[1, 1, 5\] on the CPU, got int64 \[1, 1, 4\]"),
    ("classes", lambda x: x.int(), r"classes must be int64 .* got int32"),
    ("labels", lambda x: x[0], r"labels must be \[S,P,B,n\], got"),
    ("labels", lambda x: x[:, :0], "at least one"),
    ("features", lambda x: x.mT.contiguous().mT, "features must be contiguous"),
    ("features", lambda x: x.double(), "features must be float32 .* got float64"),
    ("learning_rates", lambda x: x.float(), "learning_rates must be float64"),
    ("learning_rates", lambda x: x * float("nan"), "learning_rates must be finite"),
    ("outputs", lambda x: x + 1, "outputs must be in 1..7, got 8"),
    ("heads", lambda x: 3, "width 16, 3 heads"),
    ("heads", lambda x: 2, r"clamps.previous_token must be bool \[1, 2\]"),
    ("heads", lambda x: 16, "width 16, 16 heads, 2 pairs, position rotary"),
    ("position", lambda x: "learned", "parameters: 'position' is missing"),
    ("position", lambda x: "alibi", "position 'alibi': must be one of learned, sinusoidal, rotary, none"),
    ("step", lambda x: -1, "step must not be negative, got -1"),
    ("threads", lambda x: -1, "threads must not be negative, got -1"),
    ("betas", lambda x: (0.9, 1.0), "betas"),
    ("eps", lambda x: 0.0, "eps 0.0"),
    ("norm_eps", lambda x: 0.0, "norm_eps 0.0"),
    ("rotary_base", lambda x: 1.0, "rotary_base 1.0"),
    ("parameters", lambda x: {}, "parameters: must have 'embed_label.weight'"),
    ("parameters", lambda x: x | {"blocks.0.mlp": torch.zeros(1)}, "parameters: has 'blocks.0.mlp', which"),
    ("first_moments", lambda x: {**x, "unembed.bias": torch.zeros(1, 2)}, r"first_moments\['unembed.bias'\] must be"),
    ("second_moments", lambda x: {**x, "unembed.weight": torch.zeros(1, 16, 7).mT}, "updated in place"),
    ("second_moments", lambda x: dict(list(x.items())[1:]), "second_moments: .* is missing"),
    ("clamps", lambda x: replace(x, copy=torch.tensor([4])), "clamps.copy must be in -1..3, got 4"),
    ("clamps", lambda x: replace(x, temperature=x.temperature * 0), "temperature must be positive"),
    ("clamps", lambda x: replace(x, heads=x.heads.double()), "clamps.heads must be float32"),
    ("classes", lambda x: x[0], r"classes must be int64 \[1, 1, 5, 3\]"),
    ("trainable", lambda x: {"unembed": torch.ones(1)}, "trainable: 'unembed' is not a parameter"),
    ("trainable", lambda x: {"unembed.bias": torch.ones(1)}, "trainable.* must be bool"),
    ("l2", lambda x: {"unembed.bias": -1.0}, "l2.* must be finite and not negative, got -1.0"),
    ("l2", lambda x: {"bias": 1.0}, "l2: 'bias' is not a parameter"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(BAD)])
def test_bad_input(name: str, change: Any, message: str) -> None:
    given = arguments(case())
    with pytest.raises(InputError, match=message):
        run(**{**given, name: change(given.get(name))})


def test_the_clamp_layer_1_needs_a_second_layer() -> None:
    given = arguments(case(layers=1))
    with pytest.raises(InputError, match=r"clamps\.first_layer replaces the layer before another one"):
        run(**{**given, "clamps": replace(given["clamps"], first_layer=torch.tensor([True]))})


def test_no_steps() -> None:
    of = replace(case(), steps=0)
    assert fused(of).losses.shape == (0, 1)


def test_without_the_kernels_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backend, "_module", None)
    monkeypatch.setattr(_backend, "_load_error", "icl_fast._C is not there")
    with pytest.raises(RuntimeError, match=r"icl_fast\._C is not there"):
        run(**arguments(case()))
    assert not exemplar_steps_supported(layers=2, width=64, heads=8, pairs=2, position="rotary")


@pytest.mark.parametrize(
    ("changes", "supported"),
    [
        ({}, True),
        ({"layers": 3}, False),
        ({"width": 264}, False),
        ({"heads": 7}, False),
        ({"heads": 64}, False),
        ({"heads": 64, "position": "none"}, True),
        ({"pairs": 17}, False),
        ({"mlp": True}, False),
        ({"encoder": "resnet"}, False),
    ],
)
def test_what_is_supported(changes: dict[str, Any], supported: bool) -> None:
    shape = {"layers": 2, "width": 64, "heads": 8, "pairs": 2, "position": "rotary"}
    assert exemplar_steps_supported(**{**shape, **changes}) == supported
