"""How fast this machine multiplies and copies, for an estimate of how long a plan will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from icl_fast.measure.ablation.costs import Stage


@dataclass(frozen=True)
class DeviceSpeed:
    """The speed of one device in one dtype.

    Attributes:
        flops: of `torch.mm`, floating-point operations a second.
        bytes: of a copy, bytes read and written a second.
    """

    flops: float
    bytes: float

    def seconds(self, stage: Stage) -> float:
        """The least time that a stage takes: one of the two bounds it."""
        return max(stage.flops / self.flops, stage.bytes / self.bytes)


def measure_speed(device: torch.device, dtype: torch.dtype) -> DeviceSpeed:
    """Measure a device's speed; takes about half a second."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.empty(1 << (25 if device.type == "cpu" else 28), dtype=torch.uint8, device=device)
    destination = torch.empty_like(source)
    flops = 2.0 * size**3 / _fastest(lambda: torch.mm(a, b), device)
    return DeviceSpeed(flops, 2.0 * source.numel() / _fastest(lambda: destination.copy_(source), device))


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few calls."""
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
