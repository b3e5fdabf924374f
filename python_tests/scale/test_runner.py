"""Results depend neither on the order in which tasks end nor on what is lost."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_fast.data import default_texts
from icl_fast.measure import evaluate, open_results, sweep
from icl_fast.scale import HERE, Needs
from icl_fast.studies.collect import Options, collect

from .conftest import SMALL, Scrambled, contents


def test_here_tasks_are_done_in_order_by_nobody_else() -> None:
    done = HERE.run(lambda value, key: (value, key), [("a", [1, 2]), ("b", []), ("c", [3])], Needs())
    assert list(done) == [(1, ("a", 1)), (2, ("a", 2)), (3, ("c", 3))]
    assert HERE.workers is None


@pytest.fixture(scope="module")
def swept(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The stores of sweeps in this process, by replacement."""
    folder = tmp_path_factory.mktemp("swept")
    return {
        by: contents(sweep(tiny_run, out=folder / f"{by}.zarr", replacement=by, **SMALL)) for by in ("zero", "mean")
    }


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from(["zero", "mean"]), st.integers(0, 20))
def test_order_and_losses_change_no_bit(
    tiny_run: Path, swept: dict[str, dict[str, bytes]], seed: int, replacement: Any, stop: int
) -> None:
    random = Random(seed)
    folder = Path(tempfile.mkdtemp())
    out = folder / "out.zarr"
    try:
        sweep(tiny_run, out=out, replacement=replacement, runner=Scrambled(random, stop), **SMALL)
    except KeyboardInterrupt:
        assert len(list(out.with_name("out.zarr.partial").glob("*.npz"))) <= stop  # those of a snapshot may be joined
    sweep(tiny_run, out=out, replacement=replacement, runner=random.choice([HERE, Scrambled(random)]), **SMALL)
    assert contents(out) == swept[replacement]
    assert [path.name for path in folder.iterdir()] == ["out.zarr"]
    shutil.rmtree(folder)


def test_snapshots_measured_out_of_order(tiny_run: Path, tmp_path: Path) -> None:
    here, scrambled = evaluate(tiny_run, out=tmp_path / "here"), tmp_path / "scrambled"
    assert contents(evaluate(tiny_run, out=scrambled, runner=Scrambled(Random(1)))) == contents(here)


def test_a_report_hands_all_its_work_over(run: Path) -> None:
    runner, shown = Scrambled(Random(0)), []

    class Show:
        def __init__(self, title: str) -> None:
            pass

        def __enter__(self) -> Any:
            return lambda done, of, text: shown.append(text)

        def __exit__(self, *_: object) -> None:
            pass

    text = default_texts()[:1]
    collect([run], text, Options(examples=7, runner=runner), Show)
    stores = [open_results(path) for path in (run / "results" / "report").rglob("*.zarr")]
    assert len(stores) == 5  # losses, two modes, heads, a text
    assert runner.done >= 3 * len(stores)
    assert "snapshot 12, 7 workers" in shown
