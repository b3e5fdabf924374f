"""How long a call takes, how much memory it needs, and what the machine can do at best."""

from __future__ import annotations

import ctypes
import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

COLD_BYTES = 2**27  # larger than the last-level cache of a CPU
CUDA_FLUSH_BYTES = 2**29
SHORTEST_SAMPLE = 2e-3  # seconds; a shorter call is repeated until a sample is this long


class Clock(Protocol):
    def seconds(self, call: Callable[[], object], repeat: int) -> float: ...

    def repeat(self, seconds: float) -> int: ...


class CpuClock:
    """Wall time. `cold` sweeps the caches before every sample, and then a sample is one call."""

    def __init__(self, cold: bool = False, drain: Callable[[], object] | None = None) -> None:
        self._sweep = torch.zeros(COLD_BYTES // 4) if cold else None
        self._drain = drain

    def repeat(self, seconds: float) -> int:
        if self._sweep is not None:
            return 1
        return _repeat(seconds)

    def seconds(self, call: Callable[[], object], repeat: int = 1) -> float:
        if self._sweep is not None:
            self._sweep += 1
        if self._drain is not None:
            self._drain()
        started = time.perf_counter()
        for _ in range(repeat):
            call()
        return (time.perf_counter() - started) / repeat


class CudaClock:
    """Time on the device, between two events, with nothing of the inputs left in the L2 cache; `warm`: with them."""

    def __init__(self, cuda: Any = torch.cuda, flush: torch.Tensor | None = None, warm: bool = False) -> None:
        self._cuda, self._warm = cuda, warm
        if flush is None and not warm:
            flush = torch.empty(CUDA_FLUSH_BYTES, dtype=torch.int8, device="cuda")
        self._flush = flush

    def repeat(self, seconds: float) -> int:
        return _repeat(seconds) if self._warm else 1  # the second call in a row would find its inputs in the cache

    def seconds(self, call: Callable[[], object], repeat: int = 1) -> float:
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        # Four, not one: while they run the host gets ahead, so that the events time kernels and not Python
        for _ in range(4):
            call() if self._flush is None else self._flush.zero_()
        start.record()
        for _ in range(repeat):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / repeat


def _repeat(seconds: float) -> int:
    return max(1, min(1000, math.ceil(SHORTEST_SAMPLE / max(seconds, 1e-9))))


def median_seconds(clock: Clock, call: Callable[[], object], samples: int) -> float:
    call()
    repeat = clock.repeat(clock.seconds(call, 1))
    return statistics.median(clock.seconds(call, repeat) for _ in range(samples))


def ceilings(device: str, dtypes: set[torch.dtype], clock: Clock, quick: bool) -> dict[str, float]:
    """What this machine reaches at best, on random numbers: on ones and zeros a GPU draws less power and runs faster.

    Returns:
        FLOP/s of a matrix product by dtype ("matmul float32"), bytes/s of a large "copy"; on CUDA, where the L2 cache
        is swept before each, also without that: "matmul float32 warm", and "copy warm", of what fits the cache.
    """
    size, elements, samples = (128, 2**16, 3) if quick else (8192, 2**29, 9) if device == "cuda" else (2048, 2**26, 7)
    clocks = {"": clock, **({" warm": CudaClock(warm=True)} if device == "cuda" else {})}
    found = {}
    for suffix, one in clocks.items():
        for dtype in sorted(dtypes, key=str):
            found[f"matmul {dtype_name(dtype)}{suffix}"] = matmul_rate(device, dtype, size, one, samples)
        found[f"copy{suffix}"] = copy_rate(device, l2_bytes() // 16 if suffix else elements, one, samples)
    return found


def matmul_rate(device: str, dtype: torch.dtype, size: int, clock: Clock, samples: int) -> float:
    """FLOP/s of a product of two square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / median_seconds(clock, lambda: torch.mm(a, b, out=out), samples)


def copy_rate(device: str, elements: int, clock: Clock, samples: int) -> float:
    """bytes/s of a copy of float32 numbers, read and written."""
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(clock, lambda: target.copy_(source), samples)


def l2_bytes() -> int:
    """The size of the GPU's L2 cache."""
    return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)) or 2**25


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensors_in(result: object) -> list[torch.Tensor]:
    """The tensors of a tensor, or of a tuple or list of such."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors_in(part)] if isinstance(result, (tuple, list)) else []


def cuda_peak(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call returns; the megabytes that it adds at its peak, and how many of them are not its result."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    return result, _megabytes(torch.cuda.max_memory_allocated() - before, result)


def cpu_peak(call: Callable[[], object]) -> dict[str, float] | None:
    """As `cuda_peak`, by the resident memory of this process, which should do nothing else. None where it is not known.

    The first call counts, so what an op keeps for the next one is in it. `resident_mb` is the peak of all of the
    process, with Python, torch and the inputs.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # pages that are free but resident would hide what the call takes
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = _resident("VmRSS")
        result = call()
        peak = _resident("VmHWM")
        return {**_megabytes(peak - before, result), "resident_mb": round(peak / 1e6, 2)}
    except OSError:
        return None


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{sys.platform} does not tell {field}")
    return 1024 * int(found[1])


def _megabytes(peak: int, result: object) -> dict[str, float]:
    own = sum(tensor.nbytes for tensor in tensors_in(result))
    return {"peak_mb": round(peak / 1e6, 2), "workspace_mb": round((peak - own) / 1e6, 2)}
