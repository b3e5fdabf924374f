"""project: x W^T, by our own kernel on CPUs.

On an AMD EPYC with AVX-512 it runs at twice the rate of torch's BLAS, which computes there at the rate of AVX2
(bench/foreign_sweep.py measures both).
"""

from __future__ import annotations

import torch
from torch import Tensor

from icl_fast.ops import _backend
from icl_fast.ops.packed_weight import PackedWeight, rounded, unpacked

# without vectors as wide as the processor's, torch is faster
_COMPILED = _backend.has_wide_vectors()


def project(x: Tensor, weight: Tensor | PackedWeight, *, onto: Tensor | None = None) -> Tensor:
    """x [...,C] W^T [C,M]: [...,M]. No gradients.

    Args:
        x: its rows.
        weight: [M,C]; a `PackedWeight`: then x is float32, and rounded to bfloat16 as it is multiplied.
        onto: contiguous; the product is added to it.
    """
    weight, packed, products = unpacked("project", weight, None)
    flat = x.reshape(-1, x.shape[-1])
    if x.dtype != torch.float32 or x.device.type != "cpu" or not _COMPILED:
        if products == "bfloat16":
            x, flat, weight = map(rounded, (x, flat, weight))
        if onto is None:
            return x @ weight.T
        onto.view(-1, len(weight)).addmm_(flat, weight.T)
        return onto
    out = x.new_empty(*x.shape[:-1], len(weight)) if onto is None else onto
    inputs = {"x": flat, "weight": weight, "packed": packed}
    n, m, c = len(flat), len(weight), x.shape[-1]
    _backend.run(
        "project", "cpu", {"out": out}, inputs, n=n, m=m, c=c, add=onto is not None, products=products or "float32"
    )
    return out
