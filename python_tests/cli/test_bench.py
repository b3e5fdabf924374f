"""`icl-fast bench`: names, JSON alone on standard output, exit codes, and no benches in an installed copy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import icl_fast
from icl_fast.cli import bench as command
from icl_fast.cli.main import cli


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *arguments])


def test_json_alone() -> None:
    result = call("call_overhead", "--quick", "--threads", "1", "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [bench["name"] for bench in report["benches"]] == ["call_overhead"]
    assert report["options"]["threads"] == 1
    assert {"date", "commit", "command", "machine", "versions", "targets"} <= set(report)


def test_a_bad_name() -> None:
    result = call("smeared_attention", "fast")
    assert result.exit_code == 2
    assert result.output.startswith("error: names: 'fast' is no bench; there are linear_cross_entropy, ")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--json folder", "--json: folder is a folder; give a file"),
        ("--json folder/x.json/y.json", "--json: folder/x.json/y.json is below "),
        ("--json /dev/null", "--json: /dev/null is a device"),
        ("--quick --seconds 3", "--seconds: changes nothing with --quick"),
        ("--quick --compile --memory", "--compile, --memory: changes nothing with --quick"),
        ("--seconds nan", "--seconds: must be a finite number"),
        ("--timeout 1e300", "--timeout: must be at most 1e+09"),
        ("--threads 1000000000", "--threads: must be at most 4096"),
        ("toy toy", "names: toy is given twice"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_bench(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.json").write_text("{}")
    monkeypatch.setattr(command, "_benches", lambda: SimpleNamespace(Options=SimpleNamespace, print_bench=None))
    result = call(*options.split())
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {message}")
    assert result.output.count("\n") == 1


def test_an_installed_copy_has_no_benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icl_fast, "__file__", str(tmp_path / "icl_fast" / "__init__.py"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = call()
    assert result.exit_code == 2
    assert result.output.startswith("error: bench: the benches are in the source tree of icl_fast")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [("", 0), ("exit code -11", 1)])
def test_options_and_exit_code(error: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(names: tuple[str, ...], options: Any, where: str | None, timeout: float, show: Any) -> dict[str, Any]:
        seen.append((names, vars(options), where, timeout))
        show({"name": "a"}, [])
        return {"benches": [{"error": error}], "targets": ["t"]}

    benches = SimpleNamespace(
        run=run,
        Options=SimpleNamespace,
        failed=lambda bench: bool(bench["error"]),
        print_bench=lambda bench, targets: print(f"table of {bench['name']}"),
        print_summary=lambda targets: print(f"{len(targets)} targets"),
    )
    monkeypatch.setattr(command, "_benches", lambda: benches)
    options = "a --device cuda --cold --no-compile --no-memory --seconds 3 --only T=8 --timeout 9 --json file.json"
    result = call(*options.split())
    assert (result.exit_code, result.output) == (code, "table of a\n1 targets\n")
    expected = {"device": "cuda", "threads": 2, "quick": False, "cold": True, "compile": False, "memory": False}
    assert seen == [(("a",), {**expected, "seconds": 3.0, "only": "T=8"}, "file.json", 9.0)]
