from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.ops import _backend, layer_norm_difference

OP = "layer_norm_difference"
EPS = 1e-5
SIZES = [(3, 5, 16), (1, 1, 1), (2, 7, 31), (5, 2, 768), (3, 4, 1), (0, 3, 8), (2, 0, 8), (2, 3, 0)]  # A, N, C


@pytest.fixture(params=[True, False], ids=["LayerNorm", "RMSNorm"])
def centre(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def make(
    sizes: tuple[int, int, int], dtype: torch.dtype, device: str, size: float = 1.0, mean: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    a, n, c = sizes
    x, removed, weight = torch.randn(n, c) * 3 + mean, torch.randn(a, n, c) * size, torch.rand(c) + 0.5
    return x.to(device, dtype), removed.to(device, dtype), weight.to(device, dtype)


def plain(x: Tensor, removed: Tensor, weight: Tensor | None, eps: float = EPS, centre: bool = True) -> Tensor:
    if removed.numel() == 0:
        return removed.clone()
    norm = F.layer_norm if centre else F.rms_norm
    return norm(x, x.shape[-1:], weight, eps=eps) - norm(x - removed, x.shape[-1:], weight, eps=eps)


def units(actual: Tensor, x: Tensor, removed: Tensor, weight: Tensor, centre: bool = True) -> float:
    """The largest error, in roundings of the largest of each row of removed over the standard deviation."""
    wide = (x.double(), removed.double(), weight.double())
    exact = layer_norm_difference(*wide, eps=EPS, centre=centre, impl="reference")
    rows = [row - row.mean(-1, keepdim=True) if centre else row for row in (*wide[:2], wide[0] - wide[1])]
    variance, variance_left = (row.square().mean(-1) for row in (rows[0], rows[2]))
    sd = (torch.maximum(variance.expand(removed.shape[:2]), variance_left) + EPS).sqrt()
    unit = rows[1].abs().amax(-1) / sd * weight.double().abs().max()
    tiny = torch.finfo(actual.dtype).smallest_normal * torch.finfo(actual.dtype).eps
    return (((actual.double() - exact).abs().amax(-1) - tiny) / (torch.finfo(actual.dtype).eps * unit)).max().item()


def same(actual: Tensor, expected: Tensor) -> None:
    """But for the order of sums, which may follow the addresses of the elements."""
    eps = torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("poisoned_memory")
def test_error(impl: str, dtype: torch.dtype, device: str, sizes: Any, size: float, within: Any, centre: bool) -> None:
    x, removed, weight = make(sizes, dtype, device, size)
    actual = layer_norm_difference(x, removed, weight, eps=EPS, centre=centre, impl=impl)
    assert actual.dtype == dtype
    assert actual.shape == removed.shape
    exact = plain(x.double(), removed.double(), weight.double(), centre=centre)
    within(actual, plain(x, removed, weight, centre=centre), exact, times=2)


@pytest.mark.parametrize("sizes", [(1, 2, 16400), (1, 1, 3077)])
@pytest.mark.usefixtures("poisoned_memory")
def test_long_rows(impl: str, dtype: torch.dtype, device: str, sizes: Any, within: Any, centre: bool) -> None:
    """Rows that kernels sum in three pieces or more, aligned to 16 bytes and not."""
    x, removed, weight = make(sizes, dtype, device)
    actual = layer_norm_difference(x, removed, weight, eps=EPS, centre=centre, impl=impl)
    exact = plain(x.double(), removed.double(), weight.double(), centre=centre)
    within(actual, plain(x, removed, weight, centre=centre), exact, times=2)
    assert units(actual, x, removed, weight, centre) <= 6


@pytest.mark.parametrize("mean", [0.0, 3000.0])
@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0, 1e3, 1e5])
def test_error_beside_what_is_removed(
    impl: str, dtype: torch.dtype, device: str, size: float, mean: float, centre: bool
) -> None:
    if dtype == torch.float16 and not 1e-3 <= size <= 1:
        pytest.skip("float16 does not hold such numbers")
    for sizes in ((3, 5, 64), (2, 7, 31), (2, 3, 771)):
        x, removed, weight = make(sizes, dtype, device, size, mean)
        removed[:, 0] += removed[:, 0].abs().max() * 100  # a row that is far from zero
        actual = layer_norm_difference(x, removed, weight, eps=EPS, centre=centre, impl=impl)
        assert units(actual, x, removed, weight, centre) <= 6


@pytest.mark.parametrize("mean", [0.0, 3000.0])
@pytest.mark.parametrize("share", [1.0, 0.99, 0.999999])
def test_what_wrote_nearly_all_of_the_row(
    impl: str, dtype: torch.dtype, device: str, share: float, mean: float, within: Any, centre: bool
) -> None:
    """What is left is small beside what is removed: rounding must not be amplified by the quotient."""
    x, _, weight = make((1, 7, 95), dtype, device, mean=mean)
    removed = (x.double() * share).to(dtype)[None]
    actual = layer_norm_difference(x, removed, weight, eps=EPS, centre=centre, impl=impl)
    within(
        actual,
        plain(x, removed, weight, centre=centre),
        plain(x.double(), removed.double(), weight.double(), centre=centre),
        times=2,
    )
    assert units(actual, x, removed, weight, centre) <= 6


