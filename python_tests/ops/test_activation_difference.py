from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.ops import _backend, activation_difference, gelu_difference

OP = "activation_difference"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda u: F.gelu(u, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}
SIZES = [(3, 5, 7), (1, 1, 1), (2, 37, 131), (3, 16, 264), (4, 13, 1), (0, 3, 8), (2, 0, 8), (2, 3, 0)]  # A, N, M


def make(sizes: tuple[int, int, int], dtype: torch.dtype, device: str, size: float = 1.0) -> tuple[Tensor, Tensor]:
    a, n, m = sizes
    u, removed = torch.randn(n, m) * 2, torch.randn(a, n, m) * size
    return u.to(device, dtype), removed.to(device, dtype)


def plain(u: Tensor, removed: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation](u) - ACTIVATIONS[activation](u - removed)


def truth(u: Tensor, removed: Tensor, activation: str) -> Tensor:
    """By the reference in float64, which test_float64 holds against 60 digits."""
    return activation_difference(u.double(), removed.double(), activation=activation, impl="reference")


def grid(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """u from one tail to the other and removals of both signs, from tiny ones to those that cross to the other tail."""
    u = torch.cat([torch.linspace(-40, 40, 161), torch.linspace(-6, 6, 240)])
    smallest = -4 if dtype == torch.float16 else -12
    sizes = torch.cat([torch.logspace(smallest, 1.9, 60), torch.tensor([0.0, 0.4999, 0.5, 0.50001, 0.51])])
    removed = torch.cat([sizes, -sizes])[:, None, None].expand(-1, 1, len(u))
    return u[None].to(device, dtype), removed.to(device, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("poisoned_memory")
def test_error(
    impl: str, dtype: torch.dtype, device: str, sizes: Any, size: float, activation: str, within: Any
) -> None:
    u, removed = make(sizes, dtype, device, size)
    actual = activation_difference(u, removed, activation=activation, impl=impl)
    assert actual.dtype == dtype
    assert actual.shape == removed.shape
    within(actual, plain(u, removed, activation), plain(u.double(), removed.double(), activation), times=2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_beside_what_is_removed(impl: str, dtype: torch.dtype, device: str, activation: str) -> None:
    u, removed = grid(dtype, device)
    if impl.startswith("emu"):
        u, removed = u[:, ::3].contiguous(), removed[::2, :, ::3]
    actual = activation_difference(u, removed, activation=activation, impl=impl).double()
    error = (actual - truth(u, removed, activation)).abs()
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the distance of denormal numbers
    units = (error - smallest).clamp(min=0) / (torch.finfo(dtype).eps * removed.double().abs()).clamp(min=1e-300)
    assert units.max().item() <= 4, f"{units.max().item():.3g} at {units.argmax().item()}"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float64(activation: str) -> None:
    mpmath = pytest.importorskip("mpmath")
    mp = mpmath.mp.clone()
    mp.dps = 60

    activated: Callable[[Any], Any] = {
        "gelu": lambda t: t * mp.erfc(-t / mp.sqrt(2)) / 2,
        "gelu_tanh": lambda t: t * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (t + mp.mpf(0.044715) * t**3))) / 2,
        "silu": lambda t: t / (1 + mp.exp(-t)),
        "relu": lambda t: max(t, 0),
    }[activation]

    u = torch.cat([torch.linspace(-9, 9, 37), torch.tensor([-40.0, -15, 15, 40])]).double()[None]
    sizes = torch.tensor([1e-30, 1e-12, 1e-7, 1e-3, 0.1, 0.3, 0.499, 0.5, 0.501, 0.7, 2.0, 11.0, 80.0]).double()
    removed = torch.cat([sizes, -sizes])[:, None, None].expand(-1, 1, u.shape[1])
    actual = activation_difference(u, removed, activation=activation, impl="reference")
    for a, du in enumerate(removed[:, 0, 0].tolist()):
        for i, x in enumerate(u[0].tolist()):
            exact = activated(mp.mpf(x)) - activated(mp.mpf(x) - mp.mpf(du))
            assert abs(mp.mpf(actual[a, 0, i].item()) - exact) <= 4 * torch.finfo(torch.float64).eps * abs(du), (x, du)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_left_is_the_activation_itself(impl: str, device: str, activation: str) -> None:
    """Against float64, over the whole range of them that float32 has."""
    u = torch.cat([torch.linspace(-45, 45, 1801), torch.logspace(-20, 30, 101), -torch.logspace(-20, 30, 101)])
    u = u[None].to(device)
    actual = activation_difference(u, u[None], activation=activation, impl=impl)[0].double()
    exact = ACTIVATIONS[activation](u.double())
    assert ((actual - exact).abs() <= 4 * torch.finfo(torch.float32).eps * u.abs()).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_out_the_activation_is_linear(impl: str, dtype: torch.dtype, device: str, activation: str) -> None:
    u = torch.tensor([[-100.0, 100.0, -1e4, 1e4]], device=device, dtype=dtype)
    removed = torch.tensor([1e-2, -1e-2, 0.375, -3.0, 17.0, 0.0], device=device, dtype=dtype)
    removed = removed[:, None, None].expand(6, 1, 4)
    actual = activation_difference(u, removed, activation=activation, impl=impl)
    torch.testing.assert_close(actual, torch.where(u > 0, removed, 0.0), rtol=0, atol=1e-30)
    crossed = activation_difference(u, 2 * u[None], activation=activation, impl=impl)
    torch.testing.assert_close(crossed[0], u, rtol=0, atol=1e-30)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_stays_in_its_element(impl: str, device: str, activation: str) -> None:
    u, removed = make((2, 3, 40), torch.float32, device)
    clean = activation_difference(u, removed, activation=activation, impl=impl)
    reached = torch.zeros_like(clean, dtype=torch.bool)
    for i, value in enumerate([float("nan"), float("inf"), float("-inf")]):
        u[1, 7 * i] = value
        removed[1, 2, 7 * i + 1] = value
        reached[:, 1, 7 * i] = True
        reached[1, 2, 7 * i + 1] = True
    dirty = activation_difference(u, removed, activation=activation, impl=impl)
    assert torch.equal(dirty.isnan(), reached)
    assert torch.equal(dirty[~reached], clean[~reached])


def test_the_largest_numbers_do_not_overflow(impl: str, device: str) -> None:
    most = torch.finfo(torch.float32).max
    u = torch.tensor([[most, most, -most, -most, 0.0, 1e20, -1e20]], device=device)
    removed = torch.tensor([most, -most, most, -most, most, 0.0, 1e-3], device=device)[None, None]
    for activation in ACTIVATIONS:
        actual = activation_difference(u, removed, activation=activation, impl=impl)[0, 0]
        expected = torch.tensor([most, -most, 0.0, 0.0, 0.0, 0.0, 0.0], device=device)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-30)


