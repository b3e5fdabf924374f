from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from icl_fast.ops import frozen_attention

OP = "frozen_attention"
# Implementations in which a nan in a value that a row does not see cannot reach that row even within a tile
CONFINES_NAN = ("reference", "cpu")
SIZES = [
    (3, 2, 3, 37, 16, 8),
    (1, 1, 1, 1, 4, 4),
    (2, 3, 2, 67, 5, 7),
    (2, 1, 2, 601, 24, 36),  # several tiles of rows and of keys
    (1, 1, 2, 601, 70, 33),
    (2, 1, 1, 70, 260, 140),  # several chunks of depth and of columns
    (3, 1, 1, 20, 260, 40),
    (2, 0, 2, 5, 4, 4),
    (0, 2, 2, 5, 4, 4),
]  # ABHTDDv


def shorter(impl: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """What the emulator can do in a second or two and still has three tiles of keys, whatever the kernel."""
    return (*sizes[:3], min(sizes[3], 301), *sizes[4:]) if impl.startswith("emu") else sizes


def make(sizes: tuple[int, ...], dtype: torch.dtype, device: str, peak: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    a, b, h, t, d, dv = sizes
    q, k, v = torch.randn(b, h, t, d) * peak, torch.randn(b, h, t, d), torch.randn(a, b, h, t, dv)
    return q.to(device, dtype), k.to(device, dtype), v.to(device, dtype)


def seen(length: int, heads: int, window: list[int], device: str) -> Tensor:
    """bool [H,T,T], by the words of the docstring: query i sees keys i-w+1..i."""
    mask = torch.zeros(heads, length, length, dtype=torch.bool)
    for h in range(heads):
        for i in range(length):
            mask[h, i, max(0, i - window[h] + 1) if window[h] else 0 : i + 1] = True
    return mask.to(device)


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float, window: list[int] | None = None) -> Tensor:
    heads, length = q.shape[1:3]
    mask = seen(length, heads, window or [0] * heads, q.device.type)
    return torch.stack([F.scaled_dot_product_attention(q, k, x, mask, scale=scale) for x in v]) if len(v) else v


def test_is_the_definition(impl: str, device: str) -> None:
    q, k, v = make((2, 2, 3, 6, 3, 2), torch.float32, device)
    window = [0, 1, 3]
    out = frozen_attention(q, k, v, scale=0.7, window=window, impl=impl)
    for a, b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3), torch.arange(6)).tolist():
        keys = range(max(0, i - window[h] + 1) if window[h] else 0, i + 1)
        weights = [math.exp(0.7 * sum(float(x * y) for x, y in zip(q[b, h, i], k[b, h, j], strict=True))) for j in keys]
        for d in range(2):
            mean = sum(w * float(v[a, b, h, j, d]) for w, j in zip(weights, keys, strict=True)) / sum(weights)
            assert out[a, b, h, i, d].item() == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("peak", [1.0, 30.0])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("poisoned_memory")
def test_error(impl: str, dtype: torch.dtype, device: str, sizes: Any, peak: float, within: Any) -> None:
    q, k, v = make(shorter(impl, sizes), dtype, device, peak)
    scale = min(0.3, 2 * sizes[4] ** -0.5)
    window = [0, 5, 1][: sizes[2]]
    out = frozen_attention(q, k, v, scale=scale, window=window, impl=impl)
    assert out.dtype == dtype
    truth = plain(q.double(), k.double(), v.double(), scale, window)
    within(out, plain(q, k, v, scale, window), truth, times=2)


