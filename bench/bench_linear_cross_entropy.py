"""linear_cross_entropy against torch's product and cross entropy, plain and chunked, and others' fused kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import harness
import torch
import torch.nn.functional as F
from baselines import compiled, module_or_none
from harness import Candidate, Case, Inputs, Maker, Options
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import icl_fast
from icl_fast.ops import _backend

NAME = "linear_cross_entropy"
CHUNK = 1024  # rows of logits at a time in the chunked baseline

CPU_SHAPES = [(2048, 768, 50257), (2048, 256, 4096)]  # N, C, V
CUDA_SHAPES = [(8192, 768, 50257), (8192, 256, 4096)]
HEADLINES = [(n, 768, v) for v in (50257, 65536) for n in (8192, 4096, 40960)]
FORWARD, BOTH = "forward", "forward+backward"


def cases(options: Options) -> list[Case]:
    found = []
    if options.device == "cpu":
        small = CPU_SHAPES[-1]
        found += [case(shape, torch.float32, way, options) for shape in CPU_SHAPES for way in (FORWARD, BOTH)]
        found += [case(small, torch.float32, "backward", options)]
        found += [case(shape, torch.bfloat16, way, options) for shape in CPU_SHAPES for way in (FORWARD, BOTH)]
        found += [instruction_sets(small, dtype, options) for dtype in (torch.float32, torch.bfloat16)]
    else:
        dtypes = (torch.bfloat16, torch.float16, torch.float32)
        wanted = [(shape, torch.bfloat16, FORWARD) for shape in HEADLINES]
        wanted += [(shape, dtype, way) for shape in CUDA_SHAPES for dtype in dtypes for way in (FORWARD, BOTH)]
        found += [case(*which, options) for which in dict.fromkeys(wanted)]
    return found


def case(shape: tuple[int, int, int], dtype: torch.dtype, direction: str, options: Options) -> Case:
    n, c, v = (48, 32, 97) if options.quick else shape
    forward = direction == FORWARD
    first = torch.float32 if options.device == "cpu" else torch.bfloat16
    reduction: Any = "none" if forward else "mean"
    read = n * c + v * c
    return Case(
        shape=f"N={n} C={c} V={v}",
        dtype=dtype,
        make=lambda maker: make(maker, n, c, v),
        candidates=[fused(options, reduction, direction), *baselines(options, reduction, direction)],
        flops=(2.0 if forward else 4.0 if direction == "backward" else 6.0) * n * c * v,
        bytes=read * dtype.itemsize * (1.0 if forward else 2.0) + 4.0 * n,
        direction=direction,
        gradients=() if forward else ("hidden", "weight"),
        headline=forward and shape in (*HEADLINES, CPU_SHAPES[0]) and dtype == first,
    )


def make(maker: Maker, n: int, c: int, v: int) -> Inputs:
    return Inputs(
        hidden=maker.normal(n, c),
        weight=maker.normal(v, c, scale=c**-0.5),
        targets=maker.below(v, n),
        # with the gradient of a mean, 1 / N, half precision would lose most of the gradient in every candidate
        grad=torch.tensor(float(n), device=maker.device),
    )


def fused(options: Options, reduction: Any, direction: str) -> Candidate:
    def call(x: Inputs, impl: str) -> Tensor:
        if direction == "backward":  # a mean of its own has made its gradients by then
            return icl_fast.linear_cross_entropy(x.hidden, x.weight, x.targets, impl=impl).mean()
        return icl_fast.linear_cross_entropy(x.hidden, x.weight, x.targets, reduction=reduction, impl=impl)

    return harness.ours(NAME, call, options.device)


def baselines(options: Options, reduction: Any, direction: str) -> list[Candidate]:
    def reference(x: Inputs) -> Tensor:
        return icl_fast.linear_cross_entropy(x.hidden, x.weight, x.targets, reduction=reduction, impl="reference")

    def definition(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction=reduction)

    return [
        *products(options, reduction),
        Candidate("chunked mm + cross_entropy", lambda x: chunked(x, reduction)),
        compiled(definition, lambda fast, x: fast(x.hidden, x.weight, x.targets), options.compile),
        # these make the gradients in their forward: a backward of theirs alone would mean nothing
        *([] if direction == "backward" else [torch_fused(reduction), *others(options, reduction)]),
        Candidate("reference", reference),
    ]


def products(options: Options, reduction: str) -> list[Candidate]:
    """The product alone, and the product and torch's cross entropy; in a CPU forward both into logits kept for it."""
    if reduction == "mean":
        return [Candidate("mm + cross_entropy", lambda x: F.cross_entropy(F.linear(x.hidden, x.weight), x.targets))]

    def logits(x: Inputs) -> Tensor:
        if options.device == "cuda":  # torch's allocator keeps them there
            return torch.mm(x.hidden, x.weight.T)
        if not hasattr(x, "logits"):  # in the first call, so that they count in its peak memory
            x.logits = x.hidden.new_empty(len(x.hidden), len(x.weight))
        return torch.mm(x.hidden, x.weight.T, out=x.logits)

    return [
        Candidate("product alone", logits, compare=False),
        Candidate("mm + cross_entropy", lambda x: F.cross_entropy(logits(x), x.targets, reduction="none")),
    ]


