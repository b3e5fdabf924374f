"""Right kernels run through the emulator in every order; each planted defect is reported, with the line it is at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ORDERS = [
    {"order": "asc"},
    {"order": "desc"},
    {"order": "random", "seed": 1},
    {"order": "random", "seed": 2},
    {"order": "asc", "eager": True},
    {"order": "random", "seed": 3, "eager": True},
    {"order": "asc", "race": False},
    {"order": "random", "seed": 4, "race": False},
]
Case = tuple[dict[str, np.ndarray[Any, Any]], tuple[int, ...], dict[str, np.ndarray[Any, Any]]]


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(-8, 9, shape).astype(np.float32)


def unset(*shape: int) -> np.ndarray[Any, Any]:
    return np.full(shape, np.nan, np.float32)


def case(kernel: str) -> Case:
    """Buffers, numbers, and what the buffers must hold afterwards."""
    if kernel == "tiles":
        data = floats(4, 64)
        return {"out": unset(64), "in": data}, (4,), {"out": data[:, ::-1].sum(0)}
    if kernel == "warps":
        data = floats(2, 32)
        out = data.sum(1, keepdims=True) + np.roll(data, -1, 1) + 4 + 2
        return {"out": unset(2, 32), "in": data}, (), {"out": out}
    if kernel == "blocks":
        data = floats(3, 64)
        after = {"out": data[:, 0].copy(), "total": data.sum(keepdims=True).reshape(1), "in": data.copy()}
        return {"out": unset(3), "total": np.zeros(1, np.float32), "in": data}, (), after
    if kernel == "bounds":
        data, out = floats(32), unset(40)
        return {"out": out[4:36], "in": data}, (4,), {"out": data}
    if kernel == "uninitialised":
        data = floats(4)
        return {"out": unset(2, 4), "in": data}, (), {"out": np.stack([2 * data] * 2)}
    if kernel == "copies":
        data, valid = floats(5 * 64)[: 4 * 64 + 37], 37
        whole = np.zeros((5, 64), np.float32)
        whole.flat[: data.size] = data
        return {"out": unset(64), "in": data}, (5, valid), {"out": np.roll(whole, -8, 1).sum(0)}
    if kernel in ("named", "mbarriers"):
        data = floats(5, 32)
        return {"out": unset(32), "in": data}, (5,), {"out": data[:, ::-1].sum(0)}
    if kernel == "tma":
        data = floats(20, 52)  # both dimensions overhang their boxes
        return {"out": unset(20, 52), "in": data}, (20, 52), {"out": 2 * data}
    raise KeyError(kernel)


KERNELS = ["tiles", "warps", "blocks", "bounds", "uninitialised", "copies", "named", "mbarriers", "tma"]


@pytest.mark.parametrize("settings", ORDERS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_right_kernel_passes(zoo: Any, kernel: str, settings: dict[str, Any]) -> None:
    zoo.settings(**settings)
    buffers, numbers, expected = case(kernel)
    assert zoo.run(kernel, "kNone", buffers, *numbers) == ""
    for name, value in expected.items():
        np.testing.assert_array_equal(buffers[name], value)


# defect: what the report begins with, the line it names, and more that it says ("@x": the line of x)
DEFECTS = {
    "tiles": {
        "kNoSyncAfterLoad": ("uninitialised: read of shared tiles(", "tile-read", "::tile + 0x"),
        "kNoSyncBeforeOverwrite": ("race: ", "", "@tile-write", "@tile-read", "shared tiles("),
        "kOneThreadSyncsElsewhere": ("divergent __syncthreads", "", "@tile-sync"),
        "kOneThreadSkipsSync": ("race: |uninitialised: ", "", "::tile + 0x"),
        "kNeverWritten": ("uninitialised: read of shared tiles(", "tile-read", "::tile + 0x14 (element 5 of 4 bytes)"),
    },
    "warps": {
        "kNoSyncwarp": ("uninitialised: read of dynamic shared memory", "warp-read"),
        "kDivergentShuffle": ("the warp has diverged", "", "@shuffle", "@other-shuffle"),
        "kLaneNotInMask": ("the thread's lane is not in the mask", "shuffle"),
        "kNoVotePartner": ("the warp has diverged", "", "@vote", "@vote-all"),
    },
    "blocks": {
        "kPlainAdd": ("race: ", "plain-add", "buffer total"),
        "kBlocksWriteSame": ("race: write after write by another block of buffer out", "block-write"),
        "kBlockReadsAnother": ("race: ", "", "@block-read", "buffer out", "another block"),
        "kBlockOverwritesRead": ("race: ", "", "@block-overwrite", "buffer in", "another block"),
        "kAtomicAndPlain": ("race: ", "", "@plain-store", "@atomic-add", "buffer total"),
    },
    "bounds": {
        "kReadPastEnd": ("out of bounds: read of 4 bytes at buffer in + 128 (element 32)", "global-read", "has 128 b"),
        "kWriteBeforeStart": ("out of bounds: write of 4 bytes at buffer out - 4 (element -1)", "global-write"),
        "kFarAway": ("out of bounds: write of 4 bytes far from all memory", "far-away"),
        "kDynamicOverflow": ("out of bounds: write of 4 bytes at dynamic shared memory + 136", "dynamic-overflow"),
        "kDynamicUnderflow": ("out of bounds: write of 4 bytes at dynamic shared memory - 4", "dynamic-underflow"),
        "kStaticIndex": ("out of bounds: index 4 of 'float [4]'", "static-index", "thread 9 (warp 0, lane 9)"),
        "kRegisterIndex": ("out of bounds: index 4 of 'float [4]'", "register-index"),
        "kMisalignedVector": ("misaligned: ", "vector", "16"),
        "kMisalignedAtomic": ("misaligned atomic", "misaligned-atomic"),
        "kGuardBytes": ("out of bounds: written 1 bytes past the end of dynamic shared memory", ""),
    },
    "uninitialised": {
        "kDynamicUninitialised": ("uninitialised: read of dynamic shared memory + 0x8", "dynamic-read"),
        "kStaticUninitialised": ("uninitialised: read of shared uninitialised(", "static-read", "::fixed + 0xc"),
        "kOnlyPreviousBlock": ("uninitialised: ", "static-read", "block (1, 0, 0)"),
    },
    "copies": {
        "kWaitTooWeak": ("race: read after write by a cp.async of thread", "copy-read", "@copy"),
        "kNoWait": ("race: read after write by a cp.async of thread", "copy-read", "@copy"),
        "kNoCommit": ("race: read after write by a cp.async of thread", "copy-read", "@copy"),
        "kNoSyncAfterWait": ("uninitialised: ", "copy-read"),
        "kBufferOverwritten": ("race: ", "", "@copy", "@copy-read"),
        "kMisalignedCopy": ("misaligned: cp.async of 16 bytes", "copy"),
        "kCopySourcePastEnd": ("out of bounds: read of 16 bytes at buffer in + ", "copy"),
        "kReturnsWithCopies": ("the thread returns with cp.async under way", ""),
    },
    "named": {
        "kConsumerDoesNotSync": ("race: |uninitialised: ", ""),
        "kProducerDoesNotArrive": ("deadlock: ", "", "32 threads (32-63) wait in named barrier 1", "@named-sync"),
        "kCountsDiffer": ("named barrier 1: this thread says", "", "96", "64"),
        "kCountOdd": ("a named barrier is for a multiple of 32 threads, not 60", ""),
        "kProducerOverwrites": ("race: |uninitialised: ", "", "@named-read"),
    },
    "mbarriers": {
        "kNotInitialised": ("uninitialised: |mbarrier used before", ""),
        "kNoSyncAfterInit": ("race: read after write by thread 0 of shared mbarriers(|uninitialised: ", "", "::"),
        "kTooManyArrivals": ("deadlock: ", "", "32 threads (32-63) wait in mbarrier_wait", "@m-wait"),
        "kWrongParity": ("race: |uninitialised: |deadlock: ", ""),
        "kNoArrival": ("deadlock: ", "", "32 threads (32-63) wait in mbarrier_wait", "@m-wait", "1 of 32 arrivals"),
        "kNoMbarrierWait": ("race: |uninitialised: ", "m-read"),
    },
    "tma": {
        "kNoTmaWait": ("race: ", "", "@tma-load", "dynamic shared memory"),
        "kTooManyBytesExpected": ("deadlock: ", "", "64 threads (0-63) wait in mbarrier_wait", "@tma-wait", "16 bytes"),
        "kTooFewBytesExpected": ("deadlock: ", "", "64 threads (0-63) wait in mbarrier_wait", "@tma-wait", "-16 bytes"),
        "kNoProxyFenceAfterWrite": ("missing fence.proxy.async: asynchronous write", "tma-load", "@tma-store"),
        "kNoProxyFenceAfterRead": ("missing fence.proxy.async: asynchronous write", "tma-load", "@tma-read"),
        "kMisalignedTma": ("misaligned: this TMA copy's destination must be a multiple of 128", "tma-load"),
        "kTmaPastShared": ("out of bounds: asynchronous write of 1024 bytes at dynamic shared", "tma-load"),
        "kNeverWaited": ("the block ends with a TMA copy under way", "tma-load"),
        "kRefillTooEarly": ("race: ", "", "@tma-load", "dynamic shared memory"),
        "kTmaSourcePastEnd": ("out of bounds: asynchronous read of ", "tma-load", "buffer in"),
        "kWrongRank": ("TMA: 3 coordinates for a map of rank 2", "tma-load"),
    },
}  # fmt: skip
CASES = [(kernel, defect) for kernel, defects in DEFECTS.items() for defect in defects]
CHECKED_ORDERS = [s for s in ORDERS if s.get("race", True) and not s.get("eager")]


@pytest.mark.parametrize("settings", CHECKED_ORDERS, ids=str)
@pytest.mark.parametrize(("kernel", "defect"), CASES)
def test_a_defect_is_reported(zoo: Any, kernel: str, defect: str, settings: dict[str, Any]) -> None:
    zoo.settings(**settings)
    buffers, numbers, _ = case(kernel)
    report = zoo.run(kernel, defect, buffers, *numbers)
    zoo.expect(report, *DEFECTS[kernel][defect])


def test_every_defect_is_tested(zoo: Any) -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [defect for defect in zoo.defects if f'"{defect}"' not in tests] == []


def test_a_report_says_who_and_where(zoo: Any) -> None:
    zoo.settings()
    buffers, numbers, _ = case("bounds")
    assert zoo.run("bounds", "kReadPastEnd", buffers, *numbers) == (
        "out of bounds: read of 4 bytes at buffer in + 128 (element 32), which has 128 bytes\n"
        "  kernel bounds, block (0, 0, 0), thread 31 (warp 0, lane 31)\n"
        f"  at {zoo.place('global-read')}"
    )


def test_the_emulator_works_on_after_a_report(zoo: Any) -> None:
    zoo.settings()
    for defect in ("kReadPastEnd", "kNone", "kGuardBytes", "kNone"):
        buffers, numbers, expected = case("bounds")
        assert bool(zoo.run("bounds", defect, buffers, *numbers)) == (defect != "kNone")
    np.testing.assert_array_equal(buffers["out"], expected["out"])


def test_guard_bytes_are_checked_without_the_checker(zoo: Any) -> None:
    zoo.settings(race=False)
    buffers, numbers, _ = case("bounds")
    report = zoo.run("bounds", "kDynamicOverflow", buffers, *numbers)
    assert report.startswith("out of bounds: written 9 bytes past the end of dynamic shared memory (128 bytes)")


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ((1, 1, 32, 0, 0), ""),
        ((1, 1, 1024, 48 << 10, 0), ""),
        ((1, 1, 1025, 0, 0), "a block has 1 to 1024 threads"),
        ((1, 1, 0, 0, 0), "a block has 1 to 1024 threads"),
        ((0, 1, 32, 0, 0), "the grid is empty"),
        ((1, 65536, 32, 0, 0), "the grid is larger than"),
        ((1, 1, 32, 232449, 0), "a block has at most 232448 bytes of shared memory"),
    ],
    ids=str,
)
def test_what_can_be_launched(zoo: Any, numbers: tuple[int, ...], says: str) -> None:
    zoo.settings()
    report = zoo.run("empty", "kNone", {}, *numbers)
    assert says in report
    assert bool(says) == bool(report)


def test_much_dynamic_shared_memory_must_be_asked_for(zoo: Any) -> None:
    zoo.settings()
    assert "need cudaFuncSetAttribute" in zoo.run("empty", "kNone", {}, 1, 1, 32, 49153, 0)
    assert zoo.run("empty", "kNone", {}, 1, 1, 32, 49153, 49153) == ""


def test_multiprocessors_are_settable(zoo: Any) -> None:
    assert [zoo.library.zoo_multiprocessors(count) for count in (7, 3)] == [7, 3]


@pytest.mark.parametrize(
    ("shape", "box", "corner"),
    [
        ((40,), (12,), (-3,)),
        ((7, 8), (3, 4), (5, 6)),
        ((5, 7, 8), (2, 3, 4), (1, -2, 0)),
        ((3, 5, 7, 8), (2, 2, 3, 4), (2, 3, 5, 4)),
        ((2, 3, 5, 7, 8), (1, 2, 2, 3, 8), (1, 1, -1, 2, -4)),
    ],
    ids=str,
)
def test_boxes_of_any_rank(zoo: Any, shape: tuple[int, ...], box: tuple[int, ...], corner: tuple[int, ...]) -> None:
    """Zeros where the box leaves the tensor, on either side."""
    zoo.settings(order="random", seed=1)
    data = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    around = np.pad(data, [(max(box), max(box))] * len(shape))
    expected = around[tuple(slice(c + max(box), c + max(box) + b) for c, b in zip(corner, box, strict=True))]
    out, at = unset(*box), np.array(corner[::-1], np.int32)
    assert zoo.run("box", "kNone", {"out": out, "in": data, "corner": at}, len(box), *shape[::-1], *box[::-1]) == ""
    np.testing.assert_array_equal(out, expected)
