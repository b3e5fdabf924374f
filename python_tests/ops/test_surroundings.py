"""The ops amid what a caller has switched on (autocast, defaults, modes), and given tensors of every sort."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import icl_fast
from icl_fast import ops
from icl_fast.ops import PositionLoss, _backend

DIFFERENTIABLE = ("linear_cross_entropy", "smeared_attention")
CAST = (*DIFFERENTIABLE, "frozen_attention")  # autocast casts their inputs as for a matmul
NARROW = (torch.bfloat16, torch.float16)


def call(op: str, given: dict[str, Any]) -> list[Tensor]:
    """The results, and the gradients of what asks for one."""
    results = [leaf for leaf in tree_leaves(getattr(ops, op)(**given)) if isinstance(leaf, Tensor)]
    needing = [x for x in given.values() if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()]
    return results + (list(torch.autograd.grad(results[0].float().square().sum(), needing)) if needing else [])


def changed(given: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {name: change(x) if isinstance(x, Tensor) else x for name, x in given.items()}


def floats(given: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return changed(given, lambda x: change(x) if x.is_floating_point() else x)


def needing(op: str, given: dict[str, Any]) -> dict[str, Any]:
    return floats(given, lambda x: x.clone().requires_grad_()) if op in DIFFERENTIABLE else given


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.device == other.device
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "a default device": lambda: torch.device("meta"),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast that is off": lambda: torch.autocast("cpu", torch.bfloat16, enabled=False),
    "autocast of another device": lambda: torch.autocast("cuda", torch.float16),
}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("op", icl_fast.OPS)
def test_what_surrounds_a_call_changes_nothing(op: str, dtype: torch.dtype, surrounding: str, arguments: Any) -> None:
    given = needing(op, arguments(op, dtype))
    impls = ["auto"] + (["emu"] if _backend.emulator() and dtype == torch.float32 else [])
    for impl in impls:
        expected = call(op, {**given, "impl": impl})
        with SURROUNDINGS[surrounding]():
            actual = call(op, {**given, "impl": impl})
        assert_equal(actual, expected[: len(actual)])


@pytest.mark.parametrize("to", NARROW)
@pytest.mark.parametrize("op", icl_fast.OPS)
def test_under_autocast_any_mixture_of_dtypes_is_taken(op: str, to: torch.dtype, arguments: Any) -> None:
    """As a model has them there: activations narrow, parameters not."""
    given = needing(op, arguments(op, torch.float32))
    names = [name for name, x in given.items() if isinstance(x, Tensor) and x.is_floating_point()]
    for narrow in range(2 ** len(names)):
        mixed = {
            **given,
            **{name: given[name].to(to) for i, name in enumerate(names) if narrow >> i & 1},
        }
        with torch.autocast("cpu", to):
            actual = call(op, mixed)
        if op not in CAST:
            widest = to if narrow == 2 ** len(names) - 1 else torch.float32
            assert_equal(actual, call(op, floats(mixed, lambda x: x.to(widest))))  # noqa: B023
            continue
        expected = {name: x.to(to) if name in names else x for name, x in mixed.items()}
        if op == "smeared_attention":
            expected["alpha"] = mixed["alpha"].float()
        results = [leaf for leaf in tree_leaves(getattr(ops, op)(**expected)) if isinstance(leaf, Tensor)]
        assert_equal(actual[: len(results)], results)
        assert all(x.isfinite().all() for x in actual)


@pytest.mark.parametrize("op", icl_fast.OPS)
def test_under_autocast_float64_stays_what_it_is(op: str, arguments: Any) -> None:
    given = needing(op, arguments(op))
    with torch.autocast("cpu", torch.bfloat16):
        actual = call(op, given)
    assert_equal(actual, call(op, given))


@pytest.mark.parametrize("op", icl_fast.OPS)
def test_without_autocast_a_mixture_is_refused(op: str, arguments: Any) -> None:
    given = arguments(op, torch.float32)
    for name, x in given.items():
        if isinstance(x, Tensor) and x.is_floating_point():
            with pytest.raises(TypeError, match=rf"{op}: \w+ must .*have the dtype of \w+, torch.float"):
                call(op, {**given, name: x.double()})


def negated(x: Tensor) -> Tensor:
    return torch._neg_view(x.neg())


def imaginary(x: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(x), -x).conj().imag  # a negative view, with a stride of 2


# of sums in another order
TOLERANCE = {torch.float64: {"rtol": 1e-12, "atol": 1e-13}, torch.float32: {"rtol": 1e-5, "atol": 1e-6}}


class Subclass(Tensor):
    pass


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda x: x[:1].expand(x.shape),
    "a negative view": negated,
    "the imaginary part of a conjugate": imaginary,
    "a subclass": lambda x: x.as_subclass(Subclass),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "an inference tensor": lambda x: torch.inference_mode()(x.clone)(),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("op", icl_fast.OPS)
def test_any_kind_of_view_is_read_as_it_is(op: str, dtype: torch.dtype, view: str, arguments: Any) -> None:
    seen = floats(needing(op, arguments(op, dtype)), VIEWS[view])
    copied = floats(seen, lambda x: (x + 0).as_subclass(Tensor).contiguous())
    for actual, expected in zip(call(op, seen), call(op, copied), strict=True):
        torch.testing.assert_close(actual.as_subclass(Tensor), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_tensor_in_several_places(dtype: torch.dtype) -> None:
    def check(function: Callable[..., Any], x: Tensor, places: int) -> None:
        together, apart = x.clone().requires_grad_(), [x.clone().requires_grad_() for _ in range(places)]
        assert torch.equal(function(*[x] * places), function(*(a.detach() for a in apart)))
        if function is attend or function is lose:
            (total,) = torch.autograd.grad(function(*[together] * places).square().sum(), together)
            parts = torch.autograd.grad(function(*apart).square().sum(), apart)
            torch.testing.assert_close(total, sum(parts))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.smeared_attention(q, k, v, torch.zeros(2, dtype=dtype), scale=0.3)

    def lose(hidden: Tensor, weight: Tensor) -> Tensor:
        return ops.linear_cross_entropy(hidden, weight, torch.arange(4))

    square = torch.randn(4, 4, dtype=dtype)
    check(attend, torch.randn(2, 2, 5, 4, dtype=dtype), 3)
    check(lose, square, 2)
    check(lambda q, k, v: ops.frozen_attention(q[0], k[0], v, scale=0.3), torch.randn(1, 2, 2, 5, 4, dtype=dtype), 3)
    check(lambda u, removed: ops.gelu_difference(u, removed[None]), square, 2)
    check(lambda g, u, dg, du: ops.gated_difference(g, u, dg[None], du[None], activation="silu"), square, 4)
    check(lambda x, removed: ops.layer_norm_difference(x, removed[None], removed[0], eps=1e-5), square, 2)
    check(lambda h, r, w: ops.cross_entropy_difference(h, r[None], w, torch.arange(4))[1], square, 3)
    norm = {"norm_weight": None, "norm_bias": None, "eps": 1e-5}
    check(
        lambda r, z, o, w: ops.head_ablation_cross_entropy(r, z[None], o[None], w, torch.arange(4), **norm)[1],
        square,
        4,
    )


INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("op", icl_fast.OPS)
def test_integers_of_any_width_are_indices(op: str, dtype: torch.dtype, arguments: Any) -> None:
    given = arguments(op)
    narrow = changed(given, lambda x: x if x.is_floating_point() else x.to(dtype))
    assert_equal(call(op, narrow), call(op, given))


def nested(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x))


NO_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda x: x.to_sparse(),
    "nested": nested,
    "complex": lambda x: x.to(torch.complex64),
    "bool": lambda x: x.bool(),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    "an array": lambda x: x.numpy(),
    "a list": lambda x: x.tolist(),
    "a number": lambda x: 1,
    "text": lambda x: "x",
    "one dimension more": lambda x: x[None],
    "no dimension": lambda x: x.flatten()[0],
}


@pytest.mark.filterwarnings("ignore")  # of torch, about nested and quantised tensors
@pytest.mark.parametrize("kind", NO_TENSORS)
@pytest.mark.parametrize("op", icl_fast.OPS)
def test_what_is_not_such_a_tensor_is_refused_by_name(op: str, kind: str, arguments: Any) -> None:
    given = arguments(op, torch.float32)
    for name, x in given.items():
        if not isinstance(x, Tensor) or (
            name == "window" and kind in ("a number", "a list", "an array", "no dimension")
        ):
            continue
        if not x.is_floating_point() and kind in ("a list", "an array"):  # integers of any kind: test_integers.py
            continue
        if kind == "one dimension more" and op == "linear_cross_entropy" and name == "hidden":
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            call(op, {**given, name: NO_TENSORS[kind](x)})
        message = str(caught.value)
        assert message.startswith(f"{op}: ")
        assert "\n" not in message
        assert name in message


NUMBERS = {
    "eps": ("layer_norm_difference", "head_ablation_cross_entropy"),
    "scale": ("frozen_attention", *DIFFERENTIABLE[1:]),
}
CALLS = [(op, name) for name, of in NUMBERS.items() for op in of]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("op", "name"), CALLS)
def test_a_number_that_makes_no_sense_is_refused(op: str, name: str, arguments: Any) -> None:
    given = arguments(op)
    for value in (NAN, INF, -INF, 1e39, -1e39, 10**5000, *((-1e-5, -1) if name == "eps" else ())):
        with pytest.raises(ValueError, match=f"{op}: {name} must be .*finite .*got [^\n]*$"):
            call(op, {**given, name: value})
    if op == "head_ablation_cross_entropy":
        with pytest.raises(ValueError, match=f"{op}: eps must be positive and finite .*got 0"):
            call(op, {**given, "eps": 0})
    for value in ("1", b"1", None, True, np.True_, 1j, [0.5], torch.tensor(0.5), np.array([0.5]), object()):
        with pytest.raises(TypeError, match=f"{op}: {name} must be a number, got [^\n]*$"):
            call(op, {**given, name: value})
    for value in (np.float32(0.5), np.float64(0.5), 0.5):
        assert_equal(call(op, {**given, name: value}), call(op, {**given, name: 0.5}))
    assert_equal(call(op, {**given, name: np.int8(2)}), call(op, {**given, name: 2.0}))


@pytest.mark.parametrize("op", ["frozen_attention", "smeared_attention"])
def test_a_window_takes_any_integers_and_nothing_else(op: str, arguments: Any) -> None:
    given = arguments(op)
    for value in (np.int64(2), (2, np.int16(2), 2), range(2, 3)):
        expected = call(op, {**given, "window": 2})
        if not isinstance(value, range):
            assert_equal(call(op, {**given, "window": value}), expected)
    for value in (True, [1, 2, False], 2.0, "abc", b"abc", [1, 2, "3"], {1, 2, 3}, np.arange(3.0)):
        with pytest.raises(TypeError, match=f"{op}: window must be [^\n]*$"):
            call(op, {**given, "window": value})
    for value in (-1, 2**63, 10**5000, [1, 2, -3], [1, 2], [], range(4)):
        with pytest.raises(ValueError, match=f"{op}: window must [^\n]*$"):
            call(op, {**given, "window": value})


@pytest.mark.parametrize("name", ["impl", "reduction", "activation"])
def test_a_name_is_one_of_those_there_are(name: str, arguments: Any) -> None:
    op = "gated_difference" if name == "activation" else "linear_cross_entropy"
    for value in ("", "Mean", "x" * 10**4, None, 1, True, b"none", [], {}, torch.zeros(2), np.array(["none", "a"])):
        with pytest.raises(ValueError, match=rf"{op}: {name} must be one of (\w+, )+\w+, got [^\n]{{,70}}$"):
            call(op, {**arguments(op), name: value})


def test_ignore_index_is_an_integer(arguments: Any) -> None:
    op = "linear_cross_entropy"
    given = arguments(op)
    assert_equal(call(op, {**given, "ignore_index": np.int32(3)}), call(op, {**given, "ignore_index": 3}))
    for value in (3.0, "3", None, True, np.True_, torch.tensor(3.0), [3]):
        with pytest.raises(TypeError, match=f"{op}: ignore_index must be an integer, got "):
            call(op, {**given, "ignore_index": value})
    for value in (2**63, -(2**63) - 1, 10**5000):
        with pytest.raises(ValueError, match=f"{op}: ignore_index must fit in 64 bits, got [^\n]*$"):
            call(op, {**given, "ignore_index": value})
    for value in ({}, 3, "x", torch.zeros(4)):
        with pytest.raises(TypeError, match=f"{op}: position_loss must be a PositionLoss, got "):
            call(op, {**given, "reduction": "position", "position_loss": value})
    with pytest.raises(ValueError, match=r"losses must be \[...,T\] with T=4 on meta, got \[4\] on cpu"):
        call(op, {**given, "reduction": "position", "position_loss": PositionLoss(4, device="meta")})
