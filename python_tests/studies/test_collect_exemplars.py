"""From runs on exemplars to their part of a report: what is measured, kept, gone on with, left out, refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from icl_fast.cli.main import cli
from icl_fast.errors import InputError
from icl_fast.measure import measure_ablations, measure_strategies, measure_wiring, open_measured, open_results
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.report.study import ExemplarStudy
from icl_fast.runs import Run, parse_config
from icl_fast.studies.collect import Options, collect
from icl_fast.training import train

VALUES: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"classes": 20, "held_out_classes": 6},
    "model": {"width": 16, "heads": 2},
    "training": {"steps": 12, "batch": 4, "lr": 1e-2, "log_every": 4, "engine": "plain"},
    "evaluation": {"every": 6, "sequences": 20},
    "snapshots": {"every": 6},
}
OPTIONS = Options(sequences=20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(parse_config({**VALUES, "members": 2}), tmp_path_factory.mktemp("runs") / "seeds").path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "seeds"))


@contextmanager
def silent(title: str) -> Iterator[Callable[[int, int, str], None]]:
    yield lambda done, of, text: None


def studied(run: Path, options: Options = OPTIONS) -> ExemplarStudy:
    return collect([run], [], options, silent).exemplars[run.name]


def values(found: xr.Dataset) -> xr.Dataset:
    return found.drop_attrs()


def test_everything_is_what_direct_calls_give(run: Path) -> None:
    study = studied(run)
    measured = open_measured(run, sequences=20)
    strategies = open_results(measure_strategies(measured, out=run / "strategies"))
    ablations = open_results(measure_ablations(measured, heads=["all", "0.*", "1.*"], out=run / "ablations"))
    assert study.strategies.identical(strategies)
    assert study.ablations.identical(ablations)
    assert study.ablations["snapshot"].values.tolist() == [0, 6, 12]
    wiring = measure_wiring(open_measured(run, snapshots="last", evaluators=["train"], sequences=20))
    assert study.wiring is not None
    assert values(study.wiring).equals(values(wiring))
    assert {name: study.wiring.attrs[name] for name in wiring.attrs} == wiring.attrs
    assert study.wiring.attrs["step"] == 12
    assert study.curves.identical(training_curves(Run(run)))
    assert study.of_seeds
    assert study.members == ["seed 0", "seed 1"]
    assert study.left_out == {}


def changed(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (run / "results").rglob(".zmetadata")}


def test_what_is_there_is_kept_and_the_rest_measured_again(run: Path) -> None:
    first, stores = studied(run), changed(run)
    assert sorted(path.parent.name for path in stores) == ["ablation.zarr", "strategies.zarr", "wiring.zarr"]
    again = studied(run)
    assert changed(run) == stores
    assert again.ablations.identical(first.ablations)
    other = studied(run, replace(OPTIONS, sequences=15))
    assert other.wiring is not None
    assert other.wiring.attrs["evaluated"] == other.strategies.attrs["evaluated"] == 15
    assert all(changed(run)[path] > at for path, at in stores.items())
    some = studied(run, replace(OPTIONS, snapshots="0,6"))
    assert some.strategies["snapshot"].values.tolist() == some.ablations["snapshot"].values.tolist() == [0, 6]
    assert some.wiring is not None
    assert some.wiring.attrs["step"] == 6
    assert not list(run.rglob(".tmp-*")) + list(run.rglob("*.partial"))


@pytest.mark.parametrize("at", ["strategies", "every head removed"])
def test_killed_and_gone_on_with(run: Path, tmp_path: Path, at: str) -> None:
    """The same bits as in one go, and only what was missing is measured."""
    whole = studied(Path(shutil.copytree(run, tmp_path / "whole" / "seeds")))

    @contextmanager
    def killed(title: str) -> Iterator[Callable[[int, int, str], None]]:
        def update(done: int, of: int, text: str) -> None:
            if title == f"seeds: {at}" and done == 2:
                raise KeyboardInterrupt

        yield update

    with pytest.raises(KeyboardInterrupt):
        collect([run], [], OPTIONS, killed)
    told: dict[str, list[int]] = {}

    @contextmanager
    def watched(title: str) -> Iterator[Callable[[int, int, str], None]]:
        told[title] = []
        yield lambda done, of, text: told[title].append(done)

    study = collect([run], [], OPTIONS, watched).exemplars["seeds"]
    assert told[f"seeds: {at}"] == [2, 3]
    assert (told["seeds: strategies"] == []) == (at != "strategies")
    assert study.strategies.identical(whole.strategies)
    assert study.ablations.identical(whole.ablations)
    assert study.wiring is not None
    assert whole.wiring is not None
    assert study.wiring.identical(whole.wiring)


def test_a_run_of_one_layer_and_one_that_differs_in_more(tmp_path: Path) -> None:
    members = [{"name": "free"}, {"name": "other", "set": {"sequences.p_icl": 0.5, "training.seed": 7}}]
    config = {**VALUES, "model": {**VALUES["model"], "layers": 1}, "members": members}
    study = studied(train(parse_config(config), tmp_path / "one").path)
    assert study.wiring is None
    assert not study.of_seeds
    alone = Run(train(parse_config({**VALUES, "members": 1}), tmp_path / "alone").path)
    assert not alone.population.of_seeds


def test_a_run_stopped_before_its_first_line_of_losses(run: Path) -> None:
    Run(run).cut_log(0)
    study = studied(run, replace(OPTIONS, snapshots="0"))
    assert study.curves["training_loss"].shape == (0, 2)
    assert study.curves["sequences"].values.tolist() == [0]


def report(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in ("report", *arguments)], env={"COLUMNS": "140"})


def test_the_command(run: Path, tmp_path: Path) -> None:
    result = report(run, "--out", tmp_path / "out", "--sequences", 20, "--title", "Mine")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'out' / 'index.html'}: " in result.output
    within = studied(run).strategies["accuracy_in_context"].isel(snapshot=-1, clamp=0)
    assert f"{float(within.sel(member='seed 1', evaluator='flip')):.3f}" in result.output
    assert "seed 1" in result.output
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"exemplars-seeds-loss.png", "exemplars-seeds-wiring-match-alone-seed-1.svg"} <= names
    assert "table.png" not in names
    assert len([name for name in names if name.endswith(".png")]) * 2 == len(names)
    assert "<title>Mine</title>" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert not list(tmp_path.rglob(".tmp-*"))


def test_both_kinds_at_once(run: Path, tiny_values: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    text = train(parse_config({**tiny_values, "snapshots": {"every": 3}}), tmp_path / "words").path
    options = ("--sequences", 20, "--examples", 6, "--modes", "pattern-preserving", "--no-static")
    result = report(run, text, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    study = collect([run, text], [], replace(OPTIONS, examples=6, modes=("pattern-preserving",)), silent)
    assert (list(study.models), list(study.exemplars)) == (["words"], ["seeds"])
    wrong = report(run, text, "--out", tmp_path / "new", "--interval", "seeds=0:6")
    assert "interval: there is no model seeds; there are words" in wrong.output
    Run(run).snapshot_path(6).write_bytes(b"")
    result = report(text, run, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "seeds: step 6 left out: truncated" in result.output
    assert np.array_equal(studied(run).strategies["snapshot"].values, [0, 12])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "full"], "--modes: for runs on text; "),
        (["--passage", "x.txt", "--examples", "3"], "--passage, --examples: for runs on text; "),
        (["--prefix-matching", "0.3"], "--prefix-matching: for runs on text; "),
        (["--memory", "1GiB", "--interval", "seeds=0:6"], "--interval, --memory: for runs on text; "),
        (["--sequences", "0"], "sequences: must be 1 or more, got 0"),
        (["--snapshots", "0,3"], "snapshots: none at step 3"),
        (["--device", "tpu"], "device"),
    ],
)
def test_bad_options(run: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = report(run, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("error: ")
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_other_mistakes(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    result = report(tiny_run, "--out", tmp_path / "out", "--sequences", 5)
    assert result.exit_code == 2
    assert "--sequences: for runs on exemplars; " in result.output
    for path in (run / "snapshots").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"a usable snapshot is needed, it has none \(step 0: truncated; "):
        studied(run)
    (run / "log.jsonl").unlink()
    with pytest.raises(InputError, match=r"log\.jsonl: is gone, and manifest\.json lists it"):
        training_curves(Run(run))
    Run(run).forget("log.jsonl")
    with pytest.raises(InputError, match="nothing is logged yet"):
        training_curves(Run(run))
