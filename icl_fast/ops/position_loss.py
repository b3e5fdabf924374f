"""The accumulator of `linear_cross_entropy(reduction="position")`: mean loss and its standard error by position."""

from __future__ import annotations

import torch
from torch import Tensor


class PositionLoss:
    """Sums of token losses by context position, for any number of batches.

    Index i of every tensor is position i + 1 in the words of the papers (the 500th token is index 499).

    Attributes:
        sum: float64 [T], sum of the losses in nats.
        sum_of_squares: float64 [T], sum of the squared losses.
        count: int64 [T], number of losses that went in.
    """

    def __init__(self, positions: int, device: torch.device | str = "cpu") -> None:
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
        """Add losses [...,T] where kept [...,T] is True. The same losses give the same bits.

        Raises:
            ValueError: another number of positions, or another device.
        """
        if losses.shape[-1:] != self.sum.shape or losses.device != self.sum.device:
            raise ValueError(
                f"position_loss has {len(self.sum)} positions on {self.sum.device}, "
                f"the losses are {list(losses.shape)} on {losses.device}"
            )
        wide = losses.detach().to(torch.float64).masked_fill(~kept, 0).flatten(0, -2)
        self.sum += wide.sum(0)
        self.sum_of_squares += wide.square().sum(0)
        self.count += kept.flatten(0, -2).sum(0)

    def merge(self, other: PositionLoss) -> PositionLoss:
        """Add what `other` holds (it may be on another device) and return self.

        Raises:
            ValueError: another number of positions.
        """
        if other.sum.shape != self.sum.shape:
            raise ValueError(f"other has {len(other.sum)} positions, this one {len(self.sum)}")
        for name, tensor in other.state_dict().items():
            own: Tensor = getattr(self, name)
            own += tensor.to(own.device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The three tensors by name (not copies)."""
        return {"sum": self.sum, "sum_of_squares": self.sum_of_squares, "count": self.count}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> PositionLoss:
        """The accumulator that `state_dict` was taken from (copies the tensors)."""
        loss = cls(len(state["sum"]), device=state["sum"].device)
        for name in loss.state_dict():
            setattr(loss, name, state[name].clone())
        return loss
