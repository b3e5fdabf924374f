from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.ops import _backend, gated_difference

OP = "gated_difference"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda u: F.gelu(u, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}
# torch's own formulas of the GELUs lose all digits of what is below 1e-16
WITHOUT_CANCELLATION = {
    **ACTIVATIONS,
    "gelu": lambda u: u * torch.erfc(u * -(0.5**0.5)) / 2,
    "gelu_tanh": lambda u: u * (2 * (2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)).sigmoid(),
}
SIZES = [(3, 5, 7), (1, 1, 1), (2, 37, 131), (3, 16, 264), (0, 3, 8), (2, 0, 8), (2, 3, 0)]  # A, N, M
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def make(sizes: tuple[int, int, int], dtype: torch.dtype, device: str, size: float = 1.0) -> Inputs:
    a, n, m = sizes
    inputs = (torch.randn(n, m) * 2, torch.randn(n, m), torch.randn(a, n, m) * size, torch.randn(a, n, m) * size)
    gate, up, gate_removed, up_removed = (x.to(device, dtype) for x in inputs)
    return gate, up, gate_removed, up_removed


def plain(inputs: Inputs, activation: str) -> Tensor:
    gate, up, gate_removed, up_removed = inputs
    act = ACTIVATIONS[activation]
    return act(gate) * up - act(gate - gate_removed) * (up - up_removed)


def wide(inputs: Inputs) -> Inputs:
    gate, up, gate_removed, up_removed = (x.double() for x in inputs)
    return gate, up, gate_removed, up_removed


