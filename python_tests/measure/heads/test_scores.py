"""Head scores on patterns whose score is known, against loops, and on models built by hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icl_fast import InputError, Transformer, TransformerConfig
from icl_fast.measure.heads import (
    copying,
    copying_scores,
    distinct_random_tokens,
    prefix_matching,
    prefix_matching_scores,
    previous_token,
    previous_token_scores,
    repeated_random_tokens,
)
from icl_fast.measure.heads import scores as module

Build = Callable[..., Transformer]
Shapes = st.SearchStrategy[dict[str, Any]]

T = 101


def induction_pattern(offset: int) -> Tensor:
    """All attention of destination i in a later repeat on `i - 25 + offset`; elsewhere on itself."""
    pattern = torch.eye(T)
    for i in range(26, T):
        pattern[i] = 0
        pattern[i, i - 25 + offset] = 1
    return pattern[None, None]


def test_known_patterns() -> None:
    assert prefix_matching(induction_pattern(1)).tolist() == [1.0]
    assert prefix_matching(induction_pattern(0)).tolist() == [0.0]
    assert prefix_matching(induction_pattern(-1)).tolist() == [0.0]
    assert prefix_matching(torch.eye(T)[None, None]).tolist() == [0.0]


def test_a_head_that_attends_evenly() -> None:
    pattern = torch.tril(torch.ones(T, T)) / torch.arange(1, T + 1)[:, None]
    expected = sum((i - 1) // 25 / (i + 1) for i in range(26, T)) / 75  # (i-1)//25 earlier repeats, 1/(i+1) each
    assert prefix_matching(pattern[None, None]).item() == pytest.approx(expected, rel=1e-6)


def test_against_loops() -> None:
    pattern = torch.softmax(torch.randn(2, 3, T, T, dtype=torch.float64) * 3, dim=-1)
    total = torch.zeros(2, 3, dtype=torch.float64)
    for destination in range(26, T):
        for source in range(destination):
            if source >= 2 and (destination + 1 - source) % 25 == 0:  # position 0 is BOS, 1 follows it
                total += pattern[:, :, destination, source]
    torch.testing.assert_close(prefix_matching(pattern), total.mean(0) / 75)


def test_the_sequences() -> None:
    tokens = repeated_random_tokens(512, 0)
    assert tokens.shape == (10, 101)
    assert (tokens[:, 0] == 0).all()
    assert torch.equal(tokens[:, 1:26].repeat(1, 4), tokens[:, 1:])
    assert tokens[:, 1:].min() >= 51
    assert tokens[:, 1:].max() < 461
    assert torch.equal(tokens, repeated_random_tokens(512, 0))
    assert not torch.equal(tokens, repeated_random_tokens(512, 0, seed=1))


@pytest.fixture(scope="module")
def circuit(induction: Build) -> Transformer:
    """Repeats of 8 tokens fit its positions."""
    return induction(300, 33)


def by_hand_copying(model: Transformer, tokens: Tensor) -> Tensor:
    """The score by its definition, in loops, all logits written out."""
    config, width = model.config, model.config.d_head
    gain = model.final_norm.weight if config.norm_affine else torch.ones(config.width)
    names = [f"{layer}.{name}" for layer in range(config.layers) for name in ("v", "pattern")]
    _, sites = model(tokens, record=names)
    scores = torch.zeros(config.layers, config.heads, dtype=torch.float64)
    for layer, head, b in product(range(config.layers), range(config.heads), range(len(tokens))):
        w_o = model.blocks[layer].attention.out.weight[:, head * width : (head + 1) * width]
        own = everything = 0.0
        for j in range(tokens.shape[1]):
            result = w_o @ sites[f"{layer}.v"][b, head, j]
            logits = model.unembed.weight @ ((result - result.mean()) * gain)  # [V]
            raised = torch.clamp(logits - logits.mean(), min=0).tolist()
            for i in range(j, tokens.shape[1]):
                share = sites[f"{layer}.pattern"][b, head, i, j].item()
                own += share * raised[tokens[b, j]]
                everything += share * sum(raised[t] for t in tokens[b].tolist())
        scores[layer, head] += (4 * own / (own + everything) - 1 if everything > 0 else -1) / len(tokens)
    return scores


@given(st.data())
@settings(max_examples=10)
def test_copying_against_loops(noisy: Build, shapes: Shapes, data: st.DataObject) -> None:
    shape = data.draw(shapes)
    model = noisy(**shape, context=6)
    length = 6 if shape["position"] in ("learned", "shortformer") else 25
    if length == 25:
        model = noisy(**shape, context=6, vocab=33)
    tokens = distinct_random_tokens(model.config.vocab, length=length, seed=3)
    with torch.no_grad():
        expected = by_hand_copying(model, tokens)
    torch.testing.assert_close(copying_scores(model, seed=3), expected)


@given(st.data())
@settings(max_examples=15)
def test_previous_token_against_loops(noisy: Build, shapes: Shapes, data: st.DataObject) -> None:
    model = noisy(**data.draw(shapes))
    text = torch.randint(0, 17, (4, 9))
    _, sites = model(text, record=[f"{layer}.pattern" for layer in range(model.config.layers)])
    expected = torch.zeros(model.config.layers, model.config.heads, dtype=torch.float64)
    for layer, head in product(range(model.config.layers), range(model.config.heads)):
        pattern = sites[f"{layer}.pattern"][:, head]
        expected[layer, head] = sum(pattern[b, i, i - 1].item() for b in range(4) for i in range(1, 9)) / 32
    torch.testing.assert_close(previous_token_scores(model, text, examples=4), expected)


@given(st.data())
@settings(max_examples=15)
def test_prefix_matching_of_a_model(noisy: Build, shapes: Shapes, data: st.DataObject) -> None:
    shape = data.draw(shapes)
    model = noisy(**shape)
    period = 2 if shape["position"] in ("learned", "shortformer") else 25
    tokens = repeated_random_tokens(17, 0, period=period, seed=5)
    names = [f"{layer}.pattern" for layer in range(model.config.layers)]
    _, sites = model(tokens, record=names)
    expected = torch.stack([prefix_matching(sites[name], period=period) for name in names])
    torch.testing.assert_close(prefix_matching_scores(model, seed=5), expected)


def test_previous_token_reads_seeded_examples(noisy: Build) -> None:
    model = noisy()
    text = torch.randint(0, 17, (40, 9))
    chosen = torch.randperm(40, generator=torch.Generator().manual_seed(2))[:10]
    scores = previous_token_scores(model, text, seed=2)
    torch.testing.assert_close(scores, previous_token_scores(model, text[chosen.sort().values]))
    assert not torch.allclose(scores, previous_token_scores(model, text, seed=3))


def test_a_perfect_induction_circuit(circuit: Transformer) -> None:
    """Scores 1, 1, 1: the first head is a previous-token head, the second matches prefixes and copies."""
    seed = next(s for s in range(100) if all(len(set(row[1:9].tolist())) == 8 for row in repeated(s)))
    text = torch.randint(0, 300, (12, 33), generator=torch.Generator().manual_seed(0))
    matching = prefix_matching_scores(circuit, seed=seed)
    assert matching[1, 0].item() == pytest.approx(1, abs=1e-9)
    assert matching[0, 0].item() == pytest.approx(0, abs=1e-9)
    assert previous_token_scores(circuit, text)[0, 0].item() == pytest.approx(1, abs=1e-9)
    assert copying_scores(circuit)[1, 0].item() == pytest.approx(1, abs=1e-9)


def repeated(seed: int) -> Tensor:
    return repeated_random_tokens(300, 0, period=8, seed=seed)


def test_an_anti_copying_head(circuit: Transformer) -> None:
    model = deepcopy(circuit)
    with torch.no_grad():
        model.blocks[1].attention.out.weight.neg_()
        model.blocks[0].attention.out.weight.zero_()  # a head that raises nothing: 0/0
    assert copying_scores(model).tolist() == [[-1.0], [-1.0]]


def test_heads_that_attend_evenly(circuit: Transformer) -> None:
    model = deepcopy(circuit)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.q.weight.zero_()
    text = torch.randint(0, 300, (10, 33))
    harmonic = sum(1 / (i + 1) for i in range(1, 33)) / 32  # position i sees i + 1 positions
    torch.testing.assert_close(previous_token_scores(model, text), torch.full((2, 1), harmonic, dtype=torch.float64))
    matched = sum((i - 1) // 8 / (i + 1) for i in range(9, 33)) / 24
    torch.testing.assert_close(prefix_matching_scores(model), torch.full((2, 1), matched, dtype=torch.float64))
    assert copying_scores(model)[1, 0].item() == pytest.approx(1, abs=1e-9)  # wherever it looks, it copies


def test_a_head_that_raises_every_drawn_token_alike(circuit: Transformer) -> None:
    """One of 25 logits raised is the attended token's, whatever the pattern: r = 1 / (1 + 25)."""
    model = deepcopy(circuit)
    attention = model.blocks[1].attention
    with torch.no_grad():
        attention.v.weight.zero_()
        attention.out.weight.zero_()
        attention.v.weight[0, :300] = 1  # the same for every token
        attention.out.weight[30:270, 0] = 1
    assert copying_scores(model)[1, 0].item() == pytest.approx(4 / 26 - 1, abs=1e-9)


