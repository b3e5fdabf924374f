"""activation_difference: how much an activation changes when something is removed from its input."""

from __future__ import annotations

import math
from collections.abc import Callable

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

OP = "activation_difference"
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")  # in the order of Activation in csrc/ops.h
APPROXIMATIONS = {"none": "gelu", "tanh": "gelu_tanh"}  # of torch.nn.functional.gelu
NEAR = 0.5  # |du| up to which the exact GELU's difference is a Taylor series
# of so many terms: at |du| = 1/2 the ninth is below 1e-20, so 8 are exact in float64; kernels take 3: 6e-9, float32
TERMS = 8
GELU_SCALE, GELU_CUBE = 2 * math.sqrt(2 / math.pi), 0.044715


def activation_difference(u: Tensor, removed: Tensor, *, activation: str, impl: str = "auto") -> Tensor:
    """What an activation loses when each of A variants is taken from its input.

    `out[a] = act(u) - act(u - removed[a])`, with errors of a few units in the last place of removed[a], not of u.

    "silu", t S(t) with the sigmoid S, and "gelu_tanh", t S(f(t)) with a cubic f: `du S(left) + u (S(u) - S(left))`,
    left = u - du, where the last difference is a product of two sigmoids and an expm1 in whose argument du is a factor.
    "gelu", t Phi(t): for |du| <= 1/2 the Taylor series of its mean slope about the middle m = u - du / 2,
    `du (Phi(m) + phi(m) (m + sum_k (du / 2)^2k / (2k + 1)! (He_{2k+1}(m) - He_{2k-1}(m))))`, He the Hermite
    polynomials; one exp and no cancellation. Else the difference of max(t, 0) - |t| Phi(-|t|), whose second part is
    at most 0.17: its rounding is small beside such a du.
    "relu": du itself where both are positive.

    Autocast does not touch this op, but that inputs of several dtypes are taken in the widest.

    The delta form of an ablation, at an MLP. Equivalent to, but for rounding:

        act(u) - act(u - removed), act: F.gelu, F.gelu(..., approximate="tanh"), F.silu or F.relu

    Args:
        u: [N,M], before the activation; float32, bfloat16, float16, float64.
        removed: [A,N,M], what each variant takes from it.
        activation: "gelu", "gelu_tanh", "silu" or "relu".
        impl: "auto" (the best built one), "reference", "cpu" or "cuda"; one that is named is never replaced by another.

    Returns:
        [A,N,M], in the dtype of u; computed in float32 (float64 for float64). NaN where u or removed is not finite.

    Raises:
        ValueError: shapes or devices that disagree; an unknown activation or impl.
        TypeError: dtypes that disagree or are not taken.
        RuntimeError: a derivative is asked (an input requires grad in grad mode, or carries a forward-mode tangent);
            `impl` is not built.
    """
    check_shapes(OP, u=(u, "N M"), removed=(removed, "A N M"))
    u, removed = autocast_promote(u, removed)
    check_floating(OP, u=u, removed=removed)
    check_one_of(OP, "activation", activation, ACTIVATIONS)
    result: Tensor = _forward_op(u, removed, activation, KERNELS.choose(impl, u))
    return result


def gelu_difference(u: Tensor, removed: Tensor, *, approximate: str = "none", impl: str = "auto") -> Tensor:
    """`activation_difference` of a GELU, named as torch.nn.functional.gelu names it: approximate "none" or "tanh"."""
    check_one_of("gelu_difference", "approximate", approximate, tuple(APPROXIMATIONS))
    return activation_difference(u, removed, activation=APPROXIMATIONS[approximate], impl=impl)


def reference_forward(
    u: Tensor,  # [N,M]
    removed: Tensor,  # [A,N,M]
    activation: str,
) -> Tensor:
    """[A,N,M], variant by variant."""
    wide, out = accumulate_dtype(u.dtype), torch.empty_like(removed, memory_format=torch.contiguous_format)
    for a in range(len(removed)):
        out[a] = change(activation, u.to(wide), removed[a].to(wide))
    return out


