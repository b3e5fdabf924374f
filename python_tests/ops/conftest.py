"""The op tests run over every implementation that is built: a test that takes `impl` (and `dtype`) gets each of them.

"cpu" comes once for every instruction set this machine has, as cpu-baseline, cpu-avx2, cpu-avx512, ...; tests of the
error rule (those that take `within` and `dtype`) also with those that multiply bfloat16, emulated. The CUDA kernels
come as "cuda" where there is a GPU, and as "emu" (and, in tests of a `dtype` for which Hopper has a kernel of its own,
"emu_sm90") on the emulator, which reports races and accesses out of bounds. Tests of the error rule run on it once
more, unchecked, with the arithmetic of tensor cores (csrc/emu/arithmetic.h), as emu-sm_80 and emu_sm90-sm_90. A test
module names its op in `OP`. A new kernel is tested by being registered; nothing here changes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from icl_fast.ops import _backend, _registry, available_impls

HALVES = (torch.bfloat16, torch.float16)
TENSOR_CORES = {"emu": "sm_80", "emu_sm90": "sm_90"}
SM90 = dict.fromkeys(  # what runs on Hopper's own kernels
    (
        "cross_entropy_difference",
        "frozen_attention",
        "head_ablation_cross_entropy",
        "linear_cross_entropy",
        "smeared_attention",
    ),
    HALVES,
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "impl" not in metafunc.fixturenames:
        return
    op = metafunc.module.OP
    kernels = _registry._OPS[op].kernels
    by_the_error_rule = {"within", "dtype"} <= set(metafunc.fixturenames)
    cases, ids = [], []
    for impl in available_impls()[op]:
        if impl == "emu_sm90" and "dtype" not in metafunc.fixturenames:
            continue
        dtypes = SM90.get(op, ()) if impl == "emu_sm90" else kernels[impl].dtypes
        ways: list[tuple[str | None, str | None]] = [(None, None)]
        if impl == "cpu":
            ways = [(isa, None) for isa in (*_backend.isas(), *(_backend.emulated_isas() if by_the_error_rule else ()))]
        elif impl in TENSOR_CORES and by_the_error_rule:
            ways.append((None, TENSOR_CORES[impl]))
        for isa, arithmetic in ways:
            for dtype in dtypes if "dtype" in metafunc.fixturenames else (None,) if dtypes else ():
                if isa in _backend.emulated_isas() and dtype != torch.bfloat16:
                    continue
                cases.append((impl, isa, arithmetic, dtype))
                words = (impl, isa, arithmetic, str(dtype).removeprefix("torch.") if dtype else None)
                ids.append("-".join(word for word in words if word))
    names = ("impl", "isa", "arithmetic", "dtype")
    count = 4 if "dtype" in metafunc.fixturenames else 3
    metafunc.parametrize(names[:count], [case[:count] for case in cases], ids=ids, indirect=["isa", "arithmetic"])


@pytest.fixture(autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The instruction set the CPU kernels use: the best, or the one `pytest_generate_tests` asks for."""
    wanted: str | None = getattr(request, "param", None)
    if wanted is not None:
        _backend.set_isa(wanted)
    yield wanted
    if wanted is not None:
        _backend.set_isa(_backend.isas()[-1])


@pytest.fixture
def device(impl: str) -> str:
    if impl == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda" if impl == "cuda" else "cpu"


@pytest.fixture(autouse=True)
def arithmetic(request: pytest.FixtureRequest) -> str | None:
    """What the emulator computes with: float32, in race mode, or the tensor cores `pytest_generate_tests` asks for. The
    threads of every test run in another order."""
    wanted: str | None = getattr(request, "param", None)
    if (emulator := _backend.emulator()) is not None:
        emulator.set_race(wanted is None)
        emulator.set_arithmetic(wanted or "float32")
        emulator.set_order("random", zlib.crc32(request.node.nodeid.encode()))
    return wanted


