"""Sweeps and measurements on Ray: the bits of this process, whatever happens to workers."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from icl_fast import InputError
from icl_fast.measure import evaluate, measure_ablations, measure_strategies, open_measured, sweep
from icl_fast.measure.ablation import SweepProgress
from icl_fast.runs import parse_config
from icl_fast.scale import Needs, Runner, ray_runner
from icl_fast.training import train

from .conftest import LONG, SMALL, contents, kill_worker


@pytest.fixture(params=[2, 1])
def workers(request: pytest.FixtureRequest, on_ray: Runner) -> Iterator[int]:
    """How many of Ray's two workers are free."""
    import ray

    class Holder:
        def ready(self) -> None:
            pass

    holders = [ray.remote(num_cpus=1)(Holder).remote() for _ in range(2 - request.param)]
    ray.get([holder.ready.remote() for holder in holders])
    yield request.param
    for holder in holders:
        ray.kill(holder)


@pytest.mark.parametrize("options", [{}, {"replacement": "mean", "dtype": "bfloat16-products"}])
def test_a_sweep(run: Path, tmp_path: Path, on_ray: Runner, workers: int, options: Any) -> None:
    here = sweep(run, out=tmp_path / "here", **options, **SMALL)
    there = sweep(run, out=tmp_path / "there", runner=on_ray, **options, **SMALL)
    assert contents(there) == contents(here)


def test_scores_of_heads(run: Path, tmp_path: Path, on_ray: Runner) -> None:
    seen: list[Any] = []
    there = evaluate(run, out=tmp_path / "there", runner=on_ray, on_snapshot=seen.append)
    assert contents(there) == contents(evaluate(run, out=tmp_path / "here"))
    assert [at.done for at in seen] == [0, 1, 2, 3]
    assert seen[-1].text.endswith(", 2 workers")


def test_exemplars(tmp_path: Path, on_ray: Runner) -> None:
    config = {
        "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
        "sequences": {"classes": 20},
        "model": {"width": 16, "heads": 2},
        "training": {"steps": 4, "batch": 8},
        "evaluation": {"every": 4, "sequences": 40},
        "snapshots": {"every": 2},
        "members": 2,
    }
    measured = open_measured(train(parse_config(config), tmp_path / "run").path, sequences=40)
    measures: list[Callable[..., Path]] = [measure_strategies, measure_ablations]
    for number, measure in enumerate(measures):
        here, there = (tmp_path / f"{where}{number}" for where in ("here", "there"))
        measure(measured, out=here)
        assert contents(measure(measured, out=there, runner=on_ray)) == contents(here)


def test_workers_killed_in_mid_sweep(run: Path, tmp_path: Path, on_ray: Runner) -> None:
    killed, random = [], Random(0)

    def kill(at: SweepProgress) -> None:
        if at.done in (1, 8, 15):
            killed.append(kill_worker(random))

    there = sweep(run, out=tmp_path / "there", runner=on_ray, on_part=kill, **LONG)
    assert any(killed)
    assert contents(there) == contents(sweep(run, out=tmp_path / "here", **LONG))


def test_a_sweep_goes_on_elsewhere(run: Path, tmp_path: Path, on_ray: Runner) -> None:
    class Stopped(Exception):
        pass

    def stop(at: SweepProgress) -> None:
        if at.done == 3:
            raise Stopped

    whole = contents(sweep(run, out=tmp_path / "whole", **SMALL))
    for first, then in ({}, {"runner": on_ray}), ({"runner": on_ray}, {}):
        out = tmp_path / "on" / ("ray" if first else "here")
        with pytest.raises(Stopped):
            sweep(run, out=out, on_part=stop, **first, **SMALL)
        assert contents(sweep(run, out=out, **then, **SMALL)) == whole


def test_an_error_is_said_at_once(on_ray: Runner) -> None:
    def refuse(value: str, key: int) -> None:
        if key == 1:
            raise InputError(f"{value}: is wrong; put it right")
        time.sleep(600)

    with pytest.raises(InputError, match=r"^heads: is wrong; put it right$"):
        list(on_ray.run(refuse, [("heads", [0, 1, 2])], Needs()))


def test_a_task_that_kills_its_workers(on_ray: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(value: str, key: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("icl_fast.scale.on_ray.LOST_AT_MOST", 1)
    with pytest.raises(
        InputError, match=r"^ray: task 7 cannot be done, it was tried 2 times and lost its worker each time"
    ):
        list(on_ray.run(die, [("", [7])], Needs()))


def test_a_value_is_unpickled_once_for_all_its_tasks(on_ray: Runner) -> None:
    values = [([], range(6)), ([], range(6, 12))]
    lengths = dict(on_ray.run(lambda value, key: (value.append(key), len(value))[1], values, Needs()))
    assert max(lengths[key] for key in range(6)) + max(lengths[key] for key in range(6, 12)) >= 6
    assert all(length <= 6 for length in lengths.values())


@pytest.mark.parametrize(("seconds", "tasks"), [(600.0, 12), (0.0, 16)])
def test_short_ones_are_done_together(
    on_ray: Runner, monkeypatch: pytest.MonkeyPatch, seconds: float, tasks: int
) -> None:
    def task(value: str, key: int) -> str:
        import ray

        return str(ray.get_runtime_context().get_task_id())

    monkeypatch.setattr("icl_fast.scale.on_ray.TOGETHER", seconds)
    ended = list(on_ray.run(task, [("", range(8)), ("", range(8, 16))], Needs()))
    assert sorted(key for key, _ in ended) == list(range(16))
    assert len({task for _, task in ended}) == tasks  # of 8 keys: 2, 2, 1, 1, 1, 1; or each by itself


def test_what_no_worker_has(on_ray: Runner) -> None:
    from icl_fast.scale.on_ray import RayRunner

    with pytest.raises(InputError, match=r"^ray: a task needs 1\.001 TiB, which no worker has; ask for less memory$"):
        list(RayRunner(own=True).run(lambda value, key: key, [("", [0])], Needs(memory=2**40)))


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^ray: is not installed; pip install 'icl_fast\[ray\]'$"), ray_runner():
        pass


def test_nothing_at_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with (
        pytest.raises(InputError, match=r"^ray: at 127\.0\.0\.1:1: no connection .*refused"),
        ray_runner("127.0.0.1:1"),
    ):
        pass
