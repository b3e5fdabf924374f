"""csrc/arguments.h: what a kernel is called with is what it says it takes, or nothing runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from icl_fast.ops import _backend

ROOT = Path(__file__).parents[2]
needs_kernels = pytest.mark.skipif(not _backend.compiled(), reason=f"not compiled: {_backend.load_error()}")


def pointer(tensor: Tensor) -> tuple[int, str]:
    return tensor.data_ptr(), str(tensor.dtype).removeprefix("torch.")


class Call:
    """A call of linear_cross_entropy_fwd_cpu; its outputs are nan until it has run."""

    def __init__(self) -> None:
        self.outputs = {name: torch.full((3,), torch.nan) for name in ("losses", "peak", "log_sum")}
        self.inputs = {
            "hidden": torch.randn(3, 4),
            "weight": torch.randn(5, 4),
            "targets": torch.tensor([4, 0, 2]),
            "bias": torch.randn(5),
        }
        self.arguments: dict[str, Any] = {
            **{name: pointer(tensor) for name, tensor in (self.outputs | self.inputs).items()},
            **{"n": 3, "c": 4, "v": 5, "ignore_index": -100, "dtype": "float32", "num_threads": 1},
        }

    def __call__(self, arguments: dict[str, Any]) -> None:
        _backend.module().linear_cross_entropy_fwd_cpu(**arguments)

    def refuses(self, message: str, arguments: dict[str, Any]) -> None:
        with pytest.raises(TypeError, match=f"^linear_cross_entropy_fwd_cpu: {message}"):
            self(arguments)
        assert all(output.isnan().all() for output in self.outputs.values())


@pytest.fixture
def call() -> Call:
    torch.manual_seed(0)
    return Call()


@needs_kernels
def test_the_right_arguments_in_any_order(call: Call) -> None:
    call(dict(reversed(call.arguments.items())))
    hidden, weight, targets, bias = call.inputs.values()
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, targets, reduction="none")
    torch.testing.assert_close(call.outputs["losses"], expected)


@needs_kernels
@pytest.mark.parametrize("name", Call().arguments)
def test_a_missing_argument(call: Call, name: str) -> None:
    del call.arguments[name]
    call.refuses(f"argument '{name}' is missing", call.arguments)


@needs_kernels
def test_an_argument_too_many(call: Call) -> None:
    call.refuses("argument 'scale' is not one it takes", call.arguments | {"scale": 1.0})


@needs_kernels
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n", 3.0, "cannot be 3.0"),
        ("n", None, "cannot be None"),
        ("c", "4", "cannot be '4'"),
        ("v", 1 << 70, f"cannot be {1 << 70}"),
        ("num_threads", 1 << 40, f"cannot be {1 << 40}"),
        ("dtype", "float64", "cannot be 'float64'"),
        ("dtype", 0, "cannot be 0"),
        ("hidden", 4096, "cannot be 4096"),
        ("hidden", (4096, "bfloat16"), "must be a tensor of float32, not bfloat16"),
        ("targets", (4096, "int32"), "must be a tensor of int64, not int32"),
        ("peak", (4096, "float64"), "must be a tensor of float32, not float64"),
    ],
)
def test_an_argument_of_another_type(call: Call, name: str, value: object, message: str) -> None:
    call.refuses(f"argument '{name}' {message}", call.arguments | {name: value})


@needs_kernels
def test_two_tensors_swapped(call: Call) -> None:
    swapped = call.arguments | {"targets": call.arguments["losses"], "losses": call.arguments["targets"]}
    call.refuses("argument 'losses' must be a tensor of float32, not int64", swapped)


@needs_kernels
def test_a_null_tensor(call: Call) -> None:
    call(call.arguments | {"bias": None})
    assert call.outputs["losses"].isfinite().all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_fields_that_do_not_match_the_struct_do_not_compile(tmp_path: Path) -> None:
    pybind11 = pytest.importorskip("pybind11")
    header = (ROOT / "csrc/arguments.h").read_text()
    for right, wrong in (
        (r"ICL_FIELD\(q\),(\s+)ICL_FIELD\(k\)", r"ICL_FIELD(k),\1ICL_FIELD(q)"),  # of FrozenAttention
        (r"ICL_FIELD\(resid\),", ""),
        (r"ICL_FIELD\(u\),", "ICL_FIELD(x),"),
    ):
        header, changes = re.subn(right, wrong, header, count=1)
        assert changes == 1
    (tmp_path / "arguments.h").write_text(header)
    (tmp_path / "main.cpp").write_text('#include "arguments.h"\n')
    includes = [tmp_path, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-std=c++20", "-fsyntax-only", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        ["g++", *flags, *(f"-I{folder}" for folder in includes), tmp_path / "main.cpp"],
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert done.returncode != 0
    assert "designator order for field 'icl::FrozenAttention::q' does not match" in done.stderr
    assert "missing initializer for member 'icl::HeadAblation::resid'" in done.stderr
    assert "'x' is not a member of 'P' {aka 'icl::ActivationDifference'}" in done.stderr
