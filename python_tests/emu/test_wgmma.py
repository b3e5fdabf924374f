"""wgmma on operands that TMA brought, against float64: layouts, swizzles, A from registers, and its defects."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

VARIANTS = [
    "gemm_128", "gemm_128_b_mn", "gemm_128_a_mn", "gemm_128_registers", "gemm_128_registers_b_mn",
    "gemm_64", "gemm_64_mn", "gemm_32", "gemm_32_mn", "gemm_0", "gemm_0_mn",
]  # fmt: skip
SHAPE = (128, 256, 256)  # 2 x 2 tiles, 4 steps along K: each of the two stages is refilled


def to_bits(x: np.ndarray[Any, Any], bf16: bool) -> np.ndarray[Any, Any]:
    if not bf16:
        return x.astype(np.float16).view(np.uint16)
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def to_values(bits: np.ndarray[Any, Any], bf16: bool) -> np.ndarray[Any, Any]:
    if not bf16:
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def product(zoo: Any, kernel: str, defect: str, bf16: bool) -> tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    m, n, k = SHAPE
    random = np.random.default_rng(1)
    mn_a, mn_b = kernel.endswith("_mn") and "_b_" not in kernel, kernel.endswith("_mn") and "_a_" not in kernel
    a, b = (to_bits(random.standard_normal((rows, k)), bf16) for rows in (m, n))
    c = np.full((m, n), np.nan, np.float32)
    laid_a, laid_b = (np.ascontiguousarray(x.T) if mn else x for x, mn in ((a, mn_a), (b, mn_b)))
    report = zoo.run(kernel, defect, {"c": c, "a": laid_a, "b": laid_b}, m, n, k, int(bf16))
    return report, c, to_values(a, bf16) @ to_values(b, bf16).T


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kernel", VARIANTS)
def test_a_product(zoo: Any, kernel: str, bf16: bool) -> None:
    zoo.settings(order="random", seed=5)
    report, c, truth = product(zoo, kernel, "kNone", bf16)
    assert report == ""
    np.testing.assert_allclose(c, truth, rtol=0, atol=1e-5 * np.abs(truth).max())


@pytest.mark.parametrize(
    "settings", [{"order": "asc"}, {"order": "desc"}, {"eager": True}, {"race": False, "order": "random"}], ids=str
)
def test_in_every_order(zoo: Any, settings: dict[str, Any]) -> None:
    zoo.settings(**settings)
    report, c, truth = product(zoo, "gemm_128_b_mn", "kNone", True)
    assert report == ""
    np.testing.assert_allclose(c, truth, rtol=0, atol=1e-5 * np.abs(truth).max())


DEFECTS = {
    "kNoInitFence": ("missing fence: TMA completes on an mbarrier", "gemm-load", "@gemm-init"),
    "kNoWgmmaFence": ("missing wgmma_fence", "wgmma"),
    "kNoWgmmaCommit": ("race: |the thread returns with a wgmma under way", ""),
    "kNoWgmmaWait": ("race: asynchronous write after read by an asynchronous operation", "gemm-load", "@wgmma"),
    "kReleaseBeforeWait": ("race: asynchronous write after read by an asynchronous operation", "gemm-load", "@wgmma"),
    "kNoFullWait": ("race: asynchronous read after write by an asynchronous operation|uninitialised: async", "wgmma"),
    "kNoEmptyWait": ("race: |mbarrier: more arrivals", ""),
    "kAccumulatorsWrittenEarly": ("wgmma: an accumulator was written before the wgmma_wait", "wgmma-wait"),
    "kHalfAWarpgroup": ("the threads of the warpgroup execute different instructions", "", "@wgmma"),
    "kDescriptorPastShared": ("out of bounds: wgmma reads operand B at dynamic shared memory + ", "wgmma"),
    "kOddMaxRegisters": ("setmaxnreg: a multiple of 8 from 24 to 256", "max-registers"),
    "kWarpgroupDiverges": ("the threads of the warpgroup execute different instructions", "", "@diverges"),
    "kAccumulatorsReadEarly": ("", ""),
    "kNoProxyFenceAfterStore": ("", ""),
}


@pytest.mark.parametrize("settings", [{"order": "asc"}, {"order": "desc"}, {"order": "random", "seed": 6}], ids=str)
@pytest.mark.parametrize("defect", [defect for defect, says in DEFECTS.items() if says[0]])
def test_a_defect_is_reported(zoo: Any, defect: str, settings: dict[str, Any]) -> None:
    zoo.settings(**settings)
    zoo.expect(product(zoo, "gemm_128", defect, True)[0], *DEFECTS[defect])


def test_accumulators_hold_nothing_before_the_wait(zoo: Any) -> None:
    """No access of registers is seen, so the results tell."""
    zoo.settings()
    report, c, _ = product(zoo, "gemm_128", "kAccumulatorsReadEarly", True)
    assert report == ""
    assert np.isnan(c).all()


@pytest.mark.parametrize("defect", ["kNone", "kNoProxyFenceAfterStore"])
def test_operands_that_threads_stored(zoo: Any, defect: str) -> None:
    zoo.settings()
    random = np.random.default_rng(2)
    a, b = (to_bits(random.standard_normal((rows, 16)), True) for rows in (64, 128))
    c = np.full((64, 128), np.nan, np.float32)
    report = zoo.run("stored", defect, {"c": c, "a": a, "b": b})
    if defect == "kNone":
        assert report == ""
        np.testing.assert_allclose(c, to_values(a, True) @ to_values(b, True).T, rtol=1e-5, atol=1e-5)
    else:
        begins = "missing fence.proxy.async: asynchronous read of dynamic shared memory"
        zoo.expect(report, begins, "wgmma-stored", "@operand-store")


GOOD: dict[str, Any] = {
    "base": 1024, "element": 2, "dims": [100, 60, 3], "strides": [208, 208 * 60], "box": [64, 16, 1], "swizzle": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({}, 0),
        ({"swizzle": 64, "box": [32, 256, 3]}, 0),
        ({"swizzle": 0, "box": [8, 1, 1]}, 0),
        ({"base": 1032}, 2),
        ({"base": 0}, 2),
        ({"element": 3}, 3),
        ({"dims": [1] * 6, "strides": [16] * 5, "box": [8] * 6}, 4),
        ({"dims": [100, 0, 3]}, 5),
        ({"strides": [200, 208 * 60]}, 6),
        ({"strides": [208, 1 << 40]}, 6),
        ({"box": [64, 257, 1]}, 7),
        ({"box": [64, 0, 1]}, 7),
        ({"box": [60, 16, 1], "swizzle": 0}, 7),
        ({"box": [128, 16, 1]}, 8),
        ({"swizzle": 48}, 8),
    ],
    ids=str,
)
def test_what_a_tensor_map_may_be(zoo: Any, change: dict[str, Any], refused: int) -> None:
    v = {**GOOD, **change}
    rank = len(v["dims"])
    dims, strides = (ctypes.c_uint64 * rank)(*v["dims"]), (ctypes.c_uint64 * rank)(*v["strides"])
    box = (ctypes.c_uint32 * rank)(*v["box"])
    base = ctypes.c_long(v["base"])
    assert zoo.library.zoo_tensor_map(base, v["element"], rank, dims, strides, box, v["swizzle"]) == refused
