from __future__ import annotations

import importlib
import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from icl_fast.ops import PositionLoss, _backend, _registry, available_impls, linear_cross_entropy

OP = "linear_cross_entropy"
MODULE = importlib.import_module("icl_fast.ops.linear_cross_entropy")
SIZES = [(3, 7, 13, 31), (2, 1, 1, 1), (1, 37, 64, 257), (2, 33, 17, 1009), (0, 5, 8, 11), (2, 0, 8, 11)]  # B, T, C, V


def make(sizes: tuple[int, int, int, int], dtype: torch.dtype, device: str, peak: float = 1.0) -> tuple[Tensor, ...]:
    b, t, c, v = sizes
    hidden = torch.randn(b, t, c) * peak
    weight = torch.randn(v, c)
    targets = torch.randint(v, (b, t))
    if peak > 1:  # half of the targets are what the model is sure of, half are not
        targets[..., ::2] = (hidden @ weight.T).argmax(-1)[..., ::2]
    if targets.numel() > 2:
        targets.view(-1)[1] = -100
    return hidden.to(device, dtype), weight.to(device, dtype), targets.to(device), torch.randn(v).to(device, dtype)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    logits = F.linear(hidden, weight, bias).flatten(0, -2)
    return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)


def test_is_the_definition(impl: str, device: str) -> None:
    hidden, weight, targets, bias = make((2, 3, 4, 5), torch.float32, device)
    losses = linear_cross_entropy(hidden, weight, targets, bias=bias, impl=impl)
    for b, t in itertools.product(range(2), range(3)):
        logits = [
            sum(float(hidden[b, t, c]) * float(weight[v, c]) for c in range(4)) + float(bias[v]) for v in range(5)
        ]
        target = int(targets[b, t])
        loss = 0.0 if target == -100 else math.log(sum(math.exp(x) for x in logits)) - logits[target]
        assert losses[b, t].item() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("peak", [1.0, 30.0])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("poisoned_memory")
def test_forward_error(impl: str, dtype: torch.dtype, device: str, sizes: Any, peak: float, within: Any) -> None:
    hidden, weight, targets, bias = make(sizes, dtype, device, peak)
    losses = linear_cross_entropy(hidden, weight, targets, bias=bias, impl=impl)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    truth = plain(hidden.double(), weight.double(), targets, bias.double())
    within(losses, plain(hidden, weight, targets, bias), truth, times=2)
    # products of narrow numbers are exact in float32, so narrow inputs cost nothing beyond float32's own error
    wide = plain(hidden.to(losses.dtype), weight.to(losses.dtype), targets, bias.to(losses.dtype))
    within(losses, wide, truth, times=2)


@pytest.mark.parametrize(("peak", "with_bias"), [(1.0, True), (30.0, False)])
@pytest.mark.parametrize("sizes", [(1, 300, 328, 1000), (3, 87, 72, 2100), (1, 5, 8, 3)])
@pytest.mark.usefixtures("poisoned_memory")
def test_forward_error_in_aligned_rows(
    impl: str, dtype: torch.dtype, device: str, sizes: Any, peak: float, with_bias: bool, within: Any
) -> None:
    """Rows of a multiple of 16 bytes, as Hopper's kernel takes them: 3 and more of its tiles each way, and one."""
    if impl == "emu":
        pytest.skip("its kernel takes any rows")
    hidden, weight, targets, bias = make(sizes, dtype, device, peak)
    if with_bias:  # a first column tile without one word, and the last one's last
        weightless = min(270, sizes[3] // 2)
        bias[:weightless] = float("-inf")
        targets.clamp_(min=weightless).view(-1)[0] = sizes[3] - 1
        targets.view(-1)[1] = -100
    losses = linear_cross_entropy(hidden, weight, targets, bias=bias if with_bias else None, impl=impl)
    wide = torch.promote_types(dtype, torch.float32)
    same, truth = (
        plain(hidden.to(d), weight.to(d), targets, bias.to(d) if with_bias else None) for d in (wide, torch.float64)
    )
    within(losses, same, truth, times=2)


def test_hopper_runs_its_own_kernel_where_that_can(impl: str, dtype: torch.dtype, launched: Any) -> None:
    if impl != "emu_sm90":
        pytest.skip("about Hopper")
    for width, kernel in ((72, "linear_cross_entropy_kernel<"), (71, "forward_kernel<Gemm<")):
        hidden, weight, targets, _ = make((1, 3, width, 5), dtype, "cpu")
        linear_cross_entropy(hidden, weight, targets, impl=impl)
        assert launched()[0].startswith(kernel)


def test_addresses_need_no_alignment(impl: str, dtype: torch.dtype, device: str) -> None:
    hidden, weight, targets, bias = make((2, 5, 8, 11), dtype, device)
    expected = linear_cross_entropy(hidden, weight, targets, bias=bias, impl=impl)
    around = [torch.full((x.numel() + 1,), float("nan"), dtype=dtype, device=device) for x in (hidden, weight, bias)]
    moved = [a[1:].view_as(x).copy_(x) for a, x in zip(around, (hidden, weight, bias), strict=True)]
    actual = linear_cross_entropy(moved[0], moved[1], targets, bias=moved[2], impl=impl)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("peak", [1.0, 30.0])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("poisoned_memory")
def test_backward_error(impl: str, dtype: torch.dtype, device: str, sizes: Any, peak: float, within: Any) -> None:
    if impl == "emu_sm90":
        pytest.skip("Hopper has no backward of its own")
    hidden, weight, targets, bias = make(sizes, dtype, device, peak)
    grad = torch.randn(targets.shape, device=device)

    def gradients(of: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight, bias)]
        losses = of(inputs[0], inputs[1], targets, bias=inputs[2])
        return torch.autograd.grad(losses, inputs, grad.to(losses.dtype))

    mine = gradients(lambda *a, **k: linear_cross_entropy(*a, **k, impl=impl), dtype)
    for actual, same, truth in zip(mine, gradients(plain, dtype), gradients(plain, torch.float64), strict=True):
        assert actual.dtype == dtype
        within(actual, same, truth, times=3)