def test_threads_and_order_change_no_bit(impl: str, device: str) -> None:
    if impl == "reference":
        pytest.skip("torch's own loops may depend on the number of threads")
    u, removed = make((2, 3, 731) if impl.startswith("emu") else (2, 11, 1931), torch.float32, device)
    for activation in ACTIVATIONS:
        results = []
        for threads, order in ((1, "asc"), (2, "desc"), (5, "random")):
            torch.set_num_threads(threads)
            if impl.startswith("emu"):
                _backend.emulator().set_order(order, 1)
            results.append(activation_difference(u, removed, activation=activation, impl=impl))
        assert all(torch.equal(results[0], other) for other in results)


def same(actual: Tensor, expected: Tensor, impl: str) -> None:
    """To the bit, but for torch's own functions, whose vectors round as single elements do not."""
    eps = 4 * torch.finfo(actual.dtype).eps if impl == "reference" else 0.0
    torch.testing.assert_close(actual, expected, rtol=eps, atol=eps)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_element_does_not_depend_on_its_place(impl: str, device: str, activation: str) -> None:
    """Vectors, what is left over after them, and vectors in which some lanes are near and others far."""
    u, removed = make((1, 1, 61), torch.float32, device)
    whole = activation_difference(u, removed, activation=activation, impl=impl)
    for start in (1, 2, 5, 60):
        part = activation_difference(
            u[:, start:].clone(), removed[..., start:].clone(), activation=activation, impl=impl
        )
        same(part, whole[..., start:], impl)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_strided_inputs(impl: str, dtype: torch.dtype, device: str, activation: str, strided: Any) -> None:
    u, removed = make((2, 5, 16), dtype, device)
    actual = activation_difference(strided(u), strided(removed), activation=activation, impl=impl)
    assert actual.is_contiguous()
    same(actual, activation_difference(u, removed, activation=activation, impl=impl), impl)


