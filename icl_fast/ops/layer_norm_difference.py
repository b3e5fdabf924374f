"""layer_norm_difference: how much a LayerNorm or an RMSNorm changes when something is removed from its input."""

from __future__ import annotations

import torch
from torch import Tensor

from icl_fast.ops import _backend
from icl_fast.ops._library import register
from icl_fast.ops._registry import Kernel, Kernels
from icl_fast.ops._validate import accumulate_dtype, as_number, autocast_promote, check_floating, check_shapes

OP = "layer_norm_difference"


def layer_norm_difference(
    x: Tensor, removed: Tensor, weight: Tensor | None, *, eps: float, centre: bool = True, impl: str = "auto"
) -> Tensor:
    """What a LayerNorm, or without `centre` an RMSNorm, loses when each of A variants is taken from its input.

    `out[a] = LayerNorm(x) - LayerNorm(x - removed[a])`, but never as a difference of two results: with xc, dc and lc
    the centred x, removed[a] and x - removed[a], sd and sd' the standard deviations (with eps) of x and of what is
    left, and var' - var = -mean(dc (xc + lc)), it is `weight * (dc / S + y (var' - var) / (sd sd' (sd + sd')))`. S is
    the larger of sd and sd', y the row, xc or lc, of the smaller. Neither term is larger than dc beside S, so rounding
    errors are relative to what is removed, whether that is 1e-7 of x, all of it, or far more; and nothing depends on
    how far from zero a row lies. The bias of a LayerNorm cancels: there is none here.
    An RMSNorm is a LayerNorm that does not centre: xc, dc and lc are the rows themselves, sd their root mean square.

    The delta form of an ablation: what the heads after a norm no longer read. Equivalent to, but for rounding:

        F.layer_norm(x, [C], weight, None, eps) - F.layer_norm(x - removed, [C], weight, None, eps)
        F.rms_norm(x, [C], weight, eps) - F.rms_norm(x - removed, [C], weight, eps)  # centre=False

    Autocast does not touch this op, but that inputs of several dtypes are taken in the widest: all sums are float32
    (float64 for float64 inputs) in any case.

    Args:
        x: [N,C]; float32, bfloat16, float16, float64.
        removed: [A,N,C], what each variant takes from it.
        weight: [C], the gain; None: 1.
        eps: added to the variances (mean squares); 0 or more. With 0 a row that has none is NaN.
        centre: whether the norm subtracts the mean of a row: True: LayerNorm, False: RMSNorm.
        impl: "auto" (the best built one), "reference", "cpu" or "cuda"; one that is named is never replaced by another.

    Returns:
        [A,N,C], in the dtype of x. A row that holds a value that is not finite is NaN.

    Raises:
        ValueError: shapes or devices that disagree; an eps that is negative or not finite; an unknown impl.
        TypeError: dtypes that disagree or are not taken; a `centre` that is not a bool.
        RuntimeError: a derivative is asked (an input requires grad in grad mode, or carries a forward-mode tangent);
            `impl` is not built.
    """
    optional = {} if weight is None else {"weight": (weight, "C")}
    check_shapes(OP, x=(x, "N C"), removed=(removed, "A N C"), **optional)
    x, removed, weight = autocast_promote(x, removed, weight)
    check_floating(OP, x=x, removed=removed, weight=weight)
    eps = as_number(OP, "eps", eps, least=0)
    if not isinstance(centre, bool):
        raise TypeError(f"{OP}: centre must be True or False, got {type(centre).__name__}")
    result: Tensor = _forward_op(x, removed, weight, eps, centre, KERNELS.choose(impl, x))
    return result


def reference_forward(
    x: Tensor,  # [N,C]
    removed: Tensor,  # [A,N,C]
    weight: Tensor | None,  # [C]
    eps: float,
    centre: bool,
) -> Tensor:
    """[A,N,C], variant by variant."""
    wide, out = accumulate_dtype(x.dtype), torch.empty_like(removed, memory_format=torch.contiguous_format)
    gain = 1.0 if weight is None else weight.to(wide)
    x = x.to(wide)
    x_centred = _centred(x) if centre else x
    sd = _deviation(x_centred, eps)
    for a in range(len(removed)):
        d = removed[a].to(wide)
        left = x - d
        taken = left - x
        rest = (x - (left - taken)) - (d + taken)  # what rounding took from x - d
        d_centred, left_centred = (_centred(d), _centred(left, rest)) if centre else (d, left)
        sd_left = _deviation(left_centred, eps)
        grown = -(d_centred * (x_centred + left_centred)).mean(-1, keepdim=True)
        narrower = torch.where(sd_left > sd, x_centred, left_centred)
        scaled = grown / (sd + sd_left) / sd / sd_left
        out[a] = gain * (d_centred / torch.maximum(sd, sd_left) + narrower * scaled)
    return out


def _centred(row: Tensor, rest: Tensor | None = None) -> Tensor:
    """row + rest without its mean: the first mean is rounded at the size of the row, the second is of what it left."""
    row = row - row.mean(-1, keepdim=True)
    if rest is not None:
        row = row + rest
    return row - row.mean(-1, keepdim=True)


def _deviation(centred: Tensor, eps: float) -> Tensor:
    return (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def compiled_forward(
    place: str,
    x: Tensor,  # [N,C]
    removed: Tensor,  # [A,N,C]
    weight: Tensor | None,  # [C]
    eps: float,
    centre: bool,
) -> Tensor:
    """`reference_forward` by a kernel of csrc."""
    (a, n, c), out = removed.shape, torch.empty_like(removed, memory_format=torch.contiguous_format)
    inputs = {"x": x, "removed": removed, "weight": weight}
    _backend.run(OP, place, {"out": out}, inputs, x.dtype, a=a, n=n, c=c, centre=int(centre), eps=eps)
    return out


KERNELS = Kernels(OP, reference=Kernel(reference_forward))
KERNELS.add_compiled(compiled_forward)


def _forward(x: Tensor, removed: Tensor, weight: Tensor | None, eps: float, centre: bool, impl: str) -> Tensor:
    result: Tensor = KERNELS[impl].forward(x, removed, weight, eps, centre)
    return result


def _empty(x: Tensor, removed: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(removed, memory_format=torch.contiguous_format)


_forward_op = register(
    "layer_norm_difference(Tensor x, Tensor removed, Tensor? weight, float eps, bool centre, str impl) -> Tensor",
    _forward,
    _empty,
)
