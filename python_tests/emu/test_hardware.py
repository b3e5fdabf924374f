"""csrc/ptx/hardware and csrc/emu/hardware declare the same, and csrc/cuda does not know which of them is compiled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
REAL, EMULATED = CSRC / "ptx" / "hardware", CSRC / "emu" / "hardware"

FUNCTION = re.compile(r"(?:template <([^;{}]*?)>\s*)?([\w ]+?)\b(\w+)\(((?:[^()]|\([^()]*\))*)\) \{")
SPECIFIERS = {"__device__", "__forceinline__", "inline", "EMU_UNCHECKED"}
PLACE = re.compile(r"(?:,\s*)?emu::Loc where = emu::Loc::current\(\)")  # the emulator's last parameter


def macros(header: Path) -> list[str]:
    return re.findall(r"^#define (\w+\([^)]*\))", header.read_text(), re.M)


def functions(header: Path) -> list[str]:
    """Template parameters, result, name and parameters of each; arrays without their names."""
    text = re.sub(r"//[^\n]*", "", header.read_text())
    text = re.sub(r"^#(?:\\\n|[^\n])*", "", text, flags=re.M)
    found = []
    for template, words, name, parameters in FUNCTION.findall(text):
        result = " ".join(word for word in words.split() if word not in SPECIFIERS)
        if result:  # or it is an `if`, or a helper: nothing else returns a pointer
            parameters = re.sub(r"\(&\w*\)", "(&)", " ".join(PLACE.sub("", parameters).split()))
            found.append(f"<{template}> {result} {name}({parameters})")
    return sorted(found)


def test_there_is_one_header_for_each() -> None:
    assert sorted(path.name for path in EMULATED.iterdir()) == sorted(path.name for path in REAL.iterdir())
    assert macros(EMULATED / "runtime.h") == macros(REAL / "runtime.h") != []


@pytest.mark.parametrize(
    ("header", "one_of_them"),
    [
        ("sm80.h", "<typename T> void mma_16816(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2])"),
        ("sm90.h", "<> void tma_load(void* to, const CUtensorMap& map, uint64_t* full, int x, int y)"),
    ],
)
def test_both_have_the_same_functions(header: str, one_of_them: str) -> None:
    real = functions(REAL / header)
    assert one_of_them in real
    assert functions(EMULATED / header) == real


def test_the_kernels_do_not_know_which_is_compiled() -> None:
    forbidden = re.compile(r"\basm\b|\bemu::|\bEMU_|ICL_EMU|__CUDA_ARCH__|__CUDACC__|#include [<\"](?:emu|ptx)/")
    kernels = [path for path in (CSRC / "cuda").iterdir() if path.suffix in (".cu", ".h", ".cpp")]
    assert forbidden.search((REAL / "sm80.h").read_text())
    assert [f"{path.name}: {found[0]}" for path in kernels for found in forbidden.finditer(path.read_text())] == []