@pytest.fixture
def launched() -> Callable[[], list[str]]:
    """The names of the kernels that the last op on the emulator launched."""
    emulator = _backend.emulator()
    if emulator is None:  # on a GPU
        pytest.skip("the emulator is not built here")
    names: Callable[[], list[str]] = emulator.launched
    return names


@pytest.fixture
def multiprocessors(request: pytest.FixtureRequest) -> Iterator[None]:
    """How large the emulated GPU is: on a small one a block goes through many tiles and a call through many chunks, on
    a large one many blocks share a row."""
    emulator = _backend.emulator()
    if emulator is not None:
        emulator.set_multiprocessors(request.param)
    yield
    if emulator is not None:
        emulator.set_multiprocessors(3)


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty is full of nan: an output that is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def within() -> Callable[..., None]:
    """The error rule: against a float64 truth, at most `times` the largest error of plain torch, and a tiny atol."""

    def check(actual: Tensor, plain: Tensor, truth: Tensor, *, times: float) -> None:
        assert actual.shape == truth.shape
        assert actual.isfinite().all()
        if truth.numel() == 0:
            return
        error = (actual.double() - truth).abs().max().item()
        size = max(1.0, truth.abs().max().item())
        if plain.dtype == torch.float64:  # plain torch is the truth itself, with float64 rounding of its own
            allowed = 1e-12 * size
        else:
            atol = 4 * torch.finfo(torch.float32).eps * size
            allowed = times * (plain.double() - truth).abs().max().item() + atol
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"

    return check


@pytest.fixture
def arguments() -> Callable[..., dict[str, Any]]:
    """A small call of an op: its arguments by name, with all the optional tensors."""

    def make(op: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64).to(dtype)

        a, n, c, v, targets = 3, 4, 6, 7, torch.randint(7, (4,))
        window, scale = torch.tensor([0, 2, 3]), 0.4
        q, k = randn(2, 3, 5, 4), randn(2, 3, 5, 4)
        norm = {"norm_weight": randn(c), "norm_bias": randn(c), "eps": 1e-3}
        unembedding = {"weight": randn(v, c), "targets": targets, "bias": randn(v)}
        return {
            "activation_difference": {"u": randn(n, c), "removed": randn(a, n, c), "activation": "silu"},
            "cross_entropy_difference": {"hidden": randn(n, c), "removed": randn(a, n, c) / 4, **unembedding},
            "frozen_attention": {
                **{"q": q, "k": k, "v": randn(a, 2, 3, 5, 2), "window": window, "scale": scale},
                "rows": torch.randint(5, (2, 3)),
            },
            "gated_difference": {
                **{"gate": randn(n, c), "up": randn(n, c), "gate_removed": randn(a, n, c)},
                **{"up_removed": randn(a, n, c), "activation": "gelu"},
            },
            "head_ablation_cross_entropy": {
                **{"resid": randn(n, c), "z": randn(a, n, 2), "w_o": randn(a, 2, c)},
                **unembedding,
                **norm,
            },
            "layer_norm_difference": {"x": randn(n, c), "removed": randn(a, n, c), "weight": randn(c), "eps": 1e-3},
            "linear_cross_entropy": {"hidden": randn(n, c), **unembedding},
            "smeared_attention": {
                **{"q": q, "k": k, "v": randn(2, 3, 5, 4), "alpha": randn(3), "window": window, "scale": scale}
            },
        }[op]

    return make


@pytest.fixture
def strided() -> Callable[[Tensor], Tensor]:
    """The same values with an offset and a stride in every dimension, amid nan (or, for integers, a huge number)."""

    def spread(tensor: Tensor) -> Tensor:
        filler = float("nan") if tensor.is_floating_point() else 10**9
        around = torch.full([2 * size + 3 for size in tensor.shape], filler, dtype=tensor.dtype, device=tensor.device)
        view = around[tuple(slice(3, 3 + 2 * size, 2) for size in tensor.shape)]
        view.copy_(tensor)
        assert not view.is_contiguous() or view.numel() <= 1
        return view

    return spread
