"""What every command does with an error, and `icl-fast info`."""

from __future__ import annotations

import errno
import json
import os
import sys
import types
from collections.abc import Iterator

import click
import pytest
import torch
from click.testing import CliRunner, Result

import icl_fast
from icl_fast.cli import main as cli_main
from icl_fast.ops import _backend

FULL_DISK = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x")


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Run a command that raises the given exception."""

    def run(error: BaseException) -> Result:
        @click.command()
        def broken() -> None:
            raise error

        module = types.ModuleType("broken_command")
        module.broken = broken
        monkeypatch.setitem(sys.modules, "broken_command", module)
        monkeypatch.setitem(cli_main.COMMANDS, "broken", cli_main._Command("broken_command:broken", "Fails."))
        return CliRunner().invoke(cli_main.cli, ["broken"])

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (icl_fast.InputError("--heads: 9.1: no such head"), 2, "error: --heads: 9.1: no such head"),
        (icl_fast.InputError("two\nlines"), 2, "error: two lines"),
        (
            FULL_DISK,
            2,
            "error: runs/x: the disk is full; free some space or write elsewhere, then run it again",
        ),
        (KeyboardInterrupt(), 130, "error: stopped; the same command goes on from there"),
    ],
    ids=["input", "two lines", "disk full", "interrupt"],
)
def test_a_users_mistake_is_one_line(fail_with, error: BaseException, code: int, line: str) -> None:
    result = fail_with(error)
    assert result.exit_code == code
    assert result.stderr.strip() == line
    assert result.stdout == ""


@pytest.mark.parametrize("error", [ValueError("ours"), AttributeError("ours")])
def test_our_own_mistake_keeps_its_traceback(fail_with, error: Exception) -> None:
    assert fail_with(error).exception is error


@pytest.mark.parametrize("arguments", [["gibberish"], ["info", "--gibberish"], ["info", "surplus"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli_main.cli, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(cli_main.cli, ["--help"])
    assert result.exit_code == 0
    for name, command in cli_main.COMMANDS.items():
        assert name in result.stdout
        assert command.help[:30] in result.stdout


def test_version() -> None:
    assert CliRunner().invoke(cli_main.cli, ["--version"]).stdout == f"icl-fast, version {icl_fast.__version__}\n"


def test_info_json() -> None:
    result = CliRunner().invoke(cli_main.cli, ["info", "--json"], catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert facts["versions"]["icl_fast"] == icl_fast.__version__
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["built"]["cpu_kernels"] == _backend.compiled()
    assert facts["machine"]["torch_threads"] == torch.get_num_threads()
    assert facts["machine"]["cores"] >= 1
    assert {impl for impls in facts["ops"].values() for impl in impls} >= {"reference"}
    if _backend.compiled():
        assert facts["built"]["self_test"].startswith("cpu ok")
        assert facts["machine"]["kernels_isa"] == _backend.isas()[-1]
        unit = {"amx": "tdpbf16ps (AMX)", "avx512_bf16": "vdpbf16ps (AVX512-BF16)"}.get(_backend.isas()[-1], "float32")
        assert facts["machine"]["bfloat16_products"].startswith(unit)


def test_info_table() -> None:
    result = CliRunner().invoke(cli_main.cli, ["info"], catch_exceptions=False)
    assert result.exit_code == 0
    for text in ("versions", icl_fast.__version__, "cpu kernels", "torch threads", "linear_cross_entropy"):
        assert text in result.stdout.replace("linear cross entropy", "linear_cross_entropy")
