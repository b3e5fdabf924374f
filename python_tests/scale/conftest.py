"""Ray once for all tests, processes below this one, and a runner with workers that fail and overtake each other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from icl_fast.scale import Needs, Runner, ray_runner

# parts enough to be stopped between, slow enough for it
LONG: dict[str, Any] = {"engine": "definition", "positions": "all", "memory": "1MiB", "examples": 40}
SMALL: dict[str, Any] = {"examples": 7, "memory": 200_000}
OPTIONS = [text for key, value in LONG.items() for text in (f"--{key}", str(value))]


class Scrambled(Runner):
    """Seven workers in one: which of the tasks that are begun ends next, and which are lost and begun again, is drawn.

    Args:
        stop: raise after so many results, as a command that is stopped does.
    """

    workers = 7

    def __init__(self, random: Random, stop: int | None = None) -> None:
        self.random, self.stop, self.done, self.lost = random, stop, 0, 0

    def run(
        self, compute: Callable[[Any, Any], Any], work: Iterable[tuple[Any, Sequence[Any]]], needs: Needs
    ) -> Iterator[tuple[Any, Any]]:
        tasks = ((value, key) for value, keys in work for key in keys)
        pending: list[tuple[Any, Any]] = []
        while True:
            while len(pending) < self.workers and (task := next(tasks, None)):
                pending.append(task)
            if not pending:
                return
            value, key = pending.pop(self.random.randrange(len(pending)))
            result = compute(value, key)
            if self.random.random() < 0.3:  # its worker was lost with the result
                self.lost += 1
                pending.append((value, key))
                continue
            if self.done == self.stop:
                raise KeyboardInterrupt
            self.done += 1
            yield key, result


@pytest.fixture(scope="session")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Ray, with two workers of one thread."""
    pytest.importorskip("ray")
    with ray_runner(workers=2) as runner:
        yield runner


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A run on text with three snapshots."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def below(pid: int) -> dict[int, str]:
    """The processes that a process started, and those that they did: their command lines."""
    parents, found = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat, line = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if (fields := stat.rpartition(")")[2].split())[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
                found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
    inside = {pid}
    while more := {child for child, parent in parents.items() if parent in inside} - inside:
        inside |= more
    return {child: found[child] for child in inside - {pid}}


def at_work(pid: int) -> list[int]:
    """The workers of Ray below a process that are doing a task."""
    return sorted(child for child, line in below(pid).items() if line.startswith("ray::_do"))


def kill_worker(random: Random, pid: int | None = None) -> bool:
    """Kill one that is at work below a process, by default this one; whether there was one."""
    victims = at_work(os.getpid() if pid is None else pid)
    if not victims:
        return False
    try:
        os.kill(random.choice(victims), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Callable[[], Any], seconds: float = 600.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.01)


def _heeds_interrupts() -> None:
    """In a process that pytest-xdist's workers start: they ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Command:
    """`icl-fast ablate` of a run, in a process of its own."""

    def __init__(self, run: Path, out: Path, *more: str, within: Sequence[str] = ()) -> None:
        self.partial = out.with_name(out.name + ".partial")
        command = [sys.executable, "-m", "icl_fast", "ablate", "--ckpt", str(run), "--out", str(out), *OPTIONS, *more]
        self.process = subprocess.Popen(
            [*within, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heeds_interrupts,
        )
        self.started: dict[int, str] = {}

    def parts(self) -> set[str]:
        return {path.name for path in self.partial.glob("*.npz")}

    def stop(self, number: int) -> tuple[int, str]:
        """Send a signal when something more was written; its exit code and what it said on stderr."""
        before = self.parts()
        wait_for(lambda: self.process.poll() is not None or self.parts() != before)
        assert self.process.poll() is None, self.end()
        self.started = below(self.process.pid)
        self.process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str]:
        """Its exit code and what it said on stderr, when it has ended."""
        _, said = self.process.communicate(timeout=600)
        return self.process.returncode, said

    def left(self) -> list[str]:
        """What of all that it had started is still running."""
        return [line for pid, line in self.started.items() if (Path("/proc") / str(pid) / "exe").exists()]


@pytest.fixture
def commands() -> Iterator[Callable[..., Command]]:
    """Begins commands, none of which outlives the test."""
    pytest.importorskip("ray")
    begun: list[Command] = []

    def begin(*arguments: Any, **options: Any) -> Command:
        begun.append(Command(*arguments, **options))
        return begun[-1]

    yield begin
    for command in begun:
        command.process.kill()
