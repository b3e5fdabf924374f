"""frozen_attention against scaled_dot_product_attention: a call a variant, or all variants in one call."""

from __future__ import annotations

import sys

import harness
import torch
import torch.nn.functional as F
from baselines import compiled, flex_attention
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor

import icl_fast

NAME = "frozen_attention"

Shape = tuple[int, int, int, int, int]
CPU_SHAPES: list[Shape] = [(8, 8, 8, 512, 64)]  # A, B, H, T, D
CUDA_SHAPES: list[Shape] = [(16, 8, 8, 1024, 64), (16, 8, 8, 512, 64), *CPU_SHAPES]


def cases(options: Options) -> list[Case]:
    if options.device == "cpu":
        return [case(shape, dtype, options) for shape in CPU_SHAPES for dtype in (torch.float32, torch.bfloat16)]
    return [case(shape, torch.bfloat16, options) for shape in CUDA_SHAPES]


def case(shape: Shape, dtype: torch.dtype, options: Options) -> Case:
    a, b, h, t, d = (3, 2, 2, 24, 8) if options.quick else shape
    scale = d**-0.5

    def call(x: Inputs, impl: str, out: Tensor | None = None) -> Tensor:
        return icl_fast.frozen_attention(x.q, x.k, x.v, scale=scale, out=out, impl=impl)

    def into_kept(x: Inputs, impl: str) -> Tensor:
        if not hasattr(x, "out"):  # in the first call, so that it counts in its peak memory
            x.out = torch.empty_like(x.v)
        return call(x, impl, x.out)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)

    def unfold(out: Tensor) -> Tensor:
        return out.unflatten(3, (a, d)).movedim(3, 0)

    def batched(x: Inputs) -> Tensor:
        q, k = (part.expand(a, b, h, t, d).flatten(0, 1) for part in (x.q, x.k))
        return sdpa(q, k, x.v.flatten(0, 1))

    def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        unseen = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1)
        return (scale * (q @ k.mT)).masked_fill(unseen, float("-inf")).softmax(-1) @ v

    candidates = [
        # as in a loop; on CUDA torch's allocator keeps the result, as it does those of the others
        harness.ours(NAME, into_kept if options.device == "cpu" else call, options.device),
        Candidate("sdpa per variant", lambda x: [sdpa(x.q, x.k, v) for v in x.v], torch.stack),
        Candidate("sdpa folded", lambda x: sdpa(x.q, x.k, x.folded), unfold),  # folding and unfolding are not timed
        Candidate("sdpa batched", batched, lambda out: out.unflatten(0, (a, b))),
        compiled(definition, lambda fast, x: fast(x.q, x.k, x.v), options.compile),
        Candidate("reference", lambda x: call(x, "reference")),
    ]
    if options.device == "cpu":
        missing = harness.not_built(NAME, "cpu")
        candidates.insert(1, Candidate("ours, a new result", lambda x: call(x, "cpu"), missing=missing))
    else:
        candidates.insert(4, flex(a, b, h, t, d, scale, options))
    seen = b * h * t * (t + 1) / 2
    return Case(
        shape=f"A={a} B={b} H={h} T={t} D={d}",
        dtype=dtype,
        make=lambda maker: make(maker, a, b, h, t, d),
        candidates=candidates,
        flops=2.0 * seen * d * (1 + a),
        bytes=float(dtype.itemsize * b * h * t * d * (2 + 2 * a)),
        headline=options.device == "cpu" or shape[0] == 16,
    )


def flex(a: int, b: int, h: int, t: int, d: int, scale: float, options: Options) -> Candidate:
    """FlexAttention with the variants in the batch: folded into Dv they are wider than it takes."""
    attention = flex_attention(t, scale, options)
    call = attention.call

    def batched(x: Inputs) -> Tensor:
        q, k = (part.expand(a, b, h, t, d).flatten(0, 1) for part in (x.q, x.k))
        return call(Inputs(q=q, k=k, v=x.v.flatten(0, 1)))

    attention.call, attention.unpack = batched, lambda out: out.unflatten(0, (a, b))
    return attention


def make(maker: Maker, a: int, b: int, h: int, t: int, d: int) -> Inputs:
    v = maker.normal(a, b, h, t, d)
    # queries of size 2: a pattern that is neither flat nor a single key
    return Inputs(
        q=maker.normal(b, h, t, d, scale=2.0),
        k=maker.normal(b, h, t, d),
        v=v,
        folded=v.permute(1, 2, 3, 0, 4).reshape(b, h, t, a * d),
    )


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