def change(activation: str, u: Tensor, du: Tensor) -> Tensor:
    """act(u) - act(u - du)."""
    return _CHANGES[activation](u, du) + ((u - u) + (du - du))  # inf - inf is nan, and so is an infinite element


def value(activation: str, u: Tensor) -> Tensor:
    """act(u), with small errors beside itself also where it is near 0."""
    return _VALUES[activation](u)


def _gelu(u: Tensor, du: Tensor) -> Tensor:
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

    a, b = u.abs().clamp(max=40), left.abs().clamp(max=40)
    far = _relu(u, du) - (a * _normal_cdf(-a) - b * _normal_cdf(-b))
    return torch.where(du.abs() <= NEAR, near, far)


def _normal_cdf(x: Tensor) -> Tensor:
    return (x * -math.sqrt(0.5)).erfc() / 2


def _gelu_tanh(u: Tensor, du: Tensor) -> Tensor:
    x, y = u.clamp(-40, 40), (u - du).clamp(-40, 40)
    apart = GELU_SCALE * du * (1 + GELU_CUBE * (x * (x + y) + y * y))
    return _change_of_sigmoid(u, du, _tanh_argument(x), _tanh_argument(y), apart)


def _tanh_argument(u: Tensor) -> Tensor:
    """gelu_tanh(u) is u times the sigmoid of it."""
    return GELU_SCALE * (u + GELU_CUBE * u**3)


def _silu(u: Tensor, du: Tensor) -> Tensor:
    return _change_of_sigmoid(u, du, u, u - du, du)


def _change_of_sigmoid(u: Tensor, du: Tensor, at_u: Tensor, at_left: Tensor, apart: Tensor) -> Tensor:
    """u S(at_u) - (u - du) S(at_left), where `apart` is at_u - at_left, without its rounding."""
    larger, smaller = torch.where(apart > 0, at_u, at_left), torch.where(apart > 0, at_left, at_u)
    grown = -larger.sigmoid() * (-smaller).sigmoid() * (-apart.abs()).expm1()  # S(larger) - S(smaller)
    return du * at_left.sigmoid() + u * torch.where(apart > 0, grown, -grown)


def _relu(u: Tensor, du: Tensor) -> Tensor:
    left = u - du
    both = (u > 0) & (left > 0)  # there the difference is du itself, which u - left is but for the rounding of `left`
    return torch.where(both, du, u.clamp(min=0) - left.clamp(min=0))


_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda u: u * _normal_cdf(u),
    "gelu_tanh": lambda u: u * _tanh_argument(u).sigmoid(),
    "silu": lambda u: u * u.sigmoid(),
    "relu": torch.relu,
}
_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu": _relu,
}


def compiled_forward(
    place: str,
    u: Tensor,  # [N,M]
    removed: Tensor,  # [A,N,M]
    activation: str,
) -> Tensor:
    """`reference_forward` by a kernel of csrc."""
    (a, n, m), out = removed.shape, torch.empty_like(removed, memory_format=torch.contiguous_format)
    inputs = {"u": u, "removed": removed}
    _backend.run(OP, place, {"out": out}, inputs, u.dtype, a=a, n=n, m=m, activation=ACTIVATIONS.index(activation))
    return out


KERNELS = Kernels(OP, reference=Kernel(reference_forward))
KERNELS.add_compiled(compiled_forward)


def _forward(u: Tensor, removed: Tensor, activation: str, impl: str) -> Tensor:
    result: Tensor = KERNELS[impl].forward(u, removed, activation)
    return result


def _empty(u: Tensor, removed: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(removed, memory_format=torch.contiguous_format)


_forward_op = register(
    "activation_difference(Tensor u, Tensor removed, str activation, str impl) -> Tensor", _forward, _empty
)