def test_copying_of_known_patterns() -> None:
    pattern = torch.tensor([[1.0, 0.0], [0.25, 0.75]])[None, None]
    raised = torch.tensor([[3.0, 1.0], [0.0, 2.0]])[None, None]
    own, everything = 1.25 * 3 + 0.75 * 2, 1.25 * 4 + 0.75 * 2
    assert copying(pattern, raised).item() == pytest.approx(4 * own / (own + everything) - 1)
    both = copying(pattern.repeat(2, 1, 1, 1), torch.cat((raised, torch.zeros_like(raised))))
    assert both.item() == pytest.approx((4 * own / (own + everything) - 1 - 1) / 2)


def test_a_model_that_diverged(noisy: Build) -> None:
    model = noisy()
    with torch.no_grad():
        model.blocks[1].attention.out.weight.fill_(float("nan"))
    assert copying_scores(model).isnan().tolist() == [[False, False], [True, True]]


def test_distinct_tokens() -> None:
    tokens = distinct_random_tokens(512)
    assert tokens.shape == (10, 25)
    assert all(len(set(row.tolist())) == 25 for row in tokens)
    assert tokens.min() >= 51
    assert tokens.max() < 461
    assert torch.equal(tokens, distinct_random_tokens(512, seed=0))
    assert not torch.equal(tokens, distinct_random_tokens(512, seed=1))