def chunked(x: Inputs, reduction: str) -> Tensor:
    """What a careful user writes: some rows at a time, and in training each chunk's logits are computed again."""

    def losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight), targets, reduction="none" if reduction == "none" else "sum")

    parts = zip(x.hidden.split(CHUNK), x.targets.split(CHUNK), strict=True)
    if reduction == "none":
        return torch.cat([losses(hidden, x.weight, targets) for hidden, targets in parts])
    sums = [checkpoint(losses, hidden, x.weight, targets, use_reentrant=False) for hidden, targets in parts]
    return torch.stack(sums).float().sum() / len(x.targets)


def torch_fused(reduction: str) -> Candidate:
    """torch's own, from 2.13 on, with its default chunks."""
    name = "F.linear_cross_entropy"
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return Candidate(name, lambda x: None, missing=f"torch {torch.__version__} has none")
    chunks = torch.nn.LinearCrossEntropyOptions()
    return Candidate(
        name, lambda x: F.linear_cross_entropy(x.hidden, x.weight, x.targets, reduction=reduction, options=chunks)
    )


def others(options: Options, reduction: str) -> list[Candidate]:
    """Fused kernels of other packages, on CUDA."""
    if options.device == "cpu":
        return []
    apple, liger = module_or_none("cut_cross_entropy"), module_or_none("liger_kernel.transformers")

    def cut(x: Inputs) -> Tensor:
        return apple.linear_cross_entropy(x.hidden, x.weight, x.targets, reduction=reduction)

    def liger_loss(x: Inputs) -> Tensor:
        return liger.LigerFusedLinearCrossEntropyLoss(reduction=reduction)(x.weight, x.hidden, x.targets)

    not_installed = "not installed"
    return [
        Candidate("cut_cross_entropy", cut, missing="" if apple else not_installed),
        Candidate("liger_kernel", liger_loss, missing="" if liger else not_installed),
    ]


def instruction_sets(shape: tuple[int, int, int], dtype: torch.dtype, options: Options) -> Case:
    """The same kernel compiled for each instruction set of this machine."""
    whole = case(shape, dtype, FORWARD, options)
    own, isas = whole.candidates[0], _backend.isas()

    def on(isa: str) -> Callable[[Inputs], Any]:
        def call(x: Inputs) -> Any:
            _backend.set_isa(isa)
            try:
                return own.call(x)
            finally:
                _backend.set_isa(isas[-1])

        return call

    whole.candidates = [
        own,
        *(Candidate(f"ours on {isa}", on(isa), missing=own.missing, memory=False) for isa in isas[:-1]),
        *(c for c in whole.candidates if c.name in ("product alone", "reference")),
    ]
    whole.shape += " by instruction set"
    return whole


if __name__ == "__main__":
    sys.exit(harness.main(NAME, cases, __file__))
