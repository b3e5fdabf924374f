"""Recurrent models on exemplars against torch.nn.RNN and torch.nn.LSTM, alone and as members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from icl_fast.errors import InputError
from icl_fast.models import (
    ExemplarConfig,
    ExemplarRecurrent,
    ExemplarTransformer,
    Intervention,
    load_snapshot,
    make_clamps,
    make_exemplar_model,
    no_clamps,
    save_snapshot,
)

SMALL: dict[str, Any] = {"layers": 3, "width": 8, "heads": 2, "features": 5, "outputs": 7, "pairs": 2}
ARCHITECTURES = ["rnn", "lstm"]
Draw = Callable[..., tuple[Tensor, Tensor, Tensor]]


def build(architecture: str, members: int = 2, *, known: list[int] | None = None, **changes: Any) -> ExemplarRecurrent:
    shape = {**SMALL, "position": "learned", "architecture": architecture, **changes}
    model = make_exemplar_model(ExemplarConfig(**shape), range(members), known).double()
    assert isinstance(model, ExemplarRecurrent)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:  # biases are 0 and gains 1 at first
                weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


def by_torch(model: ExemplarRecurrent, member: int, states: Tensor) -> Tensor:
    """The states after the last layer `[B,T,C]` from what enters the first, by torch's own module."""
    config = model.config
    kind = nn.LSTM if config.architecture == "lstm" else nn.RNN
    nonlinearity = {} if config.architecture == "lstm" else {"nonlinearity": "relu"}
    theirs = kind(config.width, config.width, config.layers, batch_first=True, **nonlinearity).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for number, layer in enumerate(model.blocks):
            weight, bias = layer.cell.weight[member], layer.cell.bias[member].clone()  # type: ignore[union-attr]
            if config.architecture == "lstm":
                bias[config.width : 2 * config.width] += 1  # the forget gate's
            getattr(theirs, f"weight_ih_l{number}").copy_(weight[:, : config.width])
            getattr(theirs, f"weight_hh_l{number}").copy_(weight[:, config.width :])
            getattr(theirs, f"bias_ih_l{number}").copy_(bias)
            getattr(theirs, f"bias_hh_l{number}").zero_()
    return theirs(states)[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=15)