def test_inputs_that_are_not_aligned(impl: str, dtype: torch.dtype, device: str) -> None:
    u, removed = make((2, 5, 16), dtype, device)
    shifted = [torch.empty(x.numel() + 1, dtype=dtype, device=device)[1:].view(x.shape).copy_(x) for x in (u, removed)]
    for activation in ACTIVATIONS:
        actual = activation_difference(*shifted, activation=activation, impl=impl)
        same(actual, activation_difference(u, removed, activation=activation, impl=impl), impl)


def test_forward_only(impl: str, device: str) -> None:
    u, removed = make((2, 3, 8), torch.float32, device)
    for needing in ((u.clone().requires_grad_(), removed), (u, removed.clone().requires_grad_())):
        with pytest.raises(RuntimeError, match=f"{OP}: forward only, it has no gradient; call it under torch.no_grad"):
            activation_difference(*needing, activation="silu", impl=impl)
        with torch.no_grad():
            assert not activation_difference(*needing, activation="silu", impl=impl).requires_grad


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_opcheck(impl: str, dtype: torch.dtype, device: str, activation: str) -> None:
    op = torch.ops.icl_fast.activation_difference.default
    torch.library.opcheck(op, (*make((2, 3, 8), dtype, device), activation, impl))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(impl: str, device: str, dynamic: bool) -> None:
    u, removed = make((2, 3, 8), torch.float32, device)

    def effect(u: Tensor, removed: Tensor) -> Tensor:
        return activation_difference(u * 2, removed, activation="gelu", impl=impl) + 1

    compiled = torch.compile(effect, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(u, removed), effect(u, removed))


def test_autocast_does_not_touch_it(impl: str, device: str) -> None:
    u, removed = make((2, 3, 8), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        under = activation_difference(u, removed, activation="gelu", impl=impl)
    assert torch.equal(under, activation_difference(u, removed, activation="gelu", impl=impl))


GOOD: dict[str, Any] = {"u": torch.zeros(4, 8), "removed": torch.zeros(2, 4, 8), "activation": "silu"}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"u": torch.zeros(4)}, ValueError, r"u must be \[N,M\], got \[4\]"),
    ({"u": None}, TypeError, r"u must be a tensor \[N,M\], got NoneType"),
    ({"u": torch.zeros(4, 8).int()}, TypeError, "u must be float32, bfloat16, float16 or float64, got torch.int32"),
    ({"removed": torch.zeros(2, 5, 8)}, ValueError, r"removed must be \[A,N,M\] with A=2, N=4, M=8, got \[2, 5, 8\]"),
    ({"removed": torch.zeros(2, 4, 8).half()}, TypeError, "removed must have the dtype of u, torch.float32, got"),
    ({"removed": torch.zeros(2, 4, 8).to("meta")}, ValueError, "removed must be on the device of u, cpu, got meta"),
    ({"activation": "solu"}, ValueError, "activation must be one of gelu, gelu_tanh, silu, relu, got 'solu'"),
    ({"impl": ""}, ValueError, "impl must be one of auto, reference, cpu, cuda, got ''"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"{OP}: {message}"):
        activation_difference(**{**GOOD, **change})


@pytest.mark.parametrize(("approximate", "activation"), [("none", "gelu"), ("tanh", "gelu_tanh")])
def test_gelu_difference_is_named_as_torch_names_it(impl: str, device: str, approximate: str, activation: str) -> None:
    u, removed = make((2, 3, 8), torch.float32, device)
    actual = gelu_difference(u, removed, approximate=approximate, impl=impl)
    assert torch.equal(actual, activation_difference(u, removed, activation=activation, impl=impl))


def test_gelu_difference_knows_no_other() -> None:
    with pytest.raises(ValueError, match="gelu_difference: approximate must be one of none, tanh, got 'erf'"):
        gelu_difference(GOOD["u"], GOOD["removed"], approximate="erf")
