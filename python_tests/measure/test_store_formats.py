"""Results as CSV and NetCDF: every number reads back, as pandas and xarray read them without being told anything."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from icl_fast import InputError
from icl_fast.measure import store_formats
from icl_fast.measure.store_formats import COLUMNS, tables, write_csv, write_netcdf


@pytest.fixture
def dataset() -> xr.Dataset:
    random = np.random.default_rng(0)
    values = random.normal(size=(3, 2, 2))
    values[0, 1] = np.nan
    return xr.Dataset(
        {
            "score": (("snapshot", "layer", "head"), values, {"units": "1", "long_name": "a score, with a comma"}),
            "other": (("snapshot", "layer", "head"), random.normal(size=(3, 2, 2)).astype(np.float32)),
            "loss": (("snapshot", "example"), random.normal(size=(3, 5))),
            "there": (("snapshot",), np.array([True, False, True])),
            "found": ((), 0.1),
        },
        coords={
            "snapshot": ("snapshot", [0, 7, 300], {"long_name": "optimizer step"}),
            "tokens": ("snapshot", [0, 5, 300 * 2**40]),
            "name": ("snapshot", np.array(["none", "a, “b”", ""], dtype=object)),
        },
        attrs={"source": "made up", "measurement": '{"seed": 0}'},
    )


@pytest.mark.parametrize("rows", [1, 5, 500_000])
def test_csv_has_every_number(dataset: xr.Dataset, tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_formats, "_ROWS", rows)
    written = write_csv(dataset, tmp_path / "tables")
    assert [path.stem for path in written] == list(tables(dataset))
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {COLUMNS, *(path.name for path in written)}
    for path, variables in zip(written, tables(dataset).values(), strict=True):
        frame = pd.read_csv(path)
        dims = dataset[variables[0]].dims
        assert len(frame) == np.prod([dataset.sizes[dim] for dim in dims])
        for row, at in zip(
            frame.to_dict("records"), product(*(range(dataset.sizes[dim]) for dim in dims)), strict=True
        ):
            here = dataset.isel(dict(zip(dims, at, strict=True)))
            for dim, index in zip(dims, at, strict=True):
                assert row[dim] == (here[dim] if dim in dataset.coords else index)
            for name in variables:
                np.testing.assert_array_equal(here[name].dtype.type(row[name]), here[name].values)
            if "snapshot" in dims:
                assert row["tokens"] == here["tokens"]
                assert row["name"] == here["name"] or (here["name"] == "" and np.isnan(row["name"]))
    described = json.loads((tmp_path / "tables" / COLUMNS).read_text())
    assert described["tables"]["snapshot-layer-head.csv"]["score"] == dataset["score"].attrs
    assert described["attributes"] == dataset.attrs


def test_netcdf_is_the_dataset(dataset: xr.Dataset, tmp_path: Path) -> None:
    path = write_netcdf(dataset, tmp_path / "results.nc")
    with xr.open_dataset(path) as found:
        assert found.attrs.pop("written_by")
        xr.testing.assert_equal(found.load(), dataset)
        assert {name: values.attrs for name, values in found.variables.items()} == {
            name: values.attrs for name, values in dataset.variables.items()
        }
        assert found.attrs == dataset.attrs
        assert found["there"].dtype == bool


@pytest.mark.parametrize("write", [write_csv, write_netcdf])
def test_only_what_it_wrote_is_replaced(dataset: xr.Dataset, tmp_path: Path, write: object) -> None:
    assert callable(write)
    place = tmp_path / "out.nc"
    write(dataset, place)
    write(dataset[["loss"]], place)
    if write is write_csv:
        assert [path.name for path in sorted(place.iterdir())] == [COLUMNS, "snapshot-example.csv"]
        (place / "notes.txt").write_text("mine")
        kept = place / "notes.txt"
    else:
        dataset.drop_vars("tokens").to_netcdf(place, engine="scipy")
        kept = place
    before = kept.read_bytes()
    with pytest.raises(InputError, match="holds something else"):
        write(dataset, place)
    assert kept.read_bytes() == before
    other = tmp_path / "other"
    other.write_text("a file")
    with pytest.raises(InputError, match="holds something else"):
        write(dataset, other)


def test_what_they_cannot_hold(dataset: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"netcdf: tokens holds whole numbers beyond 2\^53"):
        write_netcdf(dataset.assign_coords(tokens=("snapshot", [0, 1, 2**53 + 1])), tmp_path / "a.nc")
    for write in write_csv, write_netcdf:
        with pytest.raises(InputError, match="name holds a zero character"):
            write(dataset.assign_coords(name=("snapshot", np.array(["a", "b\0", "c"], dtype=object))), tmp_path / "a")
    assert not list(tmp_path.iterdir())
