"""Whatever stops a command, the same command goes on: the same bytes in the end, and nothing else."""

from __future__ import annotations

import errno
import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from .conftest import OURS, SCENARIOS, Outcome, Programs, Scenario

Begin = Callable[[Scenario], Path]
Fault = dict[str, Any]

FULL = "the disk is full; free some space or write elsewhere, then run it again"
ERRORS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EROFS: "cannot be written (Read-only file system); choose another place",
    errno.EACCES: "cannot be written (Permission denied); choose another place",
    errno.EMFILE: "cannot be written (Too many open files); close some or raise the limit (ulimit -n)",
}


def contents(folder: Path) -> dict[str, str]:
    """All files below, without what depends on the time that something took."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> str:
    if path.name == "log.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return str([{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines])
    if path.name == "manifest.json":
        return str({name: digest for name, digest in json.loads(path.read_text()).items() if name != "log.jsonl"})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def leftovers(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(OURS)]


@pytest.fixture(scope="session")
def undisturbed() -> dict[str, tuple[dict[str, str], Outcome]]:
    """Of each scenario that was run: what it leaves behind, and how long it is."""
    return {}


class Case:
    """A scenario, from its beginning, with whatever happens to it."""

    def __init__(self, name: str, programs: Programs, begin: Begin, undisturbed: dict[str, Any]) -> None:
        self.scenario, self.programs = SCENARIOS[name], programs
        if name not in undisturbed:
            self.folder = begin(self.scenario)
            whole = self.run()
            assert whole.code == 0, whole.err
            undisturbed[name] = contents(self.folder), whole
        self.expected, self.whole = undisturbed[name]
        self.folder = begin(self.scenario)

    def run(self, **fault: Any) -> Outcome:
        """The command, begun or gone on with."""
        begun = (self.folder / "run" / "config.yaml").exists()
        return self.programs(self.folder, [*self.scenario.arguments, *(self.scenario.resume if begun else ())], **fault)

    def stop(self, fault: Fault) -> Outcome:
        """The command with a fault, which it may not live to see; it says so in one line and leaves nothing behind."""
        outcome = self.run(**fault)
        if fault["kind"] == "kill":
            assert outcome.code in (-signal.SIGKILL, 0), outcome.err
        elif outcome.code != 0:
            assert outcome.code == (130 if fault["kind"] == "interrupt" else 2), outcome.err
            (line,) = outcome.message
            if fault["kind"] == "interrupt":
                assert line.startswith("error: stopped")
                assert line.endswith(("goes on from there", "begins again", "go on with --resume"))
            else:
                assert ERRORS[fault["errno"]] in line
            assert not leftovers(self.folder)
        return outcome

    def end(self) -> None:
        """The command, given again, ends with the same bytes and nothing beside them."""
        outcome = self.run()
        assert outcome.code == 0, outcome.err
        assert not leftovers(self.folder)
        assert contents(self.folder) == self.expected


@pytest.fixture
def case(programs: Programs, begin: Begin, undisturbed: dict[str, Any]) -> Callable[[str], Case]:
    return lambda name: Case(name, programs, begin, undisturbed)


FAST = ("train", "train population", "ablate", "evaluate exemplars", "report", "toy phase-change again", "demo")


@pytest.mark.parametrize("name", FAST)
def test_stopped_again_and_again(case: Callable[[str], Case], name: str) -> None:
    random, one = Random(name), case(name)
    faults: list[Fault] = [
        {"kind": "error", "errno": random.choice([*ERRORS]), "stays": True},
        {"kind": "interrupt"},
        {"kind": "kill"},
    ]
    for fault in random.sample(faults, 3):
        one.stop({**fault, "at": random.randrange(one.whole.operations)})
    one.end()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_six_times(case: Callable[[str], Case], name: str) -> None:
    random = Random(f"kills of {name}")
    for _ in range(6):
        one = case(name)
        one.stop({"kind": "kill", "at": random.randrange(one.whole.operations)})
        one.end()
