"""Circuits against V x V matrices written out, and on weights whose traces, eigenvalues and norms are known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icl_fast import InputError, Transformer, TransformerConfig
from icl_fast.measure import composition_scores, copying_eigenvalue_score, copying_eigenvalues, qk_trace
from icl_fast.measure.heads import circuits
from icl_fast.measure.heads.circuits import why_undefined

Build = Callable[..., Transformer]
Shapes = st.SearchStrategy[dict[str, Any]]
NAN = float("nan")


def through_norm(norm: torch.nn.LayerNorm) -> Tensor:
    """What is linear in a LayerNorm, as a matrix [C,C] that rows are multiplied by."""
    width = norm.normalized_shape[0]
    centre = torch.eye(width, dtype=torch.float64) - 1 / width
    return centre if norm.weight is None else centre @ torch.diag(norm.weight)


def weights(model: Transformer, layer: int, head: int, name: str) -> Tensor:
    """One head's q, k, v [C,D], read through the norm, or its out [D,C]."""
    rows = slice(head * model.config.d_head, (head + 1) * model.config.d_head)
    block = model.blocks[layer]
    if name == "out":
        return block.attention.out.weight[:, rows].T
    return through_norm(block.norm1) @ getattr(block.attention, name).weight[rows].T


@given(st.data())
@settings(max_examples=25)
def test_qk_trace_against_the_whole_circuit(noisy: Build, shapes: Shapes, data: st.DataObject) -> None:
    model = noisy(**data.draw(shapes.filter(lambda shape: shape["position"] != "rotary")))
    config = model.config
    previous = torch.rand(config.layers, config.heads)
    expected = torch.full((config.layers, config.heads), NAN, dtype=torch.float64)
    with torch.no_grad():
        embed = model.embed.weight
        for layer, head in product(range(1, config.layers), range(config.heads)):
            circuit = torch.zeros(config.vocab, config.vocab, dtype=torch.float64)
            for at, k in product(range(layer), range(config.heads)):
                query = embed @ weights(model, layer, head, "q")
                moved = embed @ weights(model, at, k, "v") @ weights(model, at, k, "out")
                circuit += previous[at, k] * query @ (moved @ weights(model, layer, head, "k")).T
            expected[layer, head] = torch.linalg.eigvals(circuit).real.sum()
    torch.testing.assert_close(qk_trace(model, previous), expected, equal_nan=True)


@given(st.data())
@settings(max_examples=25)
def test_copying_eigenvalues_against_the_whole_circuit(noisy: Build, shapes: Shapes, data: st.DataObject) -> None:
    model = noisy(**data.draw(shapes))
    eigenvalues = copying_eigenvalues(model)
    scores = copying_eigenvalue_score(eigenvalues)
    assert eigenvalues.shape == (model.config.layers, model.config.heads, model.config.d_head)
    for layer, head in product(range(model.config.layers), range(model.config.heads)):
        with torch.no_grad():
            moved = model.embed.weight @ weights(model, layer, head, "v") @ weights(model, layer, head, "out")
            circuit = moved @ through_norm(model.final_norm) @ model.unembed.weight.T  # [V,V]
        power = torch.eye(len(circuit), dtype=torch.float64)
        for n in range(1, 5):  # their power sums are the same: so are those that are not 0
            power = power @ circuit
            own = (eigenvalues[layer, head] ** n).sum()
            assert abs(own - power.trace()) < 1e-9 * circuit.norm() ** n
        everything = torch.linalg.eigvals(circuit)
        expected = everything.real.sum() / everything.abs().sum()
        assert scores[layer, head].item() == pytest.approx(expected.item(), abs=1e-6)


@given(st.data())
@settings(max_examples=25)
def test_composition_against_loops(noisy: Build, shapes: Shapes, data: st.DataObject) -> None:
    model = noisy(**data.draw(shapes))
    config = model.config
    scores = composition_scores(model)
    heads = list(product(range(config.layers), range(config.heads)))
    centre = torch.eye(config.width, dtype=torch.float64) - 1 / config.width
    for name, writer, reader in product("qkv", heads, heads):
        score = scores[name][(*writer, *reader)].item()
        if writer[0] >= reader[0]:
            assert score != score
            continue
        with torch.no_grad():
            w_o, read = weights(model, *writer, "out") @ centre, weights(model, *reader, name)
            expected = ((w_o @ read) ** 2).sum().sqrt() / (w_o**2).sum().sqrt() / (read**2).sum().sqrt()
        assert score == pytest.approx(expected.item())


