"""Passes for measurements against the model itself: every clamp, every depth, every way of passing again."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.models import (
    PRESERVABLE,
    ClampName,
    Clamps,
    ExemplarConfig,
    ExemplarTransformer,
    Intervention,
    Preservable,
    make_clamps,
    no_clamps,
    site,
    stack_clamps,
)
from icl_fast.models.exemplar_inference import ExemplarInference

HEADS = 4
BATCH = 7
BASE: dict[str, Any] = {"features": 6, "outputs": 7, "pairs": 2, "width": 16, "heads": HEADS}
NAMES: list[ClampName] = ["pt-attend", "layer-1", "match", "copy", "layer-1+copy", "no-previous-token"]


def build(members: int = 2, **shape: object) -> ExemplarTransformer:
    config = ExemplarConfig(**{**BASE, **shape})
    model = ExemplarTransformer(config, range(members), [config.outputs - i % 2 for i in range(members)]).double()
    with torch.no_grad():
        model.embed_label.weight.mul_(50)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # so that gains and biases matter
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def sequences(model: ExemplarTransformer) -> tuple[Tensor, Tensor, Tensor]:
    config = model.config
    exemplars = torch.randn(model.members, BATCH, config.pairs + 1, config.width, dtype=torch.float64)
    labels = torch.randint(0, config.outputs - 1, (model.members, BATCH, config.pairs))
    return exemplars, labels, labels[..., 0]


def mixed(model: ExemplarTransformer, names: list[ClampName]) -> Clamps:
    """The clamps in member 0, odd temperatures and heads in member 1, nothing in the rest."""
    config = model.config
    clamped = make_clamps(config, names, previous_token_heads=[1], induction_heads=[2])
    other = make_clamps(
        config,
        previous_token_heads=[0],
        induction_heads=[0],
        without_heads=[(0, 1), (config.layers - 1, 3)],
        temperature=[((0, 0), 0.5), ((config.layers - 1, 2), 2.0)],
    )
    return stack_clamps([clamped, other, *[no_clamps(config)] * (model.members - 2)][: model.members])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"layers": 1},
        {"layers": 3, "mlp": True, "position": "learned"},
        {"pairs": 5, "position": "sinusoidal", "sinusoid_base": 30.0},
        {"attention_bias": True},
        {"pairs": 1, "position": "none", "width": 8},
    ],
)
@pytest.mark.parametrize("names", [[], *[[name] for name in NAMES], ["pt-attend", "match", "no-previous-token"]])
def test_first_pass_is_the_model(shape: dict[str, object], names: list[ClampName]) -> None:
    model = build(3, **shape)
    if model.config.layers == 1 and any(name.startswith("layer-1") for name in names):
        pytest.skip("replaces the layer before another one")
    clamps = mixed(model, names)
    record = [site(name, layer) for layer in range(model.config.layers) for name in (*PRESERVABLE, "scores", "z")]
    with torch.inference_mode():
        exemplars, labels, target = sequences(model)
        logits, sites = model.from_embedded(exemplars, labels, target, clamps=clamps, record=record)
        found = ExemplarInference(model, clamps).first(exemplars, labels, target, all_rows=True)
        short = ExemplarInference(model, clamps).first(exemplars, labels, target)
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(short.logits, logits)
    for layer, part in enumerate(found.layers):

        def expected(name: str, layer: int = layer) -> Tensor:
            return sites[site(name, layer)].view(*target.shape, *sites[site(name, layer)].shape[1:])

        torch.testing.assert_close(part.pattern, expected("pattern").movedim(1, -1))
        torch.testing.assert_close(short.layers[layer].pattern[:, :, -1], part.pattern[:, :, -1])
        for name in ("q", "k", "v"):
            scale = model.config.d_head**-0.5 / clamps.temperature[:, layer, :, None, None, None] if name == "q" else 1
            torch.testing.assert_close(getattr(part, name), expected(name).permute(0, 2, 4, 3, 1) * scale)
        if layer < model.config.layers - 1:
            z = expected("z").permute(0, 2, 4, 3, 1)
            torch.testing.assert_close(part.z * clamps.heads[:, layer, :, None, None, None], z)


def second_by_definition(
    model: ExemplarTransformer,
    clamps: Clamps,
    given: tuple[Tensor, Tensor, Tensor],
    heads: Tensor,
    embedding: float,
    preserve: tuple[Preservable, ...],
) -> Tensor:
    layers = range(model.config.layers)
    record = [site(name, layer) for layer in layers for name in preserve]
    _, sites = model.from_embedded(*given, clamps=clamps, record=record)
    interventions = [Intervention.set(name, value) for name, value in sites.items()]
    interventions.append(Intervention.apply("embed", lambda stream: stream * embedding))
    changed = Clamps(**{**{field.name: getattr(clamps, field.name) for field in fields(clamps)}, "heads": heads})
    return model.from_embedded(*given, clamps=changed, interventions=interventions)[0]


@pytest.mark.parametrize(
    "shape",
    [{}, {"layers": 1}, {"layers": 3, "mlp": True, "position": "learned", "pairs": 3, "attention_bias": True}],
)
@pytest.mark.parametrize("preserve", [(), ("pattern",), ("v",), ("pattern", "v"), ("q", "k"), ("k", "v"), ("q", "v")])
@pytest.mark.parametrize("names", [[], ["match", "pt-attend"], ["layer-1+copy"]])
def test_second_pass_is_two_passes_of_the_model(
    shape: dict[str, object], preserve: tuple[Preservable, ...], names: list[ClampName]
) -> None:
    model = build(2, **shape)
    if model.config.layers == 1 and "layer-1+copy" in names:
        names = ["copy"]
    clamps = mixed(model, names)
    with torch.inference_mode():
        given = sequences(model)
        fast = ExemplarInference(model, clamps)
        base = fast.first(*given)
        for layer in range(model.config.layers):
            heads = clamps.heads.clone()
            heads[0, layer, 1:3] = 0
            heads[1, -1, 0] = 0.5
            found = fast.second(base, heads=heads, preserve=preserve)
            torch.testing.assert_close(found, second_by_definition(model, clamps, given, heads, 1.0, preserve))
        found = fast.second(base, embedding=0.0, preserve=preserve)
        torch.testing.assert_close(found, second_by_definition(model, clamps, given, clamps.heads, 0.0, preserve))
        torch.testing.assert_close(fast.second(base), base.logits)


@pytest.mark.parametrize("preserve", [(), ("pattern", "v")])
def test_the_query_attends_where_told(preserve: tuple[Preservable, ...]) -> None:
    model = build(2)
    with torch.inference_mode():
        given = sequences(model)
        fast = ExemplarInference(model)
        base = fast.first(*given)
        wanted = torch.rand(2, HEADS, 5, BATCH, dtype=torch.float64)
        heads = torch.ones(2, 2, HEADS)
        for removed in (None, (0, 1), (1, 3)):
            if removed is not None:
                heads[:, removed[0], removed[1]] = 0

            def attend(pattern: Tensor) -> Tensor:
                row = wanted.permute(0, 3, 1, 2).flatten(0, 1)
                return torch.cat([pattern[:, :, :-1], row[:, :, None]], dim=2)

            clamps = Clamps(
                *(heads if f.name == "heads" else getattr(no_clamps(model.config, 2), f.name) for f in fields(Clamps))
            )
            values = model.from_embedded(*given, record=["1.v"])[1]["1.v"]
            interventions = [Intervention.apply("1.pattern", attend)]
            if "v" in preserve:
                interventions.append(Intervention.set("1.v", values))
            expected = model.from_embedded(*given, clamps=clamps, interventions=interventions)[0]
            found = fast.second(base, heads=heads, preserve=preserve, query_pattern=wanted)
            torch.testing.assert_close(found, expected)


def test_match_needs_its_target() -> None:
    model = build(1)
    exemplars, labels, _ = sequences(model)
    fast = ExemplarInference(model, make_clamps(model.config, ["match"]))
    with pytest.raises(InputError, match="target"):
        fast.first(exemplars, labels)
    with pytest.raises(InputError, match="clamps"):
        ExemplarInference(model, no_clamps(model.config, 2))
