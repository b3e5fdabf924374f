"""Which implementation runs, for all ops."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import icl_fast
import icl_fast.ops as ops
from icl_fast.ops import _backend
from icl_fast.ops._registry import _OPS, Kernel, Kernels

Q, TARGETS = torch.zeros(1, 2, 3, 4), torch.zeros(3, dtype=torch.int64)
W, NORM = torch.zeros(5, 4), {"norm_weight": None, "norm_bias": None, "eps": 1e-5}
CALLS: dict[str, Callable[[str], Any]] = {
    "activation_difference": lambda impl: ops.activation_difference(
        torch.zeros(3, 4), torch.zeros(2, 3, 4), activation="silu", impl=impl
    ),
    "cross_entropy_difference": lambda impl: ops.cross_entropy_difference(
        torch.zeros(3, 4), torch.zeros(2, 3, 4), W, TARGETS, impl=impl
    ),
    "frozen_attention": lambda impl: ops.frozen_attention(Q, Q, Q[None], scale=1.0, impl=impl),
    "gated_difference": lambda impl: ops.gated_difference(
        *(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)),
        activation="silu",
        impl=impl,
    ),
    "head_ablation_cross_entropy": lambda impl: ops.head_ablation_cross_entropy(
        torch.zeros(3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 4, 4), W, TARGETS, **NORM, impl=impl
    ),
    "layer_norm_difference": lambda impl: ops.layer_norm_difference(
        torch.zeros(3, 4), torch.zeros(2, 3, 4), None, eps=1e-5, impl=impl
    ),
    "linear_cross_entropy": lambda impl: ops.linear_cross_entropy(torch.zeros(3, 4), W, TARGETS, impl=impl),
    "smeared_attention": lambda impl: ops.smeared_attention(Q, Q, Q, torch.zeros(2), scale=1.0, impl=impl),
}


def test_every_op_has_a_reference() -> None:
    assert list(ops.available_impls()) == list(CALLS) == sorted(icl_fast.OPS)
    assert all(callable(getattr(icl_fast, op)) and op in icl_fast.__all__ for op in icl_fast.OPS)
    assert all("reference" in impls for impls in ops.available_impls().values())


@pytest.mark.parametrize("op", CALLS)
def test_an_impl_that_is_not_built_says_so(op: str) -> None:
    for impl in {"cpu", "cuda"} - set(ops.available_impls()[op]):
        with pytest.raises(
            RuntimeError, match=f"{op}: impl='{impl}' is not built here .built: .*reference.*use impl='a"
        ):
            CALLS[op](impl)


@pytest.mark.parametrize("op", CALLS)
def test_the_same_answer_from_auto_and_reference(op: str) -> None:
    torch.testing.assert_close(CALLS[op]("auto"), CALLS[op]("reference"))


@pytest.mark.parametrize("op", CALLS)
def test_meta_tensors_give_shapes(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = CALLS[op]("reference")
    monkeypatch.setitem(globals(), "Q", Q.to("meta"))
    monkeypatch.setitem(globals(), "W", W.to("meta"))
    monkeypatch.setitem(globals(), "TARGETS", TARGETS.to("meta"))
    with torch.device("meta"):
        actual = CALLS[op]("auto")
    for mine, theirs in zip(
        torch.utils._pytree.tree_leaves(actual), torch.utils._pytree.tree_leaves(expected), strict=True
    ):
        assert mine.is_meta
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    def name(returned: str) -> Callable[[Tensor], str]:
        return lambda _: returned

    everything = Kernels(
        "an_op",
        reference=Kernel(name("reference"), name("backward")),
        emu=Kernel(name("emu"), device="cpu"),
        cpu=Kernel(name("cpu"), device="cpu", dtypes=(torch.float32, torch.bfloat16)),
        cuda=Kernel(name("cuda"), device="cuda"),
    )
    yield everything
    del _OPS["an_op"]


def test_auto_is_the_best_that_takes_the_tensor(kernels: Kernels) -> None:
    x = torch.zeros(1)
    assert kernels.choose("auto", x) == "cpu"
    assert kernels.choose("auto", x.double()) == "reference"
    assert kernels.choose("auto", x.to("meta")) == "reference"
    assert ops.available_impls()["an_op"] == ("cuda", "cpu", "reference", "emu")


def test_a_named_impl_never_falls_back(kernels: Kernels) -> None:
    x = torch.zeros(1)
    assert kernels.choose("emu", x) == "emu"
    with pytest.raises(
        TypeError, match="an_op: impl='cpu' takes float32, bfloat16 on cpu, got float64 on cpu; use impl="
    ):
        kernels.choose("cpu", x.double())
    with pytest.raises(ValueError, match=r"an_op: impl='cuda' takes .* on cuda, got float32 on cpu; use impl='auto'"):
        kernels.choose("cuda", x)
    with pytest.raises(ValueError, match="an_op: impl must be one of auto, reference, cpu, cuda, got 'gpu'"):
        kernels.choose("gpu", x)
    with pytest.raises(RuntimeError, match="an_op: impl='cpu' has no backward; use impl='reference'"):
        kernels.backward("cpu")


@pytest.mark.parametrize("op", CALLS)
def test_a_registered_kernel_is_the_one_that_runs(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = _OPS[op].kernels["reference"]
    calls = []

    def forward(*arguments: Any) -> Any:
        calls.append(op)
        return reference.forward(*arguments)

    kernels = {**_OPS[op].kernels, "cpu": Kernel(forward, reference.backward, device="cpu")}
    monkeypatch.setattr(_OPS[op], "kernels", kernels)
    CALLS[op]("reference")
    assert calls == []
    CALLS[op]("cpu")
    CALLS[op]("auto")
    assert calls == [op, op]


def test_ops_import_with_torch_and_numpy_alone() -> None:
    program = (
        "import sys, icl_fast.ops; "
        "print([m for m in ('pydantic', 'rich', 'scipy', 'click', 'yaml', 'xarray', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_emulator_computes_as_it_is_told() -> None:
    emulator = _backend.emulator()
    if emulator is None:
        pytest.skip("the emulator is not built")
    with pytest.raises(RuntimeError, match="arithmetic: float32, sm_80 or sm_90"):
        emulator.set_arithmetic("sm_70")
    hidden, weight = torch.randn(16, 64).bfloat16(), torch.randn(300, 64).bfloat16()
    targets = torch.arange(16)
    losses = {}
    for impl in ("emu", "emu_sm90"):
        for arithmetic in ("float32", "sm_80", "sm_90"):
            emulator.set_arithmetic(arithmetic)
            losses[impl, arithmetic] = ops.linear_cross_entropy(hidden, weight, targets, impl=impl)
        torch.testing.assert_close(losses[impl, "sm_80"], losses[impl, "float32"], rtol=1e-5, atol=1e-5)
        assert not torch.equal(losses[impl, "sm_80"], losses[impl, "float32"])
    assert not torch.equal(losses["emu", "sm_80"], losses["emu", "sm_90"])
    assert torch.equal(losses["emu_sm90", "sm_80"], losses["emu_sm90", "sm_90"])  # wgmma is sm_90's
