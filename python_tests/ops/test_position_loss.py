from __future__ import annotations

from typing import Any

import numpy as np
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, torch.bool])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_losses_of_any_leading_shape_and_dtype(leading: tuple[int, ...], dtype: torch.dtype) -> None:
    losses = torch.randint(2, (*leading, 4)).to(dtype)
    kept = torch.rand(*leading, 4) < 0.7
    total = PositionLoss(4)
    total.add(losses, kept)
    losses, kept = losses.double().view(-1, 4), kept.view(-1, 4)
    assert torch.equal(total.count, kept.sum(0))
    assert torch.equal(total.sum, (losses * kept).sum(0))


def test_losses_that_are_not_finite_show() -> None:
    total = filled(torch.tensor([[1.0, float("nan"), float("inf")]]))
    assert total.count.tolist() == [1, 1, 1]
    torch.testing.assert_close(total.mean, torch.tensor([1, float("nan"), float("inf")]).double(), equal_nan=True)


LOSSES, KEPT = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool)
BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (LOSSES, KEPT[:1], ValueError, r"kept must be \[3, 4\] as losses, got \[1, 4\]"),
    (LOSSES, KEPT[0], ValueError, r"kept must be \[3, 4\] as losses, got \[4\]"),
    (LOSSES[:1], KEPT, ValueError, r"kept must be \[1, 4\] as losses, got \[3, 4\]"),
    (LOSSES, KEPT.view(4, 3), ValueError, r"kept must be \[...,T\] with T=4 on cpu, got \[4, 3\]"),
    (LOSSES[:, :3], KEPT, ValueError, r"losses must be \[...,T\] with T=4 on cpu, got \[3, 3\]"),
    (LOSSES[0, 0], KEPT, ValueError, r"losses must be \[...,T\] with T=4 on cpu, got \[\]"),
    (LOSSES.to("meta"), KEPT, ValueError, r"losses must be \[...,T\] with T=4 on cpu, got \[3, 4\] on meta"),
    (LOSSES, KEPT.to("meta"), ValueError, r"kept must be \[...,T\] with T=4 on cpu, got \[3, 4\] on meta"),
    (LOSSES, LOSSES, TypeError, "kept must be bool, got torch.float32"),
    (LOSSES, KEPT.long(), TypeError, "kept must be bool, got torch.int64"),
    (LOSSES.cfloat(), KEPT, TypeError, "losses must be of real numbers, got torch.complex64"),
    (LOSSES.to_sparse(), KEPT, TypeError, "losses must be a dense tensor, got a sparse_coo one"),
    (LOSSES.tolist(), KEPT, TypeError, r"losses must be a tensor \[...,T\], got list"),
    (LOSSES, KEPT.tolist(), TypeError, r"kept must be a tensor \[...,T\], got list"),
]


@pytest.mark.parametrize(("losses", "kept", "error", "message"), BAD)
def test_bad_losses_are_refused_and_change_nothing(losses: Any, kept: Any, error: Any, message: str) -> None:
    total = PositionLoss(4)
    with pytest.raises(error, match=f"position_loss: {message}"):
        total.add(losses, kept)
    assert total.count.sum() == 0


def test_bad_accumulators() -> None:
    for positions in (2.0, "3", None, True, torch.tensor(3.0)):
        with pytest.raises(TypeError, match="position_loss: positions must be an integer, got"):
            PositionLoss(positions)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="position_loss: positions must not be negative, got -1"):
        PositionLoss(-1)
    assert PositionLoss(np.int32(3)).sum.shape == (3,)
    with pytest.raises(TypeError, match="position_loss: other must be a PositionLoss, got dict"):
        PositionLoss(3).merge({})  # type: ignore[arg-type]
    good = PositionLoss(3).state_dict()
    for state in ([], {}, {"sum": good["sum"]}, {**good, "count": torch.zeros(3)}, {**good, "count": torch.zeros(4)}):
        with pytest.raises(ValueError, match="position_loss: state has no '"):
            PositionLoss.from_state_dict(state)  # type: ignore[arg-type]


def test_inside_a_transform_a_derivative_is_right_or_refused() -> None:
    losses, direction = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    outside = PositionLoss(4)

    def error(losses: torch.Tensor, total: PositionLoss | None = None) -> torch.Tensor:
        total = total or PositionLoss(4)
        total.add(losses, KEPT)
        return total.standard_error

    plain = torch.func.jvp(lambda x: x.std(0) / 3**0.5, (losses,), (direction,))
    torch.testing.assert_close(torch.func.jvp(error, (losses,), (direction,)), plain)
    for refused in (
        lambda: torch.vmap(error)(losses[None]),
        lambda: torch.func.jvp(lambda x: error(x, outside), (losses,), (direction,)),
        lambda: torch.func.grad(lambda x: error(x, outside).sum())(losses),
    ):
        with pytest.raises(RuntimeError, match="position_loss: losses cannot be added inside a transform"):
            refused()
    assert outside.count.sum() == 0