@pytest.mark.parametrize("sizes", [(1, 2100, 3, 1700), (1, 3, 1030, 12400), (2, 4150, 2, 5)])
def test_many_blocks_of_rows_and_columns(impl: str, device: str, sizes: Any, within: Any) -> None:
    """Shapes at which the kernels cut rows, columns and products in more pieces than one."""
    if impl.startswith("emu"):
        pytest.skip("too slow: test_tiles_splits_and_chunks has shapes for it")
    hidden, weight, targets, bias = make(sizes, torch.float32, device)
    grad = torch.randn(targets.shape, device=device)

    def results(of: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight / sizes[2] ** 0.5, bias)]
        losses = of(inputs[0], inputs[1], targets, bias=inputs[2])
        return losses, *torch.autograd.grad(losses, inputs, grad.to(dtype))

    mine = results(lambda *a, **k: linear_cross_entropy(*a, **k, impl=impl), torch.float32)
    for actual, same, truth in zip(mine, results(plain, torch.float32), results(plain, torch.float64), strict=True):
        within(actual, same, truth, times=3)


@pytest.mark.parametrize(
    ("multiprocessors", "sizes"),
    [(1, (2, 100, 72, 700)), (1, (2, 100, 71, 700)), (1, (1, 300, 8, 11)), (60, (1, 80, 8, 1500))],
    indirect=["multiprocessors"],
)
@pytest.mark.usefixtures("poisoned_memory", "multiprocessors")
def test_tiles_splits_and_chunks(impl: str, dtype: torch.dtype, device: str, sizes: Any, within: Any) -> None:
    """Three or more, or parts, of whatever the CUDA kernels go through in pieces; rows aligned to 16 bytes and not."""
    b, t, c, v = sizes
    hidden, weight, targets, bias = make((b, 5 * t, c, 12 * v) if impl == "cuda" else sizes, dtype, device)
    targets[:, 70:80] = -100
    weight = weight / c**0.5
    grad = torch.randn(targets.shape, device=device)

    def results(of: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight, bias)]
        losses = of(inputs[0], inputs[1], targets, bias=inputs[2])
        return losses, *torch.autograd.grad(losses, inputs, grad.to(losses.dtype))

    mine = results(lambda *a, **k: linear_cross_entropy(*a, **k, impl=impl), dtype)
    for actual, same, truth in zip(mine, results(plain, dtype), results(plain, torch.float64), strict=True):
        within(actual, same, truth, times=3)


