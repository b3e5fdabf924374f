"""Integers of any kind in the ops: targets and rows as arrays and lists, windows and counts as numpy's; never True."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from icl_fast.ops import (
    PositionLoss,
    cross_entropy_difference,
    frozen_attention,
    head_ablation_cross_entropy,
    linear_cross_entropy,
    smeared_attention,
)

ARRAYS = [Tensor.int, Tensor.numpy, lambda t: t.numpy().astype(np.uint8), Tensor.tolist]
Array = Callable[[Tensor], Any]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


TARGETS = torch.arange(9) % 11
Q, V = normal(2, 2, 9, 4), normal(3, 2, 2, 9, 4)
ROWS = torch.tensor([[1, 2], [0, 8]])


@pytest.mark.parametrize("array", ARRAYS)
def test_targets(array: Array) -> None:
    hidden, weight, given = normal(3, 9, 8), normal(11, 8), TARGETS.expand(3, 9)
    assert torch.equal(linear_cross_entropy(hidden, weight, array(given)), linear_cross_entropy(hidden, weight, given))
    removed = normal(2, 9, 8)
    found, expected = (cross_entropy_difference(hidden[0], removed, weight, one) for one in (array(TARGETS), TARGETS))
    assert all(map(torch.equal, found, expected))
    norm = {"norm_weight": normal(8), "norm_bias": normal(8), "eps": 1e-5}
    z, w_o = normal(2, 9, 4), normal(2, 4, 8)
    found, expected = (
        head_ablation_cross_entropy(hidden[0], z, w_o, weight, one, **norm) for one in (array(TARGETS), TARGETS)
    )
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("array", ARRAYS)
def test_rows(array: Array) -> None:
    expected = frozen_attention(Q, Q, V, scale=0.5, rows=ROWS)
    assert torch.equal(frozen_attention(Q, Q, V, scale=0.5, rows=array(ROWS)), expected)


@pytest.mark.parametrize("number", [int, np.int64, np.int32, np.array, torch.tensor])
def test_numbers(number: Callable[[int], Any]) -> None:
    for window, same in ((number(3), 3), ([number(3), None], [3, None]), (np.array([3, 2]), [3, 2])):
        expected = frozen_attention(Q, Q, V, scale=0.5, window=same)
        assert torch.equal(frozen_attention(Q, Q, V, scale=0.5, window=window), expected)
        smeared, plain = (smeared_attention(Q, Q, Q, torch.zeros(2), scale=0.5, window=one) for one in (window, same))
        assert torch.equal(smeared, plain)
    hidden, weight = normal(9, 8), normal(11, 8)
    ignored = linear_cross_entropy(hidden, weight, TARGETS, ignore_index=number(3))
    assert torch.equal(ignored, linear_cross_entropy(hidden, weight, TARGETS, ignore_index=3))
    assert len(PositionLoss(number(9)).sum) == 9


@pytest.mark.parametrize("value", [True, np.True_, np.array(True), torch.tensor(True), 1.0, np.float64(1), "1"])
def test_no_numbers(value: Any) -> None:
    for call in (
        lambda: frozen_attention(Q, Q, V, scale=0.5, window=value),
        lambda: frozen_attention(Q, Q, V, scale=0.5, window=[value, 1]),
        lambda: linear_cross_entropy(normal(9, 8), normal(11, 8), TARGETS, ignore_index=value),
        lambda: PositionLoss(value),
    ):
        with pytest.raises(TypeError, match="must be "):
            call()


@pytest.mark.parametrize("targets", [[1.5] * 9, [True] * 9, np.ones(9), [[1], [1, 2]], 3, "targets", None])
def test_no_targets(targets: Any) -> None:
    hidden, weight = normal(9, 8), normal(11, 8)
    with pytest.raises(TypeError, match="targets must be"):
        linear_cross_entropy(hidden, weight, targets)
    with pytest.raises(TypeError, match="targets must be"):
        cross_entropy_difference(hidden, normal(2, 9, 8), weight, targets)
