"""The tile kernels that multiply bfloat16, on the processor's unit where there is one and emulated everywhere.

Calls are drawn by seeds and not by hypothesis, which is not installed on every machine that has such a unit.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from icl_fast.ops import _backend, cross_entropy_difference, linear_cross_entropy

EMULATED = _backend.emulated_isas()
UNITS = [isa.removesuffix("_emulated") for isa in EMULATED if isa.removesuffix("_emulated") in _backend.isas()]
PANEL = 32
# subnormal, the smallest normal numbers, infinite and no number, beside ordinary ones
ODD = [0.0, -0.0, 1e-40, -3e-39, 1.2e-38, -1.2e-38, 1e-20, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]

pytestmark = pytest.mark.skipif(not EMULATED, reason=f"not compiled: {_backend.load_error()}")


class Call(NamedTuple):
    rows: int
    depth: int
    panels: int
    add: bool
    odd: bool
    apart: int  # how much further the rows lie from each other than they are long
    seed: int


def draw(seed: int, odd: bool) -> Call:
    of = random.Random(seed)
    return Call(
        rows=of.randint(1, 70),
        depth=32 * of.randint(0, 6),
        panels=of.randint(1, 3),
        add=of.random() < 0.5,
        odd=odd,
        apart=of.choice([0, 1, 32]),
        seed=seed,
    )


def operands(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [rows, depth], columns [depth, count * PANEL] and what the product is added to; bfloat16, and float32."""
    generator = torch.Generator().manual_seed(call.seed)
    shapes = (call.rows, call.depth), (call.depth, call.panels * PANEL), (call.rows, call.panels * PANEL)
    a, b, onto = (torch.randn(shape, generator=generator) for shape in shapes)
    if call.odd:
        for of in (a, b, onto):
            chosen = torch.tensor(ODD)[torch.randint(len(ODD), of.shape, generator=generator)]
            of.copy_(torch.where(torch.rand(of.shape, generator=generator) < 0.1, chosen, of))
    return a.bfloat16(), b.bfloat16(), onto


def product(isa: str, call: Call, a: Tensor, b: Tensor, onto: Tensor) -> Tensor:
    """The product by the tile kernel of `isa`; nothing beside it is written to."""
    width = call.panels * PANEL
    panels = b.view(call.depth // 2, 2, call.panels, PANEL).permute(2, 0, 3, 1).contiguous()
    rows = torch.full((call.rows, call.depth + call.apart), torch.nan, dtype=torch.bfloat16)
    rows[:, : call.depth] = a
    out = torch.full((call.rows + 1, width + call.apart), 7.0)
    out[: call.rows, :width] = onto
    _backend.set_isa(isa)
    try:
        _backend.module().bfloat16_product(
            *(x.data_ptr() for x in (out, rows, panels)),
            **{"rows": call.rows, "a_step": rows.stride(0), "count": call.panels, "depth": call.depth},
            **{"out_step": out.stride(0), "add": call.add},
        )
    finally:
        _backend.set_isa(_backend.isas()[-1])
    assert (out[call.rows] == 7).all()
    assert (out[:, width:] == 7).all()
    return out[: call.rows, :width]


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("unit", [*EMULATED, *UNITS])
def test_is_the_product(unit: str, seed: int) -> None:
    call = draw(seed, odd=False)
    a, b, onto = operands(call)
    exact = a.double() @ b.double() + (onto.double() if call.add else 0)
    size = a.double().abs() @ b.double().abs() + onto.double().abs()
    error = (product(unit, call, a, b, onto).double() - exact).abs()
    assert (error <= (call.depth + 1) * 2**-24 * size).all()


@pytest.mark.skipif(not UNITS, reason="this processor does not multiply bfloat16")
@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("unit", UNITS)
def test_the_emulation_is_the_unit(unit: str, odd: bool, seed: int) -> None:
    """Bit for bit: subnormal numbers, infinities and NaN as well."""
    call = draw(seed, odd)
    given = operands(call)
    of_unit, of_emulation = (product(isa, call, *given) for isa in (unit, f"{unit}_emulated"))
    assert torch.equal(of_unit.isnan(), of_emulation.isnan())
    numbers = ~of_unit.isnan()
    assert torch.equal(of_unit[numbers].view(torch.int32), of_emulation[numbers].view(torch.int32))


@pytest.mark.parametrize("isa", ["amx_emulated"], indirect=True)
def test_tile_registers_are_given_back(isa: str) -> None:
    """The system saves them at every switch to another thread as long as they are configured."""
    hidden, weight, targets = torch.randn(50, 40), torch.randn(70, 40), torch.randint(70, (50,))
    half = hidden.bfloat16(), weight.bfloat16()
    for forget in (
        lambda: linear_cross_entropy(*half, targets, impl="cpu"),
        lambda: cross_entropy_difference(half[0], half[0][None], half[1], targets, impl="cpu"),
    ):
        before = _backend.module().emulated_tile_configurations()
        forget()
        assert _backend.module().emulated_tile_configurations() > before
        assert not _backend.module().emulated_tiles_in_use()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("isa", [*EMULATED, *UNITS], indirect=True)
@pytest.mark.usefixtures("poisoned_memory")
def test_the_losses_at_any_shape(isa: str, seed: int) -> None:
    """Against the kernels of float32 on the same numbers."""
    of = random.Random(seed)
    n, c, v, a = of.randint(0, 70), of.randint(1, 70), of.randint(1, 140), of.randint(0, 3)
    hidden, removed, weight = torch.randn(n, c), torch.randn(a, n, c) / 4, torch.randn(v, c) / c**0.5
    narrow = [x.bfloat16() for x in (hidden, removed, weight)]
    targets = torch.randint(v, (n,))
    mine = cross_entropy_difference(*narrow, targets, impl="cpu")
    wide = cross_entropy_difference(*(x.float() for x in narrow), targets, impl="cpu")
    for actual, expected in zip(mine, wide, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    targets[::5] = -100
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [x.to(dtype).requires_grad_() for x in (narrow[0], narrow[2])]
        losses = linear_cross_entropy(*inputs, targets, impl="cpu")
        mean = linear_cross_entropy(*inputs, targets, reduction="mean", impl="cpu")
        results.append(
            [*torch.autograd.grad(losses.sum(), inputs), *torch.autograd.grad(mean, inputs), losses.detach()]
        )
    *gradients, losses = zip(*results, strict=True)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    for actual, expected in gradients:
        size = expected.abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(actual.float(), expected, rtol=2e-2, atol=1e-2 * size + 1e-6)