def test_one_layers_patterns_at_a_time(noisy: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a layer's pattern is looked at, none of another layer is alive."""
    seen: list[weakref.ref[Tensor]] = []

    def watching(score: Any) -> Any:
        def watch(pattern: Tensor, *rest: Any, **named: Any) -> Tensor:
            assert all(earlier() is None for earlier in seen)
            seen.append(weakref.ref(pattern))
            return score(pattern, *rest, **named)

        return watch

    for name in ("copying", "prefix_matching"):
        monkeypatch.setattr(module, name, watching(getattr(module, name)))
    model = noisy(layers=3)
    copying_scores(model)
    prefix_matching_scores(model)
    assert len(seen) == 3 + 3


def test_previous_token_by_tiles(noisy: Build, monkeypatch: pytest.MonkeyPatch, sizes: Any) -> None:
    """No whole pattern is ever there, and the score does not depend on the tiles."""
    model = noisy(layers=2, heads=2, position="rotary", windows=[[None, 3], [5, None]])
    text = torch.randint(0, 17, (3, 200))
    whole = previous_token_scores(model, text, examples=3)
    monkeypatch.setattr(module, "SCORES_AT_A_TIME", 2 * 200 * 7)
    with sizes:
        tiled = previous_token_scores(model, text, examples=3)
    torch.testing.assert_close(tiled, whole)
    assert sizes.largest < 2 * 200 * 200


def test_bad_input() -> None:
    with pytest.raises(InputError, match="pattern must be"):
        prefix_matching(torch.zeros(1, 1, 50, 50))
    with pytest.raises(InputError, match="too few to draw"):
        repeated_random_tokens(1, 0)
    with pytest.raises(InputError, match="8 positions are too few"):
        prefix_matching_scores(Transformer(TransformerConfig(vocab=50, context=8, width=8, heads=2)))
    with pytest.raises(InputError, match="pattern and raised"):
        copying(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 4))
    with pytest.raises(InputError, match="must not be negative"):
        copying(torch.zeros(1, 1, 5, 5), torch.full((1, 1, 5, 5), -1.0))
    with pytest.raises(InputError, match="30 tokens are too few to draw"):
        distinct_random_tokens(30)
    with pytest.raises(InputError, match="1 position is too few"):
        copying_scores(Transformer(TransformerConfig(vocab=50, context=1, width=8, heads=2)))
    with pytest.raises(InputError, match="2 positions or more"):
        previous_token(torch.zeros(1, 1, 1, 1))
    model = Transformer(TransformerConfig(vocab=50, context=8, width=8, heads=2))
    with pytest.raises(InputError, match="2 positions or more"):
        previous_token_scores(model, torch.zeros(10, 1, dtype=torch.int64))
    with pytest.raises(InputError, match="10 asked for, text has 3"):
        previous_token_scores(model, torch.zeros(3, 8, dtype=torch.int64))
    with pytest.raises(InputError, match="0 asked for"):
        previous_token_scores(model, torch.zeros(3, 8, dtype=torch.int64), examples=0)
    with pytest.raises(InputError, match="text holds 50"):
        previous_token_scores(model, torch.full((10, 8), 50))


def test_a_short_position_table_shortens_the_period() -> None:
    model = Transformer(TransformerConfig(vocab=50, context=24, width=8, heads=2))
    assert prefix_matching_scores(model).shape == (2, 2)
