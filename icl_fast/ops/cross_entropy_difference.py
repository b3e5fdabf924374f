"""cross_entropy_difference: how much the losses change when something is removed from the final hidden states."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from icl_fast.ops import _backend
from icl_fast.ops._library import register
from icl_fast.ops._registry import Kernel, Kernels
from icl_fast.ops._validate import (
    accumulate_dtype,
    as_index,
    autocast_promote,
    check_device,
    check_floating,
    check_index_range,
    check_products,
    check_shapes,
    on_device_of,
)
from icl_fast.ops.linear_cross_entropy import row_blocks
from icl_fast.ops.packed_weight import PackedWeight, rounded, unpacked

OP = "cross_entropy_difference"


def cross_entropy_difference(
    hidden: Tensor,
    removed: Tensor,
    weight: Tensor | PackedWeight,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    products: str | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Token losses, and what they change by when each of A variants is taken from the hidden states.

    With `loss(x) = cross_entropy(x W^T + bias, targets)`, in nats, `difference[a]` is `loss(hidden - removed[a]) -
    loss(hidden)`, but never as a difference of two losses: with e = removed[a] W^T and p the softmax of the logits it
    is `log1p(sum_v p_v expm1(-e_v)) + e_t`, whose rounding errors are relative to e, so that small effects are right
    in any dtype. Where the sum is not small the two losses are far apart and are subtracted after all.

    The delta form of an ablation that only changes values (Olsson et al. 2022, "Per-token losses (attention head
    ablations)"): `removed` is what the ablation takes from the output of the final norm. The logits of the whole model
    are computed once for all variants. Autocast does not touch this op, but that inputs of several dtypes are taken in
    the widest.

    Args:
        hidden: [N,C], the output of the final norm; float32, bfloat16, float16, float64.
        removed: [A,N,C], what each variant takes from it.
        weight: [V,C], the unembedding; or a `PackedWeight`, for products of bfloat16.
        targets: integers [N], in 0..V-1.
        bias: [V], of the unembedding.
        products: "bfloat16": hidden, removed and weight are rounded to it where they are multiplied; sums and
            exponentials stay float32, and errors relative to the effect. For float32 inputs on a CPU with bfloat16
            units (see `icl-fast info`); elsewhere it is the slower way to the same. None or "float32": as they are.
        impl: "auto" (the best built one), "reference", "cpu" or "cuda"; one that is named is never replaced by another.

    Returns:
        base losses [N] and differences [A,N], float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes or devices that disagree; a target out of range (looked at on CPU only: on a GPU it is
            undefined); products="bfloat16" of float32 inputs on a GPU; unknown products or impl.
        TypeError: dtypes that disagree or are not taken.
        RuntimeError: a derivative is asked (an input requires grad in grad mode, or carries a forward-mode tangent);
            `impl` is not built.
    """
    unembedding, packed, products = unpacked(OP, weight, products)
    optional = {} if bias is None else {"bias": (bias, "V")}
    targets = on_device_of(OP, "targets", targets, hidden)
    sizes = check_shapes(
        OP,
        hidden=(hidden, "N C"),
        removed=(removed, "A N C"),
        weight=(unembedding, "V C"),
        targets=(targets, "N"),
        **optional,
    )
    if sizes["V"] == 0:
        raise ValueError(f"{OP}: weight must have at least one row")
    hidden, removed, unembedding, bias = autocast_promote(hidden, removed, unembedding, bias)
    check_floating(OP, hidden=hidden, removed=removed, weight=unembedding, bias=bias)
    targets = as_index(OP, "targets", targets)
    check_device(OP, "targets", targets, "hidden", hidden)
    check_products(OP, products, hidden)
    impl = KERNELS.choose(impl, hidden)
    base, difference = _forward_op(hidden, removed, unembedding, packed, targets, bias, products, impl)
    return base, difference


