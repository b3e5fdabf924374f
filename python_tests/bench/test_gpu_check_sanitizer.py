"""The stages that run compute-sanitizer, with a fake one; and the calls that the real one watches."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gpu_check_child
import gpu_check_sanitizer
import gpu_check_summary
import pytest
import torch
from gpu_check_tests import ON_HOPPER
from stages import Job

from icl_fast import OPS

MakeJob = Callable[..., Job]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_the_calls_for_the_sanitizer_are_right(op: str, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_check_child.run_op(op, dtype, device="cpu", impl="reference")
    assert capsys.readouterr().out.startswith(f"dtype {str(dtype).removeprefix('torch.')}\nrun ")


CLEAN = "========= COMPUTE-SANITIZER\ndtype float32\nrun a\n========= ERROR SUMMARY: 0 errors\n"
WRITE = """========= COMPUTE-SANITIZER
run 64 x 64
========= Invalid __shared__ write of size 4 bytes
=========     at kernel+0x140 in a.cu:10
========= Invalid __shared__ write of size 4 bytes
=========     at kernel+0x150 in a.cu:11
========= ERROR SUMMARY: 2 errors
"""
RACE = """========= COMPUTE-SANITIZER
run 64 x 64
========= Warning: Race reported between Write access at k+0x10 and Read access at k+0x20 [8 hazards]
========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)
"""


@pytest.mark.parametrize(
    ("code", "text", "findings"),
    [
        (0, CLEAN, []),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", []),
        (86, WRITE, ["Invalid __shared__ write of size 4 bytes", "last call: 64 x 64"]),
        (
            0,
            RACE,
            [
                "Warning: Race reported between Write access at k+0x… and Read access at k+0x… [8 hazards]",
                "last call: 64 x 64",
            ],
        ),
        (None, CLEAN, ["it took too long", "last call: float32, a"]),
        (1, CLEAN + "RuntimeError: axpy", ["exit code 1: RuntimeError: axpy", "last call: float32, a"]),
        (0, "", ["exit code 0: "]),
    ],
)
def test_what_the_sanitizer_found(code: int | None, text: str, findings: list[str]) -> None:
    assert gpu_check_sanitizer.sanitizer_findings(code, text) == findings


def fake_program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


FAKE = """
case "$*" in *--help*) echo "  --launch-timeout arg"; exit;; esac
echo "$@"
case "$*" in *"op smeared_attention") echo "========= Invalid read"; exit 86;; esac
echo "========= ERROR SUMMARY: 0 errors"
"""


def test_the_sanitizer_runs_once_over_every_op(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_job: MakeJob
) -> None:
    fake_program(tmp_path, FAKE, monkeypatch)
    found = gpu_check_sanitizer.sanitizer("memcheck")(make_job())
    assert (found.verdict, found.summary) == (
        "failed",
        f"{len(OPS) - 1} of {len(OPS)} clean; smeared_attention: Invalid read",
    )
    assert found.details == {"smeared_attention": ["Invalid read"]}
    log = (tmp_path / "stage.log").read_text()
    # of the two options that not every version knows, the one that this one knows
    assert log.count("--launch-timeout=0") == 2 * len(OPS)  # the command, and what the program printed
    assert "--report-api-errors" not in log
    # those with kernels of Hopper's own are run without these too, and one of them is the one that is not clean
    cases = len(OPS) + len(ON_HOPPER)
    again = gpu_check_sanitizer.sanitizer("memcheck")(make_job((9, 0)))
    assert again.summary.startswith(f"{cases - 2} of {cases} clean")
    assert "memcheck linear_cross_entropy 80\n" in (tmp_path / "stage.log").read_text()


def test_what_racecheck_says_of_hopper_kernels_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_job: MakeJob
) -> None:
    race = 'case "$*$GPU_CHECK_ARCH" in *"op frozen_attention") echo "========= Race reported"; exit 86;; esac'
    fake_program(tmp_path, f'{race}\necho "========= RACECHECK SUMMARY: 0 hazards displayed"', monkeypatch)
    found, cases = gpu_check_sanitizer.sanitizer("racecheck")(make_job((9, 0))), len(OPS) + len(ON_HOPPER)
    assert (found.verdict, found.summary) == (
        "passed",
        f"{cases - 1} of {cases} clean; informational: frozen_attention",
    )
    assert found.details == {"informational": {"frozen_attention": ["Race reported"]}}
    assert not [*gpu_check_summary.failed({"racecheck": {"verdict": found.verdict, "details": found.details}})]
    assert gpu_check_sanitizer.sanitizer("racecheck")(make_job((8, 0))).verdict == "failed"  # it has no such kernels
    assert gpu_check_sanitizer.sanitizer("memcheck")(make_job((9, 0))).verdict == "failed"


def test_without_the_sanitizer_it_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_job: MakeJob
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = gpu_check_sanitizer.sanitizer("memcheck")(make_job())
    assert (found.verdict, found.summary) == ("skipped", "compute-sanitizer is not on this machine")
