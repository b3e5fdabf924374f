"""x W^T by the CPU kernel, against torch in float64; elsewhere it is torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from icl_fast.ops import _backend, pack_weight
from icl_fast.ops._project import project

ISAS = [*_backend.isas(), None]  # None: none of them, torch in float64
UNITS = [*_backend.isas(), *_backend.emulated_isas()]
# whole tiles, parts of them, sums cut in pieces; [N, C, M]
SIZES = [(16, 64, 96), (1, 1, 1), (7, 5, 3), (33, 64, 49), (50, 700, 100), (9, 1300, 48), (0, 4, 5)]


def make(n: int, c: int, m: int, isa: str | None) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if isa is None else torch.float32
    return torch.randn(n, c, dtype=dtype), torch.randn(m, c, dtype=dtype), torch.randn(n, m, dtype=dtype)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("poisoned_memory")
def test_is_the_product(sizes: tuple[int, int, int], threads: int, isa: str | None) -> None:
    before, (x, weight, onto) = torch.get_num_threads(), make(*sizes, isa)
    expected = x.double() @ weight.double().T
    torch.set_num_threads(threads)
    try:
        found, added = project(x, weight), project(x, weight, onto=onto.clone())
    finally:
        torch.set_num_threads(before)
    error = (1e-14 if isa is None else 4e-6) * sizes[1] ** 0.5  # of sums of C terms of size 1
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=error)
    torch.testing.assert_close(added.double(), onto.double() + expected, rtol=0, atol=error)


@pytest.mark.parametrize("isa", UNITS, indirect=True)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 5, 3), (33, 64, 49), (50, 1100, 64), (200, 40, 70), (0, 4, 5)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("packed_for", ["this unit", "none"])
@pytest.mark.usefixtures("poisoned_memory")
def test_products_of_bfloat16(sizes: tuple[int, int, int], threads: int, packed_for: str, isa: str) -> None:
    """Float32 sums of exact products of the rounded operands, with a unit for them and without."""
    x, weight, onto = make(*sizes, isa)
    expected = x.bfloat16().double() @ weight.bfloat16().double().T
    if packed_for == "none":
        _backend.set_isa("baseline")
    packed = pack_weight(weight)
    _backend.set_isa(isa)
    torch.set_num_threads(threads)
    found, added = project(x, packed), project(x, packed, onto=onto.clone())
    error = 4e-6 * sizes[1] ** 0.5
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=error)
    torch.testing.assert_close(added.double(), onto.double() + expected, rtol=0, atol=error)


def test_products_of_bfloat16_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_fast.ops._project._COMPILED", False)
    x, weight, onto = torch.randn(3, 4, 50), torch.randn(6, 50), torch.randn(3, 4, 6)
    expected = x.bfloat16().double() @ weight.bfloat16().double().T
    torch.testing.assert_close(project(x, pack_weight(weight)).double(), expected, rtol=0, atol=1e-5)
    added = project(x, pack_weight(weight), onto=onto.clone())
    torch.testing.assert_close(added.double(), onto.double() + expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3),), r"weight must be \[V,C\]"),
        ((torch.zeros(3, 4, dtype=torch.float64),), "weight must be float32, got float64"),
        ((torch.zeros(3, 4), "float32"), "products must be one of bfloat16"),
    ],
)
def test_what_cannot_be_packed(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        pack_weight(*arguments)


@pytest.mark.skipif(not _backend.compiled(), reason=f"not compiled: {_backend.load_error()}")
@pytest.mark.parametrize("isa", UNITS, indirect=True)
@pytest.mark.parametrize("pack", [pack_weight, lambda weight: weight])
def test_writes_nothing_else(pack: Callable[[Tensor], Any], isa: str) -> None:
    """Between rows that are someone else's, from rows that are not side by side."""
    x, weight = torch.randn(11, 40)[:, ::2].bfloat16().float(), torch.randn(50, 20).bfloat16().float()
    room = torch.full((13, 50), 7.0)
    project(x, pack(weight), onto=room[1:12])
    assert (room[[0, 12]] == 7).all()
    torch.testing.assert_close(room[1:12], 7 + x @ weight.T)


def test_many_dimensions_are_rows() -> None:
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(6, 5)
    torch.testing.assert_close(project(x, weight), x @ weight.T)


@pytest.mark.parametrize("pack", [pack_weight, lambda weight: weight])
def test_no_sum_depends_on_the_other_rows(pack: Callable[[Tensor], Any]) -> None:
    x, weight = torch.randn(100, 700), pack(torch.randn(60, 700))
    assert torch.equal(project(x, weight)[:37], project(x[:37], weight))
