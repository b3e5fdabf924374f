"""cross_entropy_difference against a fused loss for every variant, and against a product and cross entropy for each."""

from __future__ import annotations

import sys
from collections.abc import Callable

import harness
import torch
import torch.nn.functional as F
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

import icl_fast

NAME = "cross_entropy_difference"

Shape = tuple[int, int, int, int]
CPU_SHAPES: list[Shape] = [(8, 2048, 256, 4096)]  # A, N, C, V
CUDA_SHAPES: list[Shape] = [(8, 8192, 256, 4096), (12, 4096, 768, 50257)]


def cases(options: Options) -> list[Case]:
    if options.device == "cpu":
        return [case(shape, dtype, options) for shape in CPU_SHAPES for dtype in (torch.float32, torch.bfloat16)]
    return [case(shape, dtype, options) for shape in CUDA_SHAPES for dtype in (torch.bfloat16, torch.float32)]


def case(shape: Shape, dtype: torch.dtype, options: Options) -> Case:
    a, n, c, v = (3, 24, 32, 97) if options.quick else shape

    def call(x: Inputs, impl: str) -> tuple[Tensor, Tensor]:
        return icl_fast.cross_entropy_difference(x.hidden, x.removed, x.weight, x.targets, impl=impl)

    def rounded(x: Inputs) -> tuple[Tensor, Tensor]:
        if not hasattr(x, "packed"):  # as a sweep has it: once
            x.packed = icl_fast.ops.pack_weight(x.weight)
        return icl_fast.cross_entropy_difference(x.hidden, x.removed, x.packed, x.targets, impl="cpu")

    def fused(hidden: Tensor, x: Inputs) -> Tensor:
        return icl_fast.linear_cross_entropy(hidden, x.weight, x.targets, impl=options.device)

    def plain(hidden: Tensor, x: Inputs) -> Tensor:
        return F.cross_entropy(F.linear(hidden, x.weight), x.targets, reduction="none").float()

    no_loss = harness.not_built("linear_cross_entropy", options.device)
    products = [Candidate("ours, products of bfloat16", rounded, missing=no_loss, compare=False)]
    return Case(
        shape=f"A={a} N={n} C={c} V={v}",
        dtype=dtype,
        make=lambda maker: make(maker, a, n, c, v),
        candidates=[
            harness.ours(NAME, call, options.device),
            *(products if options.device == "cpu" and dtype == torch.float32 else []),
            # in narrow numbers hidden - removed is rounded first: another result
            Candidate("fused losses", lambda x: two_losses(x, fused), missing=no_loss, compare=dtype == torch.float32),
            Candidate("mm + cross_entropy", lambda x: two_losses(x, plain), compare=dtype == torch.float32),
            Candidate("reference", lambda x: call(x, "reference")),
        ],
        flops=2.0 * (a + 1) * n * c * v,
        bytes=dtype.itemsize * ((a + 1) * n * c + v * c) + 4.0 * (a + 1) * n,
    )


def two_losses(x: Inputs, loss: Callable[[Tensor, Inputs], Tensor]) -> tuple[Tensor, Tensor]:
    base = loss(x.hidden, x)
    return base, torch.stack([loss(x.hidden - removed, x) for removed in x.removed]) - base


def make(maker: Maker, a: int, n: int, c: int, v: int) -> Inputs:
    return Inputs(
        hidden=maker.normal(n, c),
        removed=maker.normal(a, n, c, scale=0.3),
        weight=maker.normal(v, c, scale=c**-0.5),
        targets=maker.below(v, n),
    )


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
