"""Contexts of which no pattern can be held: what is computed of them stays within the memory that is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from icl_fast import Transformer, ablate

Build = Callable[..., Transformer]
LONG: dict[str, Any] = {
    "layers": 2, "width": 64, "heads": 4, "head_width": 16, "kv_heads": 2, "mlp": True, "gated": True,
    "activation": "silu", "norm": "rms", "vocab": 100,
}  # fmt: skip
KINDS: list[dict[str, Any]] = [{"position": "rotary"}, {"position": "rotary", "score_cap": 5.0}, {"position": "alibi"}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["pattern-preserving", "full"])
def test_no_whole_pattern(noisy: Build, sizes: Any, kind: dict[str, Any], mode: str) -> None:
    model, length = noisy(context=512, **LONG, **kind).float(), 512
    tokens = torch.randint(0, 100, (2, length + 1))
    for positions in ("all", "5,512"):
        with sizes:
            ablate(model, tokens, mode=mode, heads="0.1,1.2", positions=positions)
    assert sizes.largest < 4 * length * length


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["pattern-preserving", "full"])
def test_8192_tokens_within_the_memory(noisy: Build, kind: dict[str, Any], mode: str) -> None:
    def kilobytes(name: str) -> int:
        return int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])

    model = noisy(context=8192, **LONG, **kind).float()
    tokens = torch.randint(0, 100, (1, 8193))
    ablate(model, tokens[:, :65], mode=mode, heads="0.1,1.2")
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    ablate(model, tokens, mode=mode, heads="0.1,1.2", memory="512MiB")
    assert kilobytes("VmHWM") - before < 512 * 1024
