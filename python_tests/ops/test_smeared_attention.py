from __future__ import annotations

import importlib
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.ops import frozen_attention, smeared_attention

OP = "smeared_attention"
CONFINES_NAN = ("reference", "cpu")  # see test_frozen_attention.py
SIZES = [
    (2, 3, 37, 16),
    (2, 3, 1, 4),
    (3, 2, 67, 5),
    (1, 12, 601, 20),  # several tiles of rows and of keys; many heads, for their gradients of alpha are few numbers
    (1, 3, 70, 100),
    (1, 2, 70, 260),  # several chunks of depth
    (2, 3, 23, 80),
    (2, 3, 199, 64),  # as Hopper's own kernel takes them
    (0, 2, 5, 4),
    (2, 2, 0, 4),
]  # BHTD


def shorter(impl: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """What the emulator can do in a second and still has three tiles of keys."""
    batch, heads, length, depth = sizes
    return (batch, heads, min(length, 131), depth) if impl.startswith("emu") else sizes


def make(sizes: tuple[int, ...], dtype: torch.dtype, device: str, peak: float = 1.0) -> tuple[Tensor, ...]:
    q, k, v = torch.randn(*sizes) * peak, torch.randn(*sizes), torch.randn(*sizes)
    alpha = torch.randn(sizes[1]) * 2
    return tuple(x.to(device, dtype) for x in (q, k, v, alpha))


def plain(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, scale: float, window: list[int] | None = None) -> Tensor:
    gate = alpha.sigmoid()[:, None, None]
    smeared = torch.cat([k[:, :, :1], gate * k[:, :, 1:] + (1 - gate) * k[:, :, :-1]], dim=2)
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    sizes = torch.tensor([w or 10**6 for w in window or [0] * q.shape[1]])[:, None, None]
    mask = ((distance >= 0) & (distance < sizes)).to(q.device)
    return F.scaled_dot_product_attention(q, smeared, v, mask, scale=scale)


def test_is_the_definition(impl: str, device: str) -> None:
    q, k, v, alpha = make((2, 3, 5, 3), torch.float32, device)
    window = [0, 1, 3]
    out = smeared_attention(q, k, v, alpha, scale=0.7, window=window, impl=impl)
    for b, h, i in itertools.product(range(2), range(3), range(5)):
        s = 1 / (1 + math.exp(-float(alpha[h])))
        first = max(0, i - window[h] + 1) if window[h] else 0
        weights = []
        for j in range(first, i + 1):
            key = [s * float(k[b, h, j, d]) + (1 - s) * float(k[b, h, j - 1, d]) for d in range(3)]
            key = key if j > 0 else k[b, h, 0].tolist()
            weights.append(math.exp(0.7 * sum(float(q[b, h, i, d]) * key[d] for d in range(3))))
        for d in range(3):
            mean = sum(w * float(v[b, h, first + n, d]) for n, w in enumerate(weights)) / sum(weights)
            assert out[b, h, i, d].item() == pytest.approx(mean, abs=1e-5)


def test_hopper_runs_its_own_kernel_where_that_can(impl: str, dtype: torch.dtype, launched: Any) -> None:
    if impl != "emu_sm90":
        pytest.skip("about Hopper")
    for depth, kernels in ((64, ["smear_kernel<", "frozen_attention_kernel<"]), (60, ["attention_forward<"])):
        smeared_attention(*make((2, 2, 5, depth), dtype, "cpu"), scale=0.3, impl=impl)
        assert [name[: len(kernel)] for name, kernel in zip(launched(), kernels, strict=True)] == kernels


@pytest.mark.parametrize("peak", [1.0, 30.0])
@pytest.mark.parametrize("sizes", [*SIZES, (1, 2, 150, 128)])  # Hopper: two slabs of keys
@pytest.mark.usefixtures("poisoned_memory")
def test_forward_error(impl: str, dtype: torch.dtype, device: str, sizes: Any, peak: float, within: Any) -> None:
    inputs = make(shorter(impl, sizes), dtype, device, peak)
    scale = min(0.3, 2 * sizes[3] ** -0.5)
    window = ([0, 5, 1] + 9 * [0])[: sizes[1]]
    out = smeared_attention(*inputs, scale=scale, window=window, impl=impl)
    assert out.dtype == dtype
    truth = plain(*(x.double() for x in inputs), scale, window)
    within(out, plain(*inputs, scale, window), truth, times=2)


@pytest.mark.parametrize("peak", [1.0, 30.0])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("poisoned_memory")
def test_backward_error(impl: str, dtype: torch.dtype, device: str, sizes: Any, peak: float, within: Any) -> None:
    sizes = shorter(impl, sizes)
    given = make(sizes, dtype, device, peak)
    scale = min(0.3, 2 * sizes[3] ** -0.5)
    window = ([0, 5, 1] + 9 * [0])[: sizes[1]]
    grad = torch.randn(sizes, device=device).to(dtype)

    def gradients(of: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in given]
        return torch.autograd.grad(of(*inputs), inputs, grad.to(dtype))

    mine = gradients(lambda *x: smeared_attention(*x, scale=scale, window=window, impl=impl), dtype)
    same = gradients(lambda *x: plain(*x, scale, window), dtype)
    truth = gradients(lambda *x: plain(*x, scale, window), torch.float64)
    for actual, plainly, exactly in zip(mine, same, truth, strict=True):
        assert actual.dtype == dtype
        within(actual, plainly, exactly, times=3)


@pytest.mark.parametrize("window", [[0, 0], [300, 550], [47, 48], [49, 97]])
@pytest.mark.usefixtures("poisoned_memory")
def test_windows_that_span_tiles(impl: str, device: str, window: list[int], within: Any) -> None:
    given, grad = make((1, 2, 601, 8), torch.float32, device), torch.randn(1, 2, 601, 8, device=device)

    def run(of: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in given]
        out = of(*inputs)
        return (out.detach(), *torch.autograd.grad(out, inputs, grad.to(dtype)))

    mine = run(lambda *x: smeared_attention(*x, scale=0.3, window=window, impl=impl), torch.float32)
    same, truth = (run(lambda *x: plain(*x, 0.3, window), dtype) for dtype in (torch.float32, torch.float64))
    for actual, plainly, exactly in zip(mine, same, truth, strict=True):
        within(actual, plainly, exactly, times=3)


@pytest.mark.parametrize("scale", [-2.0, 0.0])
def test_any_scale(impl: str, device: str, scale: float, within: Any) -> None:
    given = make((2, 3, 70, 4), torch.float32, device)

    def run(of: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in given]
        out = of(*inputs)
        return (out.detach(), *torch.autograd.grad(out.square().sum(), inputs))

    mine = run(lambda *x: smeared_attention(*x, scale=scale, impl=impl), torch.float32)
    same, truth = (run(lambda *x: plain(*x, scale), dtype) for dtype in (torch.float32, torch.float64))
    for actual, plainly, exactly in zip(mine, same, truth, strict=True):
        within(actual, plainly, exactly, times=3)


def test_the_number_of_threads_changes_nothing(impl: str, device: str) -> None:
    inputs = [x.requires_grad_() for x in make((2, 3, 200, 16), torch.float32, device)]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = smeared_attention(*inputs, scale=0.3, window=[0, 70, 0], impl=impl)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for again in results[1:]:
        for one, other in zip(results[0], again, strict=True):
            if impl == "reference":  # torch's own products
                torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(other, one)


def test_narrow_inputs_with_a_float32_alpha(impl: str, device: str, within: Any) -> None:
    *given, alpha = make((2, 3, 37, 16), torch.bfloat16, device)
    inputs = [x.requires_grad_() for x in (*given, alpha.float())]
    out = smeared_attention(*inputs, scale=0.3, impl=impl)
    grads = torch.autograd.grad(out.sum(), inputs)
    assert [g.dtype for g in grads] == [torch.bfloat16] * 3 + [torch.float32]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    same = [x.detach().requires_grad_() for x in (*inputs[:3], alpha)]
    within(
        grads[3],
        torch.autograd.grad(plain(*same, 0.3).sum(), same)[3],
        torch.autograd.grad(plain(*wide, 0.3).sum(), wide)[3],
        times=3,
    )


def test_alpha_at_its_ends_is_this_key_or_the_previous_one(impl: str, device: str) -> None:
    q, k, v, alpha = make((2, 3, 13, 4), torch.float32, device)
    current = smeared_attention(q, k, v, torch.full_like(alpha, 100.0), scale=0.3, impl=impl)
    torch.testing.assert_close(current, F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3))
    previous = smeared_attention(q, k, v, torch.full_like(alpha, -100.0), scale=0.3, impl=impl)
    shifted = torch.cat([k[:, :, :1], k[:, :, :-1]], dim=2)
    torch.testing.assert_close(previous, F.scaled_dot_product_attention(q, shifted, v, is_causal=True, scale=0.3))


