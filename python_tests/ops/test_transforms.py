"""The ops under torch.func's transforms, forward-mode AD and second derivatives: as the same in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

import icl_fast
from icl_fast import ops

FORWARD_ONLY = [op for op in icl_fast.OPS if op not in ("linear_cross_entropy", "smeared_attention")]


def plain_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")


def plain_attention(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, window: Tensor) -> Tensor:
    gate = alpha.sigmoid()[:, None, None]
    smeared = torch.cat([k[:, :, :1], gate * k[:, :, 1:] + (1 - gate) * k[:, :, :-1]], dim=2)
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    size = window[:, None, None]
    unseen = (distance < 0) | ((size > 0) & (distance >= size))
    return (0.4 * q @ smeared.mT).masked_fill(unseen, float("-inf")).softmax(-1) @ v


def loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return ops.linear_cross_entropy(hidden, weight, targets, bias=bias)


def whole_vectors(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as wide as the kernel takes them that makes the gradients of a mean with it."""
    return F.pad(hidden, (0, -hidden.shape[-1] % 16)), F.pad(weight, (0, -weight.shape[-1] % 16))


def mean(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    hidden, weight = whole_vectors(hidden, weight)
    return ops.linear_cross_entropy(hidden, weight, targets, bias=bias, reduction="mean")


def attention(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, window: Tensor) -> Tensor:
    return ops.smeared_attention(q, k, v, alpha, scale=0.4, window=window)


Function = Callable[..., Any]
OPS: dict[str, tuple[Function, Function, tuple[str, ...]]] = {
    "linear_cross_entropy": (loss, plain_loss, ("hidden", "weight", "bias", "targets")),
    "linear_cross_entropy, mean": (mean, lambda *x: plain_loss(*x).mean(), ("hidden", "weight", "bias", "targets")),
    "smeared_attention": (attention, plain_attention, ("q", "k", "v", "alpha", "window")),
}


def total(f: Function) -> Function:
    return lambda *x: f(*x).square().sum()


def batched(x: tuple[Tensor, ...], dim: int = 0) -> tuple[Tensor, ...]:
    """Three of each tensor, along `dim`."""
    return tuple(torch.stack([t.roll(i, 0) for i in range(3)]).movedim(0, dim) for t in x)


def dual(f: Function, x: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        primals = [forward_ad.make_dual(a, b) if a.is_floating_point() else a for a, b in zip(x, t, strict=True)]
        return tuple(forward_ad.unpack_dual(f(*primals)))


def twice(f: Function, x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    needing = [a.clone().requires_grad_() if a.is_floating_point() else a for a in x]
    wanted = [a for a in needing if a.requires_grad]
    first = torch.autograd.grad(total(f)(*needing), wanted, create_graph=True)
    return torch.autograd.grad(sum(a.square().sum() for a in first), wanted)


# every function takes all the tensors; ALL: the arguments that have a derivative
ALL = (0, 1, 2)
TRANSFORMS: dict[str, Callable[[Function, tuple[Tensor, ...], tuple[Tensor, ...]], Any]] = {
    "jvp of all": lambda f, x, t: jvp(lambda *y: f(*y, *x[3:]), x[:3], t[:3]),
    "jvp of the first": lambda f, x, t: jvp(lambda y: f(y, *x[1:]), x[:1], t[:1]),
    "jvp of the second": lambda f, x, t: jvp(lambda y: f(x[0], y, *x[2:]), x[1:2], t[1:2]),
    "jvp of the last": lambda f, x, t: jvp(lambda y: f(*x[:-2], y, x[-1]), x[-2:-1], t[-2:-1]),
    "forward_ad": lambda f, x, t: dual(f, x, t),
    "grad": lambda f, x, t: grad(total(f), ALL)(*x),
    "jacrev": lambda f, x, t: jacrev(f, ALL)(*x),
    "jacfwd": lambda f, x, t: jacfwd(f, ALL)(*x),
    "hessian": lambda f, x, t: hessian(total(f), ALL)(*x),
    "jacrev of jacrev": lambda f, x, t: jacrev(jacrev(total(f), ALL), ALL)(*x),
    "jacfwd of jacfwd": lambda f, x, t: jacfwd(jacfwd(total(f)))(*x),
    "jvp of grad": lambda f, x, t: jvp(lambda *y: grad(total(f), ALL)(*y, *x[3:]), x[:3], t[:3]),
    "jvp of jvp": lambda f, x, t: jvp(lambda y: jvp(lambda z: f(z, *x[1:]), (y,), t[:1])[1], x[:1], t[:1]),
    "vjp": lambda f, x, t: vjp(lambda *y: f(*y, *x[3:]), *x[:3])[1](f(*x).square()),
    "backward of backward": lambda f, x, t: twice(f, x),
    "vmap": lambda f, x, t: vmap(f, -1)(*batched(x, -1)),
    "vmap of vmap": lambda f, x, t: vmap(vmap(f), 1)(*batched(batched(x), 1)),
    "vmap of grad": lambda f, x, t: vmap(grad(total(f), ALL))(*batched(x)),
    "per-example gradients": lambda f, x, t: vmap(grad(total(f), ALL), (*(None,) * (len(x) - 1), 0))(
        *x[:-1], batched(x)[-1]
    ),
    "grad of vmap": lambda f, x, t: grad(total(vmap(f)), ALL)(*batched(x)),
    "jvp of vmap": lambda f, x, t: jvp(lambda y: vmap(f)(y, *batched(x[1:])), batched(x[:1]), batched(t[:1])),
    "vmap of jvp": lambda f, x, t: vmap(lambda *y: jvp(lambda z: f(z, *y[1:]), y[:1], t[:1]))(*batched(x)),
    "hessian of vmap": lambda f, x, t: hessian(total(vmap(f)))(*batched(x)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # the reference; the kernels, where they are built
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_gives_what_plain_torch_gives(transform: str, op: str, dtype: torch.dtype, arguments: Any) -> None:
    mine, plain, names = OPS[op]
    given = arguments(op.partition(",")[0], dtype)
    x = tuple(given[name] for name in names)
    t = tuple(torch.randn_like(a) if a.is_floating_point() else a for a in x)
    actual, expected = (tree_leaves(TRANSFORMS[transform](f, x, t)) for f in (mine, plain))
    assert any((leaf != 0).any() for leaf in expected)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("transform", ["jvp of all", "grad", "hessian", "vmap", "vmap of grad"])
@pytest.mark.parametrize("op", OPS)
def test_a_transform_inside_what_is_compiled(op: str, transform: str, arguments: Any) -> None:
    mine, plain, names = OPS[op]
    dtype = torch.float32 if op.endswith("mean") else torch.float64  # of the kernel
    x = tuple(arguments(op.partition(",")[0], dtype)[name] for name in names)
    t = tuple(torch.randn_like(a) if a.is_floating_point() else a for a in x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, t: TRANSFORMS[transform](mine, x, t), fullgraph=True, backend="aot_eager")
    for one, other in zip(tree_leaves(compiled(x, t)), tree_leaves(TRANSFORMS[transform](plain, x, t)), strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_ignored_has_no_derivative(arguments: Any) -> None:
    given = arguments("linear_cross_entropy")
    given["targets"][1] = -100
    given["hidden"][1] = float("nan")

    def mean(hidden: Tensor, weight: Tensor) -> Tensor:
        return ops.linear_cross_entropy(**{**given, "hidden": hidden, "weight": weight}, reduction="mean")

    def over_the_rest(hidden: Tensor, weight: Tensor) -> Tensor:
        rest = given["targets"] != -100
        return plain_loss(hidden[rest], weight, given["bias"], given["targets"][rest]).mean()

    x = (given["hidden"], given["weight"])
    for transform in (lambda f: jacfwd(f, (0, 1))(*x), lambda f: hessian(f, (0, 1))(*x)):
        for actual, expected in zip(tree_leaves(transform(mean)), tree_leaves(transform(over_the_rest)), strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("op", FORWARD_ONLY)
def test_forward_only_ops_refuse_every_derivative(op: str, arguments: Any) -> None:
    given = arguments(op)
    for name, x in given.items():
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            continue

        def of(value: Tensor, name: str = name) -> Tensor:
            return tree_leaves(getattr(ops, op)(**{**given, name: value}))[-1].sum()

        ways = (
            lambda: jvp(of, (x,), (x,)),  # noqa: B023
            lambda: jvp(vmap(of), (x[None],), (x[None],)),  # noqa: B023
            lambda: jacfwd(of)(x),  # noqa: B023
            lambda: dual(of, (x,), (x,)),  # noqa: B023
            lambda: grad(of)(x),  # noqa: B023
            lambda: vmap(grad(of))(x[None]),  # noqa: B023
            lambda: grad(lambda y: vmap(of)(y).sum())(x[None]),  # noqa: B023
            lambda: of(x.clone().requires_grad_()),  # noqa: B023
        )
        for way in ways:
            with pytest.raises(RuntimeError, match=f"{op}: forward only, it has no gradient; call it under"):
                way()
        assert torch.equal(jvp(lambda y: of(x) + y, (x.sum(),), (x.sum(),))[1], x.sum())  # noqa: B023
        torch.no_grad()(of)(x.clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("op", icl_fast.OPS)
def test_vmap_over_any_argument_is_a_loop(op: str, dtype: torch.dtype, arguments: Any) -> None:
    given = arguments(op, dtype)
    names = [name for name, value in given.items() if isinstance(value, Tensor)]

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(getattr(ops, op)(**{**given, **dict(zip(names, tensors, strict=True))})))

    for over in (*((name,) for name in names), tuple(names)):
        for size in (3, 0):
            dims = tuple((-1, 1, 0)[len(name) % 3] if name in over else None for name in names)
            values = [
                given[name] if dim is None else batched((given[name],), dim)[0].narrow(dim, 0, size)
                for name, dim in zip(names, dims, strict=True)
            ]
            actual = vmap(call, dims)(*values)
            loop = [
                call(*(x if dim is None else x.select(dim, i) for x, dim in zip(values, dims, strict=True)))
                for i in range(size)
            ]
            for place, one in enumerate(call(*(given[name] for name in names))):
                assert actual[place].shape == (size, *one.shape)
                assert actual[place].dtype == one.dtype
                for i in range(size):
                    assert torch.equal(actual[place][i], loop[i][place])
