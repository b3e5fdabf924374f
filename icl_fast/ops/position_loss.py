"""The accumulator of `linear_cross_entropy(reduction="position")`: mean loss and its standard error by position."""

from __future__ import annotations

import torch
from torch import Tensor

from icl_fast.ops._validate import as_integer, check_dense

OP = "position_loss"


class PositionLoss:
    """Sums of token losses by context position, for any number of batches.

    Index i of every tensor is position i + 1 in the words of the papers (the 500th token is index 499).

    Attributes:
        sum: float64 [T], sum of the losses in nats.
        sum_of_squares: float64 [T], sum of the squared losses.
        count: int64 [T], number of losses that went in.
    """

    def __init__(self, positions: int, device: torch.device | str = "cpu") -> None:
        positions = as_integer(OP, "positions", positions)
        if positions < 0:
            raise ValueError(f"{OP}: positions must not be negative, got {positions}")
        self.sum = torch.zeros(positions, dtype=torch.float64, device=device)
        self.sum_of_squares = torch.zeros(positions, dtype=torch.float64, device=device)
        self.count = torch.zeros(positions, dtype=torch.int64, device=device)

    @property
    def mean(self) -> Tensor:
        """float64 [T]: mean loss in nats; nan where nothing was added."""
        return self.sum / self.count

    @property
    def standard_error(self) -> Tensor:
        """float64 [T]: standard error of the mean, sqrt(variance / count) with n - 1; nan below two losses."""
        scatter = (self.sum_of_squares - self.sum * self.sum / self.count).clamp(min=0)
        return (scatter / (self.count - 1).clamp(min=0) / self.count).sqrt()

    def add(self, losses: Tensor, kept: Tensor) -> None:
        """Add losses [...,T] where kept [...,T] is True, without a gradient. The same losses give the same bits.

        Raises:
            ValueError: another number of positions, another device, or a `kept` of another shape.
            TypeError: not a tensor of real numbers and one of bool.
            RuntimeError: inside a transform of torch.func, or to what was made in torch.inference_mode from outside.
        """
        for name, tensor in (("losses", losses), ("kept", kept)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{OP}: {name} must be a tensor [...,T], got {type(tensor).__name__}")
            check_dense(OP, name, tensor)
            if tensor.shape[-1:] != self.sum.shape or tensor.device != self.sum.device:
                raise ValueError(
                    f"{OP}: {name} must be [...,T] with T={len(self.sum)} on {self.sum.device}, "
                    f"got {list(tensor.shape)} on {tensor.device}"
                )
        if losses.is_complex() or losses.is_quantized:
            raise TypeError(f"{OP}: losses must be of real numbers, got {losses.dtype}")
        if kept.dtype != torch.bool:
            raise TypeError(f"{OP}: kept must be bool, got {kept.dtype}")
        if kept.shape != losses.shape:
            raise ValueError(f"{OP}: kept must be {list(losses.shape)} as losses, got {list(kept.shape)}")
        with torch.no_grad():
            wide = losses.to(torch.float64).masked_fill(~kept, 0)[None].flatten(0, -2)
            try:
                self.sum += wide.sum(0)
                self.sum_of_squares += wide.square().sum(0)
                self.count += kept[None].flatten(0, -2).sum(0)
            except RuntimeError as error:
                raise RuntimeError(
                    f"{OP}: losses cannot be added inside a transform of torch.func (vmap, grad, ...), nor outside "
                    "torch.inference_mode to a PositionLoss made in it; add them outside, or to another one"
                ) from error

    def merge(self, other: PositionLoss) -> PositionLoss:
        """Add what `other` holds (it may be on another device) and return self.

        Raises:
            ValueError: another number of positions.
            TypeError: not a PositionLoss.
        """
        if not isinstance(other, PositionLoss):
            raise TypeError(f"{OP}: other must be a PositionLoss, got {type(other).__name__}")
        if other.sum.shape != self.sum.shape:
            raise ValueError(f"{OP}: other has {len(other.sum)} positions, this one {len(self.sum)}")
        for name, tensor in other.state_dict().items():
            own: Tensor = getattr(self, name)
            own += tensor.to(own.device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The three tensors by name (not copies)."""
        return {"sum": self.sum, "sum_of_squares": self.sum_of_squares, "count": self.count}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> PositionLoss:
        """The accumulator that `state_dict` was taken from (copies the tensors).

        Raises:
            ValueError: a tensor is missing, or they are not [T] and of the dtypes of a `state_dict`.
        """
        if not isinstance(state, dict) or not isinstance(state.get("sum"), Tensor) or state["sum"].ndim != 1:
            raise ValueError(f"{OP}: state has no 'sum' [T]; give what state_dict() returned")
        loss = cls(len(state["sum"]), device=state["sum"].device)
        for name, own in loss.state_dict().items():
            given = state.get(name)
            if not isinstance(given, Tensor) or (given.shape, given.dtype) != (own.shape, own.dtype):
                raise ValueError(f"{OP}: state has no {name!r} of {own.dtype} {list(own.shape)}")
            setattr(loss, name, given.clone())
        return loss