def test_agrees_with_frozen_attention_on_smeared_keys(impl: str, device: str) -> None:
    q, k, v, _ = make((2, 3, 13, 4), torch.float32, device)
    smeared = k.clone()
    smeared[:, :, 1:] = (k[:, :, 1:] + k[:, :, :-1]) / 2  # alpha 0
    out = smeared_attention(q, k, v, torch.zeros(3, device=device), scale=0.3, window=5, impl=impl)
    torch.testing.assert_close(out, frozen_attention(q, smeared, v[None], scale=0.3, window=5)[0])


def test_one_position_is_its_value_and_alpha_has_no_effect(impl: str, device: str) -> None:
    q, k, v, alpha = (x.requires_grad_() for x in make((2, 3, 1, 4), torch.float32, device))
    out = smeared_attention(q, k, v, alpha, scale=0.3, impl=impl)
    assert torch.equal(out, v)
    grad_k, grad_alpha = torch.autograd.grad(out.sum(), (k, alpha))
    assert (grad_alpha == 0).all()
    torch.testing.assert_close(grad_k, torch.zeros_like(k), atol=1e-6, rtol=0)


def test_later_tokens_do_not_reach_earlier_rows(impl: str, device: str) -> None:
    q, k, v, alpha = make((2, 3, 37, 8), torch.float32, device)
    clean = smeared_attention(q, k, v, alpha, scale=0.3, impl=impl)
    q[:, :, 20:] = k[:, :, 20:] = float("nan")
    if impl in CONFINES_NAN:
        v[:, :, 20:] = float("nan")
    out = smeared_attention(q, k, v, alpha, scale=0.3, impl=impl)
    assert torch.equal(out[:, :, :20], clean[:, :, :20])
    assert out[:, :, 20:].isnan().all()