def linear_part(norm: torch.nn.Module, rows: Tensor) -> Tensor:
    """What a norm does to rows [...,C] but for its scale and its bias."""
    if isinstance(norm, torch.nn.Identity):
        return rows
    if isinstance(norm, torch.nn.LayerNorm):
        rows = rows - rows.mean(-1, keepdim=True)
    return rows if norm.weight is None else rows * norm.weight


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_architecture(architectures: Shapes, random_model: Callable[..., Transformer], data: st.DataObject) -> None:
    """Every circuit that is defined, against V x V matrices: tokens go through norms, heads and norms one by one."""
    model = random_model(data.draw(architectures), torch.float64)
    config, undefined = model.config, why_undefined(model.config)
    layers, heads, width, group = config.layers, config.heads, config.d_head, config.heads // config.kv
    embed, unembed = config.embed_scale * model.embed.weight, model.unembed.weight

    def reads(layer: int, head: int, name: str, rows: Tensor) -> Tensor:
        block = model.blocks[layer]
        own = slice((head if name == "q" else head // group) * width, None)
        found = linear_part(block.norm1, rows) @ getattr(block.attention, name).weight[own][:width].T
        norm = getattr(block.attention, f"{name}_norm", None)
        return found if norm is None else found * (norm.weight[own][:width] if config.qk_norm == "all" else norm.weight)

    def writes(layer: int, head: int, rows: Tensor) -> Tensor:
        block = model.blocks[layer]
        own = slice(head * width, (head + 1) * width)
        return linear_part(block.after1, rows @ block.attention.out.weight[:, own].T)

    every = list(product(range(layers), range(heads)))
    if "ov_copying" in undefined:
        with pytest.raises(InputError, match=r"copying_eigenvalues: undefined because .* clipped"):
            copying_eigenvalues(model)
        with pytest.raises(InputError, match=r"composition_scores: undefined because .* clipped"):
            composition_scores(model)
    else:
        eigenvalues, scores = copying_eigenvalues(model), composition_scores(model)
        for at in every:
            circuit = linear_part(model.final_norm, writes(*at, reads(*at, "v", embed))) @ unembed.T
            power = circuit
            for n in range(1, 4):
                assert abs((eigenvalues[at] ** n).sum() - power.trace()) < 1e-9 * circuit.norm() ** n
                power = power @ circuit
        eye, basis = torch.eye(width, dtype=torch.float64), torch.eye(config.width, dtype=torch.float64)
        for name, writer, reader in product("qkv", every, every):
            if writer[0] < reader[0]:
                written = writes(*writer, eye)
                if isinstance(model.blocks[0].norm1, torch.nn.LayerNorm):
                    written = written - written.mean(-1, keepdim=True)
                over = written.norm() * reads(*reader, name, basis).norm()
                expected = (reads(*reader, name, written).norm() / over).item()
                assert scores[name][(*writer, *reader)].item() == pytest.approx(expected, abs=1e-9)
    previous = torch.rand(layers, heads, dtype=torch.float64)
    if "qk_trace" in undefined:
        with pytest.raises(InputError, match="qk_trace: undefined because"):
            qk_trace(model, previous)
        return
    traces = qk_trace(model, previous)
    for layer, head in every[heads:]:
        moved = sum(previous[at] * writes(*at, reads(*at, "v", embed)) for at in every if at[0] < layer)
        expected = (reads(layer, head, "q", embed) * reads(layer, head, "k", moved)).sum().item()
        assert traces[layer, head].item() == pytest.approx(expected)


def test_what_is_undefined() -> None:
    def of(**shape: Any) -> set[str]:
        return set(why_undefined(TransformerConfig(vocab=9, context=9, width=8, heads=2, **shape)))

    for shape in ({}, {"position": "alibi"}, {"position": "learned"}, {"score_cap": 2.0}, {"logit_cap": 2.0}):
        assert of(**shape) == set()
    assert of(norm="rms", parallel=True, mlp=True, kv_heads=1, tied=True, key="plain", embed_scale=2.0) == set()
    for shape in ({"position": "rotary"}, {"qk_norm": "head"}, {"norm_place": "after"}, {"norm_place": "both"}):
        assert of(**shape) == {"qk_trace"}
    assert of(qkv_clip=1.0) == {"qk_trace", "ov_copying", "composition_q", "composition_k", "composition_v"}


def test_gram_matrices_in_strips(noisy: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = noisy(layers=3, heads=3, width=18, head_width=6)
    whole = composition_scores(model)
    monkeypatch.setattr(circuits, "_GRAM_NUMBERS", 1)
    torch.testing.assert_close(composition_scores(model), whole, equal_nan=True)


def test_qk_trace_of_a_perfect_induction_circuit(induction: Build) -> None:
    """Written out: norms centre what they read, so a token's vector is `e_t - 1/C`, and the trace nearly V."""
    vocab, context = 12, 8
    model = induction(vocab, context)
    width = 2 * vocab + context
    query = width**0.5 * 4  # embedding, W_Q
    key = width**0.5 * 4  # embedding, W_V and W_O of 1, W_K
    mean = (1 - vocab / width) / width  # of what the first head writes
    token = 1 - 2 / width + vocab / width**2  # |e_t - 1/C|^2 over the V places of a subspace
    expected = vocab * query * key * (token - mean * (1 - vocab / width))
    traces = qk_trace(model, torch.tensor([[1.0], [0.0]]))
    assert traces[1, 0].item() == pytest.approx(expected)
    assert traces[0, 0].isnan()
    assert qk_trace(model, torch.tensor([[0.25], [0.0]]))[1, 0].item() == pytest.approx(expected / 4)
    with torch.no_grad():
        model.blocks[1].attention.q.weight.neg_()
    assert qk_trace(model, torch.tensor([[1.0], [0.0]]))[1, 0].item() == pytest.approx(-expected)


def test_copying_eigenvalues_of_hand_built_heads(induction: Build) -> None:
    vocab, context = 12, 8
    width = 2 * vocab + context
    model = induction(vocab, context)
    assert copying_eigenvalue_score(copying_eigenvalues(model))[1, 0].item() == pytest.approx(1)
    out = model.blocks[1].attention.out.weight
    copies = out.detach().clone()
    with torch.no_grad():
        out.neg_()
    assert copying_eigenvalue_score(copying_eigenvalues(model))[1, 0].item() == pytest.approx(-1)
    # pairs of tokens swapped: as many eigenvalues of 1 as of -1, but that the centring shrinks the one of "all tokens"
    swap = torch.arange(vocab).view(-1, 2).flip(1).flatten()
    with torch.no_grad():
        out.copy_(copies)
        out[:vocab] = copies[:vocab][swap]
    left = 1 - vocab / width * (2 - vocab / width)
    score = copying_eigenvalue_score(copying_eigenvalues(model))[1, 0].item()
    assert score == pytest.approx((left - 1) / (vocab - 1 + left))
    with torch.no_grad():
        out.zero_()
    assert copying_eigenvalue_score(copying_eigenvalues(model))[1, 0].isnan()


def test_composition_of_single_directions(noisy: Build) -> None:
    model = noisy(width=6, heads=1, head_width=1, norm_affine=False)
    writer, reader = (block.attention for block in model.blocks)
    with torch.no_grad():
        writer.out.weight[:, 0] = torch.tensor([1.0, -1, 0, 0, 0, 0]) + 3  # the mean is not read
        reader.q.weight[0] = torch.tensor([0.0, 0, 2, -2, 0, 0])
        reader.k.weight[0] = torch.tensor([-3.0, 3, 0, 0, 0, 0])
        reader.v.weight[0] = torch.tensor([1.0, 0, 0, 0, 0, -1])
    scores = composition_scores(model)
    found = [scores[name][0, 0, 1, 0].item() for name in "qkv"]
    assert found == pytest.approx([0, 1, 0.5], abs=1e-12)
    with torch.no_grad():
        writer.out.weight.fill_(1)
    assert composition_scores(model)["k"][0, 0, 1, 0].isnan()


def test_nothing_is_as_large_as_the_vocabulary_squared(noisy: Build, sizes: Any) -> None:
    model = noisy(vocab=9001)  # more than is held in float64 at a time
    with sizes:
        qk_trace(model, torch.rand(2, 2))
        copying_eigenvalues(model)
        composition_scores(model)
    assert 0 < sizes.largest <= 9001 * 7


def test_a_vocabulary_taken_in_parts(noisy: Build) -> None:
    model = noisy(vocab=9001)
    with torch.no_grad():
        moved = model.embed.weight @ weights(model, 1, 1, "v") @ weights(model, 1, 1, "out")
        expected = ((moved @ through_norm(model.final_norm)) * model.unembed.weight).sum()
    assert copying_eigenvalues(model)[1, 1].sum().real.item() == pytest.approx(expected.item())


def test_bad_input(noisy: Build) -> None:
    for scores in (torch.zeros(2), torch.zeros(3, 2)):
        with pytest.raises(InputError, match="previous_token must be"):
            qk_trace(noisy(), scores)


def test_a_model_that_diverged(noisy: Build) -> None:
    """What the NaN does not reach is measured, what it reaches is NaN, nothing raises."""
    model, before = noisy(), copying_eigenvalues(noisy())
    with torch.no_grad():
        model.blocks[0].attention.v.weight[0, 0] = NAN  # of head 0.0
    eigenvalues = copying_eigenvalues(model)
    assert eigenvalues[0, 0].isnan().all()
    torch.testing.assert_close(eigenvalues.flatten(0, 1)[1:], before.flatten(0, 1)[1:])
    assert qk_trace(model, torch.ones(2, 2)).isnan().all()
    assert composition_scores(model)["v"][0, 0, 1].isfinite().all()
