"""activation_difference against two activations and a subtraction."""

from __future__ import annotations

import sys

import harness
import torch
from baselines import ACTIVATIONS, compiled
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

import icl_fast

NAME = "activation_difference"

CPU_SHAPES = [(8, 1024, 1024)]  # A, N, M
CUDA_SHAPES = [(8, 8192, 1024)]


def cases(options: Options) -> list[Case]:
    cpu = options.device == "cpu"
    dtypes = (torch.float32,) if cpu else (torch.float32, torch.bfloat16)
    shapes = CPU_SHAPES if cpu else CUDA_SHAPES
    return [case(shape, dtype, kind, options) for shape in shapes for dtype in dtypes for kind in ACTIVATIONS]


def case(shape: tuple[int, int, int], dtype: torch.dtype, activation: str, options: Options) -> Case:
    a, n, m = (3, 24, 32) if options.quick else shape

    def call(x: Inputs, impl: str) -> Tensor:
        return icl_fast.activation_difference(x.u, x.removed, activation=activation, impl=impl)

    def two_activations(u: Tensor, removed: Tensor) -> Tensor:
        return ACTIVATIONS[activation](u) - ACTIVATIONS[activation](u - removed)

    return Case(
        shape=f"A={a} N={n} M={m} {activation}",
        dtype=dtype,
        make=lambda maker: make(maker, a, n, m),
        candidates=[
            harness.ours(NAME, call, options.device),
            Candidate("two activations", lambda x: two_activations(x.u, x.removed)),
            compiled(two_activations, lambda fast, x: fast(x.u, x.removed), options.compile),
            Candidate("reference", lambda x: call(x, "reference")),
        ],
        flops=30.0 * a * n * m,  # an exponential and two polynomials
        bytes=dtype.itemsize * (n * m + 2.0 * a * n * m),
    )


def make(maker: Maker, a: int, n: int, m: int) -> Inputs:
    return Inputs(u=maker.normal(n, m), removed=maker.normal(a, n, m, scale=0.5))


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
