"""Commands in forks of one server (`server.py`), stopped at a chosen moment, and what they are given."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

SERVER = Path(__file__).with_name("server.py")
OURS = (".tmp-", ".old-", ".lock")  # begin the names of what only a killed process leaves
TEXT = ["--examples", "20"]
EXEMPLARS = ["--sequences", "40"]
REPORTED = [*TEXT, *EXEMPLARS]
PHASE_CHANGE = "toy phase-change --dims 4,4,4 --seeds 2 --steps 20 --plateau-seeds 2 --plateau-steps 50"


@dataclass(frozen=True)
class Scenario:
    """A command, and the runs that it finds in its folder.

    Attributes:
        resume: what goes on with it, if it is not the same command.
    """

    arguments: list[str]
    runs: Sequence[str] = ()
    resume: Sequence[str] = ()


SCENARIOS = {
    "train": Scenario(["train", "text.yaml", "--out", "run"], resume=["--resume"]),
    "train exemplars": Scenario(["train", "exemplars.yaml", "--out", "run"], resume=["--resume"]),
    "train population": Scenario(["train", "population.yaml", "--out", "run"], resume=["--resume"]),
    "ablate": Scenario(["ablate", "--ckpt", "text", "--memory", "300KiB", *TEXT], ["text"]),
    "ablate exemplars": Scenario(["ablate", "--ckpt", "population", *EXEMPLARS], ["population"]),
    "evaluate": Scenario(["evaluate", "--ckpt", "text"], ["text"]),
    "evaluate exemplars": Scenario(["evaluate", "--ckpt", "exemplars", *EXEMPLARS], ["exemplars"]),
    "evaluate population": Scenario(
        ["evaluate", "--ckpt", "population", "--clamp", "match", *EXEMPLARS], ["population"]
    ),
    "report": Scenario(
        ["report", "text", "exemplars", "--out", "report", "--no-static", "--modes", "pattern-preserving", *REPORTED],
        ["text", "exemplars"],
    ),
    "report figures": Scenario(["report", "exemplars", "--out", "report", *EXEMPLARS], ["exemplars"]),
    "pca": Scenario(["pca", "text", "--out", "pca.zarr", *TEXT], ["text"]),
    "toy phase-change": Scenario([*PHASE_CHANGE.split(), "--out", "toy.zarr"]),
    "toy phase-change again": Scenario([*PHASE_CHANGE.split(), "--out", "toy.zarr"], ["toy"]),
    "toy coopetition": Scenario(
        "toy coopetition --dims 4,4,4,8 --seeds 3 --steps 50 --out toy.zarr".split()  # noqa: SIM905
    ),
    "demo": Scenario(["demo", "--configs", "demo-configs", "--out", "demo"]),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a command.

    Attributes:
        code: of its exit; less than 0: the signal that killed it; None: it was halted and waits.
        operations: how many times it was about to change something in its folder.
    """

    code: int | None
    out: str
    err: str
    operations: int
    seconds: float

    @property
    def message(self) -> list[str]:
        """The lines of standard error without those of progress."""
        return [line for line in self.err.splitlines() if not re.search(r": \d+/\d+  ", line)]


class Programs:
    """Runs commands one after the other, in forks of one process."""

    def __init__(self, cache: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140", "ICL_FAST_CACHE": str(cache)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, SERVER], env=environment, text=True, **pipes)
        assert self._answer() == "ready"

    def __call__(self, folder: Path, arguments: Sequence[str], **fault: Any) -> Outcome:
        """Run `icl-fast` in a folder; for `fault` see `server.py`."""
        return Outcome(**self._ask({"folder": str(folder), "arguments": [*arguments], **fault}))

    def go_on(self) -> Outcome:
        """Let the halted command end."""
        return Outcome(**self._ask({"go_on": True}))

    def _ask(self, task: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    programs = Programs(tmp_path_factory.mktemp("cache"))
    with programs.process:
        yield programs
        assert programs.process.stdin is not None
        programs.process.stdin.close()


def _exemplars() -> dict[str, Any]:
    return {
        "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
        "sequences": {"classes": 20},
        "model": {"width": 16, "heads": 4},
        "training": {"steps": 12, "batch": 8, "lr": 1e-2, "log_every": 4, "checkpoint_every": 5},
        "evaluation": {"every": 6, "sequences": 40},
        "snapshots": {"every": 6},
    }


@pytest.fixture(scope="session")
def configs(tiny_values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name to the config in it."""
    text = copy.deepcopy(tiny_values)
    text["data"]["context"] = 32
    text["snapshots"]["every"] = 4
    members = [{"name": "free"}, {"name": "one head", "set": {"interventions.only_heads": ["1.1"]}}]
    found = {"text.yaml": text, "exemplars.yaml": _exemplars(), "population.yaml": _exemplars() | {"members": members}}
    for name in ("one_layer", "two_layer", "one_layer_smeared"):
        model = text["model"] | {"layers": 2 if name == "two_layer" else 1}
        model |= {"key": "smeared"} if name == "one_layer_smeared" else {}
        data = text["data"] | {"evaluation_examples": 384}
        found[f"demo-configs/{name}.yaml"] = text | {"model": model, "data": data}
    return found


@pytest.fixture(scope="session")
def made(
    programs: Programs, configs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A folder with a run, or a toy store, that scenarios begin with; made when it is first asked for."""
    kept: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in kept:
            kept[name] = tmp_path_factory.mktemp(name)
            write_configs(kept[name], configs)
            command = SCENARIOS["toy phase-change"].arguments
            arguments = command if name == "toy" else ["train", f"{name}.yaml", "--out", name]
            assert programs(kept[name], arguments).code == 0
        return kept[name]

    return make


@pytest.fixture
def begin(made: Callable[[str], Path], configs: dict[str, Any], tmp_path: Path) -> Callable[[Scenario], Path]:
    """The folder that a scenario begins with, always at the same place."""

    def copied(scenario: Scenario) -> Path:
        folder = tmp_path / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in scenario.runs:
            shutil.copytree(made(name), folder, dirs_exist_ok=True)
        write_configs(folder, configs)
        return folder

    return copied


def write_configs(folder: Path, configs: dict[str, Any]) -> None:
    for name, values in configs.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(yaml.safe_dump(values))
