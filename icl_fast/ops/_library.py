"""The ops as torch knows them: schema, shapes, and what autograd and the transforms of torch.func make of each.

In place of torch.library.custom_op, which gives zeros in forward mode and fails under torch.func.grad.
"""

# mypy: disable-error-code="no-untyped-call,attr-defined"
from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.autograd.function import _SingleLevelFunction

from icl_fast.ops._validate import autocast_is_on

_LIBRARY = torch.library.Library("icl_fast", "FRAGMENT")

Body = Callable[..., Any]


def register(schema: str, body: Body, empty: Body, derivative: tuple[Body, Body, Body] | None = None) -> Any:
    """Register an op and return it. All functions take its arguments in the order of the schema.

    Args:
        schema: "name(Tensor x, ...) -> ...".
        body: computes it. Autocast is off in it, under `vmap` it is called for one example after the other.
        empty: results of the right shapes and dtypes, from tensors without data.
        derivative: `setup_context` and `backward` as a torch.autograd.Function has them, and the op in plain torch,
            differentiable, through which forward mode goes. None: any derivative is refused.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    # not torch.compiler.disable, which loads the compiler at once: a second of every start
    _LIBRARY.impl(name, torch._disable_dynamo(_without_autocast(body)), "CompositeExplicitAutograd")
    torch.library.register_fake(f"icl_fast::{name}", empty, lib=_LIBRARY)
    op = getattr(torch.ops.icl_fast, name).default
    torch.library.register_vmap(f"icl_fast::{name}", _one_by_one(op, empty), lib=_LIBRARY)
    _LIBRARY.impl(name, _differentiable(op, *derivative) if derivative else _forward_only(name, op), "Autograd")
    return op


def register_out(schema: str, body: Body) -> Any:
    """Register an op that returns nothing and writes into its last argument, `Tensor(a!) out`; otherwise as `register`.

    It has no derivatives, and refuses `vmap`, as torch's own do with an `out`.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, torch._disable_dynamo(_without_autocast(body)), "CompositeExplicitAutograd")
    torch.library.register_fake(f"icl_fast::{name}", lambda *inputs: None, lib=_LIBRARY)
    op = getattr(torch.ops.icl_fast, name).default
    compute = _forward_only(name.removesuffix("_out"), op)

    def written(*inputs: Any) -> None:
        compute(*inputs)
        torch.autograd.graph.increment_version(inputs[-1])

    _LIBRARY.impl(name, written, "Autograd")
    return op


def derivative_of_backward(plain: Body) -> tuple[Body, Body, Body]:
    """The `derivative` of a backward op, from the same in plain torch: for second derivatives."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs))

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [other if saved is None else saved for saved, other in zip(ctx.saved_tensors, ctx.others, strict=True)]
        wanted = [place for place, needed in enumerate(ctx.needs_input_grad) if needed]

        def of_wanted(*values: Tensor) -> Any:
            given = dict(zip(wanted, values, strict=True))
            return _without_autocast(plain)(*(given.get(place, value) for place, value in enumerate(inputs)))

        pull_back = torch.func.vjp(of_wanted, *(inputs[place] for place in wanted))[1]
        gradients = dict(zip(wanted, pull_back(grads), strict=True))
        return tuple(gradients.get(place) for place in range(len(inputs)))

    return save, backward, plain


def _differentiable(op: Any, save: Body, backward: Body, plain: Body) -> Body:
    compute = _below_autograd(op)

    def forward(*inputs: Any) -> Any:
        with torch.enable_grad(), _set_fwd_grad_enabled(True):  # of the transforms around this one
            return compute(*inputs)

    methods = {"forward": forward, "setup_context": save, "backward": backward}
    # of one level: torch's dispatcher calls this once for every transform around the call
    function: Any = type(op.name(), (_SingleLevelFunction,), {name: staticmethod(f) for name, f in methods.items()})

    def autograd(*inputs: Any) -> Any:
        if _has_tangent(inputs):
            return _without_autocast(plain)(*inputs)
        if not _asks_gradient(inputs):
            return compute(*inputs)
        with enable_single_level_autograd_function():
            return function.apply(*inputs)

    return autograd


def _forward_only(name: str, op: Any) -> Body:
    compute = _below_autograd(op)

    def autograd(*inputs: Any) -> Any:
        if _asks_gradient(inputs) or _has_tangent(inputs):
            raise RuntimeError(
                f"{name}: forward only, it has no gradient; call it under torch.no_grad() or detach the inputs"
            )
        return compute(*inputs)

    return autograd


def _below_autograd(op: Any) -> Body:
    def compute(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    return compute


def _asks_gradient(inputs: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs)


def _has_tangent(inputs: Sequence[Any]) -> bool:
    """Whether a forward-mode derivative is carried by any of them."""
    floating = (value for value in inputs if isinstance(value, Tensor) and value.is_floating_point())
    # by its level, of which torch has one: where a compiled function is traced, unpack_dual does not find it
    return any(unpack_dual(value, level=0).tangent is not None for value in floating)


def _without_autocast(body: Body) -> Body:
    """Autocast reaches inside an op: a float32 product there would become bfloat16."""

    def compute(*inputs: Any) -> Any:
        tensor = next(value for value in inputs if isinstance(value, Tensor))
        if not autocast_is_on(tensor):
            return body(*inputs)
        with torch.autocast(tensor.device.type, enabled=False):
            return body(*inputs)

    return compute


def _one_by_one(op: Any, empty: Body) -> Body:
    """The vmap rule: the op for every example, stacked."""

    def batched(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> tuple[Any, Any]:
        def example(take: Callable[[Tensor], Tensor]) -> list[Any]:
            return [
                value if dim is None else take(value.movedim(dim, 0))
                for value, dim in zip(inputs, in_dims, strict=True)
            ]

        results = [op(*example(itemgetter(index))) for index in range(info.batch_size)]
        if not results:
            one = empty(*example(lambda value: value.new_empty(value.shape[1:])))
            if isinstance(one, Tensor):
                return one.new_empty(0, *one.shape), 0
            return tuple(result.new_empty(0, *result.shape) for result in one), (0,) * len(one)
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(result) for result in zip(*results, strict=True)), (0,) * len(results[0])

    return batched
