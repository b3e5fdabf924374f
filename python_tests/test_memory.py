"""What this machine can hold, and the errors of libraries that say it is too much."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from icl_fast.errors import InputError
from icl_fast.memory import available, check_fits, in_units, out_of_memory


def test_what_fits() -> None:
    assert 2**20 < available() < 2**50
    check_fits(2**20, "width 8")
    for need in (1e15, 1e30):
        with pytest.raises(InputError, match=r"^width 8: needs .* TiB of memory and .* GiB are free; make it smaller$"):
            check_fits(need, "width 8")


@pytest.mark.parametrize(("count", "text"), [(7, "7 bytes"), (1536, "1.5 KiB"), (3 * 2**30, "3 GiB"), (2**40, "1 TiB")])
def test_units(count: int, text: str) -> None:
    assert in_units(count) == text


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.empty(10**15),
        lambda: torch.empty(2**62),
        lambda: torch.empty(2**40, 2**40),
        lambda: np.empty(10**15),
        lambda: np.empty(2**62),
        lambda: np.empty(2**64),
        lambda: bytearray(10**17),
    ],
)
def test_errors_of_libraries(build: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError, ValueError)) as raised:
        build()
    line = out_of_memory(raised.value)
    assert line is not None
    assert line.startswith("out of memory: ")
    assert "\n" not in line


def test_other_errors_are_not_about_memory() -> None:
    assert out_of_memory(ValueError("shape mismatch")) is None