@given(data=st.data())
def test_it_is_torchs(draw_sequences: Draw, architecture: str, data: st.DataObject) -> None:
    """Logits of every member, and the gradients of what enters the first layer."""

    def draw(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    shape = {"layers": draw(1, 4), "width": 2 * draw(1, 6), "pairs": draw(1, 4)}
    position = data.draw(st.sampled_from(["learned", "sinusoidal", "none"]))
    members, known = 2, [7, draw(2, 7)]
    model = build(architecture, members, known=known, position=position, **shape)
    exemplars, labels, _ = draw_sequences(model, draw(1, 3))
    logits, recorded = model(exemplars, labels)
    assert recorded == {}
    entering = model.embedded(model.embed_exemplar(exemplars), labels)
    for p in range(members):
        one = entering[p].detach().requires_grad_()
        last = by_torch(model, p, one)[:, -1]
        mean, std = last.mean(-1, keepdim=True), (last.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        normed = (last - mean) / std * model.final_norm.weight[p] + model.final_norm.bias[p]
        expected = normed @ model.unembed.weight[p].T + model.unembed.bias[p]
        torch.testing.assert_close(logits[p, :, : known[p]], expected[:, : known[p]], rtol=1e-9, atol=1e-10)
        assert (logits[p, :, known[p] :] == -1e9).all()
        again = model.embedded(model.embed_exemplar(exemplars), labels).detach().requires_grad_()
        states = again
        for layer in model.blocks:
            states = layer(states)
        ours = torch.autograd.grad(states[p, :, -1].sum(), again)[0][p]
        theirs = torch.autograd.grad(last.sum(), one)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_parameters_are_as_many_as_the_thesis_counts() -> None:
    """A.2.1: from 2 to 12 layers an LSTM grows by 33,024 parameters a layer, a transformer by 49,984."""

    def count(layers: int, **changes: Any) -> int:
        shape = {"layers": layers, "width": 64, "heads": 8, "features": 3, "outputs": 5, "pairs": 8}
        shape |= {"position": "sinusoidal", **changes}
        return sum(w.numel() for w in make_exemplar_model(ExemplarConfig(**shape)).parameters())  # type: ignore[arg-type]

    lstm = [count(layers, architecture="lstm") for layers in (2, 12)]
    transformer = [count(layers, mlp=True, attention_bias=True) for layers in (2, 12)]
    assert lstm[1] - lstm[0] == 627_959 - 297_719
    assert transformer[1] - transformer[0] == 831_479 - 331_639
    assert transformer[0] - lstm[0] == 331_639 - 297_719
    assert count(3, architecture="rnn") - count(2, architecture="rnn") == 64 * (2 * 64 + 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_member_is_the_model_of_its_seed_alone(architecture: str) -> None:
    config = ExemplarConfig(**SMALL, position="sinusoidal", architecture=architecture)  # type: ignore[arg-type]
    population, alone = make_exemplar_model(config, [3, 7]), make_exemplar_model(config, [7])
    exemplars, labels = torch.randn(2, 4, 3, 5), torch.randint(7, (2, 4, 2))
    for name, weight in alone.named_parameters():
        assert torch.equal(population.get_parameter(name)[1:], weight), name
    assert torch.allclose(population(exemplars, labels)[0][1:], alone(exemplars[1:], labels[1:])[0], atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_snapshot_is_the_model(architecture: str, tmp_path: Path) -> None:
    model = build(architecture, known=[7, 4]).float()
    save_snapshot(tmp_path / "it.safetensors", model, step=3, seen=12)
    loaded = load_snapshot(tmp_path / "it.safetensors").model
    assert type(loaded) is ExemplarRecurrent
    assert loaded.config == model.config
    assert loaded.outputs.tolist() == [7, 4]
    exemplars, labels = torch.randn(2, 4, 3, 5), torch.randint(4, (2, 4, 2))
    assert torch.equal(loaded(exemplars, labels)[0], model(exemplars, labels)[0])


def test_what_is_of_attention_is_refused(draw_sequences: Draw) -> None:
    model = build("lstm")
    exemplars, labels, target = draw_sequences(model)
    transformer = no_clamps(model.config, 2)
    logits, _ = model(exemplars, labels, target, clamps=transformer)
    assert torch.equal(logits, model(exemplars, labels)[0])
    transformer.match[1, 0] = True
    with pytest.raises(InputError, match=r"^clamps: a model of architecture lstm has no attention$"):
        model(exemplars, labels, target, clamps=replace(transformer))
    with pytest.raises(InputError, match=r"^interventions: a model of architecture lstm has no attention$"):
        make_clamps(model.config, ["match"], induction_heads=[1])
    with pytest.raises(InputError, match=r"^interventions: a model of architecture lstm"):
        make_clamps(model.config, without_heads=[(0, 1)])
    for more in ({"record": ["0.q"]}, {"interventions": [Intervention.zero("0.z", heads=[1])]}):
        with pytest.raises(InputError, match=r"^record, interventions: a model of architecture lstm"):
            model(exemplars, labels, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "position=rotary: rotates queries and keys; take sinusoidal, learned or none"),
        ({"position": "none", "mlp": True}, "mlp=true: comes after attention; set false"),
        ({"position": "none", "attention_bias": True}, "attention_bias=true: is of attention; set false"),
    ],
)
def test_settings_of_attention_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExemplarConfig(**SMALL, architecture="rnn", **changes)


def test_a_transformer_is_the_default() -> None:
    assert type(make_exemplar_model(ExemplarConfig(**SMALL))) is ExemplarTransformer
