"""The stage that runs the command line: it says what failed, and how far the devices are apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_check_child
import gpu_check_commands
import numpy as np
import pytest
import xarray as xr
from gpu_check_commands import MEASURED, TRAININGS, commands, differ
from stages import Job

import icl_fast.measure

MakeJob = Callable[..., Job]
Fake = Callable[..., None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Trainings and measurements that write what is given instead: losses by run, a store's difference, a failure."""

    def set_up(losses: dict[str, Any], difference: float = 0.0, fails: str = "") -> None:
        def icl_fast(job: Job, name: str, *words: str) -> str:
            if name == fails:
                return f"{words[0]}: exit code 1: no"
            folder = job.scratch / words[-1 if words[0] == "train" else 1]
            if words[0] == "train":
                folder.mkdir()
                lines = [{"step": 0}, {"step": 1, "loss": losses.get(name, 3.0)}]
                (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
            else:
                (folder / "results" / f"{words[0]}.zarr").mkdir(parents=True)
            return ""

        def run(command: list[str], *others: Any) -> int:
            Path(command[-3]).write_text(json.dumps({"a.zarr: x": 0.0, "a.zarr: loss": difference}))
            return 0

        monkeypatch.setattr(gpu_check_commands, "icl_fast", icl_fast)
        monkeypatch.setattr(gpu_check_commands.PROCESSES, "run", run)

    return set_up


def test_what_is_equal_but_for_rounding_passes(fake: Fake, make_job: MakeJob) -> None:
    fake({"text": 3.0, "text in bfloat16": 3.01, "text compiled": 3.00001, "exemplars": [1.0, 2.0],
          "exemplars on the CPU": [1.0, 2.0001]}, 1e-6)  # fmt: skip
    found = commands(make_job())
    assert (found.verdict, found.details["failures"]) == ("passed", {})
    assert found.details["differences"] == pytest.approx(
        {"text on the CPU": 0, "text in bfloat16": 0.01, "text compiled": 1e-5, "exemplars on the CPU": 1e-4}
        | {f"results of {name}": 1e-6 for name in MEASURED}
    )
    assert found.summary.startswith("largest differences: results of text 1e-06, text on the CPU 0, text in bf")


def test_what_is_further_apart_fails(fake: Fake, make_job: MakeJob) -> None:
    fake({"text on the CPU": 3.01, "text in bfloat16": float("nan")}, 1e-2)
    found = commands(make_job())
    assert found.verdict == "failed"
    assert found.details["failures"] == {
        "text on the CPU": "its losses are 0.01 from those of text, allowed 0.0002",
        "text in bfloat16": "its losses are inf from those of text, allowed 0.02",
        "results of text": "a.zarr: loss is 0.01 apart, allowed 0.0002",
        "results of exemplars": "a.zarr: loss is 0.01 apart, allowed 0.0002",
    }


@pytest.mark.parametrize(
    ("fails", "failures"),
    [
        ("text compiled", {"text compiled": "train: exit code 1: no"}),
        ("text", {"text": "train: exit code 1: no"}),
        ("evaluate text, on the CPU", {"results of text": "evaluate: exit code 1: no"}),
    ],
)
def test_a_command_that_fails_is_named(fake: Fake, make_job: MakeJob, fails: str, failures: dict[str, str]) -> None:
    fake({}, fails=fails)
    found = commands(make_job())
    assert (found.verdict, found.details["failures"]) == ("failed", failures)


def test_without_its_packages_it_is_skipped(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_commands, "NEED", ("click", "nothing_of_this_name"))
    found = commands(make_job())
    assert (found.verdict, found.summary) == ("skipped", "for want of nothing_of_this_name")


def test_how_far_lists_differ() -> None:
    assert differ([1.0, 2.0], [1.0, 2.5]) == 0.5
    assert differ([], []) == differ([1.0], [1.0, 2.0]) == differ([1.0], [float("nan")]) == float("inf")


def test_how_far_stores_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def store(**values: list[float]) -> xr.Dataset:
        return xr.Dataset({name: ("x", np.array(numbers)) for name, numbers in values.items()})

    stores = {
        "one": store(loss=[2.0, np.nan], trace=[500.0, 0.5], accuracy=[0.0, 1.0], gone=[np.nan, 1.0], step=[1, 2]),
        "two": store(loss=[2.5, np.nan], trace=[400.0, 0.6], accuracy=[1.0, 1.0], gone=[1.0, 1.0], step=[1, 3]),
    }
    (tmp_path / "one" / "a.zarr").mkdir(parents=True)
    monkeypatch.setattr(icl_fast.measure, "open_results", lambda path: stores[path.parent.name])
    found = gpu_check_child.compare(str(tmp_path / "one"), str(tmp_path / "two"))
    assert found.pop("a.zarr: gone") > 1e300
    assert found == pytest.approx({"a.zarr: loss": 0.2, "a.zarr: trace": 0.25})


@pytest.mark.slow
def test_the_real_commands(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU plays the GPU, so that nothing but precision and compiler may differ."""
    monkeypatch.setattr(gpu_check_commands, "GPU", "cpu")
    trainings = {name: ("cpu", *rest) for name, (_, *rest) in TRAININGS.items()}
    monkeypatch.setattr(gpu_check_commands, "TRAININGS", trainings)
    here = make_job()
    here.deadline += 500
    found = commands(here)
    assert (found.verdict, found.details["failures"]) == ("passed", {})
    assert found.details["differences"]["text on the CPU"] == 0
    assert found.details["differences"]["text in bfloat16"] > 0
    shutil.rmtree(here.scratch)
