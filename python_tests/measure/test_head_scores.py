"""Prefix matching on patterns whose score is known, against loops, and on a model built to be an induction head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from icl_fast import InputError, Transformer, TransformerConfig
from icl_fast.measure import prefix_matching, prefix_matching_scores, repeated_random_tokens

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


def test_a_hand_built_induction_circuit() -> None:
    """Layer 0 writes the previous token into a free subspace; layer 1 matches the present token against it."""
    vocab, context = 300, 101
    # subspaces of the stream: this token | previous token; positions only reach queries and keys
    width = 2 * vocab + 2
    model = Transformer(
        TransformerConfig(
            vocab=vocab, context=context, layers=2, width=width, heads=1, head_width=300, norm_affine=False
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.weight[:, :vocab] = torch.eye(vocab) * 30
        positions = torch.randn(context, width, generator=torch.Generator().manual_seed(0))
        positions[:, : 2 * vocab] = 0
        first, second = (block.attention for block in model.blocks)
        # layer 0: position t queries position t-1; the vectors are spread over the two free dimensions as angles
        angle = torch.arange(context) * (2 * torch.pi / 16)
        positions[:, -2], positions[:, -1] = angle.cos(), angle.sin()
        model.position.weight.copy_(positions * 60)
        turn = torch.tensor(2 * torch.pi / 16)
        rotation = torch.tensor([[turn.cos(), turn.sin()], [-turn.sin(), turn.cos()]])  # by minus one position
        first.q.weight[:2, -2:] = rotation
        first.k.weight[:2, -2:] = torch.eye(2)
        first.windows = [8]
        first.v.weight[:vocab, :vocab] = torch.eye(vocab)
        first.out.weight[vocab : 2 * vocab, :vocab] = torch.eye(vocab)
        second.q.weight[:vocab, :vocab] = torch.eye(vocab) * 6
        second.k.weight[:vocab, vocab : 2 * vocab] = torch.eye(vocab) * 6
    scores = prefix_matching_scores(model)
    assert scores.shape == (2, 1)
    assert scores[0, 0] < 0.05
    assert scores[1, 0] > 0.9  # tokens that happen to be drawn twice among the 25 share the attention


def test_bad_input() -> None:
    with pytest.raises(InputError, match="pattern must be"):
        prefix_matching(torch.zeros(1, 1, 50, 50))
    with pytest.raises(InputError, match="too few to draw"):
        repeated_random_tokens(1, 0)
    with pytest.raises(InputError, match="8 positions are too few"):
        prefix_matching_scores(Transformer(TransformerConfig(vocab=50, context=8, width=8, heads=2)))


def test_a_short_position_table_shortens_the_period() -> None:
    model = Transformer(TransformerConfig(vocab=50, context=24, width=8, heads=2))
    assert prefix_matching_scores(model).shape == (2, 2)