def test_a_window_does_not_cut_the_smear(impl: str, device: str) -> None:
    # row 7 with a window of 2 sees keys 6 and 7 and, through the smear of key 6, the token at 5, but not the one at 4
    q, k, v, alpha = make((1, 1, 9, 4), torch.float32, device)
    out = smeared_attention(q, k, v, alpha, scale=0.3, window=2, impl=impl)
    for token, reaches in ((4, False), (5, True)):
        changed = k.clone()
        changed[:, :, token] += 1
        again = smeared_attention(q, changed, v, alpha, scale=0.3, window=2, impl=impl)
        assert torch.equal(again[:, :, 7], out[:, :, 7]) != reaches


def test_strided_inputs(impl: str, dtype: torch.dtype, device: str, strided: Any) -> None:
    given = make((2, 3, 13, 4), dtype, device)
    grad = torch.randn(2, 3, 13, 4).to(device, dtype)
    results = []
    for change in (lambda x: x, strided):
        inputs = [change(x).requires_grad_() for x in given]
        out = smeared_attention(*inputs, scale=0.3, window=change(torch.tensor([0, 3, 5], device=device)), impl=impl)
        results.append((out, *torch.autograd.grad(out, inputs, change(grad))))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4)))
def test_requires_grad_subsets(impl: str, device: str, wanted: tuple[bool, ...]) -> None:
    inputs = [x.requires_grad_(w) for x, w in zip(make((2, 3, 13, 4), torch.float32, device), wanted, strict=True)]
    out = smeared_attention(*inputs, scale=0.3, impl=impl)
    assert out.requires_grad == any(wanted)
    if any(wanted):
        needing = [x for x in inputs if x.requires_grad]
        grads = torch.autograd.grad(out.square().sum(), needing)
        for actual, expected in zip(
            grads, torch.autograd.grad(plain(*inputs, 0.3).square().sum(), needing), strict=True
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_blocks_of_the_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.requires_grad_() for x in make((5, 3, 13, 4), torch.float64, "cpu")]
    results = []
    for limit in (2**20, 2 * 3 * 13 * 13):
        monkeypatch.setattr(importlib.import_module("icl_fast.ops._attention"), "SCORES_AT_A_TIME", limit)
        out = smeared_attention(*inputs, scale=0.3, impl="reference")
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [None, [0, 2, 1]])
def test_gradcheck(window: list[int] | None) -> None:
    inputs = [x.requires_grad_() for x in make((2, 3, 4, 2), torch.float64, "cpu")]
    assert torch.autograd.gradcheck(
        lambda *x: smeared_attention(*x, scale=0.7, window=window, impl="reference"), inputs
    )


