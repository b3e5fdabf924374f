"""head_ablation_cross_entropy: the losses without each head of the last attention layer, from one residual stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from icl_fast.ops import _backend
from icl_fast.ops._library import register
from icl_fast.ops._registry import Kernel, Kernels
from icl_fast.ops._validate import (
    accumulate_dtype,
    as_index,
    as_number,
    autocast_promote,
    check_device,
    check_floating,
    check_index_range,
    check_shapes,
    on_device_of,
)
from icl_fast.ops.linear_cross_entropy import reference_forward as token_losses

OP = "head_ablation_cross_entropy"


def head_ablation_cross_entropy(
    resid: Tensor,
    z: Tensor,
    w_o: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    bias: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Token losses of a model, and of the model without each head of its last attention layer (no MLP after it).

    `losses[h] = cross_entropy(LayerNorm(resid - z_h W_O^h) W_U^T + bias, targets)`, in nats, and `base` the same with
    nothing removed. This is Olsson et al. 2022, "Per-token losses (attention head ablations)": after the last attention
    layer the full and the pattern-preserving ablation are the same. Equivalent to, in torch:

        def loss(x):
            logits = F.linear(F.layer_norm(x, [C], norm_weight, norm_bias, eps), weight, bias)
            return F.cross_entropy(logits, targets, reduction="none")

        loss(resid), torch.stack([loss(resid - z[h] @ w_o[h]) for h in range(H)])

    The reference is this definition, in float32 (float64 for float64 inputs); kernels use the low-rank form of the
    last attention layer. To ablate a set of heads concatenate z and w_o along D; for mean ablation pass z
    minus its mean. Autocast does not touch this op, but that inputs of several dtypes are taken in the widest:
    differences of losses do not survive a rounding of `resid`.

    Args:
        resid: [N,C], the residual stream before the final norm, nothing ablated; float32, bfloat16, float16, float64.
        z: [H,N,D], each head's weighted sum of values.
        w_o: [H,D,C], each head's output matrix.
        weight: [V,C], the unembedding.
        targets: integers [N], in 0..V-1.
        norm_weight: [C], gain of the final norm; None: 1.
        norm_bias: [C]; None: 0.
        eps: added to the variance in the final norm; above 0.
        bias: [V], of the unembedding.
        impl: "auto" (the best built one), "reference", "cpu" or "cuda"; one that is named is never replaced by another.

    Returns:
        base [N] and losses [H,N], float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes or devices that disagree; an eps that is not positive and finite; a target out of range
            (looked at on CPU only: on a GPU it is undefined); an unknown impl.
        TypeError: dtypes that disagree or are not taken.
        RuntimeError: a derivative is asked (an input requires grad in grad mode, or carries a forward-mode tangent);
            `impl` is not built.
    """
    optional = {"norm_weight": (norm_weight, "C"), "norm_bias": (norm_bias, "C"), "bias": (bias, "V")}
    targets = on_device_of(OP, "targets", targets, resid)
    sizes = check_shapes(
        OP,
        resid=(resid, "N C"),
        z=(z, "H N D"),
        w_o=(w_o, "H D C"),
        weight=(weight, "V C"),
        targets=(targets, "N"),
        **{name: (tensor, dims) for name, (tensor, dims) in optional.items() if tensor is not None},
    )
    if sizes["V"] == 0:
        raise ValueError(f"{OP}: weight must have at least one row")
    if sizes["C"] == 0:
        raise ValueError(f"{OP}: resid must have at least one column: there is nothing to normalise")
    resid, z, w_o, weight, norm_weight, norm_bias, bias = autocast_promote(
        resid, z, w_o, weight, norm_weight, norm_bias, bias
    )
    check_floating(
        OP, resid=resid, z=z, w_o=w_o, weight=weight, norm_weight=norm_weight, norm_bias=norm_bias, bias=bias
    )
    targets = as_index(OP, "targets", targets)
    check_device(OP, "targets", targets, "resid", resid)
    eps = as_number(OP, "eps", eps, positive=True)
    base, losses = _forward_op(
        resid, z, w_o, weight, targets, norm_weight, norm_bias, eps, bias, KERNELS.choose(impl, resid)
    )
    return base, losses


def reference_forward(
    resid: Tensor,  # [N,C]
    z: Tensor,  # [H,N,D]
    w_o: Tensor,  # [H,D,C]
    weight: Tensor,  # [V,C]
    targets: Tensor,  # [N]
    norm_weight: Tensor | None,  # [C]
    norm_bias: Tensor | None,  # [C]
    eps: float,
    bias: Tensor | None,  # [V]
) -> tuple[Tensor, Tensor]:
    """Losses [N] with nothing removed and [H,N] with each head removed, by the definition."""
    wide = accumulate_dtype(resid.dtype)
    x, z, w_o, weight = resid.to(wide), z.to(wide), w_o.to(wide), weight.to(wide)
    gain, shift, bias = (None if t is None else t.to(wide) for t in (norm_weight, norm_bias, bias))

    def loss(x: Tensor) -> Tensor:
        normed = torch.nn.functional.layer_norm(x, x.shape[-1:], gain, shift, eps)
        return token_losses(normed, weight, targets, bias, ignore_index=-1)[0]  # -1 is no target: none is ignored

    losses = x.new_empty(len(z), len(x))
    for h in range(len(z)):
        losses[h] = loss(x - z[h] @ w_o[h])
    return loss(x), losses


def compiled_forward(
    place: str,
    resid: Tensor,  # [N,C]
    z: Tensor,  # [H,N,D]
    w_o: Tensor,  # [H,D,C]
    weight: Tensor,  # [V,C]
    targets: Tensor,  # [N]
    norm_weight: Tensor | None,  # [C]
    norm_bias: Tensor | None,  # [C]
    eps: float,
    bias: Tensor | None,  # [V]
) -> tuple[Tensor, Tensor]:
    """`reference_forward` by a kernel of csrc, at low rank."""
    (heads, n, d), (v, c) = z.shape, weight.shape
    base, losses = resid.new_empty(n, dtype=torch.float32), resid.new_empty(heads, n, dtype=torch.float32)
    outputs = {"base": base, "losses": losses}
    inputs = {
        **{"resid": resid, "z": z, "w_o": w_o, "weight": weight, "targets": targets},
        **{"norm_weight": norm_weight, "norm_bias": norm_bias, "bias": bias},
    }
    _backend.run(OP, place, outputs, inputs, resid.dtype, n=n, h=heads, d=d, c=c, v=v, eps=eps)
    return base, losses


KERNELS = Kernels(OP, reference=Kernel(reference_forward))
KERNELS.add_compiled(compiled_forward)


def _forward(
    resid: Tensor, z: Tensor, w_o: Tensor, weight: Tensor, targets: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    *others, impl = rest
    check_index_range(OP, "targets", targets, weight.shape[0])
    result: tuple[Tensor, Tensor] = KERNELS[impl].forward(resid, z, w_o, weight, targets, *others)
    return result


def _empty(resid: Tensor, z: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    wide = accumulate_dtype(resid.dtype)
    return resid.new_empty(resid.shape[0], dtype=wide), resid.new_empty(z.shape[:2], dtype=wide)


_forward_op = register(
    "head_ablation_cross_entropy(Tensor resid, Tensor z, Tensor w_o, Tensor weight, Tensor targets,"
    " Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor? bias, str impl) -> (Tensor base, Tensor losses)",
    _forward,
    _empty,
)