@pytest.mark.parametrize(
    ("sizes", "scale", "peak", "window"),
    [
        ((3, 1, 2, 400, 64, 64), 0.3, 1.0, [0, 100]),  # 7 tiles of keys, 4 of rows; windows that begin within tiles
        ((2, 2, 1, 330, 80, 128), -0.3, 1.0, [70]),  # a depth that is filled up, two slabs a variant
        ((5, 1, 2, 150, 128, 64), 0.5, 30.0, None),  # two chunks of three slabs, one of them past the last variant
        ((1, 1, 2, 129, 8, 64), 0.3, 1.0, [1, 3]),
        ((2, 1, 1, 1, 64, 64), 0.3, 1.0, None),
    ],
)
@pytest.mark.usefixtures("poisoned_memory")
def test_error_in_whole_slabs(
    impl: str,
    dtype: torch.dtype,
    device: str,
    sizes: Any,
    scale: float,
    peak: float,
    window: list[int] | None,
    within: Any,
) -> None:
    """Widths of a multiple of 64, as Hopper's kernel takes them, with each of its four chunk sizes."""
    if impl == "emu":
        pytest.skip("its kernel takes any width")
    q, k, v = make(sizes, dtype, device, peak)
    out = frozen_attention(q, k, v, scale=scale, window=window, impl=impl)
    truth = plain(q.double(), k.double(), v.double(), scale, window)
    within(out, plain(q, k, v, scale, window), truth, times=2)


def test_hopper_runs_its_own_kernel_where_that_can(impl: str, dtype: torch.dtype, launched: Any) -> None:
    if impl != "emu_sm90":
        pytest.skip("about Hopper")
    for width, kernel in ((64, "frozen_attention_kernel<"), (60, "attention_forward<")):
        frozen_attention(*make((2, 1, 2, 5, 8, width), dtype, "cpu"), scale=0.3, impl=impl)
        assert launched()[0].startswith(kernel)


def test_addresses_need_no_alignment(impl: str, dtype: torch.dtype, device: str) -> None:
    inputs = make((2, 1, 2, 5, 8, 64), dtype, device)
    expected = frozen_attention(*inputs, scale=0.3, impl=impl)
    around = [torch.full((x.numel() + 1,), float("nan"), dtype=dtype, device=device) for x in inputs]
    moved = [a[1:].view_as(x).copy_(x) for a, x in zip(around, inputs, strict=True)]
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(frozen_attention(*moved, scale=0.3, impl=impl), expected, rtol=2 * eps, atol=2 * eps)


@pytest.mark.parametrize("length", [37, 301])
@pytest.mark.usefixtures("poisoned_memory")
def test_rows_are_rows_of_the_whole(impl: str, dtype: torch.dtype, device: str, length: int, within: Any) -> None:
    q, k, v = make((3, 2, 3, length, 16, 8), dtype, device)
    rows = torch.tensor([[36, 0, 5, 5], [7, 1, length - 1, 20]], device=device)
    out = frozen_attention(q, k, v, scale=0.3, window=[0, 4, 0], rows=rows, impl=impl)
    index = rows[None, :, None, :, None].expand(3, 2, 3, 4, 8)
    same = plain(q, k, v, 0.3, [0, 4, 0]).gather(3, index)
    truth = plain(q.double(), k.double(), v.double(), 0.3, [0, 4, 0]).gather(3, index)
    within(out, same, truth, times=2)
    assert frozen_attention(q, k, v, scale=0.3, rows=rows[:, :0], impl=impl).shape == (3, 2, 3, 0, 8)


@pytest.mark.parametrize("window", [[0, 0], [300, 550], [0, 40]])
@pytest.mark.usefixtures("poisoned_memory")
def test_many_rows_in_any_order(impl: str, device: str, window: list[int], within: Any) -> None:
    q, k, v = make((3, 2, 2, 601, 8, 16), torch.float32, device)
    rows = torch.randint(601, (2, 107), device=device)
    rows[0], rows[1, 90:] = rows[0].sort(descending=True).values, 600
    index = rows[None, :, None, :, None].expand(3, 2, 2, 107, 16)
    out = frozen_attention(q, k, v, scale=0.3, window=window, rows=rows, impl=impl)
    truth = plain(q.double(), k.double(), v.double(), 0.3, window).gather(3, index)
    within(out, plain(q, k, v, 0.3, window).gather(3, index), truth, times=2)


def test_the_number_of_threads_changes_nothing(impl: str, device: str) -> None:
    q, k, v = make((2, 2, 3, 200, 16, 16), torch.float32, device)
    one = frozen_attention(q, k, v, scale=0.3, window=[0, 70, 0], impl=impl)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        again = frozen_attention(q, k, v, scale=0.3, window=[0, 70, 0], impl=impl)
        if impl == "reference":  # torch's own products
            torch.testing.assert_close(again, one)
        else:
            assert torch.equal(again, one)


