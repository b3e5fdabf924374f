"""smeared_attention: causal attention whose keys are a mix of the current and the previous token's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icl_fast.ops import _backend
from icl_fast.ops._attention import batch_blocks, causal_scores, unseen_keys, weigh
from icl_fast.ops._library import derivative_of_backward, register
from icl_fast.ops._registry import Kernel, Kernels
from icl_fast.ops._validate import (
    accumulate_dtype,
    as_number,
    autocast,
    autocast_is_on,
    check_device,
    check_floating,
    check_shapes,
    window_per_head,
)

OP = "smeared_attention"


def smeared_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    *,
    scale: float,
    window: int | Sequence[int | None] | Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Causal attention on smeared keys: `k'_j = s k_j + (1 - s) k_{j-1}`, `s = sigmoid(alpha_h)`, `k'_0 = k_0`.

    Olsson et al. 2022, "Argument 2" and "Smeared key models": with it one layer is enough to form induction heads.
    Equivalent to, in torch:

        smeared = torch.cat([k[:, :, :1], torch.lerp(k[:, :, :-1], k[:, :, 1:], alpha.sigmoid()[:, None, None])], 2)
        F.scaled_dot_product_attention(q, smeared, v, is_causal=True, scale=scale)

    Computed in float32 (float64 for float64 inputs). Forward and backward: gradients of q, k, v and alpha; forward
    mode and second derivatives go through plain torch, which holds all the scores. In the forward a value that a row
    does not see counts for nothing, be it nan or infinite; impl="cuda" promises that only of values outside the tiles
    of keys that a row's tile sees. Under `torch.autocast` q, k and v are cast as for a matmul.

    Args:
        q: [B,H,T,D], as attention sees it (after any rotation).
        k: [B,H,T,D], as attention sees it but for the smear (after any rotation).
        v: [B,H,T,D].
        alpha: [H], before the sigmoid; float32 or the dtype of q.
        scale: factor on the scores, usually 1 / sqrt(D).
        window: local attention: with a window of w, query i sees keys i-w+1..i, after the smear. None: all heads are
            dense; an int: for all heads; a sequence or a tensor of integers [H]: per head, where 0 (or None in a
            sequence) is dense. Give a tensor on the device of `q` in a loop on a GPU: the others are copied there at
            each call. Its values are not looked at; below 0 is dense too.
        impl: "auto" (the best built one), "reference", "cpu" or "cuda"; one that is named is never replaced by another.

    Returns:
        [B,H,T,D] in the dtype of q.

    Raises:
        ValueError: shapes or devices that disagree; a negative window; a scale that is not finite; an unknown impl.
        TypeError: dtypes that disagree or are not taken.
        RuntimeError: `impl` is not built.
    """
    sizes = check_shapes(OP, q=(q, "B H T D"), k=(k, "B H T D"), v=(v, "B H T D"), alpha=(alpha, "H"))
    q, k, v = autocast(q, k, v)
    check_floating(OP, q=q, k=k, v=v)
    if autocast_is_on(q) and alpha.dtype in (torch.bfloat16, torch.float16):
        alpha = alpha.float()
    if alpha.dtype not in (torch.float32, q.dtype):
        raise TypeError(f"{OP}: alpha must be float32 or have the dtype of q, {q.dtype}, got {alpha.dtype}")
    check_device(OP, "alpha", alpha, "q", q)
    window = window_per_head(OP, window, sizes["H"], q.device)
    scale = as_number(OP, "scale", scale)
    out: Tensor = _forward_op(q, k, v, alpha, scale, window, KERNELS.choose(impl, q))[0]
    return out


