"""linear_cross_entropy: unembedding and cross entropy in one op, without the [...,V] logits in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import linear

from icl_fast.ops import _backend
from icl_fast.ops._library import derivative_of_backward, register
from icl_fast.ops._registry import Kernel, Kernels
from icl_fast.ops._validate import (
    accumulate_dtype,
    as_index,
    as_integer,
    autocast,
    check_dense,
    check_device,
    check_floating,
    check_index_range,
    check_one_of,
    check_shapes,
    on_device_of,
)
from icl_fast.ops.position_loss import PositionLoss

OP = "linear_cross_entropy"
LOGITS_AT_A_TIME = 2**22
# of a mean's gradients in its forward. With more in float32 the logits of enough rows do not stay in a cache, with more
# in bfloat16 moving the gradient of the weight takes as long as computing logits again
MOST_WORDS = {torch.float32: 8192, torch.bfloat16: 2**17}


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["none", "mean"] = "none",
    position_loss: None = None,
    impl: str = "auto",
) -> Tensor: ...


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["position"],
    position_loss: PositionLoss | None = None,
    impl: str = "auto",
) -> PositionLoss: ...


@overload
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean_and_losses"],
    position_loss: None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["none", "mean", "mean_and_losses", "position"] = "none",
    position_loss: PositionLoss | None = None,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor] | PositionLoss:
    """Cross entropy of `hidden @ weight.T + bias` with `targets`, never holding all the logits.

    `loss = log(sum_v exp(logit_v)) - logit_target`, in nats, accumulated in float32 (float64 for float64 inputs).
    Equivalent to, in torch:

        logits = F.linear(hidden.float(), weight.float(), bias.float())
        F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index, reduction="none")

    Forward and backward: gradients of `hidden`, `weight` and `bias`, through all but "position"; forward mode and
    second derivatives go through plain torch, which holds the logits. On CPU a mean that is to have gradients of both
    `hidden` and `weight` makes them with the loss, so that logits are computed once: in float32 of at most 8192 words,
    in bfloat16, where the processor has a unit for it, of at most 131072. Under `torch.autocast` the floating inputs
    are cast as for `F.linear`. The source is the per-token loss of Olsson et al. 2022, "Data Collection".

    Args:
        hidden: [...,T,C], float32, bfloat16, float16 or float64.
        weight: [V,C].
        targets: integers [...,T], a tensor, array or lists, in 0..V-1 or `ignore_index`.
        bias: [V].
        ignore_index: positions with this target count for nothing: loss 0, gradient 0, whatever `hidden` is there.
        reduction: "none": the losses [...,T]; "mean": the mean over positions not ignored (nan if there are none, as
            in torch); "mean_and_losses": the mean, and the losses [...,T] without gradient; "position": adds the losses
            into `position_loss`, no gradient.
        position_loss: the accumulator for "position"; None makes a new one.
        impl: "auto" (the best built one), "reference", "cpu" or "cuda"; one that is named is never replaced by another.

    Returns:
        float32 losses (float64 for float64 inputs) for "none" and "mean", a tuple of them for "mean_and_losses", the
        `PositionLoss` for "position".

    Raises:
        ValueError: shapes or devices that disagree; an unknown `reduction` or `impl`; a target out of range (looked at
            on CPU only, as it would stall a GPU: there such a target is undefined).
        TypeError: dtypes that disagree or are not taken.
        RuntimeError: `impl` is not built.
    """
    check_one_of(OP, "reduction", reduction, ("none", "mean", "mean_and_losses", "position"))
    if position_loss is not None and reduction != "position":
        raise ValueError(f"{OP}: position_loss goes with reduction='position', got reduction={reduction!r}")
    if not isinstance(position_loss, PositionLoss | None):
        raise TypeError(f"{OP}: position_loss must be a PositionLoss, got {type(position_loss).__name__}")
    ignore_index = as_integer(OP, "ignore_index", ignore_index)
    sizes = check_shapes(OP, weight=(weight, "V C"), **({} if bias is None else {"bias": (bias, "V")}))
    targets = on_device_of(OP, "targets", targets, hidden)
    if not isinstance(hidden, Tensor) or not isinstance(targets, Tensor):
        raise TypeError(f"{OP}: hidden and targets must be tensors [...,T,C] and [...,T]")
    check_dense(OP, "hidden", hidden)
    check_dense(OP, "targets", targets)
    if hidden.ndim < 2 or hidden.shape[-1] != sizes["C"]:
        raise ValueError(f"{OP}: hidden must be [...,T,C] with C={sizes['C']} as in weight, got {list(hidden.shape)}")
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(f"{OP}: targets must be {list(hidden.shape[:-1])} as in hidden, got {list(targets.shape)}")
    if sizes["V"] == 0:
        raise ValueError(f"{OP}: weight must have at least one row")
    hidden, weight, bias = autocast(hidden, weight, bias)
    check_floating(OP, hidden=hidden, weight=weight, bias=bias)
    targets = as_index(OP, "targets", targets)
    check_device(OP, "targets", targets, "hidden", hidden)

    impl = KERNELS.choose(impl, hidden)
    flat = hidden.flatten(0, -2), weight, targets.flatten(), bias, ignore_index
    mean: Tensor | None = None
    losses: Tensor
    with torch.set_grad_enabled(torch.is_grad_enabled() and reduction != "position"):
        if reduction.startswith("mean") and _makes_gradients(hidden, weight, impl):
            mean, losses, *_ = _mean_op(*flat)
        else:
            losses = _forward_op(*flat, impl)[0]
    losses = losses.view(targets.shape)
    if reduction == "none":
        return losses
    kept = targets != ignore_index
    if reduction != "position":
        mean = losses.sum() / kept.sum() if mean is None else mean
        return mean if reduction == "mean" else (mean, losses.detach())
    if position_loss is None:
        position_loss = PositionLoss(targets.shape[-1], device=targets.device)
    position_loss.add(losses, kept)
    return position_loss


def reference_forward(
    hidden: Tensor,  # [N,C]
    weight: Tensor,  # [V,C]
    targets: Tensor,  # [N]
    bias: Tensor | None,  # [V]
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [N], and per row the largest logit [N] and the log of the sum of exp(logit - largest) [N].

    The two are kept apart, and not added to a logsumexp, because the sum rounds at the size of the largest logit: the
    backward would then miss probabilities near 1 by far more than plain torch does.
    """
    wide = accumulate_dtype(hidden.dtype)
    losses, peak, log_sum = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(3))
    ignored = targets == ignore_index
    index = targets.masked_fill(ignored, 0)[:, None]
    weight, bias = weight.to(wide), None if bias is None else bias.to(wide)
    for rows in row_blocks(len(hidden), len(weight)):
        logits = linear(_clean_rows(hidden[rows], ignored[rows]), weight, bias)
        peak[rows] = logits.amax(1)
        logits -= peak[rows, None]
        at_target = logits.gather(1, index[rows]).squeeze(1)
        log_sum[rows] = logits.exp_().sum(1).log()
        losses[rows] = log_sum[rows] - at_target
    return losses.masked_fill_(ignored, 0), peak, log_sum


