"""smeared_attention against smearing the keys in torch and then calling scaled_dot_product_attention."""

from __future__ import annotations

import sys
from collections.abc import Callable

import harness
import torch
import torch.nn.functional as F
from baselines import compiled, flex_attention
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import icl_fast

NAME = "smeared_attention"
DIRECTIONS = ("forward", "forward+backward")
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}

Shape = tuple[int, int, int, int]
CPU_SHAPES: list[Shape] = [(4, 8, 512, 64), (1, 8, 2048, 64)]  # B, H, T, D
CUDA_TOKENS = 16384  # B * T


def cases(options: Options) -> list[Case]:
    if options.device == "cpu":
        found = [case(shape, torch.float32, way, options) for shape in CPU_SHAPES for way in DIRECTIONS]
        found += [case(CPU_SHAPES[0], torch.float32, "backward", options)]
        return found + [case(CPU_SHAPES[0], torch.bfloat16, way, options) for way in DIRECTIONS]
    shapes = [(CUDA_TOKENS // t, 8, t, d) for t in (512, 2048, 8192) for d in (64, 128)]
    return [case(shape, torch.bfloat16, way, options) for shape in shapes for way in DIRECTIONS]


def case(shape: Shape, dtype: torch.dtype, direction: str, options: Options) -> Case:
    b, h, t, d = (2, 2, 24, 8) if options.quick else shape
    scale = d**-0.5

    def call(x: Inputs, impl: str) -> Tensor:
        return icl_fast.smeared_attention(x.q, x.k, x.v, x.alpha, scale=scale, impl=impl)

    def sdpa(x: Inputs) -> Tensor:
        return F.scaled_dot_product_attention(x.q, smear(x.k, x.alpha), x.v, is_causal=True, scale=scale)

    def definition(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
        unseen = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1)
        return (scale * (q @ smear(k, alpha).mT)).masked_fill(unseen, float("-inf")).softmax(-1) @ v

    candidates = [
        harness.ours(NAME, call, options.device),
        Candidate("smear + sdpa", sdpa, family="sdpa"),
        compiled(definition, lambda fast, x: fast(x.q, x.k, x.v, x.alpha), options.compile),
        Candidate("reference", lambda x: call(x, "reference")),
    ]
    if options.device == "cuda":
        named = [Candidate(f"smear + sdpa {n}", on(b_, sdpa), family="sdpa") for n, b_ in BACKENDS.items()]
        candidates[2:2] = [*named, flex(t, scale, options)]
    # forward: two products; backward: five, of which one is the scores again
    products = {"forward": 2, "backward": 5, "forward+backward": 7}[direction]
    tensors = {"forward": 4, "backward": 8, "forward+backward": 12}[direction]
    return Case(
        shape=f"B={b} H={h} T={t} D={d}",
        dtype=dtype,
        make=lambda maker: make(maker, b, h, t, d),
        candidates=candidates,
        flops=products * 2.0 * (b * h * t * (t + 1) / 2) * d,
        bytes=float(tensors * dtype.itemsize * b * h * t * d),
        direction=direction,
        gradients=() if direction == "forward" else ("q", "k", "v", "alpha"),
        headline=shape[2] in (512, 2048) and shape[3] == 64,
    )


def smear(k: Tensor, alpha: Tensor) -> Tensor:
    gate = alpha.sigmoid()[:, None, None].to(k.dtype)
    return torch.cat([k[:, :, :1], torch.lerp(k[:, :, :-1], k[:, :, 1:], gate)], dim=2)


def on(backend: SDPBackend, call: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Tensor]:
    def chosen(x: Inputs) -> Tensor:
        with sdpa_kernel(backend):
            return call(x)

    return chosen


def flex(t: int, scale: float, options: Options) -> Candidate:
    attention = flex_attention(t, scale, options)
    call = attention.call
    attention.call = lambda x: call(Inputs(q=x.q, k=smear(x.k, x.alpha), v=x.v))
    return attention


def make(maker: Maker, b: int, h: int, t: int, d: int) -> Inputs:
    return Inputs(
        q=maker.normal(b, h, t, d, scale=2.0),
        k=maker.normal(b, h, t, d),
        v=maker.normal(b, h, t, d),
        alpha=torch.linspace(-1, 1, h, device=maker.device),
        grad=maker.normal(b, h, t, d),
    )


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