def unit(inputs: Inputs, activation: str) -> Tensor:
    """[A,N,M]: dg times the larger factor, du times the larger activation (known to a rounding of its input)."""
    gate, up, gate_removed, up_removed = inputs

    def size(t: Tensor) -> Tensor:
        t = t.clone().requires_grad_()
        activated = WITHOUT_CANCELLATION[activation](t)
        (slope,) = torch.autograd.grad(activated.sum(), t)
        return activated.detach().abs() + (t * slope).detach().abs()

    larger_up, larger_act = (
        torch.maximum(up.abs(), (up - up_removed).abs()),
        size(gate).maximum(size(gate - gate_removed)),
    )
    return gate_removed.abs() * larger_up + up_removed.abs() * larger_act


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("poisoned_memory")
def test_error(
    impl: str, dtype: torch.dtype, device: str, sizes: Any, size: float, activation: str, within: Any
) -> None:
    inputs = make(sizes, dtype, device, size)
    actual = gated_difference(*inputs, activation=activation, impl=impl)
    assert actual.dtype == dtype
    assert actual.shape == inputs[2].shape
    within(actual, plain(inputs, activation), plain(wide(inputs), activation), times=2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_beside_what_is_removed(impl: str, dtype: torch.dtype, device: str, activation: str) -> None:
    """Gates from one tail to the other, factors of all sizes, changes of both from nothing to all and far more."""
    gate = torch.cat([torch.linspace(-40, 40, 41), torch.linspace(-6, 6, 60), torch.tensor([0.0, 1e-6, -1e-6])])
    sizes = torch.tensor([0.0, 1e-3, 0.03, 0.4999, 0.51, 3.0, 50.0] if dtype == torch.float16 else [
        0.0, 1e-12, 1e-7, 1e-3, 0.03, 0.4999, 0.51, 3.0, 80.0,
    ])  # fmt: skip
    both = torch.cartesian_prod(torch.cat([sizes, -sizes[1:]]), torch.cat([sizes, -sizes[1:]]))
    up = torch.randn(len(gate)) * 10.0 ** torch.linspace(-2, 1, 8).repeat(len(gate) // 8 + 1)[: len(gate)]
    if impl.startswith("emu"):
        both = both[::5]
    removed = both[:, :, None, None].expand(-1, -1, 1, len(gate)).to(device, dtype)
    inputs = (gate[None].to(device, dtype), up[None].to(device, dtype), removed[:, 0], removed[:, 1])
    actual = gated_difference(*inputs, activation=activation, impl=impl).double()

    exact = gated_difference(*wide(inputs), activation=activation, impl="reference")
    # a kernel may take denormal numbers for 0
    smallest = torch.finfo(dtype).smallest_normal * (1 + inputs[1].double().abs() + inputs[3].double().abs())
    error = ((actual - exact).abs() - smallest).clamp(min=0)
    units = error / (torch.finfo(dtype).eps * unit(wide(inputs), activation)).clamp(min=1e-300)
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
    gates, changes = [-40.0, -9.0, -1.3, -1e-9, 0.2, 4.0, 30.0], [1e-30, -1e-9, 0.3, -0.7, 9.0, -80.0]
    for factor in (-3.0, 1e-8, 500.0):
        gate = torch.tensor(gates).double()[None]
        both = torch.cartesian_prod(torch.tensor(changes).double(), torch.tensor(changes).double())
        removed = both[:, :, None, None].expand(-1, -1, 1, len(gates))
        inputs = (gate, torch.full_like(gate, factor), removed[:, 0], removed[:, 1])
        actual = gated_difference(*inputs, activation=activation, impl="reference")
        allowed = 4 * torch.finfo(torch.float64).eps * unit(inputs, activation)
        for a, (dg, du) in enumerate(both.tolist()):
            for i, g in enumerate(gate[0].tolist()):
                before, after = activated(mp.mpf(g)), activated(mp.mpf(g) - mp.mpf(dg))
                exact = before * mp.mpf(factor) - after * (mp.mpf(factor) - mp.mpf(du))
                assert abs(mp.mpf(actual[a, 0, i].item()) - exact) <= allowed[a, 0, i].item(), (factor, g, dg, du)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_removed_changes_nothing(impl: str, dtype: torch.dtype, device: str, activation: str) -> None:
    gate, up, gate_removed, up_removed = make((2, 3, 40), dtype, device)
    nothing = torch.zeros_like(gate_removed)
    assert not gated_difference(gate, up, nothing, nothing, activation=activation, impl=impl).any()
    of_up = gated_difference(gate, up, nothing, up_removed, activation=activation, impl=impl)
    expected = ACTIVATIONS[activation](gate.double()) * up_removed.double()
    torch.testing.assert_close(of_up.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_stays_in_its_element(impl: str, device: str, activation: str) -> None:
    inputs = make((2, 3, 40), torch.float32, device)
    clean = gated_difference(*inputs, activation=activation, impl=impl)
    reached = torch.zeros_like(clean, dtype=torch.bool)
    for i, value in enumerate([float("nan"), float("inf"), float("-inf")]):
        inputs[0][1, 7 * i] = value
        inputs[2][1, 2, 7 * i + 1] = value
        reached[:, 1, 7 * i] = True
        reached[1, 2, 7 * i + 1] = True
    dirty = gated_difference(*inputs, activation=activation, impl=impl)
    assert torch.equal(dirty.isnan(), reached)
    assert torch.equal(dirty[~reached], clean[~reached])
    inputs[1][0, 3], inputs[3][0, 0, 5] = float("inf"), float("nan")
    dirty = gated_difference(*inputs, activation=activation, impl=impl)
    torch.testing.assert_close(
        dirty, gated_difference(*inputs, activation=activation, impl="reference"), rtol=1e-5, atol=1e-6, equal_nan=True
    )


def test_threads_and_order_change_no_bit(impl: str, device: str) -> None:
    if impl == "reference":
        pytest.skip("torch's own loops may depend on the number of threads")
    inputs = make((2, 3, 731) if impl.startswith("emu") else (2, 11, 1931), torch.float32, device)
    for activation in ACTIVATIONS:
        results = []
        for threads, order in ((1, "asc"), (2, "desc"), (5, "random")):
            torch.set_num_threads(threads)
            if impl.startswith("emu"):
                _backend.emulator().set_order(order, 1)
            results.append(gated_difference(*inputs, activation=activation, impl=impl))
        assert all(torch.equal(results[0], other) for other in results)


def same(actual: Tensor, expected: Tensor, impl: str) -> None:
    """To the bit, but for torch's own functions, whose vectors round as single elements do not."""
    eps = 4 * torch.finfo(actual.dtype).eps if impl == "reference" else 0.0
    torch.testing.assert_close(actual, expected, rtol=eps, atol=eps)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_element_does_not_depend_on_its_place(impl: str, device: str, activation: str) -> None:
    """Vectors, and what is left over after them."""
    inputs = make((1, 1, 61), torch.float32, device)
    whole = gated_difference(*inputs, activation=activation, impl=impl)
    for start in (1, 2, 5, 60):
        part = gated_difference(*(x[..., start:].clone() for x in inputs), activation=activation, impl=impl)
        same(part, whole[..., start:], impl)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_strided_and_unaligned_inputs(
    impl: str, dtype: torch.dtype, device: str, activation: str, strided: Any
) -> None:
    inputs = make((2, 5, 16), dtype, device)
    expected = gated_difference(*inputs, activation=activation, impl=impl)
    actual = gated_difference(*map(strided, inputs), activation=activation, impl=impl)
    assert actual.is_contiguous()
    same(actual, expected, impl)
    for moved in range(4):  # each alone keeps a kernel from its widest loads
        shifted = [
            torch.empty(x.numel() + 1, dtype=dtype, device=device)[1:].view(x.shape).copy_(x) if i == moved else x
            for i, x in enumerate(inputs)
        ]
        same(gated_difference(*shifted, activation=activation, impl=impl), expected, impl)


def test_forward_only(impl: str, device: str) -> None:
    inputs = make((2, 3, 8), torch.float32, device)
    for place in range(4):
        needing = [x.clone().requires_grad_(i == place) for i, x in enumerate(inputs)]
        with pytest.raises(RuntimeError, match=f"{OP}: forward only, it has no gradient; call it under torch.no_grad"):
            gated_difference(*needing, activation="silu", impl=impl)
        with torch.no_grad():
            assert not gated_difference(*needing, activation="silu", impl=impl).requires_grad


def test_opcheck(impl: str, dtype: torch.dtype, device: str) -> None:
    op = torch.ops.icl_fast.gated_difference.default
    torch.library.opcheck(op, (*make((2, 3, 8), dtype, device), "silu", impl))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(impl: str, device: str, dynamic: bool) -> None:
    inputs = make((2, 3, 8), torch.float32, device)

    def effect(*inputs: Tensor) -> Tensor:
        return gated_difference(inputs[0] * 2, *inputs[1:], activation="gelu", impl=impl) + 1

    compiled = torch.compile(effect, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(*inputs), effect(*inputs))


def test_autocast_does_not_touch_it(impl: str, device: str) -> None:
    inputs = make((2, 3, 8), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        under = gated_difference(*inputs, activation="silu", impl=impl)
    assert torch.equal(under, gated_difference(*inputs, activation="silu", impl=impl))


GOOD: dict[str, Any] = {
    "gate": torch.zeros(4, 8),
    "up": torch.zeros(4, 8),
    "gate_removed": torch.zeros(2, 4, 8),
    "up_removed": torch.zeros(2, 4, 8),
    "activation": "silu",
}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"gate": torch.zeros(4)}, ValueError, r"gate must be \[N,M\], got \[4\]"),
    ({"up": torch.zeros(4, 7)}, ValueError, r"up must be \[N,M\] with N=4, M=8, got \[4, 7\]"),
    ({"gate_removed": None}, TypeError, r"gate_removed must be a tensor \[A,N,M\], got NoneType"),
    ({"up_removed": torch.zeros(3, 4, 8)}, ValueError, r"up_removed must be \[A,N,M\] with A=2, N=4, M=8, got \[3, 4"),
    ({"up": torch.zeros(4, 8).half()}, TypeError, "up must have the dtype of gate, torch.float32, got"),
    ({"up_removed": torch.zeros(2, 4, 8).to("meta")}, ValueError, "up_removed must be on the device of gate, cpu, got"),
    ({"activation": "solu"}, ValueError, "activation must be one of gelu, gelu_tanh, silu, relu, got 'solu'"),
    ({"impl": ""}, ValueError, "impl must be one of auto, reference, cpu, cuda, got ''"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"{OP}: {message}"):
        gated_difference(**{**GOOD, **change})