def reference_backward(
    grad_losses: Tensor,  # [N]
    hidden: Tensor,  # [N,C]
    weight: Tensor,  # [V,C]
    targets: Tensor,  # [N]
    bias: Tensor | None,  # [V]
    losses: Tensor,  # [N]
    peak: Tensor,  # [N]
    log_sum: Tensor,  # [N]
    ignore_index: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias; one that is not needed comes back empty, [0]."""
    wide = accumulate_dtype(hidden.dtype)
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else 0)
    grad_weight = hidden.new_zeros(weight.shape if need_weight else 0, dtype=wide)
    grad_bias = hidden.new_zeros(len(weight) if need_bias else 0, dtype=wide)
    ignored = targets == ignore_index
    index = targets.masked_fill(ignored, 0)[:, None]
    grad_losses = grad_losses.masked_fill(ignored, 0)
    columns, offset = weight.to(wide), None if bias is None else bias.to(wide)
    for rows in row_blocks(len(hidden), len(weight)):
        clean = _clean_rows(hidden[rows], ignored[rows])
        grad_logits = linear(clean, columns, offset)
        grad_logits.sub_(peak[rows, None]).sub_(log_sum[rows, None]).exp_()
        # p - 1 at the target, without the cancellation when p is near 1
        grad_logits.scatter_(1, index[rows], losses[rows, None].neg().expm1())
        grad_logits *= grad_losses[rows, None]
        if need_hidden:
            grad_hidden[rows] = (grad_logits @ columns).to(hidden.dtype)
        if need_weight:
            grad_weight.addmm_(grad_logits.T, clean)
        if need_bias:
            grad_bias += grad_logits.sum(0)
    return grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def row_blocks(rows: int, vocabulary: int) -> list[slice]:
    """Rows whose logits are computed at a time: a bounded number of them."""
    step = max(1, LOGITS_AT_A_TIME // vocabulary)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _clean_rows(hidden: Tensor, ignored: Tensor) -> Tensor:
    # an ignored row may hold anything, and 0 * nan is nan
    return hidden.to(accumulate_dtype(hidden.dtype)).masked_fill(ignored[:, None], 0)


def compiled_forward(
    place: str,
    hidden: Tensor,  # [N,C]
    weight: Tensor,  # [V,C]
    targets: Tensor,  # [N]
    bias: Tensor | None,  # [V]
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference_forward` by a kernel of csrc."""
    (n, c), v = hidden.shape, weight.shape[0]
    losses, peak, log_sum = (hidden.new_empty(n, dtype=torch.float32) for _ in range(3))
    outputs = {"losses": losses, "peak": peak, "log_sum": log_sum}
    inputs = {"hidden": hidden, "weight": weight, "targets": targets, "bias": bias}
    _backend.run(f"{OP}_fwd", place, outputs, inputs, hidden.dtype, n=n, c=c, v=v, ignore_index=ignore_index)
    return losses, peak, log_sum


def compiled_backward(
    place: str,
    grad_losses: Tensor,  # [N]
    hidden: Tensor,  # [N,C]
    weight: Tensor,  # [V,C]
    targets: Tensor,  # [N]
    bias: Tensor | None,  # [V]
    losses: Tensor,  # [N]
    peak: Tensor,  # [N]
    log_sum: Tensor,  # [N]
    ignore_index: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference_backward` by a kernel of csrc."""
    (n, c), v = hidden.shape, weight.shape[0]
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else 0)
    grad_weight = weight.new_empty(weight.shape if need_weight else 0)
    grad_bias = weight.new_empty(v if need_bias else 0)
    if n == 0:
        return grad_hidden, grad_weight.zero_(), grad_bias.zero_()
    outputs = {
        "grad_hidden": grad_hidden if need_hidden else None,
        "grad_weight": grad_weight if need_weight else None,
        "grad_bias": grad_bias if need_bias else None,
    }
    inputs = {
        **{"grad_losses": grad_losses, "hidden": hidden, "weight": weight, "targets": targets, "bias": bias},
        **{"losses": losses, "peak": peak, "log_sum": log_sum},
    }
    _backend.run(f"{OP}_bwd", place, outputs, inputs, hidden.dtype, n=n, c=c, v=v, ignore_index=ignore_index)
    return grad_hidden, grad_weight, grad_bias


KERNELS = Kernels(OP, reference=Kernel(reference_forward, reference_backward))
KERNELS.add_compiled(compiled_forward, compiled_backward)


def plain_forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference_forward` in one piece, for torch to differentiate."""
    _, _, logits, index, ignored = _plain_logits(hidden, weight, targets, bias, ignore_index)
    peak = logits.amax(1).detach()
    losses = -logits.log_softmax(1).gather(1, index).squeeze(1)
    return losses.masked_fill(ignored, 0), peak, (logits - peak[:, None]).exp().sum(1).log()


def plain_backward(
    grad_losses: Tensor,  # [N]
    hidden: Tensor,  # [N,C]
    weight: Tensor,  # [V,C]
    targets: Tensor,  # [N]
    bias: Tensor | None,  # [V]
    losses: Tensor,  # not read, nor the next two: a derivative goes through the inputs
    peak: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference_backward` in one piece, for torch to differentiate."""
    clean, columns, logits, index, ignored = _plain_logits(hidden, weight, targets, bias, ignore_index)
    at_target = torch.arange(len(weight), device=weight.device) == index
    grad_logits = (logits.softmax(1) - at_target.to(logits.dtype)) * grad_losses.masked_fill(ignored, 0)[:, None]
    return (
        (grad_logits @ columns).to(hidden.dtype) if need_hidden else hidden.new_empty(0),
        (grad_logits.mT @ clean).to(weight.dtype) if need_weight else weight.new_empty(0),
        grad_logits.sum(0).to(weight.dtype) if need_bias else weight.new_empty(0),
    )


def _plain_logits(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int
) -> tuple[Tensor, ...]:
    """Hidden states and weight in the dtype of the computation, logits [N,V], index [N,1] and what is ignored [N]."""
    ignored = targets == ignore_index
    clean = _clean_rows(hidden, ignored)
    columns, offset = weight.to(clean.dtype), None if bias is None else bias.to(clean.dtype)
    return clean, columns, linear(clean, columns, offset), targets.masked_fill(ignored, 0)[:, None], ignored


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    check_index_range(OP, "targets", targets, weight.shape[0], ignore_index)
    result: tuple[Tensor, Tensor, Tensor] = KERNELS[impl].forward(hidden, weight, targets, bias, ignore_index)
    return result


def _empty(hidden: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    wide = accumulate_dtype(hidden.dtype)
    losses, peak, log_sum = (hidden.new_empty(hidden.shape[0], dtype=wide) for _ in range(3))
    return losses, peak, log_sum


def _backward(grad_losses: Tensor, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *others, impl = rest
    gradients: tuple[Tensor, Tensor, Tensor] = KERNELS.backward(impl)(grad_losses, hidden, *others)
    return gradients


def _empty_gradients(grad_losses: Tensor, hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    need_hidden, need_weight, need_bias = rest[-4:-1]
    return (
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_weight else 0),
        weight.new_empty(weight.shape[0] if need_bias else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, targets, bias, ctx.ignore_index, ctx.impl = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(hidden, weight, targets, bias, *output)


def _differentiate(ctx: Any, grad_losses: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _backward_op(grad_losses, *ctx.saved_tensors, ctx.ignore_index, *_needs(ctx), ctx.impl)
    return *_for_inputs(ctx, gradients), None  # impl


def _needs(ctx: Any) -> tuple[bool, bool, bool]:
    """Whether hidden, weight and bias need a gradient."""
    hidden, weight, _, bias, *_ = ctx.needs_input_grad
    return hidden, weight, bias


def _for_inputs(ctx: Any, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """For hidden, weight, targets, bias and ignore_index, from gradients of hidden, weight and bias."""
    hidden, weight, bias = (g if needed else None for g, needed in zip(gradients, _needs(ctx), strict=True))
    return hidden, weight, None, bias, None


_backward_op = register(
    "linear_cross_entropy_backward(Tensor grad_losses, Tensor hidden, Tensor weight, Tensor targets, Tensor? bias,"
    " Tensor losses, Tensor peak, Tensor log_sum, int ignore_index, bool need_hidden, bool need_weight,"
    " bool need_bias, str impl) -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    _backward,
    _empty_gradients,
    derivative_of_backward(plain_backward),
)
_forward_op = register(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, int ignore_index, str impl)"
    " -> (Tensor losses, Tensor peak, Tensor log_sum)",
    _forward,
    _empty,
    (_save, _differentiate, plain_forward),
)


def _makes_gradients(hidden: Tensor, weight: Tensor, impl: str) -> bool:
    """Whether the gradients of a mean are made with it: both are asked for, and there is a kernel for these sizes."""
    asked = torch.is_grad_enabled() and hidden.requires_grad and weight.requires_grad
    if weight.dtype == torch.float32:
        fits = weight.shape[1] % 16 == 0  # whole vectors
    else:
        fits = weight.dtype == torch.bfloat16 and _backend.bfloat16_unit() is not None
    return asked and fits and len(weight) <= MOST_WORDS[weight.dtype] and impl == "cpu"


def _mean(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The mean, the losses [N], and the mean's gradients of hidden, weight and bias ([0] without a bias)."""
    check_index_range(OP, "targets", targets, weight.shape[0], ignore_index)
    (n, c), v = hidden.shape, weight.shape[0]
    kept = (targets != ignore_index).sum()
    losses, grad_hidden = hidden.new_empty(n, dtype=torch.float32), hidden.new_empty(n, c)
    make = weight.new_empty if n else weight.new_zeros
    grad_weight, grad_bias = make(v, c), make(0 if bias is None else v)
    outputs = {
        **{"losses": losses, "grad_hidden": grad_hidden, "grad_weight": grad_weight},
        "grad_bias": None if bias is None else grad_bias,
    }
    inputs = {"hidden": hidden, "weight": weight, "targets": targets, "bias": bias}
    numbers = {"n": n, "c": c, "v": v, "ignore_index": ignore_index, "grad_loss": 1 / max(int(kept), 1)}
    _backend.run(f"{OP}_fwd_bwd", "cpu", outputs, inputs, hidden.dtype, **numbers)
    return losses.sum() / kept, losses, grad_hidden, grad_weight, grad_bias


def _empty_mean(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    grad_bias = weight.new_empty(0 if bias is None else len(weight))
    return losses.new_empty(()), losses, hidden.new_empty(hidden.shape), weight.new_empty(weight.shape), grad_bias


def _plain_mean(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    losses = plain_forward(hidden, weight, targets, bias, ignore_index, "")[0]
    mean = losses.sum() / (targets != ignore_index).sum()
    one, unread = torch.ones_like(mean), (mean, mean, mean)
    return mean, losses, *_plain_mean_backward(one, hidden, weight, targets, bias, *unread, ignore_index)


def _mean_backward(grad_mean: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_hidden, grad_weight, grad_bias = rest[4:7]
    return grad_mean * grad_hidden, grad_mean * grad_weight, grad_mean * grad_bias


def _empty_mean_backward(grad_mean: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_hidden, grad_weight, grad_bias = (gradient.new_empty(gradient.shape) for gradient in rest[4:7])
    return grad_hidden, grad_weight, grad_bias


def _plain_mean_backward(
    grad_mean: Tensor,
    hidden: Tensor,  # [N,C]
    weight: Tensor,  # [V,C]
    targets: Tensor,  # [N]
    bias: Tensor | None,  # [V]
    grad_hidden: Tensor,  # not read, nor the next two: a derivative goes through the inputs
    grad_weight: Tensor,
    grad_bias: Tensor,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_losses = (grad_mean / (targets != ignore_index).sum().clamp(min=1)).expand(targets.shape)
    needs = True, True, bias is not None
    inputs = hidden, weight, targets, bias, grad_losses, grad_losses, grad_losses, ignore_index
    return plain_backward(grad_losses, *inputs, *needs, "")


def _save_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.ignore_index = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[2:])


def _differentiate_mean(ctx: Any, grad_mean: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    return _for_inputs(ctx, _mean_backward_op(grad_mean, *ctx.saved_tensors, ctx.ignore_index))


_mean_backward_op = register(
    "linear_cross_entropy_mean_backward(Tensor grad_mean, Tensor hidden, Tensor weight, Tensor targets, Tensor? bias,"
    " Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias, int ignore_index)"
    " -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    _mean_backward,
    _empty_mean_backward,
    derivative_of_backward(_plain_mean_backward),
)
_mean_op = register(
    "linear_cross_entropy_mean(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, int ignore_index)"
    " -> (Tensor mean, Tensor losses, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    _mean,
    _empty_mean,
    (_save_mean, _differentiate_mean, _plain_mean),
)