def reference_forward(
    q: Tensor,  # [B,H,T,D]
    k: Tensor,  # [B,H,T,D]
    v: Tensor,  # [B,H,T,D]
    alpha: Tensor,  # [H]
    scale: float,
    window: Tensor | None,  # [H]
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B,H,T,D], and per row the largest score and the log of the sum of exp(score - largest), [B,H,T]."""
    batch, heads, length, _ = q.shape
    wide = accumulate_dtype(q.dtype)
    rows = torch.arange(length, device=q.device)[None]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    peak, log_sum = (q.new_empty(batch, heads, length, dtype=wide) for _ in range(2))
    if out.numel() == 0:
        return out, peak, log_sum
    gate = alpha.to(wide).sigmoid()[:, None, None]
    for block in batch_blocks(batch, heads * length * length):
        scores = causal_scores(q[block].to(wide), smear(k[block].to(wide), gate), rows, scale, window)
        peak[block] = scores.amax(-1)
        weights = scores.sub_(peak[block][..., None]).exp_()
        total = weights.sum(-1)
        log_sum[block] = total.log()
        out[block] = (weigh(weights, v[block].to(wide)) / total[..., None]).to(q.dtype)
    return out, peak, log_sum


def reference_backward(
    grad_out: Tensor,  # [B,H,T,D]
    q: Tensor,  # [B,H,T,D]
    k: Tensor,  # [B,H,T,D]
    v: Tensor,  # [B,H,T,D]
    alpha: Tensor,  # [H]
    out: Tensor,  # [B,H,T,D]
    peak: Tensor,  # [B,H,T]
    log_sum: Tensor,  # [B,H,T]
    scale: float,
    window: Tensor | None,  # [H]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and alpha."""
    batch, heads, length, _ = q.shape
    wide = accumulate_dtype(q.dtype)
    rows = torch.arange(length, device=q.device)[None]
    grad_q, grad_k, grad_v = (torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(3))
    gate = alpha.to(wide).sigmoid()[:, None, None]
    grad_gate = torch.zeros_like(gate)
    for block in batch_blocks(batch, heads * length * length):
        queries, keys, values, grad = (t[block].to(wide) for t in (q, k, v, grad_out))
        smeared = smear(keys, gate)
        scores = causal_scores(queries, smeared, rows, scale, window)
        weights = scores.sub_(peak[block][..., None]).sub_(log_sum[block][..., None]).exp_()
        mean_grad = (grad * out[block].to(wide)).sum(-1, keepdim=True)
        grad_scores = (grad @ values.mT).sub_(mean_grad).mul_(weights).mul_(scale)
        grad_v[block] = (weights.mT @ grad).to(q.dtype)
        grad_q[block] = (grad_scores @ smeared).to(q.dtype)
        grad_smeared = grad_scores.mT @ queries
        # key j feeds its own smeared key (with 1 - s at key 0, which is not smeared) and the next one
        grad_keys = gate * grad_smeared
        grad_keys[:, :, :1] = grad_smeared[:, :, :1]
        grad_keys[:, :, :-1] += (1 - gate) * grad_smeared[:, :, 1:]
        grad_k[block] = grad_keys.to(q.dtype)
        step = keys[:, :, 1:] - keys[:, :, :-1]
        grad_gate += (grad_smeared[:, :, 1:] * step).sum((0, 2, 3))[:, None, None]
    grad_alpha = (grad_gate * gate * (1 - gate)).flatten()
    return grad_q, grad_k, grad_v, grad_alpha.to(alpha.dtype)


def smear(k: Tensor, gate: Tensor) -> Tensor:
    """gate * k_j + (1 - gate) * k_{j-1} along dim 2 of k [B,H,T,D], key 0 unchanged; gate [H,1,1] in 0..1."""
    return torch.cat([k[:, :, :1], torch.lerp(k[:, :, :-1], k[:, :, 1:], gate)], dim=2)