def test_opcheck(impl: str, dtype: torch.dtype, device: str) -> None:
    # [B,T,H,D] transposed, as a model makes them: the fake kernel must know the strides of what comes out
    q, k, v = (torch.randn(2, 5, 3, 4).to(device, dtype).transpose(1, 2) for _ in range(3))
    alpha = torch.randn(3).to(device, dtype)
    op = torch.ops.icl_fast.smeared_attention.default
    window = torch.tensor([0, 2, 1], device=device)
    torch.library.opcheck(op, (q, k, v, alpha, 0.3, None, impl))
    needing = [x.clone().requires_grad_() for x in (q, k, v, alpha)]
    torch.library.opcheck(op, (*needing, 0.3, window, impl))
    torch.library.opcheck(op, (q, k, v, needing[3], 0.3, None, impl))
    assert [x.requires_grad for x in op(*needing, 0.3, None, impl)] == [True, False, False]
    saved = op(q, k, v, alpha, 0.3, window, impl)
    backward = torch.ops.icl_fast.smeared_attention_backward.default
    torch.library.opcheck(backward, (torch.ones_like(q), q, k, v, alpha, window, *saved, 0.3, impl))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(impl: str, device: str, dynamic: bool) -> None:
    inputs = [x.requires_grad_() for x in make((2, 3, 13, 4), torch.float32, device)]

    def attend(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
        return smeared_attention(q * 2, k, v, alpha, scale=0.3, window=[0, 3, None], impl=impl).square()

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(*inputs), attend(*inputs))
    for actual, expected in zip(
        torch.autograd.grad(compiled(*inputs).sum(), inputs),
        torch.autograd.grad(attend(*inputs).sum(), inputs),
        strict=True,
    ):
        assert torch.equal(actual, expected)


def test_autocast_casts_the_inputs_as_matmul_does_and_nothing_else(impl: str, device: str) -> None:
    q, k, v, alpha = make((2, 3, 13, 4), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        out = smeared_attention(q, k.bfloat16(), v, alpha.requires_grad_(), scale=0.3, impl=impl)
        (grad,) = torch.autograd.grad(out.float().sum(), alpha)
    expected = smeared_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), alpha, scale=0.3, impl=impl)
    assert torch.equal(out, expected)
    assert grad.dtype == torch.float32
    assert torch.equal(grad, torch.autograd.grad(expected.float().sum(), alpha)[0])


Q, ALPHA = torch.zeros(2, 3, 5, 4), torch.zeros(3)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"q": None}, TypeError, r"q must be a tensor \[B,H,T,D\], got NoneType"),
    ({"q": Q[0]}, ValueError, r"q must be \[B,H,T,D\], got \[3, 5, 4\]"),
    ({"k": Q[:, :1]}, ValueError, r"k must be \[B,H,T,D\] with B=2, H=3, T=5, D=4, got \[2, 1, 5, 4\]"),
    ({"v": Q[..., :2]}, ValueError, r"v must be \[B,H,T,D\] with B=2, H=3, T=5, D=4, got \[2, 3, 5, 2\]"),
    ({"alpha": ALPHA[:2]}, ValueError, r"alpha must be \[H\] with H=3, got \[2\]"),
    ({"alpha": 0.5}, TypeError, r"alpha must be a tensor \[H\], got float"),
    (
        {"alpha": ALPHA.double()},
        TypeError,
        "alpha must be float32 or have the dtype of q, torch.float32, got torch.flo",
    ),
    ({"alpha": ALPHA.to("meta")}, ValueError, "alpha must be on the device of q, cpu, got meta"),
    ({"v": Q.half()}, TypeError, "v must have the dtype of q, torch.float32, got torch.float16"),
    ({"k": Q.to("meta")}, ValueError, "k must be on the device of q, cpu, got meta"),
    ({"window": -2}, ValueError, r"window must not be negative \(0 or None: dense\), got -2"),
    ({"impl": "fast"}, ValueError, "impl must be one of auto, reference, cpu, cuda, got 'fast'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"q": Q, "k": Q, "v": Q, "alpha": ALPHA, "scale": 0.5, **change}
    with pytest.raises(error, match=f"{OP}: {message}"):
        smeared_attention(**arguments)
