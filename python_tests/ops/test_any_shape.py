"""The ops at random shapes, in float64, against torch's own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from icl_fast.ops import (
    activation_difference,
    cross_entropy_difference,
    frozen_attention,
    gated_difference,
    head_ablation_cross_entropy,
    layer_norm_difference,
    linear_cross_entropy,
    smeared_attention,
)

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
size = st.integers(1, 9)
few = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@few
@hypothesis.given(st.lists(st.integers(0, 5), min_size=1, max_size=3), size, size, st.booleans())
def test_linear_cross_entropy(leading: list[int], c: int, v: int, with_bias: bool) -> None:
    hidden, weight, bias = randn(*leading, c), randn(v, c), randn(v) if with_bias else None
    targets = torch.randint(v + 1, leading)
    targets[targets == v] = -100
    losses = linear_cross_entropy(hidden, weight, targets, bias=bias, impl="reference")
    logits = F.linear(hidden, weight, bias).flatten(0, -2)
    close(losses, F.cross_entropy(logits, targets.flatten(), reduction="none").view(leading))


@few
@hypothesis.given(st.integers(0, 70), st.sampled_from([16, 32, 80]), st.integers(1, 200), st.booleans())
def test_a_mean_with_its_gradients(n: int, c: int, v: int, with_bias: bool) -> None:
    """Of the shapes that the kernel takes which makes both at once, in float32."""
    targets = torch.randint(v + 1, (n,))
    targets[targets == v] = -100
    inputs = [randn(n, c), randn(v, c) / c**0.5, *([randn(v)] if with_bias else [])]

    def results(dtype: torch.dtype, impl: str) -> tuple[torch.Tensor, ...]:
        hidden, weight, *bias = (x.to(dtype).requires_grad_() for x in inputs)
        mean = linear_cross_entropy(hidden, weight, targets, bias=(bias or [None])[0], reduction="mean", impl=impl)
        return mean, *torch.autograd.grad(mean, (hidden, weight, *bias))

    for one, other in zip(results(torch.float32, "auto"), results(torch.float64, "reference"), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6, equal_nan=True)


@few
@hypothesis.given(st.integers(0, 4), st.integers(0, 3), size, size, size, size, st.data())
def test_frozen_attention(a: int, b: int, h: int, t: int, d: int, dv: int, data: Any) -> None:
    window = data.draw(st.lists(st.integers(0, 10), min_size=h, max_size=h))
    rows = torch.randint(t, (b, data.draw(st.integers(0, 12))))
    q, k, v = randn(b, h, t, d), randn(b, h, t, d), randn(a, b, h, t, dv)
    distance = torch.arange(t)[:, None] - torch.arange(t)
    sizes = torch.tensor([w or 99 for w in window])[:, None, None]
    pattern = (0.4 * q @ k.mT).masked_fill((distance < 0) | (distance >= sizes), float("-inf")).softmax(-1)
    whole = frozen_attention(q, k, v, scale=0.4, window=window, impl="reference")
    close(whole, pattern @ v)
    some = frozen_attention(q, k, v, scale=0.4, window=window, rows=rows, impl="reference")
    close(some, whole.gather(3, rows[None, :, None, :, None].expand(a, b, h, -1, dv)))


@few
@hypothesis.given(st.integers(0, 3), size, size, size)
def test_smeared_attention(b: int, h: int, t: int, d: int) -> None:
    q, k, v, alpha = (x.requires_grad_() for x in (randn(b, h, t, d), randn(b, h, t, d), randn(b, h, t, d), randn(h)))
    smeared = torch.cat([k[:, :, :1], torch.lerp(k[:, :, :-1], k[:, :, 1:], alpha.sigmoid()[:, None, None])], 2)
    expected = F.scaled_dot_product_attention(q, smeared, v, is_causal=True, scale=0.4)
    actual = smeared_attention(q, k, v, alpha, scale=0.4, impl="reference")
    close(actual, expected)
    inputs = (q, k, v, alpha)
    for mine, theirs in zip(
        torch.autograd.grad(actual.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        close(mine, theirs)


@few
@hypothesis.given(st.integers(0, 9), st.integers(0, 4), size, size, size)
def test_head_ablation_cross_entropy(n: int, h: int, d: int, c: int, v: int) -> None:
    resid, z, w_o, weight = randn(n, c), randn(h, n, d), randn(h, d, c), randn(v, c)
    targets = torch.randint(v, (n,))
    base, losses = head_ablation_cross_entropy(
        resid, z, w_o, weight, targets, norm_weight=None, norm_bias=None, eps=1e-3, impl="reference"
    )
    for actual, x in zip([base, *losses], [resid, *(resid - z @ w_o)], strict=True):
        logits = F.layer_norm(x, (c,), eps=1e-3) @ weight.T
        close(actual, F.cross_entropy(logits, targets, reduction="none"))


@few
@hypothesis.given(st.integers(0, 4), st.integers(0, 5), st.integers(0, 9), st.booleans(), st.booleans())
def test_layer_norm_difference(a: int, n: int, c: int, with_weight: bool, centre: bool) -> None:
    x, removed, weight = randn(n, c), randn(a, n, c), randn(c) if with_weight else None
    norm, expected = F.layer_norm if centre else F.rms_norm, removed
    if removed.numel():
        expected = norm(x, (c,), weight, eps=1e-3) - norm(x - removed, (c,), weight, eps=1e-3)
    close(layer_norm_difference(x, removed, weight, eps=1e-3, centre=centre, impl="reference"), expected)


ACTIVATIONS: dict[str, Any] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda u: F.gelu(u, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


@few
@hypothesis.given(st.integers(0, 4), st.integers(0, 5), st.integers(0, 9), st.sampled_from(list(ACTIVATIONS)))
def test_activation_difference(a: int, n: int, m: int, activation: str) -> None:
    u, removed, act = 3 * randn(n, m), randn(a, n, m), ACTIVATIONS[activation]
    close(activation_difference(u, removed, activation=activation, impl="reference"), act(u) - act(u - removed))


@few
@hypothesis.given(st.integers(0, 4), st.integers(0, 5), st.integers(0, 9), st.sampled_from(list(ACTIVATIONS)))
def test_gated_difference(a: int, n: int, m: int, activation: str) -> None:
    gate, up, dg, du, act = 3 * randn(n, m), randn(n, m), randn(a, n, m), randn(a, n, m), ACTIVATIONS[activation]
    actual = gated_difference(gate, up, dg, du, activation=activation, impl="reference")
    close(actual, act(gate) * up - act(gate - dg) * (up - du))


@few
@hypothesis.given(st.integers(0, 9), st.integers(0, 4), size, size, st.booleans())
def test_cross_entropy_difference(n: int, a: int, c: int, v: int, with_bias: bool) -> None:
    hidden, removed, weight, bias = randn(n, c), randn(a, n, c), randn(v, c), randn(v) if with_bias else None
    targets = torch.randint(v, (n,))
    base, difference = cross_entropy_difference(hidden, removed, weight, targets, bias=bias, impl="reference")
    for actual, x in zip([base, *(base + difference)], [hidden, *(hidden - removed)], strict=True):
        close(actual, F.cross_entropy(F.linear(x, weight, bias), targets, reduction="none"))