def compiled_forward(
    place: str,
    q: Tensor,  # [B,H,T,D]
    k: Tensor,  # [B,H,T,D]
    v: Tensor,  # [B,H,T,D]
    alpha: Tensor,  # [H]
    scale: float,
    window: Tensor | None,  # [H]
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference_forward` by a kernel of csrc."""
    batch, heads, length, depth = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    peak, log_sum = (q.new_empty(batch, heads, length, dtype=torch.float32) for _ in range(2))
    sizes = {"batch": batch, "heads": heads, "length": length, "depth": depth}
    outputs = {"out": out, "peak": peak, "log_sum": log_sum}
    inputs = {"q": q, "k": k, "v": v, "gate": alpha.float().sigmoid(), "window": window}
    _backend.run(f"{OP}_fwd", place, outputs, inputs, q.dtype, **sizes, scale=scale)
    return out, peak, log_sum


def compiled_backward(
    place: str,
    grad_out: Tensor,  # [B,H,T,D]
    q: Tensor,  # [B,H,T,D]
    k: Tensor,  # [B,H,T,D]
    v: Tensor,  # [B,H,T,D]
    alpha: Tensor,  # [H]
    out: Tensor,  # [B,H,T,D]
    peak: Tensor,  # [B,H,T]
    log_sum: Tensor,  # [B,H,T]
    scale: float,
    window: Tensor | None,  # [H]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference_backward` by a kernel of csrc."""
    batch, heads, length, depth = q.shape
    grad_q, grad_k, grad_v = (torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(3))
    grad_gate = q.new_empty(batch, heads, dtype=torch.float64)
    sizes = {"batch": batch, "heads": heads, "length": length, "depth": depth}
    outputs = {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v, "grad_gate": grad_gate}
    inputs = {
        **{"q": q, "k": k, "v": v, "gate": alpha.float().sigmoid(), "window": window},
        **{"grad_out": grad_out, "out": out, "peak": peak, "log_sum": log_sum},
    }
    _backend.run(f"{OP}_bwd", place, outputs, inputs, q.dtype, **sizes, scale=scale)
    slope = alpha.double().sigmoid() * alpha.double().neg().sigmoid()
    return grad_q, grad_k, grad_v, (grad_gate.sum(0) * slope).to(alpha.dtype)


KERNELS = Kernels(OP, reference=Kernel(reference_forward, reference_backward))
KERNELS.add_compiled(compiled_forward, compiled_backward)


def plain_forward(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, scale: float, window: Tensor | None, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference_forward` in one piece, for torch to differentiate."""
    queries, keys, values, gate = _widened(q, k, v, alpha)
    scores = _scores(queries, smear(keys, gate), scale, window)
    peak = scores.amax(-1).detach() if scores.shape[-1] else scores.sum(-1)
    total = (scores - peak[..., None]).exp().sum(-1)
    return (scores.softmax(-1) @ values).to(q.dtype), peak, total.log()


def plain_backward(
    grad_out: Tensor,  # [B,H,T,D]
    q: Tensor,  # [B,H,T,D]
    k: Tensor,  # [B,H,T,D]
    v: Tensor,  # [B,H,T,D]
    alpha: Tensor,  # [H]
    window: Tensor | None,  # [H]
    out: Tensor,  # not read, nor the next two: a derivative goes through the inputs
    peak: Tensor,
    log_sum: Tensor,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference_backward` in one piece, for torch to differentiate."""
    queries, keys, values, gate = _widened(q, k, v, alpha)
    smeared, grad = smear(keys, gate), grad_out.to(values.dtype)
    weights = _scores(queries, smeared, scale, window).softmax(-1)
    grad_weights = grad @ values.mT
    grad_scores = scale * weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
    grad_smeared = grad_scores.mT @ queries
    first, rest = grad_smeared[:, :, :1], grad_smeared[:, :, 1:]
    onto_next = torch.nn.functional.pad((1 - gate) * rest, (0, 0, 0, 1))
    grad_k = torch.cat([first, gate * rest], dim=2) + onto_next[:, :, : keys.shape[2]]
    grad_gate = (rest * (keys[:, :, 1:] - keys[:, :, :-1])).sum((0, 2, 3))
    gate = gate.flatten()
    return (
        (grad_scores @ smeared).to(q.dtype),
        grad_k.to(q.dtype),
        (weights.mT @ grad).to(q.dtype),
        (grad_gate * gate * (1 - gate)).to(alpha.dtype),
    )


def _widened(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
    """All in the dtype of the computation, alpha as the gate [H,1,1]."""
    wide = accumulate_dtype(q.dtype)
    return q.to(wide), k.to(wide), v.to(wide), alpha.to(wide).sigmoid()[:, None, None]


def _scores(queries: Tensor, smeared: Tensor, scale: float, window: Tensor | None) -> Tensor:
    length = queries.shape[2]
    unseen = unseen_keys(torch.arange(length, device=queries.device)[None], length, window)
    return (scale * queries @ smeared.mT).masked_fill(unseen, float("-inf"))


def _forward(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, scale: float, window: Tensor | None, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = KERNELS[impl].forward(q, k, v, alpha, scale, window)
    return result


def _empty(q: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    peak, log_sum = (q.new_empty(q.shape[:3], dtype=accumulate_dtype(q.dtype)) for _ in range(2))
    return q.new_empty(q.shape), peak, log_sum


def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    window: Tensor | None,
    out: Tensor,
    peak: Tensor,
    log_sum: Tensor,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = KERNELS.backward(impl)(
        grad_out, q, k, v, alpha, out, peak, log_sum, scale, window
    )
    return gradients


def _empty_gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), alpha.new_empty(alpha.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, alpha, ctx.scale, window, ctx.impl = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(q, k, v, alpha, window, *output)


def _differentiate(ctx: Any, grad_out: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _backward_op(grad_out, *ctx.saved_tensors, ctx.scale, ctx.impl)
    wanted = (g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad[:4], strict=True))
    return (*wanted, None, None, None)


_backward_op = register(
    "smeared_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor? window,"
    " Tensor out, Tensor peak, Tensor log_sum, float scale, str impl)"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_alpha)",
    _backward,
    _empty_gradients,
    derivative_of_backward(plain_backward),
)
_forward_op = register(
    "smeared_attention(Tensor q, Tensor k, Tensor v, Tensor alpha, float scale, Tensor? window, str impl)"
    " -> (Tensor out, Tensor peak, Tensor log_sum)",
    _forward,
    _empty,
    (_save, _differentiate, plain_forward),
)
