"""Layers of P models side by side, the members: every parameter has them as its first dimension, and they never mix.

Inputs have the members first, or folded into the examples: `[P,B,...]` and `[P*B,...]` are the same numbers in the same
order, and outputs have the dimensions of inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemberLinear(nn.Linear):
    """P linear maps: weight `[P,out,in]`, bias `[P,out]` or none."""

    def __init__(self, members: int, inputs: int, outputs: int, *, bias: bool) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: its weights are one member's, and drawn at once
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs))
        self.register_parameter("bias", nn.Parameter(torch.empty(members, outputs)) if bias else None)

    def forward(self, input: Tensor) -> Tensor:
        """`[P*B,...,in]` to `[P*B,...,out]`."""
        flat = input.reshape(len(self.weight), -1, self.in_features)
        if self.bias is None:
            output = torch.bmm(flat, self.weight.mT)
        else:
            output = torch.baddbmm(self.bias[:, None], flat, self.weight.mT)
        return output.view(*input.shape[:-1], self.out_features)


class MemberNorm(nn.LayerNorm):
    """P LayerNorms over the last dimension: weight and bias `[P,C]`."""

    def __init__(self, members: int, width: int, eps: float) -> None:
        nn.Module.__init__(self)
        self.normalized_shape, self.eps, self.elementwise_affine = (width,), eps, True
        self.weight = nn.Parameter(torch.empty(members, width))
        self.bias = nn.Parameter(torch.empty(members, width))

    def forward(self, input: Tensor) -> Tensor:
        """`[P*B,...,C]` to the same."""
        normed = F.layer_norm(input, self.normalized_shape, eps=self.eps)
        by_member = normed.view(len(self.weight), -1, input.shape[-1])
        return (by_member * self.weight[:, None] + self.bias[:, None]).view(input.shape)
