from __future__ import annotations

import pytest
import torch

from icl_fast.ops import PositionLoss


def filled(losses: torch.Tensor) -> PositionLoss:
    total = PositionLoss(losses.shape[-1])
    total.add(losses, torch.ones_like(losses, dtype=torch.bool))
    return total


def test_mean_and_standard_error() -> None:
    losses = torch.randn(4, 9, 5).exp()
    total = filled(losses)
    flat = losses.double().flatten(0, 1)
    torch.testing.assert_close(total.mean, flat.mean(0))
    torch.testing.assert_close(total.standard_error, flat.std(0) / 6)


def test_too_few_losses_are_nan_and_equal_ones_have_no_error() -> None:
    total = PositionLoss(3)
    total.add(
        torch.tensor([[0.1, 7.0, 0.1], [0.1, 7.0, 9.0]]), torch.tensor([[True, False, True], [True, False, False]])
    )
    assert total.count.tolist() == [2, 0, 1]
    assert total.mean.isnan().tolist() == [False, True, False]
    assert total.standard_error.isnan().tolist() == [False, True, True]
    assert total.standard_error[0] == 0


def test_rounding_does_not_make_the_variance_negative() -> None:
    losses = torch.arange(1, 200, dtype=torch.float64).div(10).expand(3, -1)
    total = filled(losses)
    assert (total.sum_of_squares < total.sum * total.sum / 3).any()
    assert (total.standard_error < 1e-6).all()


def test_what_is_not_kept_may_be_nan() -> None:
    total = PositionLoss(2)
    total.add(torch.tensor([[1.0, float("nan")]]), torch.tensor([[True, False]]))
    assert total.sum.tolist() == [1.0, 0.0]


def test_merge_is_the_same_as_adding() -> None:
    losses = torch.randn(6, 5)
    merged = filled(losses[:2]).merge(filled(losses[2:]))
    together = filled(losses)
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, together.state_dict()[name], rtol=1e-15, atol=0)
    with pytest.raises(ValueError, match="other has 4 positions, this one 5"):
        merged.merge(PositionLoss(4))


def test_state_dict_round_trip_is_a_copy() -> None:
    total = filled(torch.randn(6, 5))
    copy = PositionLoss.from_state_dict(total.state_dict())
    for name, tensor in total.state_dict().items():
        assert torch.equal(tensor, copy.state_dict()[name])
    before = total.sum.clone()
    copy.add(torch.ones(1, 5), torch.ones(1, 5, dtype=torch.bool))
    assert torch.equal(total.sum, before)
    assert copy.count.tolist() == [7] * 5


def test_wrong_length() -> None:
    with pytest.raises(ValueError, match=r"position_loss: losses must be \[...,T\] with T=3 on cpu, got \[2, 4\]"):
        PositionLoss(3).add(torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool))