def test_removing_everything_gives_the_norm_itself(impl: str, dtype: torch.dtype, device: str, centre: bool) -> None:
    x, _, weight = make((1, 7, 64), dtype, device)
    actual = layer_norm_difference(x, x[None], weight, eps=EPS, centre=centre, impl=impl)[0]
    norm = F.layer_norm if centre else F.rms_norm
    exact = norm(x.double(), [64], weight.double(), eps=EPS)
    assert ((actual.double() - exact).abs() <= 3 * torch.finfo(dtype).eps * exact.abs().max()).all()


def test_removing_nothing_changes_nothing(impl: str, dtype: torch.dtype, device: str, centre: bool) -> None:
    """Also where the row has no deviation, which only eps keeps from 0 / 0."""
    x, removed, weight = make((3, 7, 64), dtype, device)
    x[2] = 5
    assert not layer_norm_difference(x, torch.zeros_like(removed), weight, eps=EPS, centre=centre, impl=impl).any()
    constant = torch.full_like(removed, 2)
    assert not centre or not layer_norm_difference(x, constant, weight, eps=EPS, centre=centre, impl=impl)[:, 2].any()


def test_float64(centre: bool) -> None:
    mpmath = pytest.importorskip("mpmath")
    mp = mpmath.mp.clone()
    mp.dps = 60

    def normed(row: list[Any]) -> list[Any]:
        centred = [value - sum(row) / len(row) for value in row] if centre else row
        sd = mp.sqrt(sum(value**2 for value in centred) / len(row) + mp.mpf(EPS))
        return [value / sd for value in centred]

    for size, mean in ((1e-20, 0.0), (1e-9, 3000.0), (1.0, 0.0), (1e6, 1.0)):
        x, removed, weight = (t.double() for t in make((2, 3, 7), torch.float64, "cpu", size, mean))
        actual = layer_norm_difference(x, removed, weight, eps=EPS, centre=centre, impl="reference")
        for a in range(2):
            for n in range(3):
                row, d = ([mp.mpf(value) for value in r.tolist()] for r in (x[n], removed[a, n]))
                exact = [
                    p - q
                    for p, q in zip(normed(row), normed([s - t for s, t in zip(row, d, strict=True)]), strict=True)
                ]
                for i, value in enumerate(exact):
                    error = abs(mp.mpf(actual[a, n, i].item()) - value * mp.mpf(weight[i].item()))
                    assert error <= 1e-15 * max(abs(other) for other in exact)


def test_no_weight_is_a_weight_of_1(impl: str, dtype: torch.dtype, device: str, centre: bool) -> None:
    x, removed, weight = make((3, 5, 31), dtype, device)
    ones = layer_norm_difference(x, removed, torch.ones_like(weight), eps=EPS, centre=centre, impl=impl)
    assert torch.equal(layer_norm_difference(x, removed, None, eps=EPS, centre=centre, impl=impl), ones)
    assert not torch.equal(layer_norm_difference(x, removed, weight, eps=EPS, centre=centre, impl=impl), ones)


def test_eps_counts(impl: str, device: str, centre: bool) -> None:
    x, removed, weight = make((3, 5, 31), torch.float32, device)
    actual = layer_norm_difference(x, removed, weight, eps=10.0, centre=centre, impl=impl)
    torch.testing.assert_close(actual, plain(x, removed, weight, 10.0, centre), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(actual, plain(x, removed, weight, centre=centre), rtol=1e-2)


def test_without_eps(impl: str, dtype: torch.dtype, device: str, centre: bool) -> None:
    """As torch: of a row that is nothing but zeros, or after it, nan."""
    x, removed, weight = make((3, 5, 31), dtype, device, 1e-3)
    x[2], removed[:, 2], removed[1, 3] = 0, 0, x[3]
    actual = layer_norm_difference(x, removed, weight, eps=0, centre=centre, impl=impl)
    expected = plain(x.double(), removed.double(), weight.double(), 0.0, centre)
    assert expected[:, 2].isnan().all()
    assert expected[1, 3].isnan().all()
    expected = torch.where(expected.abs() > 1e30, torch.nan, expected)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=4 * eps, atol=4e-3 * eps + 1e-14, equal_nan=True)


def test_a_row_of_nan_stays_in_its_row(impl: str, device: str, centre: bool) -> None:
    x, removed, weight = make((3, 5, 31), torch.float32, device)
    clean = layer_norm_difference(x, removed, weight, eps=EPS, centre=centre, impl=impl)
    x[1, 30] = float("nan")
    removed[2, 3, 0] = float("inf")
    dirty = layer_norm_difference(x, removed, weight, eps=EPS, centre=centre, impl=impl)
    reached = torch.zeros_like(dirty, dtype=torch.bool)
    reached[:, 1] = True
    reached[2, 3] = True
    assert torch.equal(dirty.isnan(), reached)
    assert torch.equal(dirty[~reached], clean[~reached])


