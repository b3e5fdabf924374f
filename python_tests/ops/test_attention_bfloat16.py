"""The attention ops with products of bfloat16: on every tile kernel, those that are emulated too, and without one."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.ops import _backend, frozen_attention, smeared_attention

TILES = [isa for isa in (*_backend.isas(), *_backend.emulated_isas()) if "amx" in isa or "bf16" in isa]


@pytest.fixture(params=TILES)
def tile(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set with a tile kernel."""
    _backend.set_isa(request.param)
    yield request.param
    _backend.set_isa(_backend.isas()[-1])


def make(a: int, b: int, h: int, t: int, d: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(b, h, t, d) * 3, torch.randn(b, h, t, d), torch.randn(a, b, h, t, width)


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("seed", range(12))  # not hypothesis: the op tests run where that is not
def test_is_attention_of_rounded_inputs(seed: int) -> None:
    """Weights are rounded once, which costs a value of size 1 a unit of 2^-8 at most; a bfloat16 result another."""
    draw = Random(seed)
    torch.manual_seed(seed)
    a, b, h, length, depth, width = (draw.randint(1, most) for most in (3, 2, 2, 140, 70, 70))
    window, dtype = draw.randint(0, 150), draw.choice([torch.float32, torch.bfloat16])
    q, k, v = (x.to(dtype) for x in make(a, b, h, length, depth, width))
    rows = torch.randint(length, (b, 5)) if draw.random() < 0.5 else None
    out = frozen_attention(q, k, v, scale=0.2, window=window, rows=rows, products="bfloat16", impl="cpu")
    truth = frozen_attention(*map(rounded, (q, k, v)), scale=0.2, window=window, rows=rows)
    assert out.dtype == dtype
    unit = 2.0**-8 * (1 + (dtype == torch.bfloat16))
    assert (out.double() - truth).abs().max() <= 1.01 * unit * v.abs().max()


@pytest.mark.usefixtures("tile")
def test_more_values_than_are_packed_at_once() -> None:
    q, k, v = make(3, 1, 1, 600, 8, 640)  # two variants are packed beside each other
    rows = torch.tensor([[599, 3]])
    whole, *parts = (
        frozen_attention(q, k, x, scale=0.2, rows=rows, products="bfloat16", impl="cpu") for x in (v, *v.split(1))
    )
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pattern_is_rounded(dtype: torch.dtype) -> None:
    pattern, v = torch.randn(2, 2, 70, 70).to(dtype), torch.randn(3, 2, 2, 70, 37).to(dtype)
    pattern[:, :, 3:9, :40] = pattern[:, :, 7:20, 50:] = 0
    out = frozen_attention(None, None, v, scale=1.0, pattern=pattern, products="bfloat16", impl="cpu")
    truth = rounded(pattern) @ rounded(v)
    torch.testing.assert_close(out, truth.to(dtype), rtol=2.0**-8 if dtype == torch.bfloat16 else 0, atol=1e-5)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unseen_values_do_not_reach_a_row(bad: float) -> None:
    q, k, v = (x.bfloat16() for x in make(2, 2, 2, 70, 8, 36))
    clean = frozen_attention(q, k, v, scale=0.2, window=[0, 5])
    v[0, 1, :, 40, 33] = bad
    out = frozen_attention(q, k, v, scale=0.2, window=[0, 5])
    reached = torch.zeros_like(out, dtype=torch.bool)
    reached[0, 1, :, 40:, 33] = True
    reached[0, 1, 1, 45:, 33] = False
    assert out[reached].isnan().all()
    torch.testing.assert_close(out[~reached], clean[~reached])


@pytest.mark.usefixtures("tile")
def test_one_value_of_all_keys_is_the_mean() -> None:
    q, k, _ = make(1, 1, 2, 150, 16, 1)
    v = torch.full((1, 1, 2, 150, 5), 0.3).bfloat16().float()
    out = frozen_attention(q, k, v, scale=0.2, products="bfloat16", impl="cpu")
    torch.testing.assert_close(out, v, rtol=1e-6, atol=0)


def test_without_a_tile_kernel_the_same_is_rounded() -> None:
    q, k, v = make(2, 1, 2, 37, 16, 8)
    for isa in _backend.isas():
        if isa in TILES:
            continue
        _backend.set_isa(isa)
        out = frozen_attention(q, k, v, scale=0.2, products="bfloat16", impl="cpu")
        truth = frozen_attention(*map(rounded, (q, k, v)), scale=0.2)
        torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)
    _backend.set_isa(_backend.isas()[-1])
    reference = frozen_attention(q, k, v, scale=0.2, products="bfloat16", impl="reference")
    torch.testing.assert_close(reference.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("tile")
def test_the_number_of_threads_changes_nothing() -> None:
    q, k, v = (x.bfloat16() for x in make(2, 2, 3, 200, 16, 16))
    one = frozen_attention(q, k, v, scale=0.3)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(frozen_attention(q, k, v, scale=0.3), one)
    sdpa = torch.stack([F.scaled_dot_product_attention(q, k, x, is_causal=True, scale=0.3) for x in v])
    torch.testing.assert_close(one, sdpa, rtol=0.02, atol=0.03)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("seed", range(12))
def test_smeared_attention_is_that_of_its_inputs(seed: int) -> None:
    """Rounded are weights, gradients of scores and what is written, each by 2^-8 of itself at most; not what the gate's
    gradient is summed from."""
    draw = Random(seed)
    torch.manual_seed(seed)
    sizes = tuple(draw.randint(1, most) for most in (2, 3, 200, 70))
    window, gate = draw.randint(0, 150), draw.choice([None, 1e9, -1e9])
    q, k, v, grad = (torch.randn(sizes).bfloat16() for _ in range(4))
    alpha = torch.randn(sizes[1]) if gate is None else torch.full((sizes[1],), gate)

    def run(impl: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        last = alpha.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        out = smeared_attention(*inputs, last, scale=0.2, window=window, impl=impl)
        return (out.detach(), *torch.autograd.grad(out, [*inputs, last], grad.to(dtype)))

    weights, of_scores = rounded_factors(*(x.double() for x in (q, k, v, grad, alpha)), window)
    sums = (weights @ v.abs().double(), of_scores @ k.abs().double())
    sums += (of_scores.mT @ q.abs().double(), weights.mT @ grad.abs().double())
    (*mine, of_gate), (*truth, of_gate_truly) = run("cpu", torch.bfloat16), run("reference", torch.float64)
    for actual, exactly, terms in zip(mine, truth, sums, strict=True):
        assert actual.dtype == torch.bfloat16
        assert ((actual.double() - exactly).abs() <= 1.02 * 2**-8 * (terms + 2 * exactly.abs()) + 1e-5).all()
    torch.testing.assert_close(of_gate.double(), of_gate_truly, rtol=1e-4, atol=1e-4 * sizes[0] * sizes[2])


def rounded_factors(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, alpha: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The weights [B,H,T,T], and the sizes of the gradients of scores with keys that are not smeared."""
    share, length = alpha.sigmoid()[:, None, None], q.shape[2]
    scores = (q @ k.mT).requires_grad_()
    before = torch.cat([scores[..., :1], scores[..., :-1]], dim=-1)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    unseen = (distance < 0) | (distance >= (window or length))
    weights = (0.2 * (share * scores + (1 - share) * before)).masked_fill(unseen, float("-inf")).softmax(-1)
    (of_scores,) = torch.autograd.grad(weights @ v, scores, grad)
    return weights.detach(), of_scores.abs()


@pytest.mark.usefixtures("tile")
def test_threads_change_nothing_in_smeared_attention() -> None:
    inputs = [torch.randn(2, 3, 150, 16).bfloat16().requires_grad_() for _ in range(3)]
    alpha, results = torch.randn(3, requires_grad=True), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = smeared_attention(*inputs, alpha, scale=0.3, window=[0, 70, 0])
        results.append((out, *torch.autograd.grad(out.float().square().sum(), [*inputs, alpha])))
    for again in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], again, strict=True))
