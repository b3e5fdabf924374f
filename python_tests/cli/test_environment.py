"""Every environment a command may be started in: what it prints is whole, what stops it is one line."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner

from icl_fast.cli import progress
from icl_fast.cli.commands import Commands
from icl_fast.cli.console import print_table
from icl_fast.cli.main import COMMANDS, cli
from icl_fast.cli.progress import counting, training_progress
from icl_fast.errors import InputError
from icl_fast.measure import evaluate

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SETTINGS = [
    *({"COLUMNS": columns} for columns in ("0", "1", "20", "-5", "abc", "²", "9" * 5000, "")),
    *({"LINES": lines} for lines in ("0", "1", "²")),
    {"TERM": "dumb"},
    {"TERM": "no-such-terminal", "NO_COLOR": "1"},
    {"FORCE_COLOR": "1"},
    {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "20"},
    {"HOME": ""},
]


@pytest.fixture(scope="module")
def measured(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that prints the table of what is already measured."""
    store = evaluate(tiny_run, out=tmp_path_factory.mktemp("stores") / "heads.zarr")
    return ["evaluate", "--ckpt", str(tiny_run), "--out", str(store)]


def words(text: str) -> list[str]:
    """All there is to read: without colours, and without the lines of tables."""
    return [word for word in ESCAPES.sub("", text).split() if not set(word) <= set("─━-")]


@pytest.mark.parametrize("setting", SETTINGS, ids=[str(setting)[:40] for setting in SETTINGS])
def test_no_row_and_no_digit_is_lost(setting: dict[str, str], measured: list[str]) -> None:
    plain = CliRunner().invoke(cli, measured, env={"COLUMNS": "200"})
    found = CliRunner().invoke(cli, measured, env={"COLUMNS": "80", **setting})
    assert found.exit_code == 0, found.output
    assert words(found.stdout) == words(plain.stdout)
    assert len(re.findall(r"^ +\d\.\d ", ESCAPES.sub("", found.stdout), re.MULTILINE)) == 4


@pytest.mark.parametrize("charset", ["ascii", "latin-1"])
def test_a_terminal_without_the_signs(charset: str, measured: list[str], tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    pca = ["pca", str(run), "--out", str(tmp_path / "é.zarr")]
    for arguments in (measured, pca, *([name, "--help"] for name in COMMANDS), ["toy", "phase-change", "--help"]):
        found = CliRunner(charset=charset).invoke(cli, arguments)
        assert found.exit_code == 0, (arguments, found.output)
        found.stdout_bytes.decode(charset)
        assert "�" not in found.stdout
    refused = CliRunner(charset=charset).invoke(cli, ["evaluate", "--ckpt", "日本\udcff\n[/]"])
    assert refused.stderr == r"error: --ckpt: \u65e5\u672c\udcff [/] does not exist" + "\n"


@pytest.mark.parametrize("name", ["[bold]", "[/]", "[red]x", ":tada:", "-x", "x" * 200, "é—日本", "a$\\frac$b"])
def test_a_name_is_a_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("run", "loss", title=name)
    table.add_row(name, "0.1234")
    print_table(table)
    assert re.search(rf"{re.escape(name)} .*0\.1234", capsys.readouterr().out)


def shell(text: str) -> subprocess.CompletedProcess[str]:
    """A line of a shell in which ICL is the program."""
    line = text.replace("ICL", f"{sys.executable} -m icl_fast")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("ICL --help >/dev/full", 2, "error: a file or the output: the disk is full; "),
        ("set -o pipefail; ICL --help | true", None, ""),
        ("ICL --help >&-", 0, ""),
        ("ICL nothing 2>&-", 2, ""),
        ("ICL nothing 2>/dev/full", None, ""),
        ("ICL ablate --ckpt '' <&- >&-", 2, "error: --ckpt: '' is no path"),
        ("PYTHONOPTIMIZE=2 ICL report --help", 0, ""),
        ("PYTHONWARNINGS=error ICL toy --help", 0, ""),
        ("PYTHONIOENCODING=ascii ICL toy phase-change --help", 0, ""),
        ("D=$(mktemp -d); cd $D; rmdir $D; ICL info", 2, "error: the working directory is not there any more; "),
        ("ICL", 2, "error: Missing command; `icl-fast --help` says what there is"),
        ("ICL toy", 2, "error: Missing command; `icl-fast toy --help` says what there is"),
        ("ICL nothing", 2, "error: No such command"),
    ],
)
def test_streams_and_shells(line: str, code: int | None, error: str) -> None:
    done = shell(line)
    assert code is None or done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == bool(error)