@pytest.mark.parametrize("with_rows", [False, True])
@pytest.mark.parametrize("sizes", [(3, 2, 3, 37, 16, 8), (2, 1, 1, 601, 4, 13), (9, 1, 1, 101, 4, 40)])
@pytest.mark.usefixtures("poisoned_memory")
def test_explicit_pattern(impl: str, dtype: torch.dtype, device: str, sizes: Any, with_rows: bool, within: Any) -> None:
    _, b, h, t, _, _ = sizes = shorter(impl, sizes)
    _, _, v = make(sizes, dtype, device)
    pattern = torch.randn(b, h, t, t).to(device, dtype)  # neither causal nor normalised: it is applied as it is
    pattern[:, 0, 3:9, : t // 2] = pattern[:, 0, 7:20, t // 3 :] = 0
    rows = torch.randint(t, (b, 5), device=device) if with_rows else None
    out = frozen_attention(None, None, v, scale=1.0, pattern=pattern, rows=rows, impl=impl)
    taken = pattern if rows is None else torch.stack([p[:, r] for p, r in zip(pattern, rows, strict=True)])
    within(out, taken @ v, taken.double() @ v.double(), times=2)


@pytest.mark.parametrize(
    ("window", "same"),
    [(None, [0, 0, 0]), (0, [0, 0, 0]), (4, [4, 4, 4]), ([None, 4, 1], [0, 4, 1]), ((0, 4, 99), [0, 4, 0])],
)
def test_ways_to_give_a_window(impl: str, device: str, window: Any, same: list[int]) -> None:
    q, k, v = make((2, 2, 3, 13, 4, 4), torch.float32, device)
    out = frozen_attention(q, k, v, scale=0.3, window=window, impl=impl)
    tensor = torch.tensor(same, device=device)
    torch.testing.assert_close(out, frozen_attention(q, k, v, scale=0.3, window=tensor, impl=impl))
    torch.testing.assert_close(out, plain(q, k, v, 0.3, same))


def test_a_window_below_0_or_longer_than_the_sequence_is_dense(impl: str, device: str) -> None:
    q, k, v = make((2, 2, 3, 13, 4, 4), torch.float32, device)
    window = torch.tensor([-1, 2**40, -(2**40)], device=device)
    out = frozen_attention(q, k, v, scale=0.3, window=window, impl=impl)
    assert torch.equal(out, frozen_attention(q, k, v, scale=0.3, impl=impl))


@pytest.mark.parametrize("scale", [-2.0, 0.0])
@pytest.mark.parametrize("depth", [4, 0])
def test_any_scale_and_no_depth(impl: str, device: str, scale: float, depth: int, within: Any) -> None:
    q, k, v = make((2, 2, 3, 70, depth, 4), torch.float32, device)
    out = frozen_attention(q, k, v, scale=scale, impl=impl)
    same, truth = (
        frozen_attention(q.to(dtype), k.to(dtype), v.to(dtype), scale=scale, impl="reference")
        for dtype in (torch.float32, torch.float64)
    )
    within(out, same, truth, times=2)


def test_window_of_one_is_the_value_itself(impl: str, device: str) -> None:
    q, k, v = make((2, 2, 3, 13, 4, 4), torch.float32, device)
    assert torch.equal(frozen_attention(q, k, v, scale=0.3, window=1, impl=impl), v)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_later_keys_do_not_reach_earlier_rows(impl: str, device: str, bad: float) -> None:
    q, k, v = make((2, 2, 3, 37, 8, 8), torch.float32, device)
    clean = frozen_attention(q, k, v, scale=0.3, impl=impl)
    k[:, :, 20:] = bad
    q[:, :, 20:] = bad
    out = frozen_attention(q, k, v, scale=0.3, impl=impl)
    assert torch.equal(out[..., :20, :], clean[..., :20, :])
    assert out[..., 20:, :].isnan().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("length", "at", "width"), [(37, 20, 8), (37, 20, 5), (601, 20, 16), (601, 590, 5)])
