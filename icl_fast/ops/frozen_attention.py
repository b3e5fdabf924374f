"""frozen_attention: one attention pattern, computed once, applied to the values of many ablated variants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icl_fast.ops import _backend
from icl_fast.ops._attention import batch_blocks, causal_scores, weigh
from icl_fast.ops._library import register, register_out
from icl_fast.ops._registry import Kernel, Kernels
from icl_fast.ops._validate import (
    accumulate_dtype,
    as_index,
    as_number,
    autocast,
    check_device,
    check_floating,
    check_index_range,
    check_products,
    check_shapes,
    on_device_of,
    window_per_head,
)

OP = "frozen_attention"


def frozen_attention(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    *,
    scale: float,
    window: int | Sequence[int | None] | Tensor | None = None,
    rows: Tensor | None = None,
    pattern: Tensor | None = None,
    out: Tensor | None = None,
    products: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """Causal attention of A variants that share one pattern: `out[a] = softmax(scale q k^T) v[a]`.

    The pattern-preserving ablation of Olsson et al. 2022 ("Per-token losses (attention head ablations)"): queries and
    keys are those of the run without ablation, only the values differ. Equivalent to, in torch:

        pattern = (scale * q @ k.mT).masked_fill(unseen, -inf).softmax(-1)
        pattern.gather(2, rows[:, None, :, None].expand(B, H, R, T)) @ v

    Computed in float32 (float64 for float64 inputs). Where the pattern is exactly 0 the value counts for nothing, be
    it nan or infinite; impl="cuda" promises that only of values outside the tiles of keys that a row's tile sees. Under
    `torch.autocast` the floating inputs are cast as for a matmul.

    Args:
        q: [B,H,T,D], as attention sees it (after any rotation); None only with `pattern`.
        k: [B,H,T,D], as attention sees it (after any rotation and smear); None only with `pattern`.
        v: [A,B,H,T,Dv].
        scale: factor on the scores, usually 1 / sqrt(D). Not used with `pattern`.
        window: local attention: with a window of w, query i sees keys i-w+1..i. None: all heads are dense; an int: for
            all heads; a sequence or a tensor of integers [H]: per head, where 0 (or None in a sequence) is dense. Give
            a tensor on the device of `v` in a loop on a GPU: the others are copied there at each call. Its values are
            not looked at; below 0 is dense too.
        rows: integers [B,R], 0-based query positions to compute, in any order, repeats allowed. None: all T.
        pattern: [B,H,T,T] (query, key), an explicit pattern, applied as it is: no mask, no normalisation.
        out: contiguous, of the shape and dtype of the result, which is written there: for calls in a loop, where the
            pages of a new result of tens of megabytes cost a CPU a fifth of the time.
        products: "bfloat16": q, k, v and the pattern are rounded to it where they are multiplied; softmax and sums stay
            float32. For float32 inputs on a CPU with bfloat16 units (see `icl-fast info`); elsewhere it is the slower
            way to the same. None or "float32": as they are.
        impl: "auto" (the best built one), "reference", "cpu" or "cuda"; one that is named is never replaced by another.

    Returns:
        [A,B,H,R,Dv] in the dtype of v; R = T without `rows`. `out`, if it was given.

    Raises:
        ValueError: shapes or devices that disagree; q or k missing without a pattern; a pattern with q, k or a window;
            a negative window; a scale that is not finite; a row out of range (looked at on CPU only: on a GPU it is
            undefined); an `out` that is not contiguous or shares memory with an input; products="bfloat16" of float32
            inputs on a GPU; unknown products or impl.
        TypeError: dtypes that disagree or are not taken.
        RuntimeError: a derivative is asked (an input requires grad in grad mode, or carries a forward-mode tangent);
            `impl` is not built.
    """
    if pattern is None:
        if q is None or k is None:
            raise ValueError(f"{OP}: q and k are needed without a pattern")
        sizes = check_shapes(OP, q=(q, "B H T D"), k=(k, "B H T D"), v=(v, "A B H T Dv"))
        q, k, v = autocast(q, k, v)
    else:
        if q is not None or k is not None or window is not None:
            raise ValueError(f"{OP}: pattern replaces q, k and window; give either it or them")
        sizes = check_shapes(OP, v=(v, "A B H T Dv"), pattern=(pattern, "B H T T"))
        v, pattern = autocast(v, pattern)
    check_floating(OP, v=v, q=q, k=k, pattern=pattern)
    check_products(OP, products, v)
    if rows is not None:
        rows = on_device_of(OP, "rows", rows, v)
        check_shapes(OP, v=(v, "A B H T Dv"), rows=(rows, "B R"))
        rows = as_index(OP, "rows", rows)
        check_device(OP, "rows", rows, "v", v)
    window = window_per_head(OP, window, sizes["H"], v.device)
    scale = as_number(OP, "scale", scale)
    arguments = q, k, v, scale, window, rows, pattern, products, KERNELS.choose(impl, v)
    if out is None:
        result: Tensor = _forward_op(*arguments)
        return result
    if rows is None:
        check_shapes(OP, v=(v, "A B H T Dv"), out=(out, "A B H T Dv"))
    else:
        check_shapes(OP, v=(v, "A B H T Dv"), rows=(rows, "B R"), out=(out, "A B H R Dv"))
    check_floating(OP, v=v, out=out)
    if not out.is_contiguous():
        raise ValueError(f"{OP}: out must be contiguous, got strides {list(out.stride())}")
    _out_op(*arguments, out)
    return out


def reference_forward(
    q: Tensor | None,  # [B,H,T,D]
    k: Tensor | None,  # [B,H,T,D]
    v: Tensor,  # [A,B,H,T,Dv]
    scale: float,
    window: Tensor | None,  # [H]
    rows: Tensor | None,  # [B,R]
    pattern: Tensor | None,  # [B,H,T,T]
    products: str | None,
    out: Tensor,  # [A,B,H,R,Dv], written into
) -> None:
    batch, heads, length = v.shape[1:4]
    if products == "bfloat16":
        q, k, v, pattern = map(_rounded, (q, k, v, pattern))
    wide = accumulate_dtype(v.dtype)
    if rows is None:
        rows = torch.arange(length, device=v.device).expand(batch, length)
    for block in batch_blocks(batch, heads * rows.shape[1] * length):
        if pattern is not None:
            weights = _take_rows(pattern[block], rows[block]).to(wide)
        elif q is not None and k is not None:
            queries = _take_rows(q[block], rows[block]).to(wide)
            weights = causal_scores(queries, k[block].to(wide), rows[block], scale, window).softmax(-1)
        else:
            raise ValueError(f"{OP}: q and k are needed without a pattern")
        out[:, block] = weigh(weights, v[:, block].to(wide)).to(v.dtype)


def _rounded(tensor: Tensor | None) -> Any:
    """To bfloat16, in the dtype it has."""
    return None if tensor is None else tensor.bfloat16().to(tensor.dtype)


def _take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows [B,R] of tensor [B,H,T,X]: [B,H,R,X]."""
    _, heads, _, width = tensor.shape
    return tensor.gather(2, rows[:, None, :, None].expand(-1, heads, -1, width))


