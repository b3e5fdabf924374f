"""gelu_difference: how much a GELU changes when something is removed from its input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from icl_fast.ops import _backend
from icl_fast.ops._library import register
from icl_fast.ops._registry import Kernel, Kernels
from icl_fast.ops._validate import (
    accumulate_dtype,
    autocast_promote,
    check_floating,
    check_one_of,
    check_shapes,
)

OP = "gelu_difference"
APPROXIMATIONS = ("none", "tanh")
NEAR = 0.5  # |du| up to which the exact GELU's difference is a Taylor series
# of so many terms: at |du| = 1/2 the ninth is below 1e-20, so 8 are exact in float64; kernels take 3: 6e-9, float32
TERMS = 8


def gelu_difference(u: Tensor, removed: Tensor, *, approximate: str = "none", impl: str = "auto") -> Tensor:
    """What a GELU loses when each of A variants is taken from its input.

    `out[a] = gelu(u) - gelu(u - removed[a])`, with errors of a few units in the last place of removed[a], not of u.

    The exact GELU t Phi(t): for |du| <= 1/2 the Taylor series of its mean slope about the middle m = u - du / 2,
    `du (Phi(m) + phi(m) (m + sum_k (du / 2)^2k / (2k + 1)! (He_{2k+1}(m) - He_{2k-1}(m))))`, He the Hermite
    polynomials; one exp and no cancellation. Else the difference of max(t, 0) - |t| Phi(-|t|), whose second part is
    at most 0.17: its rounding is small beside such a du.
    The approximation t S(t), S a sigmoid: `du S(u - du) + u (S(u) - S(u - du))`, where the last difference is a
    product of two sigmoids and an expm1 in whose argument du is a factor.

    Autocast does not touch this op, but that inputs of several dtypes are taken in the widest.

    The delta form of an ablation, at an MLP. Equivalent to, but for rounding:

        F.gelu(u, approximate=approximate) - F.gelu(u - removed, approximate=approximate)

    Args:
        u: [N,M], before the activation; float32, bfloat16, float16, float64.
        removed: [A,N,M], what each variant takes from it.
        approximate: "none" or "tanh", as in torch.nn.functional.gelu.
        impl: "auto" (the best built one), "reference", "cpu" or "cuda"; one that is named is never replaced by another.

    Returns:
        [A,N,M], in the dtype of u; computed in float32 (float64 for float64). NaN where u or removed is not finite.

    Raises:
        ValueError: shapes or devices that disagree; an unknown approximation or impl.
        TypeError: dtypes that disagree or are not taken.
        RuntimeError: a derivative is asked (an input requires grad in grad mode, or carries a forward-mode tangent);
            `impl` is not built.
    """
    check_shapes(OP, u=(u, "N M"), removed=(removed, "A N M"))
    u, removed = autocast_promote(u, removed)
    check_floating(OP, u=u, removed=removed)
    check_one_of(OP, "approximate", approximate, APPROXIMATIONS)
    result: Tensor = _forward_op(u, removed, approximate, KERNELS.choose(impl, u))
    return result


def reference_forward(
    u: Tensor,  # [N,M]
    removed: Tensor,  # [A,N,M]
    approximate: str,
) -> Tensor:
    """[A,N,M], variant by variant."""
    difference = _exact if approximate == "none" else _tanh
    wide, out = accumulate_dtype(u.dtype), torch.empty_like(removed, memory_format=torch.contiguous_format)
    u = u.to(wide)
    for a in range(len(removed)):
        du = removed[a].to(wide)
        out[a] = difference(u, du) + ((u - u) + (du - du))  # inf - inf is nan, and so is an infinite element
    return out


def _exact(u: Tensor, du: Tensor) -> Tensor:
    middle, left, half = (u - du / 2).clamp(-40, 40), u - du, du / 2
    density = (middle.square() / -2).exp() / math.sqrt(2 * math.pi)
    odd, even = middle, middle.square() - 1  # He_1, He_2
    slope, factor = middle, torch.ones_like(u)
    for k in range(1, TERMS + 1):
        following = middle * even - 2 * k * odd
        factor = factor * half.square() / (2 * k * (2 * k + 1))
        slope = slope + factor * (following - odd)
        odd, even = following, middle * following - (2 * k + 1) * even
    near = du * (_normal_cdf(middle) + density * slope)

    both = (u > 0) & (left > 0)  # there the difference is du itself, which u - left is but for the rounding of `left`
    linear = torch.where(both, du, u.clamp(min=0) - left.clamp(min=0))
    a, b = u.abs().clamp(max=40), left.abs().clamp(max=40)
    return torch.where(du.abs() <= NEAR, near, linear - (a * _normal_cdf(-a) - b * _normal_cdf(-b)))


def _normal_cdf(x: Tensor) -> Tensor:
    return (x * -math.sqrt(0.5)).erfc() / 2


def _tanh(u: Tensor, du: Tensor) -> Tensor:
    x, y, scale, cube = u.clamp(-40, 40), (u - du).clamp(-40, 40), 2 * math.sqrt(2 / math.pi), 0.044715
    at_u, at_left = scale * (x + cube * x**3), scale * (y + cube * y**3)
    apart = scale * du * (1 + cube * (x * (x + y) + y * y))
    larger, smaller = torch.where(apart > 0, at_u, at_left), torch.where(apart > 0, at_left, at_u)
    grown = -larger.sigmoid() * (-smaller).sigmoid() * (-apart.abs()).expm1()  # S(larger) - S(smaller)
    return du * at_left.sigmoid() + u * torch.where(apart > 0, grown, -grown)


def compiled_forward(
    place: str,
    u: Tensor,  # [N,M]
    removed: Tensor,  # [A,N,M]
    approximate: str,
) -> Tensor:
    """`reference_forward` by a kernel of csrc."""
    (a, n, m), out = removed.shape, torch.empty_like(removed, memory_format=torch.contiguous_format)
    inputs = {"u": u, "removed": removed}
    _backend.run(OP, place, {"out": out}, inputs, u.dtype, a=a, n=n, m=m, tanh=int(approximate == "tanh"))
    return out


KERNELS = Kernels(OP, reference=Kernel(reference_forward))
KERNELS.add_compiled(compiled_forward)


def _forward(u: Tensor, removed: Tensor, approximate: str, impl: str) -> Tensor:
    result: Tensor = KERNELS[impl].forward(u, removed, approximate)
    return result


def _empty(u: Tensor, removed: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(removed, memory_format=torch.contiguous_format)


_forward_op = register(
    "gelu_difference(Tensor u, Tensor removed, str approximate, str impl) -> Tensor", _forward, _empty
)
