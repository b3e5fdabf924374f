"""torch.compile gives the eager results and gradients, one whole graph, whatever is forced where.

What is checked above all: one compiled model called with one intervention after another. From the second call on
torch.compile makes the indices symbolic, where it once got `index in tuple` silently wrong.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import Intervention, Transformer

Build = Callable[..., Transformer]

B, T, H, D, C, V = 4, 7, 3, 4, 12, 11
SHAPES = {"z": (B, H, T, D), "pattern": (B, H, T, T), "scores": (B, H, T, T), "k": (B, H, T, D),
          "resid_mid": (B, T, C), "head_out": (B, H, T, C)}  # fmt: skip
ACTIONS = ["zero", "set", "apply"]
RESTRICTIONS = ["nowhere", "heads", "positions", "examples", "mask"]
TOKENS = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(3))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Each test compiles anew, as often as it needs to."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        yield


@pytest.fixture
def model(build: Build) -> Transformer:
    return build(layers=1, key="smeared", mlp=True, windows=[[None, 3, None]], dtype=torch.float64)


def scaled(x: Tensor) -> Tensor:
    return 0.5 * x + x.sin()


def intervention(action: str, site: str, seed: int = 0, **where: Any) -> Intervention:
    if action == "zero":
        return Intervention.zero(site, **where)
    if action == "apply":
        return Intervention.apply(site, scaled, **where)
    generator = torch.Generator().manual_seed(seed)
    value = torch.rand(SHAPES[site.partition(".")[2]], generator=generator, dtype=torch.float64)
    return Intervention.set(site, value, **where)


def places(restriction: str, site: str) -> list[dict[str, Any]]:
    """Two selections of one kind, with other indices."""
    if restriction == "mask":
        shape = SHAPES[site.partition(".")[2]][:2]
        return [{"mask": torch.arange(shape[0] * shape[1]).view(shape) % n == 1} for n in (2, 3)]
    return [{}] if restriction == "nowhere" else [{restriction: chosen} for chosen in ([1], [2])]


def check_equal(model: Transformer, compiled: Any, tokens: Tensor = TOKENS, **arguments: Any) -> None:
    """Logits, recorded sites and every gradient, compiled against eager, to float64 rounding."""
    results = []
    for call in (model, compiled):
        model.zero_grad()
        logits, recorded = call(tokens, **{"record": [], **arguments})
        logits.pow(3).mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append(({"logits": logits, **recorded}, gradients))
    (values, gradients), (compiled_values, compiled_gradients) = results
    assert values.keys() == compiled_values.keys()
    for name, value in values.items():
        torch.testing.assert_close(compiled_values[name], value, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: n + m)
    for name, gradient in gradients.items():
        other = compiled_gradients[name]
        # where eager reaches a parameter not at all, a compiled graph may hand out zeros instead
        expected = torch.zeros_like(other) if gradient is None and other is not None else gradient
        assert (expected is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(other, expected, rtol=1e-10, atol=1e-11, msg=lambda m, n=name: n + m)


def restrictions(name: str) -> list[str]:
    return [kind for kind in RESTRICTIONS if not (name == "resid_mid" and kind == "heads")]


@pytest.mark.parametrize(("number", "name"), list(enumerate(SHAPES)))
def test_all_restrictions_at_once(model: Transformer, number: int, name: str) -> None:
    """Four interventions in one pass, then the same with other indices. Over the sites, every action meets each."""
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    site = f"0.{name}"
    check_equal(model, compiled, interventions=[intervention(ACTIONS[number % 3], site)])
    for turn in (0, 1):
        steps = [
            intervention(ACTIONS[(number + i) % 3], site, turn, **places(kind, site)[turn])
            for i, kind in enumerate(restrictions(name)[1:])
        ]
        check_equal(model, compiled, record=[site], interventions=steps)


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_each_restriction_with_each_action(model: Transformer, name: str, action: str) -> None:
    """The whole grid, one intervention at a time, all on one compiled model."""
    check_each(model, name, [(action, kind) for kind in restrictions(name)], "aot_eager")


def check_each(model: Transformer, name: str, kinds: list[tuple[str, str]], backend: str) -> None:
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    check_equal(model, compiled)
    for action, restriction in kinds:
        for seed, where in enumerate(places(restriction, f"0.{name}")):
            check_equal(model, compiled, interventions=[intervention(action, f"0.{name}", seed, **where)])


@pytest.mark.parametrize("restriction", ["heads", "positions", "examples"])
def test_indices_that_change_from_call_to_call(model: Transformer, restriction: str) -> None:
    """The regression: [1] then [2] on one compiled model; also that the results really differ from call to call."""
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    seen: list[Tensor] = []
    with torch.no_grad():
        for chosen in ([1], [2], [0], [1], [0, 1], [2, 0], [1, 2]):
            zero = [Intervention.zero("0.z", **{restriction: chosen})]
            logits = compiled(TOKENS, interventions=zero)
            torch.testing.assert_close(logits, model(TOKENS, interventions=zero), rtol=1e-12, atol=1e-12)
            seen.append(logits)
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for j, b in enumerate(seen[:i]) if {i, j} != {0, 3})
    assert torch.equal(seen[0], seen[3])


def test_several_interventions_and_all_recordings(model: Transformer) -> None:
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for head in (0, 2, 1):
        steps = [
            intervention("zero", "0.z", heads=[head]),
            intervention("set", "0.k", heads=[head], positions=[1, 4]),
            intervention("apply", "0.pattern", examples=[head]),
            intervention("apply", "0.z", positions=[head]),
        ]
        record = [f"0.{name}" for name in (*SHAPES, "q", "v", "attn_out", "mlp_out", "resid_pre", "resid_post")]
        check_equal(model, compiled, record=["embed", *record, "final_norm", "logits"], interventions=steps)


def test_other_batches_and_lengths(model: Transformer) -> None:
    """Shapes become symbolic too."""
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch, length in ((4, 7), (3, 5), (2, 11)):
        tokens = torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(length))
        zero = Intervention.zero("0.z", heads=[length % 3], positions=[0, length - 1])
        check_equal(model, compiled, tokens, record=["0.pattern"], interventions=[zero])


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "shortformer", "rotary", "none"])
def test_architectures(build: Build, position: str) -> None:
    model = build(layers=2, position=position, key="plain", dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    check_equal(model, compiled)
    check_equal(model, compiled, record=["1.pattern"], interventions=[Intervention.zero("0.z", heads=[1])])


def test_training_steps(build: Build) -> None:
    """Five AdamW steps with another head removed at each end at the eager weights."""
    trained = []
    for compile_it in (False, True):
        model = build(layers=1, dtype=torch.float64)
        call = torch.compile(model, fullgraph=True, backend="aot_eager") if compile_it else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(5):
            optimizer.zero_grad()
            call(TOKENS, interventions=[Intervention.zero("0.z", heads=[step % 3])]).pow(2).mean().backward()
            optimizer.step()
        trained.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-9, atol=1e-9)


def test_bad_input_is_still_named(model: Transformer) -> None:
    """With the graph breaks that torch.compile allows by default, the message is the eager one."""
    compiled = torch.compile(model, backend="aot_eager")
    for bad, message in (
        (Intervention.zero("0.z", heads=[3]), "heads holds 3, but there are 3"),
        (Intervention.zero("0.y"), "no site '0.y'"),
        (Intervention.set("0.z", torch.zeros(1, H, T, D)), "give exactly that shape"),
    ):
        with pytest.raises(InputError, match=message):
            compiled(TOKENS, interventions=[bad])


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("z", [("zero", "heads")]),
        ("pattern", [("set", "nowhere"), ("set", "examples")]),
        ("k", [("apply", "mask")]),
    ],
)
def test_inductor(model: Transformer, name: str, kinds: list[tuple[str, str]]) -> None:
    """Real generated code, for three representative kinds."""
    check_each(model, name, kinds, "inductor")