def test_threads_and_order_change_no_bit(impl: str, device: str, centre: bool) -> None:
    if impl == "reference":
        pytest.skip("torch's own sums may depend on the number of threads")
    given = make((2, 7, 97) if impl.startswith("emu") else (2, 67, 257), torch.float32, device)
    results = []
    for threads, order in ((1, "asc"), (2, "desc"), (5, "random")):
        torch.set_num_threads(threads)
        if impl.startswith("emu"):
            _backend.emulator().set_order(order, 1)
        results.append(layer_norm_difference(*given, eps=EPS, centre=centre, impl=impl))
    assert all(torch.equal(results[0], other) for other in results)


def test_strided_inputs(impl: str, dtype: torch.dtype, device: str, strided: Any, centre: bool) -> None:
    given = make((2, 5, 16), dtype, device)
    actual = layer_norm_difference(*map(strided, given), eps=EPS, centre=centre, impl=impl)
    assert actual.is_contiguous()
    same(actual, layer_norm_difference(*given, eps=EPS, centre=centre, impl=impl))


def test_inputs_that_are_not_aligned(impl: str, dtype: torch.dtype, device: str, centre: bool) -> None:
    given = make((2, 5, 16), dtype, device)
    shifted = [torch.empty(x.numel() + 1, dtype=dtype, device=device)[1:].view(x.shape).copy_(x) for x in given]
    same(
        layer_norm_difference(*shifted, eps=EPS, centre=centre, impl=impl),
        layer_norm_difference(*given, eps=EPS, centre=centre, impl=impl),
    )


def test_forward_only(impl: str, device: str) -> None:
    given = make((2, 3, 8), torch.float32, device)
    for i in range(3):
        needing = [x.clone().requires_grad_(i == j) for j, x in enumerate(given)]
        with pytest.raises(RuntimeError, match=f"{OP}: forward only, it has no gradient; call it under torch.no_grad"):
            layer_norm_difference(*needing, eps=EPS, impl=impl)
        with torch.no_grad():
            assert not layer_norm_difference(*needing, eps=EPS, impl=impl).requires_grad


def test_opcheck(impl: str, dtype: torch.dtype, device: str, centre: bool) -> None:
    op = torch.ops.icl_fast.layer_norm_difference.default
    x, removed, weight = make((2, 3, 8), dtype, device)
    torch.library.opcheck(op, (x, removed, weight, EPS, centre, impl))
    torch.library.opcheck(op, (x, removed, None, EPS, centre, impl))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(impl: str, device: str, dynamic: bool) -> None:
    x, removed, weight = make((2, 3, 8), torch.float32, device)

    def effect(x: Tensor, removed: Tensor) -> Tensor:
        return layer_norm_difference(x * 2, removed, weight, eps=EPS, impl=impl) + 1

    compiled = torch.compile(effect, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(x, removed), effect(x, removed))


def test_autocast_does_not_touch_it(impl: str, device: str) -> None:
    given = make((2, 3, 8), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        under = layer_norm_difference(*given, eps=EPS, impl=impl)
    assert torch.equal(under, layer_norm_difference(*given, eps=EPS, impl=impl))


GOOD: dict[str, Any] = {"x": torch.zeros(4, 8), "removed": torch.zeros(2, 4, 8), "weight": torch.ones(8), "eps": EPS}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(4)}, ValueError, r"x must be \[N,C\], got \[4\]"),
    ({"x": None}, TypeError, r"x must be a tensor \[N,C\], got NoneType"),
    ({"x": torch.zeros(4, 8).int()}, TypeError, "x must be float32, bfloat16, float16 or float64, got torch.int32"),
    ({"removed": torch.zeros(2, 5, 8)}, ValueError, r"removed must be \[A,N,C\] with A=2, N=4, C=8, got \[2, 5, 8\]"),
    ({"removed": torch.zeros(2, 4, 8).half()}, TypeError, "removed must have the dtype of x, torch.float32, got"),
    ({"removed": torch.zeros(2, 4, 8).to("meta")}, ValueError, "removed must be on the device of x, cpu, got meta"),
    ({"weight": torch.ones(7)}, ValueError, r"weight must be \[C\] with C=8, got \[7\]"),
    ({"weight": torch.ones(8).double()}, TypeError, "weight must have the dtype of x, torch.float32, got"),
    ({"eps": -1e-9}, ValueError, r"eps must be 0 or more and finite \(in float32\), got -1e-09"),
    ({"centre": 1}, TypeError, "centre must be True or False, got int"),
    ({"impl": ""}, ValueError, "impl must be one of auto, reference, cpu, cuda, got ''"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"{OP}: {message}"):
        layer_norm_difference(**{**GOOD, **change})