def test_unseen_values_do_not_reach_a_row(
    impl: str, dtype: torch.dtype, device: str, bad: float, length: int, at: int, width: int
) -> None:
    if impl not in CONFINES_NAN:
        pytest.skip("a nan may spread within a tile")
    q, k, v = make((2, 2, 3, length, 8, width), dtype, device)
    clean = frozen_attention(q, k, v, scale=0.3, window=[0, 5, 0], impl=impl)
    v[0, 1, :, at, 3] = bad
    out = frozen_attention(q, k, v, scale=0.3, window=[0, 5, 0], impl=impl)
    reached = torch.zeros_like(out, dtype=torch.bool)
    reached[0, 1, :, at:, 3] = True
    reached[0, 1, 1, at + 5 :, 3] = False  # outside the window of head 1
    assert out[reached].isnan().all()
    torch.testing.assert_close(out[~reached], clean[~reached])


def test_a_zero_in_the_pattern_hides_a_nan(impl: str, device: str) -> None:
    if impl not in CONFINES_NAN:
        pytest.skip("a nan may spread within a tile")
    pattern = torch.tensor([[1.0, 0.0], [0.5, 0.5]], device=device)[None, None]
    v = torch.tensor([[3.0], [float("nan")]], device=device)[None, None, None]
    out = frozen_attention(None, None, v, scale=1.0, pattern=pattern, impl=impl).flatten()
    assert out[0] == 3
    assert out[1].isnan()


def test_forward_only(impl: str, device: str) -> None:
    q, k, v = make((2, 2, 3, 5, 4, 4), torch.float32, device)
    pattern = torch.rand(2, 3, 5, 5, device=device)
    arguments, given = {"q": q, "k": k, "v": v}, {"q": None, "k": None, "v": v, "pattern": pattern}
    for needing in (q, k, v, pattern):
        needing.requires_grad_()
        with pytest.raises(RuntimeError, match=f"{OP}: forward only, it has no gradient; call it under torch.no_grad"):
            frozen_attention(**(given if needing is pattern else arguments), scale=1.0, impl=impl)
        with torch.no_grad():
            assert not frozen_attention(q, k, v, scale=1.0, impl=impl).requires_grad
        needing.requires_grad_(False)


def test_strided_inputs(impl: str, dtype: torch.dtype, device: str, strided: Any) -> None:
    inputs = make((2, 2, 3, 13, 4, 6), dtype, device)
    rows = torch.randint(13, (2, 4), device=device)
    window = torch.tensor([0, 3, 5], device=device)
    pattern = torch.rand(2, 3, 13, 13).to(device, dtype)
    eps = torch.finfo(dtype).eps
    expected = frozen_attention(*inputs, scale=0.3, window=window, rows=rows, impl=impl)
    spread = [strided(x) for x in inputs]
    actual = frozen_attention(*spread, scale=0.3, window=strided(window), rows=strided(rows), impl=impl)
    torch.testing.assert_close(actual, expected, rtol=2 * eps, atol=2 * eps)
    one_for_all = inputs[2][:1].expand(2, -1, -1, -1, -1)
    out = frozen_attention(None, None, one_for_all, scale=1.0, pattern=strided(pattern), impl=impl)
    assert torch.equal(out[0], out[1])
    torch.testing.assert_close(out[0], (pattern.double() @ inputs[2][0].double()).to(dtype), rtol=4 * eps, atol=1e-5)


def test_blocks_of_the_batch_change_nothing_and_bound_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            self.numel = max(self.numel, out.numel() if isinstance(out, Tensor) else 0)
            return out

    attention = importlib.import_module("icl_fast.ops._attention")
    reference = importlib.import_module("icl_fast.ops.frozen_attention").reference_forward
    q, k, v = make((1, 7, 2, 31, 2, 2), torch.float32, "cpu")
    whole, blocked = torch.empty_like(v), torch.empty_like(v)
    reference(q, k, v, 0.3, None, None, None, None, whole)
    monkeypatch.setattr(attention, "SCORES_AT_A_TIME", 3 * 2 * 31 * 31)
    with Largest() as largest:
        reference(q, k, v, 0.3, None, None, None, None, blocked)
    torch.testing.assert_close(blocked, whole)
    assert largest.numel == 3 * 2 * 31 * 31


