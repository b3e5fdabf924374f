from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.ops import _backend, cross_entropy_difference, pack_weight

OP = "cross_entropy_difference"
SIZES = [(37, 3, 16, 101), (13, 7, 31, 257)]  # N, A, C, V
FEW = [(1, 1, 3, 2), (5, 2, 8, 1), (3, 1, 1, 7), (2, 3, 0, 5), (17, 1, 5, 3)]


def make(
    sizes: tuple[int, ...], dtype: torch.dtype, device: str, peak: float = 1.0, scale: Any = 1.0
) -> dict[str, Any]:
    n, a, c, v = sizes
    tensors = {
        "hidden": torch.randn(n, c) * peak,
        "removed": torch.randn(a, n, c) * scale,
        "weight": torch.randn(v, c) / max(c, 1) ** 0.5,
        "bias": torch.randn(v),
    }
    targets = torch.randint(v, (n,)).to(device)
    return {**{name: x.to(device, dtype) for name, x in tensors.items()}, "targets": targets}


def plain(
    hidden: Tensor, removed: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition: losses are computed and subtracted."""

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight, bias), targets, reduction="none")

    base = loss(hidden)
    return base, torch.stack([loss(hidden - r) - base for r in removed]) if len(removed) else removed.sum(-1)


def in_double(given: dict[str, Any]) -> dict[str, Any]:
    return {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in given.items()}


def check_effects(difference: Tensor, given: dict[str, Any]) -> None:
    """Errors relative to the effect, row by row, against more digits than float64 has.

    A product is rounded at the size of what it sums, a probability at the size of its logit.
    """
    hidden, removed, weight, bias = (
        given[name].double().cpu().numpy().astype(np.longdouble) for name in ("hidden", "removed", "weight", "bias")
    )
    logits, change = hidden @ weight.T + bias, removed @ weight.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    targets = given["targets"].cpu().numpy()
    grown, shrunk = (p * np.expm1(-change)).sum(2), (p * np.exp(-change)).sum(2)
    truth = np.where(np.abs(grown) <= 0.5, np.log1p(np.maximum(grown, -0.5)), np.log(shrunk))
    truth += change[:, np.arange(len(targets)), targets]
    eps = torch.finfo(difference.dtype).eps
    allowed = eps * (8 + np.abs(logits).max(1)) * np.abs(change).max(2)
    error = np.abs(difference.double().cpu().numpy() - truth)
    assert error.shape == allowed.shape
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), f"{worst}: error {error[worst]:.3g}, allowed {allowed[worst]:.3g}"


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("peak", [1.0, 30.0])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("poisoned_memory")
def test_error(impl: str, dtype: torch.dtype, device: str, sizes: Any, peak: float, scale: float, within: Any) -> None:
    given = make(sizes, dtype, device, peak, scale)
    base, difference = cross_entropy_difference(**given, impl=impl)
    assert base.dtype == difference.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert difference.shape == (sizes[1], sizes[0])
    for actual, same, exact in zip([base, difference], plain(**given), plain(**in_double(given)), strict=True):
        within(actual, same, exact, times=2)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("sizes", FEW)
@pytest.mark.usefixtures("poisoned_memory")
def test_small_shapes(impl: str, dtype: torch.dtype, device: str, sizes: Any, scale: float) -> None:
    given = make(sizes, dtype, device, scale=scale)
    base, difference = cross_entropy_difference(**given, impl=impl)
    torch.testing.assert_close(base.double(), plain(**in_double(given))[0], rtol=2e-6, atol=2e-6)
    check_effects(difference, given)


@pytest.mark.parametrize("sizes", [(0, 2, 8, 11), (5, 0, 8, 11)])
@pytest.mark.usefixtures("poisoned_memory")
def test_nothing(impl: str, dtype: torch.dtype, device: str, sizes: Any, within: Any) -> None:
    given = make(sizes, dtype, device)
    base, difference = cross_entropy_difference(**given, impl=impl)
    within(base, plain(**given)[0], plain(**in_double(given))[0], times=2)
    assert difference.shape == (sizes[1], sizes[0])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
@pytest.mark.parametrize("sizes", [(37, 3, 48, 307), (50, 2, 64, 130)])
def test_products_of_bfloat16(impl: str, device: str, sizes: Any, scale: float) -> None:
    """Of float32 that is rounded: as exact beside the effect as products of float32 are, but for the rounding."""
    given = make(sizes, torch.float32, device, scale=scale)
    rounded = {
        name: x.bfloat16().float() if name in ("hidden", "removed", "weight") else x for name, x in given.items()
    }
    if impl == "cuda":
        with pytest.raises(ValueError, match="products='bfloat16' of float32 is not built for cuda; cast the inputs"):
            cross_entropy_difference(**given, products="bfloat16", impl=impl)
        return
    found = cross_entropy_difference(**given, products="bfloat16", impl=impl)
    check_effects(found[1], rounded)
    torch.testing.assert_close(found[0].double(), plain(**in_double(rounded))[0], rtol=2e-6, atol=2e-6)
    packed = cross_entropy_difference(**{**given, "weight": pack_weight(given["weight"])}, impl=impl)
    assert all(torch.equal(*both) for both in zip(found, packed, strict=True))


@pytest.mark.parametrize("peak", [1.0, 30.0])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 1.0, 30.0, 300.0])
def test_error_relative_to_the_effect(impl: str, dtype: torch.dtype, device: str, scale: float, peak: float) -> None:
    given = make((37, 3, 48, 307), dtype, device, peak, scale)
    check_effects(cross_entropy_difference(**given, impl=impl)[1], given)


def test_a_large_effect_leaves_small_ones_beside_it_exact(impl: str, dtype: torch.dtype, device: str) -> None:
    scale = torch.tensor([1e-6, 300.0, 1e-3, 1.0, 1e-5, 30.0, 1e-4])[torch.arange(3 * 37) % 7].view(3, 37, 1)
    given = make((37, 3, 48, 307), dtype, device, scale=scale)
    check_effects(cross_entropy_difference(**given, impl=impl)[1], given)


@pytest.mark.parametrize("sizes", [(9, 2, 1030, 3300), (8300, 1, 3, 5), (40, 33, 200, 900)])
def test_many_blocks_of_rows_and_columns(impl: str, device: str, sizes: Any, within: Any) -> None:
    """Shapes at which the kernels cut rows, columns and products in more pieces than one."""
    if impl.startswith("emu"):
        pytest.skip("too slow: test_tiles_splits_and_chunks has shapes for it")
    given = make(sizes, torch.float32, device, scale=0.1)
    results = cross_entropy_difference(**given, impl=impl)
    for actual, same, exact in zip(results, plain(**given), plain(**in_double(given)), strict=True):
        within(actual, same, exact, times=2)


@pytest.mark.parametrize(
    ("multiprocessors", "sizes"),
    [(1, (130, 2, 104, 700)), (1, (70, 6, 39, 300)), (60, (5, 2, 16, 1100))],
    indirect=["multiprocessors"],
)
@pytest.mark.usefixtures("poisoned_memory", "multiprocessors")
def test_tiles_splits_and_chunks(impl: str, dtype: torch.dtype, device: str, sizes: Any, within: Any) -> None:
    """Three or more, or parts, of whatever the CUDA kernels go through in pieces; rows aligned to 16 bytes and not."""
    given = make((*sizes[:3], 40 * sizes[3]) if impl == "cuda" else sizes, dtype, device, scale=0.1)
    results = cross_entropy_difference(**given, impl=impl)
    for actual, same, exact in zip(results, plain(**given), plain(**in_double(given)), strict=True):
        within(actual, same, exact, times=2)


@pytest.mark.parametrize("shift", [1e-5, 0.3, 5.0, 50.0, 200.0, -1e-5, -0.3, -5.0, -50.0, -200.0])
def test_a_shift_of_all_logits_changes_nothing(impl: str, dtype: torch.dtype, device: str, shift: float) -> None:
    given = make((13, 2, 16, 421), dtype, device)
    given["weight"][:, 0] = 1
    given["removed"].zero_()[..., 0] = shift
    _, difference = cross_entropy_difference(**given, impl=impl)
    torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=2e-6 * abs(shift))
    given["removed"][1, :, 1:] = 1e-2
    check_effects(cross_entropy_difference(**given, impl=impl)[1], given)


@pytest.mark.parametrize("logit", [-120.0, -50.0, -20.0, 0.0, 20.0, 50.0, 120.0])
@pytest.mark.parametrize("change", [-300.0, -90.0, -45.0, -25.0, -10.0, 10.0, 25.0, 45.0, 90.0, 300.0])
def test_certain_becomes_improbable_and_improbable_certain(
    impl: str, device: str, logit: float, change: float, within: Any
) -> None:
    """One token stands that far above the others, or below, and is moved; it is the target of every second row."""
    given = make((6, 1, 9, 421), torch.float32, device, scale=0.1)
    token = 173
    given["weight"][:, 0] = 0
    given["weight"][token] = torch.eye(9)[0]
    given["bias"][token] = 0
    given["hidden"][:, 0] = logit
    given["removed"][..., 0] = -change
    given["targets"][::2] = token
    _, difference = cross_entropy_difference(**given, impl=impl)
    within(difference, plain(**given)[1], plain(**in_double(given))[1], times=2)
    check_effects(difference, given)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_tokens_forbidden_by_the_bias(impl: str, dtype: torch.dtype, device: str, scale: float, within: Any) -> None:
    given = make((13, 2, 16, 1009), dtype, device, scale=scale)
    allowed = torch.arange(3, 1009, 97) if scale == 1.0 else torch.arange(803, 1009)  # whole blocks are forbidden
    kept = given["bias"][allowed]
    given["bias"].fill_(-torch.inf)[allowed] = kept
    given["targets"] = allowed[given["targets"].cpu() % len(allowed)].to(device)
    results = cross_entropy_difference(**given, impl=impl)
    for actual, same, exact in zip(results, plain(**given), plain(**in_double(given)), strict=True):
        within(actual, same, exact, times=2)


def test_a_forbidden_target(impl: str, device: str) -> None:
    given = make((8, 2, 16, 101), torch.float32, device, scale=torch.tensor([1e-3, 100.0]).view(2, 1, 1))
    given["bias"][given["targets"][::2]] = -torch.inf
    base, difference = cross_entropy_difference(**given, impl=impl)
    expected = cross_entropy_difference(**given, impl="reference")
    assert base[::2].isinf().all()
    assert base[1::2].isfinite().any()
    torch.testing.assert_close(base, expected[0])
    torch.testing.assert_close(difference, expected[1], rtol=1e-4, atol=1e-6, equal_nan=True)


def test_what_removes_nothing_changes_nothing(impl: str, dtype: torch.dtype, device: str) -> None:
    given = make((13, 3, 16, 101), dtype, device)
    given["removed"][1] = 0
    _, difference = cross_entropy_difference(**given, impl=impl)
    assert not difference[1].any()
    assert difference[0].all()


def test_no_bias(impl: str, dtype: torch.dtype, device: str) -> None:
    given = make((13, 3, 16, 101), dtype, device)
    zero = {**given, "bias": torch.zeros_like(given["bias"])}
    absent = {name: x for name, x in given.items() if name != "bias"}
    results = [cross_entropy_difference(**x, impl=impl) for x in (given, zero, absent)]
    torch.testing.assert_close(results[2], results[1])
    assert not torch.allclose(results[2][1], results[0][1], rtol=1e-3)


def test_a_row_of_nan_stays_in_its_row(impl: str, device: str) -> None:
    given = make((13, 3, 16, 101), torch.float32, device)
    # the CPU kernel looks by tiles for what is moved far: NaN in the last row must not hide the others
    given["removed"][0] *= 300
    clean = torch.cat([x.view(-1, 13) for x in cross_entropy_difference(**given, impl=impl)])
    given["hidden"][4] = float("nan")
    given["removed"][:2, 7] = float("nan")
    dirty = torch.cat([x.view(-1, 13) for x in cross_entropy_difference(**given, impl=impl)])
    reached = torch.zeros_like(dirty, dtype=torch.bool)
    reached[:, 4] = True
    reached[1:3, 7] = True  # row 0 is the base
    assert torch.equal(dirty.isnan(), reached)
    torch.testing.assert_close(dirty[~reached], clean[~reached])


def test_hopper_runs_its_own_kernel_where_that_can(impl: str, dtype: torch.dtype, launched: Any) -> None:
    if impl != "emu_sm90":
        pytest.skip("about Hopper")
    for width, kernel in ((8, "cross_entropy_difference_kernel<"), (9, "main_kernel<")):
        cross_entropy_difference(**make((3, 2, width, 5), dtype, "cpu"), impl=impl)
        assert launched()[0].startswith(kernel)


def test_addresses_need_no_alignment(impl: str, dtype: torch.dtype, device: str) -> None:
    given = make((5, 2, 8, 11), dtype, device)
    expected = cross_entropy_difference(**given, impl=impl)
    for name in ("hidden", "removed", "weight", "bias"):
        x = given[name]
        moved = torch.full((x.numel() + 1,), float("nan"), dtype=dtype, device=device)[1:].view_as(x).copy_(x)
        actual = cross_entropy_difference(**{**given, name: moved}, impl=impl)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("multiprocessors", [1], indirect=True)
@pytest.mark.parametrize("width", [392, 640])
@pytest.mark.usefixtures("poisoned_memory", "multiprocessors")
def test_weights_that_hopper_keeps_and_copies_again(impl: str, dtype: torch.dtype, device: str, width: int) -> None:
    """As deep as shared memory is kept for, and deeper: by a part of a slab, and by as many as the ring has stages."""
    if impl not in ("emu_sm90", "cuda"):
        pytest.skip("about Hopper")
    given = make((67, 2, width, 270), dtype, device, scale=0.1)
    base, difference = cross_entropy_difference(**given, impl=impl)
    torch.testing.assert_close(base.double(), plain(**in_double(given))[0], rtol=2e-6, atol=2e-6)
    check_effects(difference, given)


def test_threads_change_no_bit(impl: str, dtype: torch.dtype, device: str) -> None:
    if impl == "reference":
        pytest.skip("torch's own sums may depend on the number of threads")
    given = make((131, 3, 64, 257), dtype, device)
    results = []
    for threads, order in ((1, "asc"), (2, "desc"), (5, "random")):
        torch.set_num_threads(threads)
        if impl.startswith("emu"):
            _backend.emulator().set_order(order, 1)
        results.append(torch.cat([x.flatten() for x in cross_entropy_difference(**given, impl=impl)]))
    assert all(torch.equal(results[0], other) for other in results)


def test_strided_inputs(impl: str, dtype: torch.dtype, device: str, strided: Any) -> None:
    given = make((13, 3, 16, 31), dtype, device)
    spread = {name: strided(x) for name, x in given.items()}
    torch.testing.assert_close(
        cross_entropy_difference(**spread, impl=impl),
        cross_entropy_difference(**given, impl=impl),
        rtol=1e-5,
        atol=1e-5,
    )


def test_forward_only(impl: str, device: str) -> None:
    given = make((5, 2, 8, 11), torch.float32, device)
    for name in ("hidden", "removed", "weight", "bias"):
        needing = {**given, name: given[name].clone().requires_grad_()}
        with pytest.raises(RuntimeError, match=f"{OP}: forward only, it has no gradient; call it under torch.no_grad"):
            cross_entropy_difference(**needing, impl=impl)
        with torch.no_grad():
            assert not cross_entropy_difference(**needing, impl=impl)[1].requires_grad


def test_opcheck(impl: str, dtype: torch.dtype, device: str) -> None:
    op = torch.ops.icl_fast.cross_entropy_difference.default
    x = make((5, 2, 8, 11), dtype, device)
    first = (x["hidden"], x["removed"], x["weight"], None, x["targets"])
    torch.library.opcheck(op, (*first, x["bias"], None, impl))
    torch.library.opcheck(op, (*first, None, None, impl))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(impl: str, device: str, dynamic: bool) -> None:
    given = make((13, 3, 16, 31), torch.float32, device)
    removed, targets = given.pop("removed"), given.pop("targets")

    def effect(removed: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_difference(removed=removed * 2, targets=targets, **given, impl=impl)[1].mean(1)

    compiled = torch.compile(effect, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(removed, targets), effect(removed, targets))


def test_autocast_does_not_touch_it(impl: str, device: str) -> None:
    given = make((13, 3, 16, 31), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        under = cross_entropy_difference(**given, impl=impl)
    for actual, expected in zip(under, cross_entropy_difference(**given, impl=impl), strict=True):
        assert torch.equal(actual, expected)


GOOD = {
    **{"hidden": torch.zeros(4, 8), "removed": torch.zeros(2, 4, 8), "weight": torch.zeros(5, 8)},
    **{"targets": torch.zeros(4, dtype=torch.int64), "bias": None},
}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden": torch.zeros(2, 2, 8)}, ValueError, r"hidden must be \[N,C\], got \[2, 2, 8\]"),
    ({"hidden": 1}, TypeError, r"hidden must be a tensor \[N,C\], got int"),
    ({"removed": torch.zeros(4, 8)}, ValueError, r"removed must be \[A,N,C\] with N=4, C=8, got \[4, 8\]"),
    ({"removed": torch.zeros(2, 5, 8)}, ValueError, r"removed must be \[A,N,C\] with A=2, N=4, C=8, got \[2, 5, 8\]"),
    ({"removed": torch.zeros(2, 4, 8).half()}, TypeError, "removed must have the dtype of hidden, torch.float32, got"),
    ({"weight": torch.zeros(5, 7)}, ValueError, r"weight must be \[V,C\] with V=5, C=8, got \[5, 7\]"),
    ({"weight": torch.zeros(0, 8)}, ValueError, "weight must have at least one row"),
    ({"targets": torch.zeros(3).long()}, ValueError, r"targets must be \[N\] with N=4, got \[3\]"),
    ({"targets": torch.zeros(4)}, TypeError, "targets must be of integers, got torch.float32"),
    ({"targets": torch.full((4,), 5)}, ValueError, "targets must be in 0..4, got 5"),
    ({"targets": torch.full((4,), -100)}, ValueError, "targets must be in 0..4, got -100"),
    ({"targets": torch.zeros(4).long().to("meta")}, ValueError, "targets must be on the device of hidden, cpu, got me"),
    ({"bias": torch.ones(6)}, ValueError, r"bias must be \[V\] with V=5, got \[6\]"),
    ({"weight": torch.zeros(5, 8).to("meta")}, ValueError, "weight must be on the device of hidden, cpu, got meta"),
    ({"products": "int8"}, ValueError, "products must be one of float32, bfloat16, got 'int8'"),
    ({"hidden": torch.zeros(4, 8).double()}, TypeError, "removed must have the dtype of hidden, torch.float64, got"),
    (
        {"weight": pack_weight(torch.zeros(5, 8)), "products": "float32"},
        ValueError,
        "products of a PackedWeight must be one of bfloat16, got 'float32'",
    ),
    ({"impl": ""}, ValueError, "impl must be one of auto, reference, cpu, cuda, got ''"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"{OP}: {message}"):
        cross_entropy_difference(**{**GOOD, **change})
