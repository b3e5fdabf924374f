"""`icl-fast info`: what is installed, what was built, what this machine can run."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch
from rich.table import Table
from rich.text import Text

from icl_fast import __version__, ops
from icl_fast.cli.commands import Command
from icl_fast.cli.console import print_document, print_table, wants_json
from icl_fast.ops import _backend


@click.command(cls=Command)
def info() -> None:
    """What is installed, what was built, what this machine can run."""
    facts = collect()
    if wants_json():
        print_document(facts)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for section, rows in facts.items():
        table.add_row(Text(section, "cyan"), "")
        for name, value in rows.items():
            table.add_row(f"  {name.replace('_', ' ')}", _text(value))
    print_table(table)


def collect() -> dict[str, dict[str, Any]]:
    """Everything `info` prints, by section; plain values, fit for JSON."""
    build = _backend.build_info()
    return {
        "versions": {
            "icl_fast": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy")},
            "pybind11": build.get("pybind11"),
        },
        "built": {
            "cpu_kernels": _backend.compiled(),
            "cuda_kernels": _backend.cuda_compiled(),
            "why_not": _why_not(),
            "compiler": build.get("compiler"),
            "openmp": build.get("openmp"),
            "nvcc": build.get("nvcc"),
            "cuda_archs": build.get("cuda_archs"),
            "self_test": _self_test(),
        },
        "machine": {
            "cpu": _cpu_name(),
            "isa": torch.backends.cpu.get_cpu_capability().lower(),
            "kernels_isa": _backend.isas()[-1] if _backend.compiled() else None,
            "bfloat16_products": _bfloat16_products(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "memory_gib": _memory_gib(),
            "cuda_devices": _cuda_devices(),
            "cuda_driver": _cuda_driver(),
            "torch_cuda": torch.version.cuda,
        },
        "ops": {name: list(impls) for name, impls in ops.available_impls().items()},
    }


def _why_not() -> str | None:
    if not _backend.compiled():
        return _backend.load_error()
    if not _backend.cuda_compiled():
        return "no CUDA kernels: install icl_fast with ICL_FAST_CUDA=on, where there is nvcc"
    lacking = _backend.build_info()["not_built"]
    return "; ".join(f"{source}.cu did not compile: {why}" for source, why in lacking.items()) or None


def _self_test() -> str | None:
    """Run the smallest kernel on each kind of device there is; None where nothing was built."""
    if not _backend.compiled():
        return None
    devices = ["cpu"]
    if _backend.cuda_compiled() and torch.cuda.is_available():
        devices.append("cuda")
    results = []
    for device in devices:
        x = torch.arange(1000.0, device=device)
        try:
            right = torch.equal(_backend.axpy(2.0, x, x), 3 * x)
            results.append(f"{device} {'ok' if right else 'WRONG RESULT'}")
        except RuntimeError as error:
            results.append(f"{device} failed: {error}")
    return ", ".join(results)


def _bfloat16_products() -> str | None:
    """What multiplies bfloat16 in the CPU kernels."""
    if not _backend.compiled():
        return None
    instructions = {"amx": "tdpbf16ps (AMX)", "avx512_bf16": "vdpbf16ps (AVX512-BF16)"}
    return instructions.get(_backend.bfloat16_unit() or "", "float32 instructions: this processor has no unit for it")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _cuda_devices() -> list[str]:
    found = range(torch.cuda.device_count())
    properties = [torch.cuda.get_device_properties(i) for i in found]
    return [f"{p.name} (sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB)" for p in properties]


def _cuda_driver() -> str | None:
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().splitlines()[0].partition(":")[2].strip() if version.exists() else None


def _text(value: Any) -> Text | str:
    if value is None or value == []:
        return Text("-", "dim")
    if isinstance(value, bool):
        return "yes" if value else Text("no", "yellow")
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
