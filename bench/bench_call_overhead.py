"""What calling an op costs before any work is done: import it and call it on a tiny tensor, on one thread.

The yardstick of a forward call is what torch takes for a product and a cross entropy of that size, two of its calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import harness
import torch
import torch.nn.functional as F
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

NAME = "call_overhead"
N, C, V, H, D = 4, 8, 11, 2, 4  # as tiny as leaves something to compute

# the import statement is part of each call: a user's function may well have it inside


def linear_cross_entropy(x: Inputs, impl: str) -> Tensor:
    from icl_fast.ops import linear_cross_entropy as op

    return op(x.hidden, x.weight, x.targets, impl=impl)


def head_ablation_cross_entropy(x: Inputs, impl: str) -> tuple[Tensor, Tensor]:
    from icl_fast.ops import head_ablation_cross_entropy as op

    return op(x.hidden, x.z, x.w_o, x.weight, x.targets, norm_weight=None, norm_bias=None, eps=1e-5, impl=impl)


def frozen_attention(x: Inputs, impl: str) -> Tensor:
    from icl_fast.ops import frozen_attention as op

    return op(x.q, x.k, x.values, scale=0.5, impl=impl)


def smeared_attention(x: Inputs, impl: str) -> Tensor:
    from icl_fast.ops import smeared_attention as op

    return op(x.q, x.k, x.v, x.alpha, scale=0.5, impl=impl)


def cases(options: Options) -> list[Case]:
    def loss(x: Inputs) -> Tensor:
        return F.cross_entropy(F.linear(x.hidden, x.weight), x.targets, reduction="none")

    def sdpa(x: Inputs) -> Tensor:
        return F.scaled_dot_product_attention(x.q, x.k, x.v, is_causal=True, scale=0.5)

    mm, yardstick = (Candidate("mm + cross_entropy", loss, compare=compare) for compare in (True, False))
    attention = Candidate("sdpa, no smear", sdpa, compare=False)
    leaves, grad_of = ("hidden", "weight"), ("q", "k", "v", "alpha")
    return [
        case(linear_cross_entropy, options, mm),
        case(linear_cross_entropy, options, mm, gradients=leaves, grad=lambda x: x.grad_losses),
        case(head_ablation_cross_entropy, options, yardstick),
        case(frozen_attention, options, yardstick),
        case(smeared_attention, options, yardstick, attention),
        case(smeared_attention, options, gradients=grad_of, grad=lambda x: x.grad_out),
    ]


def case(
    call: Callable[[Inputs, str], Any],
    options: Options,
    *baselines: Candidate,
    gradients: tuple[str, ...] = (),
    grad: Callable[[Inputs], Tensor] | None = None,
) -> Case:
    def inputs(maker: Maker) -> Inputs:
        x = make(maker)
        x.grad = grad(x) if grad else None
        return x

    op = call.__name__
    return Case(
        shape=op,
        dtype=torch.float32,
        make=inputs,
        candidates=[
            harness.ours(op, call, options.device),
            *baselines,
            Candidate("reference", lambda x: call(x, "reference")),
        ],
        flops=0.0,
        bytes=0.0,
        direction="forward+backward" if gradients else "forward",
        gradients=gradients,
        threads=1,
        host=True,
    )


def make(maker: Maker) -> Inputs:
    return Inputs(
        hidden=maker.normal(N, C),
        weight=maker.normal(V, C),
        targets=maker.below(V, N),
        z=maker.normal(H, N, D),
        w_o=maker.normal(H, D, C),
        q=maker.normal(1, H, N, D),
        k=maker.normal(1, H, N, D),
        v=maker.normal(1, H, N, D),
        values=maker.normal(2, 1, H, N, D),
        alpha=torch.zeros(H, device=maker.device),
        grad_losses=maker.normal(N),
        grad_out=maker.normal(1, H, N, D),
    )


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