@pytest.mark.parametrize(("size", "hidden_size"), [(1e-6, 1e4), (3e5, 1e-3)])
def test_float16_gradients_of_logits_neither_vanish_nor_overflow(
    impl: str, device: str, size: float, hidden_size: float
) -> None:
    """The gradient of a mean, times a small 1/N, and of a scaled loss, where the product with hidden is in range."""
    if torch.float16 not in _registry._OPS[OP].kernels[impl].dtypes:
        pytest.skip("no float16")
    hidden, weight, targets, bias = make((1, 5, 8, 31), torch.float16, device)
    hidden, weight = hidden * hidden_size, torch.zeros_like(weight)
    grads = []
    for of, dtype in ((linear_cross_entropy, torch.float16), (plain, torch.float64)):
        needing = weight.to(dtype).requires_grad_()
        chosen = {"impl": impl} if of is linear_cross_entropy else {}
        losses = of(hidden.to(dtype), needing, targets, bias=bias.to(dtype), **chosen)
        grads += torch.autograd.grad(losses, needing, torch.full_like(losses, size))
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=2e-3, atol=2e-3 * grads[1].abs().max().item())


def test_threads_change_no_bit(impl: str, device: str) -> None:
    if impl == "reference":
        pytest.skip("torch's own sums may depend on the number of threads")
    hidden, weight, targets, bias = make((3, 37, 64, 257), torch.float32, device)
    results = []
    for threads, order in ((1, "asc"), (2, "desc"), (5, "random")):
        torch.set_num_threads(threads)
        if impl.startswith("emu"):
            _backend.emulator().set_order(order, 1)
        inputs = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        losses = linear_cross_entropy(inputs[0], inputs[1], targets, bias=inputs[2], impl=impl)
        results.append((losses, *torch.autograd.grad(losses.sum(), inputs)))
    for same in zip(*results, strict=True):
        assert all(torch.equal(same[0], other) for other in same)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_cpu_kernel_needs_little_memory() -> None:
    if "cpu" not in available_impls()[OP]:
        pytest.skip("not built")
    program = """
import resource, torch
from icl_fast.ops import linear_cross_entropy
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
hidden, weight = torch.randn(1024, 8).requires_grad_(), torch.randn(50021, 8).requires_grad_()
targets = torch.randint(50021, (1024,))
linear_cross_entropy(hidden[:8], weight[:100], targets[:8] % 100, impl="cpu").sum().backward()
before = peak()
linear_cross_entropy(hidden, weight, targets, impl="cpu").sum().backward()
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 64  # MiB; the logits alone would be 195


def test_sure_and_wrong_probabilities_are_not_lost(impl: str, device: str) -> None:
    # two huge logits of which only the difference matters: a float32 logsumexp of 4096 would round it away
    hidden = torch.tensor([[1.0]], device=device, requires_grad=True)
    weight = torch.tensor([[4096.0], [4095.9995]], device=device)
    losses = linear_cross_entropy(hidden, weight, torch.tensor([0], device=device), impl=impl)
    difference = (weight[0] - weight[1]).item()
    assert losses.item() == pytest.approx(math.log1p(math.exp(-difference)), rel=1e-6)
    (grad,) = torch.autograd.grad(losses, hidden)
    expected = -difference / (1 + math.exp(difference))
    # the weights of 4096 cancel and leave a probability's rounding: on GPUs ex2 is 2 ulp off at most (PTX ISA), twice
    error = 2e-3 * abs(expected) if impl in ("reference", "cpu") else 4096 * 4 * 2**-24
    assert grad.item() == pytest.approx(expected, abs=error)  # a rounded logsumexp would be 0.5 off


def test_mean_is_over_what_is_not_ignored(impl: str, device: str) -> None:
    hidden, weight, targets, _ = make((3, 7, 13, 31), torch.float32, device)
    targets = targets.masked_fill(targets == -100, 0)
    targets[1] = 5
    mean = linear_cross_entropy(hidden, weight, targets, ignore_index=5, reduction="mean", impl=impl)
    expected = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=5)
    torch.testing.assert_close(mean, expected)


def test_mean_of_nothing_is_nan_and_its_gradient_zero_as_in_torch(impl: str, device: str) -> None:
    hidden, weight, targets, _ = make((2, 3, 4, 5), torch.float32, device)
    targets[:] = -100
    hidden.requires_grad_()
    for mean in (
        linear_cross_entropy(hidden, weight, targets, reduction="mean", impl=impl),
        F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten()),
    ):
        assert mean.isnan()
        (grad,) = torch.autograd.grad(mean, hidden)
        assert (grad == 0).all()
    assert linear_cross_entropy(hidden[:0], weight, targets[:0], reduction="mean", impl=impl).isnan()


MEANS = [(1, 1, 16, 1), (3, 7, 16, 31), (1, 600, 64, 1700), (2, 1100, 80, 257), (1, 100, 32, 8192), (0, 5, 16, 11)]


def means(impl: str | None, reduction: Any = "mean_and_losses") -> Any:
    """A function of hidden, weight, targets and bias; by plain torch for no impl."""

    def plain_means(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        losses = plain(hidden, weight, targets, bias)
        return losses.sum() / (targets != -100).sum(), losses

    def fused(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Any:
        return linear_cross_entropy(hidden, weight, targets, bias=bias, reduction=reduction, impl=impl)

    return plain_means if impl is None else fused


@pytest.mark.parametrize(("peak", "with_bias"), [(1.0, True), (1.0, False), (30.0, True)])
@pytest.mark.parametrize("sizes", MEANS)
@pytest.mark.usefixtures("poisoned_memory")
def test_error_of_a_mean(impl: str, device: str, sizes: Any, peak: float, with_bias: bool, within: Any) -> None:
    """Where its gradients are made with it and where they are not; several blocks of rows, columns in many ways."""
    if impl.startswith("emu") and math.prod(sizes) > 10**5:
        pytest.skip("too slow")
    hidden, weight, targets, bias = make(sizes, torch.float32, device, peak)

    def results(of: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight / sizes[2] ** 0.5, bias)]
        mean, losses = of(inputs[0], inputs[1], targets, inputs[2] if with_bias else None)
        return losses.detach(), *torch.autograd.grad(mean * 7, inputs[: 2 + with_bias])

    mine = results(means(impl), torch.float32)
    for actual, same, truth in zip(
        mine, results(means(None), torch.float32), results(means(None), torch.float64), strict=True
    ):
        within(actual, same, truth.nan_to_num(), times=3)


NARROW_MEANS = [(1, 1, 13, 1), (3, 7, 16, 31), (2, 560, 8, 130), (1, 70, 40, 1100), (0, 3, 8, 11)]


@pytest.mark.parametrize(("peak", "with_bias"), [(1.0, True), (30.0, False)])
@pytest.mark.parametrize("sizes", NARROW_MEANS)
@pytest.mark.usefixtures("poisoned_memory")
def test_error_of_a_narrow_mean(
    impl: str, dtype: torch.dtype, device: str, sizes: Any, peak: float, with_bias: bool, within: Any
) -> None:
    """Several blocks of rows and strips of words."""
    if dtype != torch.bfloat16 or (impl.startswith("emu") and math.prod(sizes) > 10**5):
        pytest.skip("elsewhere, or too slow")
    hidden, weight, targets, bias = make(sizes, dtype, device, peak)

    def results(of: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight, bias)]
        mean, losses = of(inputs[0], inputs[1], targets, inputs[2] if with_bias else None)
        return losses.detach(), *torch.autograd.grad(mean * 7, inputs[: 2 + with_bias])

    mine, same, truth = results(means(impl), dtype), results(means(None), dtype), results(means(None), torch.float64)
    for actual, narrow, exact in zip(mine, same, truth, strict=True):
        within(actual, narrow.nan_to_num(), exact.nan_to_num(), times=3)


UNITS = [isa for isa in (*_backend.isas(), *_backend.emulated_isas()) if isa not in ("baseline", "avx2", "avx512")]


@pytest.mark.parametrize("isa", [*_backend.isas(), *_backend.emulated_isas()], indirect=True)
def test_a_narrow_mean_makes_gradients_where_there_is_a_unit(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[str] = []
    monkeypatch.setattr(_backend, "run", lambda name, *rest, **numbers: run.append(name))
    hidden, weight, targets, _ = make((2, 3, 16, 5), torch.bfloat16, "cpu")
    linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), targets, reduction="mean")
    assert run == [f"{OP}_fwd_bwd" if isa in UNITS else f"{OP}_fwd"]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("isa", UNITS, indirect=True)
@pytest.mark.usefixtures("poisoned_memory")
def test_narrow_gradients_of_what_does_not_count(isa: str, reduction: Any) -> None:
    """Of rows that are ignored and hold anything and of words that are not there, by any number of threads."""
    hidden, weight, targets, bias = make((1, 300, 40, 600), torch.bfloat16, "cpu")
    weight = weight / 6
    targets[0, :4] = torch.tensor([-100, 0, 0, 599])
    targets[0, 100:140] = -100
    bias[3:5] = float("-inf")
    targets[(targets == 3) | (targets == 4)] = 5
    exact = [x.float().requires_grad_() for x in (hidden.masked_fill((targets == -100)[..., None], 0), weight, bias)]
    mean = means(None)(exact[0], exact[1], targets, exact[2])[0]
    expected = mean.detach(), *torch.autograd.grad(mean, exact)
    hidden[targets == -100] = float("nan")
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        inputs = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        found = means("cpu", reduction)(inputs[0], inputs[1], targets, inputs[2])
        mean = found.sum() / (targets != -100).sum() if reduction == "none" else found
        results.append((mean.detach(), *torch.autograd.grad(mean, inputs)))
    for actual, *others, wanted in zip(*results, expected, strict=True):
        assert all(torch.equal(actual, other) for other in others)
        torch.testing.assert_close(actual.float(), wanted, rtol=2e-2, atol=1e-2 * wanted.abs().max().item())
    assert not results[0][1][targets == -100].any()
    assert not results[0][2][3:5].any()


def test_a_mean_that_makes_its_gradients_is_the_other_one(impl: str, device: str) -> None:
    """Of rows that are ignored and hold anything, words that are not there, targets that come first, twice and last."""
    hidden, weight, targets, bias = make((2, 41, 16, 70), torch.float32, device)
    targets[0, :4] = torch.tensor([-100, 0, 0, 69])
    bias[3:5] = float("-inf")
    targets[(targets == 3) | (targets == 4)] = 5
    hidden[targets == -100] = float("nan")
    results = []
    for reduction in ("none", "mean", "mean_and_losses"):
        inputs = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        found = means(impl, reduction)(inputs[0], inputs[1], targets, inputs[2])
        losses, mean = (found[1], found[0]) if reduction == "mean_and_losses" else (found, found)
        mean = losses.sum() / (targets != -100).sum() if reduction == "none" else mean
        results.append((mean.detach(), *torch.autograd.grad(mean, inputs)))
        if reduction == "mean_and_losses":
            assert not losses.requires_grad
            torch.testing.assert_close(losses, means(impl, "none")(hidden, weight, targets, bias))
    for first, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(other, first)
    assert (results[1][1][targets == -100] == 0).all()


@pytest.mark.usefixtures("poisoned_memory")
def test_a_mean_of_nothing_makes_gradients_of_zero(impl: str, device: str) -> None:
    hidden, weight, targets, bias = (x.to(device) for x in make((2, 3, 16, 5), torch.float32, device))
    for rows in (2, 0):
        inputs = [x.requires_grad_() for x in (hidden.detach()[:rows], weight, bias)]
        mean, losses = means(impl)(inputs[0], inputs[1], torch.full_like(targets, -100)[:rows], inputs[2])
        assert mean.isnan()
        assert (losses == 0).all()
        assert all((grad == 0).all() for grad in torch.autograd.grad(mean, inputs))


def test_a_mean_goes_backward_again(impl: str, device: str) -> None:
    """Its gradients stay as they were made: twice through one graph, and after another call."""
    inputs = make((2, 9, 16, 31), torch.float32, device)
    hidden, weight = (x.requires_grad_() for x in inputs[:2])
    mean = means(impl, "mean")(hidden, weight, inputs[2], None)
    first = torch.autograd.grad(mean, (hidden, weight), retain_graph=True)
    means(impl, "mean")(hidden * 2, weight, inputs[2], None).backward()
    again = torch.autograd.grad(mean, (hidden, weight), torch.tensor(4.0, device=device))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one * 4, other)  # a power of two rounds nothing


def test_threads_change_no_bit_of_a_mean(impl: str, device: str) -> None:
    if impl == "reference":
        pytest.skip("torch's own sums may depend on the number of threads")
    hidden, weight, targets, bias = make((3, 137, 64, 257), torch.float32, device)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        inputs = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        mean, losses = means(impl)(inputs[0], inputs[1], targets, inputs[2])
        results.append((losses, *torch.autograd.grad(mean, inputs)))
    for same in zip(*results, strict=True):
        assert all(torch.equal(same[0], other) for other in same)


@pytest.mark.parametrize("cut", ["hidden", "weight", "both"])
def test_a_mean_makes_gradients_only_if_both_are_asked_for(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cpu" not in available_impls()[OP]:
        pytest.skip("not built")
    run: list[str] = []
    monkeypatch.setattr(_backend, "run", lambda name, *rest, **numbers: run.append(name))
    hidden, weight, targets, _ = make((2, 3, 16, 5), torch.float32, "cpu")
    hidden.requires_grad_(cut != "hidden")
    weight.requires_grad_(cut != "weight")
    linear_cross_entropy(hidden, weight, targets, reduction="mean")
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets, reduction="mean")
    assert run == [f"{OP}_fwd_bwd" if cut == "both" else f"{OP}_fwd", f"{OP}_fwd"]


def test_opcheck_of_a_mean() -> None:
    if "cpu" not in available_impls()[OP]:
        pytest.skip("not built")
    hidden, weight, targets, bias = make((2, 3, 16, 5), torch.float32, "cpu")
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    op = torch.ops.icl_fast.linear_cross_entropy_mean
    needing = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    torch.library.opcheck(op.default, (hidden, weight, targets, None, -100))
    torch.library.opcheck(op.default, (needing[0], needing[1], targets, needing[2], -100))
    mean, _, *gradients = op(hidden, weight, targets, bias, -100)
    torch.library.opcheck(
        torch.ops.icl_fast.linear_cross_entropy_mean_backward.default,
        (torch.ones_like(mean), hidden, weight, targets, bias, *gradients, -100),
    )


def test_ignored_rows_may_hold_anything(impl: str, device: str) -> None:
    hidden, weight, targets, bias = make((2, 5, 7, 11), torch.float32, device)
    targets[0, 2:] = -100
    dirty = hidden.clone()
    dirty[targets == -100] = float("nan")
    results = []
    for h in (hidden, dirty):
        inputs = [x.clone().requires_grad_() for x in (h, weight, bias)]
        losses = linear_cross_entropy(inputs[0], inputs[1], targets, bias=inputs[2], impl=impl)
        grad = torch.ones_like(losses).masked_fill(targets == -100, float("inf"))
        results.append((losses, *torch.autograd.grad(losses, inputs, grad)))
    for clean, actual in zip(*results, strict=True):
        assert torch.equal(clean, actual)
    losses, grad_hidden, *_ = results[1]
    assert (losses[targets == -100] == 0).all()
    assert (grad_hidden[targets == -100] == 0).all()


def test_a_bias_of_minus_infinity_removes_a_word(impl: str, device: str) -> None:
    hidden, weight, targets, bias = make((2, 5, 7, 11), torch.float32, device)
    targets = targets % 10
    bias[10] = float("-inf")
    inputs = [x.requires_grad_() for x in (hidden, weight)]
    losses = linear_cross_entropy(hidden, weight, targets, bias=bias, impl=impl)
    expected = plain(hidden, weight[:10], targets, bias[:10])
    torch.testing.assert_close(losses, expected)
    for actual, wanted in zip(
        torch.autograd.grad(losses.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_any_leading_dimensions(impl: str, device: str, shape: tuple[int, ...]) -> None:
    hidden, weight = torch.randn(*shape, 4, device=device), torch.randn(7, 4, device=device)
    targets = torch.randint(7, shape, device=device)
    losses = linear_cross_entropy(hidden, weight, targets, impl=impl)
    torch.testing.assert_close(losses, plain(hidden, weight, targets))


def test_strided_inputs(impl: str, dtype: torch.dtype, device: str, strided: Any) -> None:
    *floats, bias = (x for x in make((3, 5, 7, 11), dtype, device) if x.is_floating_point())
    targets = torch.randint(11, (3, 5), device=device)
    grad = torch.randn(3, 5, device=device)
    results = []
    for change in (lambda x: x, strided):
        hidden, weight, offset = (change(x).requires_grad_() for x in (*floats, bias))
        losses = linear_cross_entropy(hidden, weight, change(targets), bias=offset, impl=impl)
        results.append((losses, *torch.autograd.grad(losses, (hidden, weight, offset), change(grad.to(losses.dtype)))))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
def test_requires_grad_subsets(impl: str, device: str, wanted: tuple[bool, bool, bool]) -> None:
    hidden, weight, targets, bias = make((2, 5, 7, 11), torch.float32, device)
    inputs = [x.requires_grad_(want) for x, want in zip((hidden, weight, bias), wanted, strict=True)]
    losses = linear_cross_entropy(hidden, weight, targets, bias=bias, impl=impl)
    assert losses.requires_grad == any(wanted)
    if any(wanted):
        losses.sum().backward()
        mine = [x.grad for x in inputs]
        for x in inputs:
            x.grad = None
        plain(hidden, weight, targets, bias).sum().backward()
        for actual, x in zip(mine, inputs, strict=True):
            assert (actual is None) == (x.grad is None)
            if actual is not None:
                torch.testing.assert_close(actual, x.grad)


def test_backward_computes_only_what_is_needed(impl: str, device: str) -> None:
    hidden, weight, targets, bias = (
        x.flatten(0, 1) if x.ndim == 3 else x for x in make((2, 3, 4, 5), torch.float32, device)
    )
    targets = targets.flatten()
    out = torch.ops.icl_fast.linear_cross_entropy(hidden, weight, targets, bias, -100, impl)
    for need in itertools.product([False, True], repeat=3):
        grads = torch.ops.icl_fast.linear_cross_entropy_backward(
            torch.ones_like(out[0]), hidden, weight, targets, bias, *out, -100, *need, impl
        )
        assert [g.numel() > 0 for g in grads] == list(need)


def test_position_adds_up_by_position(impl: str, device: str) -> None:
    hidden, weight, targets, bias = make((5, 7, 13, 31), torch.float32, device)
    kept = targets != -100
    losses = plain(hidden, weight, targets, bias).double()
    total = linear_cross_entropy(hidden[:2], weight, targets[:2], bias=bias, reduction="position", impl=impl)
    same = linear_cross_entropy(
        hidden[2:], weight, targets[2:], bias=bias, reduction="position", position_loss=total, impl=impl
    )
    assert same is total
    assert torch.equal(total.count, kept.sum(0))
    for t in range(7):
        here = losses[kept[:, t], t]
        assert total.mean[t].item() == pytest.approx(here.mean().item(), abs=1e-6)
        assert total.standard_error[t].item() == pytest.approx(here.std().item() / math.sqrt(len(here)), abs=1e-6)


def test_position_of_one_sequence(impl: str, device: str) -> None:
    hidden, weight, targets, bias = make((1, 7, 13, 31), torch.float32, device)
    batched = linear_cross_entropy(hidden, weight, targets, bias=bias, reduction="position", impl=impl)
    alone = linear_cross_entropy(hidden[0], weight, targets[0], bias=bias, reduction="position", impl=impl)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, batched.state_dict()[name])


def test_position_gives_the_same_bits_and_no_gradient(impl: str, device: str) -> None:
    hidden, weight, targets, bias = make((33, 17, 13, 31), torch.float32, device)
    hidden.requires_grad_()
    first, second = (
        linear_cross_entropy(hidden, weight, targets, bias=bias, reduction="position", impl=impl) for _ in range(2)
    )
    for name, tensor in first.state_dict().items():
        assert not tensor.requires_grad
        assert torch.equal(tensor, second.state_dict()[name])


@pytest.mark.parametrize("logits", [1, 31, 40, 31 * 21])
def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, logits: int) -> None:
    hidden, weight, targets, bias = make((3, 7, 13, 31), torch.float64, "cpu")
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    results = []
    for limit in (2**20, logits):
        monkeypatch.setattr(MODULE, "LOGITS_AT_A_TIME", limit)
        losses = linear_cross_entropy(hidden, weight, targets, bias=bias, impl="reference")
        results.append((losses, *torch.autograd.grad(losses.sum(), inputs)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


def test_reference_never_holds_all_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return out

    hidden, weight, targets = torch.randn(101, 3), torch.randn(103, 3), torch.randint(103, (101,))
    monkeypatch.setattr(MODULE, "LOGITS_AT_A_TIME", 103 * 8)
    with Largest() as seen:
        saved = MODULE.reference_forward(hidden, weight, targets, None, -100)
        MODULE.reference_backward(saved[0], hidden, weight, targets, None, *saved, -100, True, True, False)
    assert seen.numel == 103 * 8


def test_opcheck(impl: str, dtype: torch.dtype, device: str) -> None:
    hidden, weight, targets, bias = make((2, 3, 4, 5), dtype, device)
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    op = torch.ops.icl_fast.linear_cross_entropy.default
    torch.library.opcheck(op, (hidden, weight, targets, None, -100, impl))
    needing = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    torch.library.opcheck(op, (needing[0], needing[1], targets, needing[2], -100, impl))
    torch.library.opcheck(op, (needing[0], weight, targets, bias, -100, impl))
    saved = op(hidden, weight, targets, bias, -100, impl)
    for need in ((True, True, True), (False, True, False)):
        torch.library.opcheck(
            torch.ops.icl_fast.linear_cross_entropy_backward.default,
            (torch.ones_like(saved[0]), hidden, weight, targets, bias, *saved, -100, *need, impl),
        )


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck(reduction: Any) -> None:
    hidden, weight, targets, bias = make((2, 3, 4, 5), torch.float64, "cpu")
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]

    def losses(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, bias=bias, reduction=reduction, impl="reference")

    assert torch.autograd.gradcheck(losses, inputs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(impl: str, device: str, dynamic: bool) -> None:
    hidden, weight, targets, bias = make((2, 5, 7, 11), torch.float32, device)
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]

    def mean(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(hidden * 2, weight, targets, bias=bias, reduction="mean", impl=impl)

    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(*inputs), mean(*inputs))
    for actual, expected in zip(
        torch.autograd.grad(compiled(*inputs), inputs), torch.autograd.grad(mean(*inputs), inputs), strict=True
    ):
        assert torch.equal(actual, expected)


def test_autocast_casts_the_inputs_as_linear_does_and_nothing_else(device: str, impl: str) -> None:
    hidden, weight, targets, bias = make((2, 5, 7, 11), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        losses = linear_cross_entropy(hidden.requires_grad_(), weight, targets, bias=bias, impl=impl)
        (grad,) = torch.autograd.grad(losses.sum(), hidden)
    narrow = [x.detach().bfloat16() for x in (hidden, weight, bias)]
    narrow[0].requires_grad_()
    expected = linear_cross_entropy(narrow[0], narrow[1], targets, bias=narrow[2], impl=impl)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, expected)
    assert torch.equal(grad, torch.autograd.grad(expected.sum(), narrow[0])[0].float())


HIDDEN, WEIGHT, TARGETS = torch.zeros(2, 3, 4), torch.zeros(5, 4), torch.zeros(2, 3, dtype=torch.int64)
META = torch.zeros(2, 3, dtype=torch.int64, device="meta")
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden": [1.0]}, TypeError, "hidden and targets must be tensors"),
    ({"hidden": torch.zeros(4)}, ValueError, r"hidden must be \[...,T,C\] with C=4 as in weight, got \[4\]"),
    (
        {"hidden": torch.zeros(2, 3, 6)},
        ValueError,
        r"hidden must be \[...,T,C\] with C=4 as in weight, got \[2, 3, 6",
    ),
    ({"hidden": HIDDEN.long()}, TypeError, "hidden must be float32, bfloat16, float16 or float64, got torch.int64"),
    ({"weight": torch.zeros(4)}, ValueError, r"weight must be \[V,C\], got \[4\]"),
    ({"weight": None}, TypeError, r"weight must be a tensor \[V,C\], got NoneType"),
    ({"weight": torch.zeros(0, 4)}, ValueError, "weight must have at least one row"),
    ({"weight": WEIGHT.double()}, TypeError, "weight must have the dtype of hidden, torch.float32, got torch.float64"),
    ({"weight": WEIGHT.to("meta")}, ValueError, "weight must be on the device of hidden, cpu, got meta"),
    ({"targets": TARGETS[0]}, ValueError, r"targets must be \[2, 3\] as in hidden, got \[3\]"),
    ({"targets": TARGETS.float()}, TypeError, "targets must be of integers, got torch.float32"),
    ({"targets": META}, ValueError, "targets must be on the device of hidden, cpu, got meta"),
    ({"targets": TARGETS + 5}, ValueError, r"targets must be in 0..4 \(or ignore_index=-100\), got 5"),
    ({"targets": TARGETS - 1}, ValueError, r"targets must be in 0..4 \(or ignore_index=-100\), got -1"),
    ({"bias": torch.zeros(4)}, ValueError, r"bias must be \[V\] with V=5, got \[4\]"),
    ({"bias": torch.zeros(5).half()}, TypeError, "bias must have the dtype of hidden"),
    ({"reduction": "sum"}, ValueError, "reduction must be one of none, mean, mean_and_losses, position, got 'sum'"),
    ({"position_loss": PositionLoss(3)}, ValueError, "position_loss goes with reduction='position', got"),
    ({"reduction": "position", "position_loss": PositionLoss(4)}, ValueError, "losses must be .* with T=4 on"),
    ({"impl": "cpu!"}, ValueError, "impl must be one of auto, reference, cpu, cuda, got 'cpu!'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"hidden": HIDDEN, "weight": WEIGHT, "targets": TARGETS, **change}
    with pytest.raises(error, match=f"({OP}|position_loss): {message}"):
        linear_cross_entropy(**arguments)
