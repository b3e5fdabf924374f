"""What this machine can hold: sizes are compared with it before anything of them is built."""

from __future__ import annotations

import os
import re
from pathlib import Path

from icl_fast.errors import InputError

_CONTROL_GROUPS = (  # what a container may use, what it uses
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_OUT_OF_MEMORY = re.compile(  # torch's allocators, torch's and numpy's checks of sizes, numpy's allocator
    r"can't allocate memory|not enough memory|out of memory|Storage size calculation overflowed"
    r"|numel: integer multiplication overflow|Unable to allocate|array is too big|Maximum allowed dimension exceeded",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"tried to allocate (\d+) bytes|Unable to allocate ([\d.]+ [KMGTPEZY]?i?B)|allocate ([\d.]+ [KMG]iB)"
)


def available() -> int:
    """Bytes that this process can still get without swapping, as the kernel and the container have it."""
    free = [_meminfo()]
    for limit, used in _CONTROL_GROUPS:
        try:
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or no limit
            continue
    return max(0, min(free))


def check_fits(need: float, what: str) -> None:
    """Refuse a size that this machine cannot hold.

    Args:
        need: bytes, at the least.
        what: the keys or options that decide it, with their values, such as `model.layers 1000000000`.

    Raises:
        InputError: it needs more than is available.
    """
    have = available()
    if need > have:
        raise InputError(f"{what}: needs {in_units(need)} of memory and {in_units(have)} are free; make it smaller")


def out_of_memory(error: BaseException) -> str | None:
    """One line for an error of torch, numpy or Python that says that memory is out; None: it says something else."""
    text = str(error)
    if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(text):
        return None
    asked = _ASKED.search(text)
    amount = next((group for group in asked.groups() if group), "") if asked else ""
    amount = f"{in_units(int(amount))} were" if amount.isdigit() else f"{amount} were" if amount else "more was"
    return f"out of memory: {amount} asked for and {in_units(available())} are free; ask for less or make it smaller"


def in_units(count: float) -> str:
    """Bytes as people write them, such as `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def _meminfo() -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**63 - 1  # a system that does not say
