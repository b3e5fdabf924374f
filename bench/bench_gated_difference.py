"""gated_difference against two gated activations and a subtraction."""

from __future__ import annotations

import sys

import harness
import torch
from baselines import ACTIVATIONS, compiled
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

import icl_fast

NAME = "gated_difference"

CPU_SHAPES = [(8, 1024, 1024)]  # A, N, M
CUDA_SHAPES = [(8, 8192, 1024)]


def cases(options: Options) -> list[Case]:
    cpu = options.device == "cpu"
    dtypes = (torch.float32,) if cpu else (torch.float32, torch.bfloat16)
    shapes = CPU_SHAPES if cpu else CUDA_SHAPES
    return [case(shape, dtype, kind, options) for shape in shapes for dtype in dtypes for kind in ACTIVATIONS]


def case(shape: tuple[int, int, int], dtype: torch.dtype, activation: str, options: Options) -> Case:
    a, n, m = (3, 24, 32) if options.quick else shape
    act = ACTIVATIONS[activation]

    def call(x: Inputs, impl: str) -> Tensor:
        return icl_fast.gated_difference(x.gate, x.up, x.gate_removed, x.up_removed, activation=activation, impl=impl)

    def two_products(gate: Tensor, up: Tensor, gate_removed: Tensor, up_removed: Tensor) -> Tensor:
        return act(gate) * up - act(gate - gate_removed) * (up - up_removed)

    return Case(
        shape=f"A={a} N={n} M={m} {activation}",
        dtype=dtype,
        make=lambda maker: make(maker, a, n, m),
        candidates=[
            harness.ours(NAME, call, options.device),
            Candidate("two products", lambda x: two_products(x.gate, x.up, x.gate_removed, x.up_removed)),
            compiled(two_products, lambda fast, x: fast(x.gate, x.up, x.gate_removed, x.up_removed), options.compile),
            Candidate("reference", lambda x: call(x, "reference")),
        ],
        flops=34.0 * a * n * m,  # an exponential and two polynomials, and the product
        bytes=dtype.itemsize * (2.0 * n * m + 3.0 * a * n * m),
    )


def make(maker: Maker, a: int, n: int, m: int) -> Inputs:
    return Inputs(
        gate=maker.normal(n, m),
        up=maker.normal(n, m),
        gate_removed=maker.normal(a, n, m, scale=0.5),
        up_removed=maker.normal(a, n, m, scale=0.5),
    )


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
