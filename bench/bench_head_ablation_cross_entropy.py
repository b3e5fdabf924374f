"""head_ablation_cross_entropy against one fused unembedding, and against an unembedding for every head."""

from __future__ import annotations

import sys
from collections.abc import Callable

import harness
import torch
import torch.nn.functional as F
from baselines import compiled
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

import icl_fast

NAME = "head_ablation_cross_entropy"
EPS = 1e-5

Shape = tuple[int, int, int, int, int]
CPU_SHAPES: list[Shape] = [(2048, 256, 8, 32, 4096)]  # N, C, H, D, V
HEADLINE: Shape = (4096, 768, 12, 64, 65536)
CUDA_SHAPES: list[Shape] = [HEADLINE, (4096, 768, 12, 64, 50257), (8192, 256, 8, 32, 4096)]


def cases(options: Options) -> list[Case]:
    if options.device == "cpu":
        return [case(shape, dtype, options) for shape in CPU_SHAPES for dtype in (torch.float32, torch.bfloat16)]
    return [case(shape, dtype, options) for shape in CUDA_SHAPES for dtype in (torch.bfloat16, torch.float32)]


def case(shape: Shape, dtype: torch.dtype, options: Options) -> Case:
    n, c, h, d, v = (24, 32, 3, 8, 97) if options.quick else shape

    def call(x: Inputs, impl: str) -> tuple[Tensor, Tensor]:
        return icl_fast.head_ablation_cross_entropy(
            x.resid, x.z, x.w_o, x.weight, x.targets, norm_weight=x.gain, norm_bias=x.shift, eps=EPS, impl=impl
        )

    def unembed(normed: Tensor, x: Inputs) -> Tensor:
        return icl_fast.linear_cross_entropy(normed, x.weight, x.targets, impl=options.device)

    def plain(normed: Tensor, x: Inputs) -> Tensor:
        return F.cross_entropy(F.linear(normed, x.weight), x.targets, reduction="none")

    def all_heads(
        resid: Tensor, z: Tensor, w_o: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, t: Tensor
    ) -> Tensor:
        ablated = torch.cat([resid[None], resid - z @ w_o])
        logits = F.linear(F.layer_norm(ablated, (c,), gain, shift, EPS), weight).float()
        return F.cross_entropy(logits.flatten(0, 1), t.repeat(h + 1), reduction="none")

    def split(losses: Tensor) -> tuple[Tensor, Tensor]:
        return losses[:n], losses[n:].view(h, n)

    no_loss = harness.not_built("linear_cross_entropy", options.device)
    definition = compiled(
        all_heads, lambda fast, x: fast(x.resid, x.z, x.w_o, x.gain, x.shift, x.weight, x.targets), options.compile
    )
    definition.unpack = split
    return Case(
        shape=f"N={n} C={c} H={h} D={d} V={v}",
        dtype=dtype,
        make=lambda maker: make(maker, n, c, h, d, v),
        candidates=[
            harness.ours(NAME, call, options.device),
            Candidate("one fused unembedding", lambda x: unembed(x.normed, x), compare=False, missing=no_loss),
            Candidate("one mm + cross_entropy", lambda x: plain(x.normed, x), compare=False),
            Candidate("fused unembedding per head", lambda x: per_head(x, unembed), missing=no_loss),
            Candidate("mm + cross_entropy per head", lambda x: per_head(x, plain)),
            definition,
            Candidate("reference", lambda x: call(x, "reference")),
        ],
        # at low rank: one unembedding, the heads' output matrices through it, a rank-D update of the logits per head
        flops=2.0 * n * c * v + 2.0 * h * d * c * v + 2.0 * h * n * d * v,
        bytes=dtype.itemsize * (n * c + h * n * d + h * d * c + v * c) + 4.0 * (h + 1) * n,
        headline=shape in (HEADLINE, *CPU_SHAPES),
    )


def per_head(x: Inputs, loss: Callable[[Tensor, Inputs], Tensor]) -> tuple[Tensor, Tensor]:
    def without(removed: Tensor | float) -> Tensor:
        return loss(F.layer_norm(x.resid - removed, x.gain.shape, x.gain, x.shift, EPS), x)

    return without(0.0), torch.stack([without(z @ w_o) for z, w_o in zip(x.z, x.w_o, strict=True)])


def make(maker: Maker, n: int, c: int, h: int, d: int, v: int) -> Inputs:
    resid, gain, shift = maker.normal(n, c), 1 + maker.normal(c, scale=0.1), maker.normal(c, scale=0.1)
    return Inputs(
        resid=resid,
        z=maker.normal(h, n, d),
        w_o=maker.normal(h, d, c, scale=(h * d) ** -0.5),
        weight=maker.normal(v, c, scale=c**-0.5),
        targets=maker.below(v, n),
        gain=gain,
        shift=shift,
        normed=F.layer_norm(resid, (c,), gain, shift, EPS),
    )


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
