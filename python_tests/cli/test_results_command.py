"""`icl-fast results`: what it says of every kind of store, and what other programs read of what it writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from icl_fast.cli.main import cli
from icl_fast.measure import evaluate, open_results, sweep
from icl_fast.measure.store_formats import tables
from icl_fast.runs import parse_config
from icl_fast.training import train

EXEMPLARS: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"classes": 20, "held_out_classes": 6},
    "model": {"width": 16, "heads": 2},
    "training": {"steps": 4, "batch": 4, "engine": "plain"},
    "evaluation": {"every": 4, "sequences": 20},
    "snapshots": {"every": 2},
}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def stores(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    run, exemplars = Path(shutil.copytree(tiny_run, folder / "run")), folder / "exemplars"
    train(parse_config(EXEMPLARS), exemplars)
    for arguments in (
        ("evaluate", "--ckpt", exemplars, "--sequences", 20),
        ("ablate", "--ckpt", exemplars, "--sequences", 20, "--mode", "full"),
        ("pca", run, "--examples", 8, "--out", folder / "pca.zarr"),
        ("toy", "phase-change", "--seeds", 2, "--steps", 20, "--plateau-seeds", 2, "--plateau-steps", 40, "--out",
         folder / "toy.zarr"),
    ):  # fmt: skip
        done = call(*arguments)
        assert done.exit_code == 0, done.output
    return {
        "ablation": sweep(run, examples=6),
        "heads": evaluate(run),
        "losses": run / "results" / "losses.zarr",
        "strategies": exemplars / "results" / "strategies.zarr",
        "exemplar ablation": exemplars / "results" / "ablation_full.zarr",
        "pca": folder / "pca.zarr",
        "toy": folder / "toy.zarr",
    }


KINDS = ["ablation", "heads", "losses", "strategies", "exemplar ablation", "pca", "toy"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, stores: dict[str, Path], tmp_path: Path) -> None:
    store = stores[kind]
    dataset = open_results(store)
    said = call("results", store)
    assert said.exit_code == 0, said.output
    for name in dataset.variables:
        assert f"\n  {name} " in said.output
    assert f"icl_fast.open_results({str(store)!r})" in said.output
    written = call("results", store, "--csv", tmp_path / "csv", "--netcdf", tmp_path / "results.nc")
    assert written.exit_code == 0, written.output
    with xr.open_dataset(tmp_path / "results.nc") as found:
        xr.testing.assert_equal(found.load(), dataset)
    for table, names in tables(dataset).items():
        assert f"{tmp_path / 'csv' / table}.csv" in written.output
        frame = pd.read_csv(tmp_path / "csv" / f"{table}.csv")
        assert len(frame) == dataset[names[0]].size
        for name in names:
            np.testing.assert_array_equal(frame[name].to_numpy(dataset[name].dtype), dataset[name].values.ravel())


def test_bad_input(stores: dict[str, Path], tmp_path: Path) -> None:
    whole = stores["heads"]
    damaged = Path(shutil.copytree(whole, tmp_path / "damaged.zarr"))
    chunk = next(path for path in sorted((damaged / "copying").iterdir()) if path.name[0].isdigit())
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((tmp_path / "nothing",), "do not exist"),
        ((whole.parents[1],), "is no store; give one, such as"),
        ((tmp_path / "full",), "is no store"),
        ((damaged, "--csv", tmp_path / "csv"), f"copying/{chunk.name} has other bytes than were written"),
        ((whole, "--csv", tmp_path / "full"), "--csv: "),
        ((whole, "--csv", whole / "csv"), "which is only read"),
        ((whole, "--netcdf", tmp_path / "results.h5"), "--netcdf: "),
    ]
    for arguments, message in cases:
        done = call("results", *arguments)
        assert done.exit_code == 2, done.output
        assert message in done.output
        assert done.output.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"damaged.zarr", "full"}