@pytest.mark.parametrize("with_rows", [False, True])
@pytest.mark.usefixtures("poisoned_memory")
def test_a_result_written_where_it_is_wanted(impl: str, dtype: torch.dtype, device: str, with_rows: bool) -> None:
    q, k, v = make((2, 2, 3, 13, 4, 4), dtype, device)
    rows = torch.randint(13, (2, 5), device=device) if with_rows else None
    expected = frozen_attention(q, k, v, scale=0.3, rows=rows, impl=impl)
    out = torch.empty_like(expected)
    before = out._version
    assert frozen_attention(q, k, v, scale=0.3, rows=rows, out=out, impl=impl) is out
    assert torch.equal(out, expected)
    assert out._version > before


def test_a_result_written_where_it_is_wanted_inside_what_is_compiled(impl: str, device: str) -> None:
    q, k, v = make((2, 2, 3, 13, 4, 4), torch.float32, device)

    def attend(q: Tensor, out: Tensor) -> Tensor:
        return frozen_attention(q * 2, k, v, scale=0.3, out=out, impl=impl) + 1

    results = []
    for call in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        out = torch.zeros_like(v)
        results.append((call(q, out), out))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(results[0][0], results[0][1] + 1)


def test_where_a_result_cannot_be_written() -> None:
    q, k, v = make((2, 2, 3, 5, 4, 4), torch.float32, "cpu")
    for out, error, message in (
        (v[:1].clone(), ValueError, r"out must be \[A,B,H,T,Dv\] with A=2, B=2, H=3, T=5, Dv=4, got"),
        (v.double(), TypeError, "out must have the dtype of v, torch.float32, got torch.float64"),
        (torch.empty(2, 2, 3, 4, 5).mT, ValueError, r"out must be contiguous, got strides \[120, 60, 20, 1, 5\]"),
        (v, ValueError, "out shares memory with v; give a tensor of its own"),
        ([1.0], TypeError, "out must be a tensor"),
    ):
        with pytest.raises(error, match=f"^{OP}: {message}"):
            frozen_attention(q, k, v, scale=1.0, out=out)
    with pytest.raises(RuntimeError, match=f"^{OP}: forward only"):
        frozen_attention(q.requires_grad_(), k, v, scale=1.0, out=torch.empty_like(v))
    with pytest.raises(RuntimeError, match="frozen_attention_out"):
        torch.vmap(lambda v: frozen_attention(q.detach(), k, v, scale=1.0, out=torch.empty_like(v)))(v[None])


def test_opcheck(impl: str, dtype: torch.dtype, device: str) -> None:
    q, k, v = make((2, 2, 3, 5, 4, 6), dtype, device)
    op = torch.ops.icl_fast.frozen_attention.default
    rows = torch.randint(5, (2, 3), device=device)
    torch.library.opcheck(op, (q, k, v, 0.3, None, None, None, None, impl))
    transposed = [x.transpose(-3, -2).contiguous().transpose(-3, -2) for x in (q, k, v)]  # as a model makes them
    torch.library.opcheck(op, (*transposed, 0.3, None, None, None, None, impl))
    torch.library.opcheck(op, (q, k, v, 0.3, torch.tensor([0, 2, 1], device=device), rows, None, None, impl))
    torch.library.opcheck(op, (None, None, v, 0.3, None, rows, torch.rand(2, 3, 5, 5).to(device, dtype), None, impl))
    into = torch.ops.icl_fast.frozen_attention_out.default
    torch.library.opcheck(into, (q, k, v, 0.3, None, rows, None, None, impl, v[:, :, :, :3].contiguous()))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(impl: str, device: str, dynamic: bool) -> None:
    q, k, v = make((2, 2, 3, 13, 4, 4), torch.float32, device)
    rows = torch.randint(13, (2, 4), device=device)

    def attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
        return frozen_attention(q * 2, k, v, scale=0.3, window=[0, 3, None], rows=rows, impl=impl) + 1

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(q, k, v, rows), attend(q, k, v, rows))


def test_autocast_casts_the_inputs_as_matmul_does_and_nothing_else(impl: str, device: str) -> None:
    q, k, v = make((2, 2, 3, 13, 4, 4), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        out = frozen_attention(q, k.bfloat16(), v, scale=0.3, impl=impl)
    expected = frozen_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), scale=0.3, impl=impl)
    assert torch.equal(out, expected)