def test_nobody_and_nowhere(monkeypatch: pytest.MonkeyPatch, corpus_folder: Path) -> None:
    """A user that the machine does not know, without a home folder."""

    def unknown(_: object) -> object:
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("pwd.getpwnam", unknown)
    for name in ("HOME", "ICL_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    found = CliRunner().invoke(cli, ["corpus", str(corpus_folder)])
    assert found.stderr.splitlines()[-1].startswith("error: cache: this user has no home folder")
    assert found.exit_code == 2
    found = CliRunner().invoke(cli, ["evaluate", "--ckpt", "~/run"])
    assert found.stderr.startswith("error: --ckpt: ~/run: there is no such user, or it has no home folder")


INTERRUPTED = """
import os, signal, sys, time
from icl_fast.cli.environment import own_process
own_process()
try:
    import hit
    time.sleep(30)
except KeyboardInterrupt as error:
    print(str(error), sys.modules["hit"].whole, "json.tool" in sys.modules)
"""


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, ""), (signal.SIGTERM, "terminated")])
def test_a_signal_waits_for_an_import(number: int, said: str, tmp_path: Path) -> None:
    """Raised into one, KeyboardInterrupt leaves a module half there, or the lock of all imports taken."""
    (tmp_path / "hit.py").write_text(f"import os\nos.kill(os.getpid(), {number:d})\nimport json.tool\nwhole = True\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    # it is ignored by what a shell runs in the background, such as these tests
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", heard + INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.stdout == f"{said} True True\n", done.stderr


LIBGOMP = list(Path(torch.__file__).parent.glob("lib/libgomp*"))


@pytest.mark.skipif(not LIBGOMP, reason="torch brings another OpenMP, or none")
@pytest.mark.parametrize(
    ("chosen", "spins"), [({}, 1000), ({"GOMP_SPINCOUNT": "7"}, 7), ({"OMP_WAIT_POLICY": "PASSIVE"}, 0)]
)
def test_waiting_threads_soon_sleep(chosen: dict[str, str], spins: int) -> None:
    """The OpenMP that torch loads says how often it looks before it sleeps; what the user chose stays."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    program = "import ctypes, sys, icl_fast.cli.environment as e\ne.own_process()\nctypes.CDLL(sys.argv[1])"
    command = [sys.executable, "-c", program, str(LIBGOMP[0])]  # torch itself takes seconds
    environment |= {"OMP_DISPLAY_ENV": "verbose", **chosen}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


ERRORS: list[tuple[Callable[[], object], str]] = [
    (Path("/nowhere/file").read_text, "/nowhere/file: No such file or directory; see that the path is right"),
    (Path("/" + "x" * 5000).read_text, "File name too long"),
    (lambda: os.listdir("/dev/null"), "/dev/null: Not a directory"),
    (lambda: bytearray(2**62), "out of memory: more was asked for"),
    (lambda: __import__("numpy").zeros(2**58), "out of memory: 2.00 EiB were asked for"),
    (lambda: __import__("torch").zeros(2**58), "out of memory: 1.049e+06 TiB were asked for"),
    (lambda: recurse(), "nested too deeply"),
    (lambda: "é".encode("ascii"), "'é' cannot be written as ascii; rename it, or set PYTHONUTF8=1"),
]


def recurse() -> object:
    return recurse()


@pytest.mark.parametrize(("fails", "message"), ERRORS, ids=[message[:25] for _, message in ERRORS])
def test_what_is_foreseen_is_one_line(fails: Callable[[], object], message: str) -> None:
    @click.group(cls=Commands)
    def group() -> None: ...

    group.command("fail")(lambda: fails() and None)
    found = CliRunner().invoke(group, ["fail"])
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ")
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
    assert len(found.stderr) < 500


def test_what_is_not_foreseen_shows_where_it_is() -> None:
    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    @click.option("--preserve-heads", "--keep")
    @click.option("--snapshot")
    @click.argument("config")
    def fail(preserve_heads: str, snapshot: str, config: str) -> None:
        raise InputError(config) if ":" in config else ValueError(config)

    found = CliRunner().invoke(group, ["fail", "a fault of ours"])
    assert isinstance(found.exception, ValueError)
    for said, shown in (
        ("preserve_heads: none", "--preserve-heads: none"),  # messages name the option that was typed
        ("snapshots: none at 3", "--snapshot: none at 3"),
        ("config: is empty", "config: is empty"),
        ("other: is empty", "other: is empty"),
    ):
        assert CliRunner().invoke(group, ["fail", said]).stderr == f"error: {shown}\n"


class Terminal:
    """A stream that says it is a terminal, and keeps what is written."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_nested_bars_share_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "150"}.items():
        monkeypatch.setenv(name, value)

    def fails() -> None:
        with counting("outer [/]") as outer, training_progress("run", 300), counting("never begun"):
            outer(2, 4, ":tada:")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fails()
    last = ESCAPES.sub("", terminal.text.rpartition("\x1b[2K")[2]).splitlines()
    assert [line.split("  ")[0].rstrip(" ━╸╺") for line in last if line.strip()] == ["outer [/]", "training run"]
    assert "2/4" in last[0]
    assert ":tada:" in last[0]
    assert terminal.text.rstrip().endswith("\x1b[?25h")  # the cursor is back
    with counting("another") as again:
        again(1, 1, "")
    assert "outer" not in terminal.text.rpartition("another")[2]


@pytest.mark.parametrize("setting", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_plain_lines_elsewhere(
    setting: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    with counting("outer [/]") as outer, counting("inner") as inner:
        inner(0, 2, "a")
        inner(2, 2, "b")
        outer(1, 1, "c")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["inner: 2/2", "outer [/]: 1/1"]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(("seconds", "left"), [(0.9, False), (1.1, True)])
def test_the_time_left_waits_for_a_second_of_steps(
    seconds: float, left: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What comes before the first step, such as compiling, is no measure of what is left."""
    now = iter([0.0, 50.0, 50.0 + seconds])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.5)
    with counting("it") as show:
        show(0, 4, "first")
        show(2, 4, "then")
    assert capsys.readouterr().err.splitlines() == ["it: 0/4  first", "it: 2/4  then" + "  1 s left" * left]
