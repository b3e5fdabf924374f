"""How fast this machine multiplies and copies, for an estimate of how long a plan will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from icl_fast.measure.ablation.schedule import Stage


@dataclass(frozen=True)
class Rates:
    """Of one device and dtype: `torch.mm` in floating-point operations a second, a copy in bytes a second."""

    flops: float
    bytes: float

    def seconds(self, stage: Stage) -> float:
        """What a stage takes at least, bound by one of the two."""
        return max(stage.flops / self.flops, stage.bytes / self.bytes)


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure them; takes about half a second."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.empty(1 << (25 if device.type == "cpu" else 28), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    flops = 2.0 * size**3 / _fastest(lambda: torch.mm(a, b), device)
    return Rates(flops, 2.0 * source.numel() / _fastest(lambda: target.copy_(source), device))


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few calls."""
    best = float("inf")
    for _ in range(6):
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return best