Q, V = torch.zeros(2, 3, 5, 4), torch.zeros(6, 2, 3, 5, 4)
ROWS, PATTERN = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 5, 5)
GIVEN = {"q": None, "k": None, "pattern": PATTERN}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"q": None}, ValueError, "q and k are needed without a pattern"),
    ({"k": None}, ValueError, "q and k are needed without a pattern"),
    ({"pattern": PATTERN}, ValueError, "pattern replaces q, k and window; give either it or them"),
    ({**GIVEN, "window": 3}, ValueError, "pattern replaces q, k and window"),
    (
        {**GIVEN, "pattern": PATTERN[:1]},
        ValueError,
        r"pattern must be \[B,H,T,T\] with B=2, H=3, T=5, T=5, got \[1,",
    ),
    ({**GIVEN, "pattern": PATTERN.half()}, TypeError, "pattern must have the dtype of v, torch.float32, got"),
    ({"q": 1.0}, TypeError, r"q must be a tensor \[B,H,T,D\], got float"),
    ({"q": Q[0]}, ValueError, r"q must be \[B,H,T,D\], got \[3, 5, 4\]"),
    ({"k": Q[:, :, 1:]}, ValueError, r"k must be \[B,H,T,D\] with B=2, H=3, T=5, D=4, got \[2, 3, 4, 4\]"),
    ({"v": V[0]}, ValueError, r"v must be \[A,B,H,T,Dv\] with B=2, H=3, T=5, got \[2, 3, 5, 4\]"),
    ({"v": V[:, :, :2]}, ValueError, r"v must be \[A,B,H,T,Dv\] with A=6, B=2, H=3, T=5, got"),
    ({"v": V.long()}, TypeError, "v must be float32, bfloat16, float16 or float64, got torch.int64"),
    ({"k": Q.double()}, TypeError, "k must have the dtype of v, torch.float32, got torch.float64"),
    ({"q": Q.to("meta")}, ValueError, "q must be on the device of v, cpu, got meta"),
    ({"rows": ROWS.float()}, TypeError, "rows must be of integers, got torch.float32"),
    ({"rows": ROWS[:1]}, ValueError, r"rows must be \[B,R\] with B=2, got \[1, 3\]"),
    ({"rows": ROWS.to("meta")}, ValueError, "rows must be on the device of v, cpu, got meta"),
    ({"rows": ROWS + 5}, ValueError, r"rows must be in 0..4, got 5"),
    ({"rows": ROWS - 1}, ValueError, r"rows must be in 0..4, got -1"),
    ({"products": "half"}, ValueError, "products must be one of float32, bfloat16, got 'half'"),
    (
        {"q": Q.double(), "k": Q.double(), "v": V.double(), "products": "bfloat16"},
        TypeError,
        "products='bfloat16' takes float32 and bfloat16, got torch.float64; leave products out",
    ),
    (
        {"q": Q.to("meta"), "k": Q.to("meta"), "v": V.to("meta"), "products": "bfloat16"},
        ValueError,
        "products='bfloat16' of float32 is not built for meta; cast the inputs",
    ),
    ({"window": -1}, ValueError, r"window must not be negative \(0 or None: dense\), got -1"),
    ({"window": [1, 2]}, ValueError, "window must have one size per head, H=3, got 2"),
    ({"window": 2.5}, TypeError, "window must be None, an int, or an int or None per head, got 2.5"),
    ({"window": [1, 2, 0.5]}, TypeError, "window must be an integer, got 0.5"),
    ({"window": torch.ones(3)}, TypeError, "window must be of integers, got torch.float32"),
    ({"window": torch.ones(2).long()}, ValueError, r"window must be \[H\] with H=3, got \[2\]"),
    ({"window": torch.ones(3).long().to("meta")}, ValueError, "window must be on the device of v, cpu, got meta"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"q": Q, "k": Q, "v": V, "scale": 0.5, **change}
    with pytest.raises(error, match=f"{OP}: {message}"):
        frozen_attention(**arguments)
