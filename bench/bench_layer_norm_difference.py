"""layer_norm_difference against two norms and a subtraction. All of them are bound by memory: GB/s is what counts."""

from __future__ import annotations

import sys

import harness
import torch
import torch.nn.functional as F
from baselines import compiled
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

import icl_fast

NAME = "layer_norm_difference"
EPS = 1e-5
NORMS = {"LayerNorm": F.layer_norm, "RMSNorm": F.rms_norm}

CPU_SHAPES = [(8, 2048, 256), (12, 512, 768)]  # A, N, C
CUDA_SHAPES = [(8, 16384, 256), (12, 8192, 768)]


def cases(options: Options) -> list[Case]:
    cpu = options.device == "cpu"
    dtypes = (torch.float32,) if cpu else (torch.float32, torch.bfloat16)
    shapes = CPU_SHAPES if cpu else CUDA_SHAPES
    return [case(shape, dtype, norm, options) for shape in shapes for dtype in dtypes for norm in NORMS]


def case(shape: tuple[int, int, int], dtype: torch.dtype, norm: str, options: Options) -> Case:
    a, n, c = (3, 24, 32) if options.quick else shape

    def call(x: Inputs, impl: str) -> Tensor:
        return icl_fast.layer_norm_difference(
            x.stream, x.removed, x.gain, eps=EPS, centre=norm == "LayerNorm", impl=impl
        )

    def two_norms(stream: Tensor, removed: Tensor, gain: Tensor) -> Tensor:
        return NORMS[norm](stream, (c,), gain, eps=EPS) - NORMS[norm](stream - removed, (c,), gain, eps=EPS)

    return Case(
        shape=f"A={a} N={n} C={c} {norm}",
        dtype=dtype,
        make=lambda maker: make(maker, a, n, c),
        candidates=[
            harness.ours(NAME, call, options.device),
            Candidate("two norms", lambda x: two_norms(x.stream, x.removed, x.gain)),
            compiled(two_norms, lambda fast, x: fast(x.stream, x.removed, x.gain), options.compile),
            Candidate("reference", lambda x: call(x, "reference")),
        ],
        flops=12.0 * a * n * c,  # two means, two variances and their difference, and the result
        bytes=dtype.itemsize * (n * c + 2.0 * a * n * c + c),
    )


def make(maker: Maker, a: int, n: int, c: int) -> Inputs:
    return Inputs(
        stream=maker.normal(n, c), removed=maker.normal(a, n, c, scale=0.5), gain=1 + maker.normal(c, scale=0.1)
    )


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