def compiled_forward(
    place: str,
    q: Tensor | None,  # [B,H,T,D]
    k: Tensor | None,  # [B,H,T,D]
    v: Tensor,  # [A,B,H,T,Dv]
    scale: float,
    window: Tensor | None,  # [H]
    rows: Tensor | None,  # [B,R]
    pattern: Tensor | None,  # [B,H,T,T]
    products: str | None,
    out: Tensor,  # [A,B,H,R,Dv], written into
) -> None:
    """`reference_forward` by a kernel of csrc."""
    if products == "bfloat16" and v.dtype == torch.float32 and _backend.bfloat16_unit() is None:
        q, k, v, pattern = map(_rounded, (q, k, v, pattern))
    variants, batch, heads, length, width = v.shape
    _backend.run(
        "frozen_attention",
        place,
        {"out": out},
        {"q": q, "k": k, "v": v, "pattern": pattern, "window": window, "rows": rows},
        v.dtype,
        variants=variants,
        batch=batch,
        heads=heads,
        length=length,
        rows_per_example=out.shape[3],
        depth=0 if q is None else q.shape[3],
        width=width,
        scale=scale,
        products=products or str(v.dtype).removeprefix("torch."),
    )


KERNELS = Kernels(OP, reference=Kernel(reference_forward))
KERNELS.add_compiled(compiled_forward)


def _forward(*arguments: Any) -> Tensor:
    out = _empty(*arguments)
    _compute(*[*arguments, out])
    return out


def _forward_into(*arguments: Any) -> None:
    q, k, v, _, _, _, pattern, *_, out = arguments
    for name, tensor in {"q": q, "k": k, "v": v, "pattern": pattern}.items():
        if tensor is not None and tensor.untyped_storage().data_ptr() == out.untyped_storage().data_ptr() != 0:
            raise ValueError(f"{OP}: out shares memory with {name}; give a tensor of its own")
    _compute(*arguments)


def _compute(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    scale: float,
    window: Tensor | None,
    rows: Tensor | None,
    pattern: Tensor | None,
    products: str | None,
    impl: str,
    out: Tensor,
) -> None:
    if rows is not None:
        check_index_range(OP, "rows", rows, v.shape[3])
    KERNELS[impl].forward(q, k, v, scale, window, rows, pattern, products, out)


def _empty(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    scale: float,
    window: Tensor | None,
    rows: Tensor | None,
    *rest: object,
) -> Tensor:
    length = v.shape[3] if rows is None else rows.shape[1]
    return v.new_empty(*v.shape[:3], length, v.shape[4])


_forward_op = register(
    "frozen_attention(Tensor? q, Tensor? k, Tensor v, float scale, Tensor? window, Tensor? rows, Tensor? pattern,"
    " str? products, str impl) -> Tensor",
    _forward,
    _empty,
)
_out_op = register_out(
    "frozen_attention_out(Tensor? q, Tensor? k, Tensor v, float scale, Tensor? window, Tensor? rows, Tensor? pattern,"
    " str? products, str impl, Tensor(a!) out) -> ()",
    _forward_into,
)
