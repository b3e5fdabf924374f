"""The compiled module through its one door, icl_fast.ops._backend."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import icl_fast
from icl_fast.ops import _backend, _registry

needs_kernels = pytest.mark.skipif(not _backend.compiled(), reason=f"not compiled: {_backend.load_error()}")
needs_cuda_kernels = pytest.mark.skipif(not _backend.cuda_compiled(), reason="built without nvcc")


@needs_kernels
@given(n=st.sampled_from([0, 1, 7, 257, 20_011]), a=st.floats(-4, 4, width=32), threads=st.integers(1, 3))
def test_axpy_is_torch_axpy(n: int, a: float, threads: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(2, n, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = _backend.axpy(a, x, y)
    finally:
        torch.set_num_threads(before)
    # one rounding may be saved by a fused multiply-add; against float64 both are within half a unit of each step
    torch.testing.assert_close(out.double(), a * x.double() + y.double(), rtol=1e-6, atol=1e-6)


@needs_kernels
def test_axpy_writes_every_element_of_a_poisoned_output_and_nothing_more() -> None:
    n = 20_011
    x, y = torch.randn(2, n)
    out = torch.full((n + 2,), float("nan"))
    inner = out[1:-1]
    _backend.module().axpy_cpu(inner.data_ptr(), x.data_ptr(), y.data_ptr(), n, 1.0, 2)
    assert torch.equal(inner, x + y)
    assert out[[0, -1]].isnan().all()


@needs_kernels
def test_axpy_takes_strided_inputs() -> None:
    x, y = torch.randn(2, 14, 5)
    assert torch.equal(_backend.axpy(1.0, x[::2, 1:], y[::2, 1:]), x[::2, 1:] + y[::2, 1:])


@needs_kernels
@pytest.mark.parametrize("stride", [(1, 4), (10, 1)], ids=["transposed", "apart"])
def test_an_output_that_is_not_contiguous_is_refused(stride: tuple[int, int]) -> None:
    u, removed = torch.randn(4, 5), torch.randn(1, 4, 5)
    storage = torch.full((40,), torch.nan)
    out = storage.as_strided((1, 4, 5), (40, *stride))
    with pytest.raises(
        ValueError, match=r"activation_difference: out is written into, so it must be contiguous, got \[1, 4, 5"
    ):
        _backend.run(
            "activation_difference",
            "cpu",
            {"out": out},
            {"u": u, "removed": removed},
            u.dtype,
            a=1,
            n=4,
            m=5,
            activation=0,
        )
    assert storage.isnan().all()


@needs_kernels
def test_inputs_may_have_any_strides() -> None:
    u, removed = torch.randn(5, 4).T, torch.randn(2, 5, 4).mT
    out = torch.empty(2, 4, 5)
    _backend.run(
        "activation_difference", "cpu", {"out": out}, {"u": u, "removed": removed}, u.dtype, a=2, n=4, m=5, activation=0
    )
    gelu = torch.nn.functional.gelu
    torch.testing.assert_close(
        out.double(), gelu(u.double()) - gelu(u.double() - removed.double()), rtol=1e-5, atol=1e-6
    )


def test_axpy_says_what_is_wrong() -> None:
    x = torch.zeros(3)
    with pytest.raises(TypeError, match=r"x and y must be float32, got torch\.float64"):
        _backend.axpy(1.0, x.double(), x)
    with pytest.raises(ValueError, match=r"x \(3,\) on cpu and y \(1,\) on cpu must agree"):
        _backend.axpy(1.0, x, x[:1])
    with pytest.raises(ValueError, match="no kernel for meta"):
        _backend.axpy(1.0, x.to("meta"), x.to("meta"))


@needs_cuda_kernels
@pytest.mark.skipif(_backend.cuda_device_count() > 0, reason="this machine has a CUDA device")
def test_a_launch_without_a_driver_raises() -> None:
    x = torch.zeros(10)
    with pytest.raises(RuntimeError, match=r"axpy: CUDA launch failed: .*no CUDA device, or no driver"):
        _backend.module().axpy_cuda(x.data_ptr(), x.data_ptr(), x.data_ptr(), 10, 1.0, 0)


@needs_cuda_kernels
def test_an_empty_launch_needs_no_driver() -> None:
    _backend.module().axpy_cuda(0, 0, 0, 0, 1.0, 0)


@needs_cuda_kernels
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("n", [0, 1, 255, 1_048_583, 4096 * 256 + 3])
def test_axpy_on_the_gpu(n: int) -> None:
    x, y = torch.randn(2, n, device="cuda")
    expected = 0.5 * x.double() + y.double()
    torch.testing.assert_close(_backend.axpy(0.5, x, y).double(), expected, rtol=1e-6, atol=1e-6)


@needs_kernels
def test_build_info_agrees_with_itself() -> None:
    info = _backend.build_info()
    assert info["compiler"].split()[0] in ("GNU", "Clang", "AppleClang")
    assert bool(info["cuda_archs"]) == bool(info["nvcc"]) == info["cuda"] == _backend.cuda_compiled()
    assert _backend.load_error() is None


def test_an_op_whose_cuda_kernel_did_not_compile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = {"linear_cross_entropy_bwd": "error: no", "frozen_attention_sm90": "error: neither"}
    fake = SimpleNamespace(build_info=lambda: {"cuda": True}, not_built=lambda: lacking)
    monkeypatch.setattr(_backend, "_module", fake)
    assert _backend.build_info()["not_built"] == lacking
    assert "cuda" not in _backend.places("linear_cross_entropy")
    assert "cuda" in _backend.places("frozen_attention")  # by the kernel for every GPU
    assert "cuda" in _backend.places("cross_entropy_difference")
    monkeypatch.setattr(_registry, "_OPS", {})
    kernels = _registry.Kernels("linear_cross_entropy", reference=_registry.Kernel(lambda: None))
    with pytest.raises(
        RuntimeError, match=r"impl='cuda' is not built here.*\(linear_cross_entropy_bwd.cu did not .*no\)"
    ):
        kernels["cuda"]


def test_only_the_backend_imports_the_compiled_module() -> None:
    package = Path(icl_fast.__file__).parent
    importers = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            literal = node.value if isinstance(node, ast.Constant) else None
            if any(f"{module}.{name}".endswith("icl_fast._C") for name in names) or literal == "icl_fast._C":
                importers.add(file.relative_to(package).as_posix())
    assert importers == {"ops/_backend.py"}