def reference_forward(
    hidden: Tensor,  # [N,C]
    removed: Tensor,  # [A,N,C]
    weight: Tensor,  # [V,C]
    packed: Tensor | None,  # the same
    targets: Tensor,  # [N]
    bias: Tensor | None,  # [V]
    products: str | None,
) -> tuple[Tensor, Tensor]:
    """Base losses [N] and their differences [A,N]."""
    if products == "bfloat16":
        hidden, removed, weight = map(rounded, (hidden, removed, weight))
    wide = accumulate_dtype(hidden.dtype)
    base, difference = hidden.new_empty(len(hidden), dtype=wide), hidden.new_empty(removed.shape[:2], dtype=wide)
    weight, bias = weight.to(wide), None if bias is None else bias.to(wide)
    for rows in row_blocks(len(hidden), len(weight)):
        logits, index = linear(hidden[rows].to(wide), weight, bias), targets[rows, None]
        log_p = logits.log_softmax(-1)
        base[rows] = -log_p.gather(1, index).squeeze(1)
        p = log_p.exp()
        for a in range(len(removed)):
            change = -linear(removed[a, rows].to(wide), weight)  # of the logits
            ablated = (logits + change).log_softmax(-1).gather(1, index).squeeze(1).neg_()
            grown = (p * change.expm1()).sum(1)  # by what fraction the partition function grows
            exact = grown.log1p() - change.gather(1, index).squeeze(1)
            difference[a, rows] = torch.where(grown.abs() <= 0.5, exact, ablated - base[rows])
    return base, difference


def compiled_forward(
    place: str,
    hidden: Tensor,  # [N,C]
    removed: Tensor,  # [A,N,C]
    weight: Tensor,  # [V,C]
    packed: Tensor | None,  # the same
    targets: Tensor,  # [N]
    bias: Tensor | None,  # [V]
    products: str | None,
) -> tuple[Tensor, Tensor]:
    """`reference_forward` by a kernel of csrc, the logits a tile at a time."""
    if products == "bfloat16" and hidden.dtype == torch.float32 and (place != "cpu" or not _backend.bfloat16_unit()):
        hidden, removed, weight = map(rounded, (hidden, removed, weight))
        packed, products = None, "float32"
    (a, n, c), v = removed.shape, len(weight)
    base, difference = hidden.new_empty(n, dtype=torch.float32), hidden.new_empty(a, n, dtype=torch.float32)
    outputs = {"base": base, "difference": difference}
    inputs = {
        "hidden": hidden,
        "removed": removed,
        "weight": weight,
        "packed": packed,
        "targets": targets,
        "bias": bias,
    }
    products = products or str(hidden.dtype).removeprefix("torch.")
    _backend.run(OP, place, outputs, inputs, hidden.dtype, a=a, n=n, c=c, v=v, products=products)
    return base, difference


KERNELS = Kernels(OP, reference=Kernel(reference_forward))
KERNELS.add_compiled(compiled_forward)


def _forward(
    hidden: Tensor,
    removed: Tensor,
    weight: Tensor,
    packed: Tensor | None,
    targets: Tensor,
    bias: Tensor | None,
    products: str | None,
    impl: str,
) -> tuple[Tensor, Tensor]:
    check_index_range(OP, "targets", targets, weight.shape[0])
    result: tuple[Tensor, Tensor] = KERNELS[impl].forward(hidden, removed, weight, packed, targets, bias, products)
    return result


def _empty(hidden: Tensor, removed: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    wide = accumulate_dtype(hidden.dtype)
    return hidden.new_empty(hidden.shape[0], dtype=wide), hidden.new_empty(removed.shape[:2], dtype=wide)


_forward_op = register(
    "cross_entropy_difference(Tensor hidden, Tensor removed, Tensor weight, Tensor? packed, Tensor targets,"
    " Tensor? bias, str? products, str impl) -> (Tensor base, Tensor difference)",
    _forward,
    _empty,
)
