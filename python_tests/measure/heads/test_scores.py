"""Head scores on patterns whose score is known, against loops, and on models built by hand."""

from __future__ import annotations

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
from icl_fast.measure import base_pass
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
from icl_fast.measure.heads.attribution import logit_directions
from icl_fast.models import site

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
    assert all(len(set(repeat)) == 25 for repeat in tokens[:, 1:26].tolist())


def test_a_head_that_matches_tokens_perfectly_scores_1() -> None:
    tokens = repeated_random_tokens(512, 0)
    pattern = torch.zeros(10, 1, T, T, dtype=torch.float64)
    for example, row in product(range(10), range(T)):
        earlier = [j for j in range(1, row + 1) if tokens[example, j - 1] == tokens[example, row]]
        pattern[example, 0, row, earlier[-1] if earlier else 0] = 1
    assert prefix_matching(pattern).tolist() == [1.0]


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
    period = 2 if shape["position"] in ("learned", "shortformer") else 15  # of the 17 tokens, those in the middle
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
    text = torch.randint(0, 300, (12, 33), generator=torch.Generator().manual_seed(0))
    matching = prefix_matching_scores(circuit)
    assert matching[1, 0].item() == pytest.approx(1, abs=1e-9)
    assert matching[0, 0].item() == pytest.approx(0, abs=1e-9)
    assert previous_token_scores(circuit, text)[0, 0].item() == pytest.approx(1, abs=1e-9)
    assert copying_scores(circuit)[1, 0].item() == pytest.approx(1, abs=1e-9)


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


def test_no_whole_patterns(noisy: Build, monkeypatch: pytest.MonkeyPatch, sizes: Any) -> None:
    """No pattern of all rows is ever there, and no score depends on the tiles or on the examples in a pass."""
    model = noisy(layers=2, heads=2, position="rotary", windows=[[None, 3], [5, None]], vocab=33)
    text = torch.randint(0, 33, (3, 200))

    def scores() -> list[Tensor]:
        return [previous_token_scores(model, text, examples=3), prefix_matching_scores(model), copying_scores(model)]

    whole = scores()
    for tile, positions in ((2 * 200 * 7, 1024), (2 * 101 * 101 * 3, 250), (1, 1)):
        monkeypatch.setattr(base_pass, "TILE_SCORES", tile)
        monkeypatch.setattr(module, "_POSITIONS", positions)
        if tile == 2 * 200 * 7:
            with sizes:
                tiled = scores()
            assert sizes.largest < 2 * 101 * 101 * 10
            continue
        torch.testing.assert_close(scores(), whole)
    torch.testing.assert_close(tiled, whole)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_architecture(architectures: Shapes, random_model: Callable[..., Transformer], data: st.DataObject) -> None:
    """Every score of every head is that of its recorded pattern; of a changed model too."""
    shape = data.draw(architectures) | {"vocab": 60, "context": 33}
    # without norms streams and scores grow so large that patterns are not known to 1e-6 in float32, by any way
    model = random_model(shape, torch.float64 if shape["norm"] == "none" else torch.float32)
    bos = data.draw(st.sampled_from([None, 3]))
    layers = range(model.config.layers)
    sites = [site(name, layer) for layer in layers for name in ("pattern", "v")]

    def record(tokens: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return model(tokens, record=sites)[1]

    period = 8 if model.config.position == "learned" else 25
    repeated = record(repeated_random_tokens(60, bos, period=period, seed=1))
    matching = torch.stack([prefix_matching(repeated[f"{layer}.pattern"], period=period) for layer in layers])
    text = torch.randint(0, 60, (3, 30))
    read = record(text)
    previous = torch.stack([previous_token(read[f"{layer}.pattern"]) for layer in layers])
    torch.testing.assert_close(prefix_matching_scores(model, bos=bos, seed=1), matching, rtol=0, atol=1e-6)
    torch.testing.assert_close(previous_token_scores(model, text, examples=3), previous, rtol=0, atol=1e-6)
    tokens = distinct_random_tokens(60, seed=1)
    distinct, directions, copied = record(tokens), logit_directions(model, tokens), []
    for layer in layers:
        out = model.blocks[layer].attention.out.weight.double().view(model.config.width, model.config.heads, -1)
        written = torch.einsum("chd,bhjd->bhjc", out, distinct[f"{layer}.v"].double())
        after = model.blocks[layer].after1  # but for its scale
        if isinstance(after, torch.nn.LayerNorm):
            written = written - written.mean(-1, keepdim=True)
        if getattr(after, "weight", None) is not None:
            written = written * after.weight.double()
        raised = torch.einsum("bhjc,bkc->bhjk", written, directions).relu()
        copied.append(copying(distinct[f"{layer}.pattern"], raised))
    torch.testing.assert_close(copying_scores(model, seed=1), torch.stack(copied), rtol=0, atol=1e-5)
    model.register_forward_hook(lambda module, inputs, output: None)  # it changes nothing but the way that is taken
    torch.testing.assert_close(prefix_matching_scores(model, bos=bos, seed=1), matching, rtol=0, atol=1e-6)
    torch.testing.assert_close(previous_token_scores(model, text, examples=3), previous, rtol=0, atol=1e-6)


def test_tokens_that_may_be_drawn() -> None:
    """The middle 80% up to the last id of the tokenizer, less what is no text; with all ids the same as without."""
    every = torch.arange(512)
    assert torch.equal(repeated_random_tokens(512, 0, ids=every), repeated_random_tokens(512, 0))
    assert torch.equal(distinct_random_tokens(512, ids=every), distinct_random_tokens(512))
    ids = every[(every < 400) & (every % 2 == 0)]
    for tokens in (repeated_random_tokens(512, None, ids=ids), distinct_random_tokens(512, ids=ids)):
        assert (tokens % 2 == 0).all()
        assert tokens.min() >= 39
        assert tokens.max() < 360
    assert repeated_random_tokens(512, None, ids=ids).shape == (10, 100)
    with pytest.raises(InputError, match="too few to draw"):
        distinct_random_tokens(512, ids=ids[:25])


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
