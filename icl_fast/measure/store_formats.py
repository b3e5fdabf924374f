"""Results for other programs: tables as CSV, or one NetCDF file.

NetCDF is of version 3, which scipy writes and every reader of NetCDF opens; it has no 64-bit integers, so that those
beyond 32 bits (tokens seen) become float64, which are exact up to 2^53.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.files import atomic_write, read_json

COLUMNS = "columns.json"  # beside the tables: what is in them
_WRITER, _OURS = "written_by", "icl-fast results"
_LARGEST_EXACT = 2**53  # in float64
_INT32 = np.iinfo(np.int32)
_ROWS = 500_000  # of a table, in memory at a time


def tables(dataset: xr.Dataset) -> dict[str, list[str]]:
    """The variables of each table, by the table's name: those with the same dims are one, called after them."""
    found: dict[str, list[str]] = {}
    for name, values in dataset.data_vars.items():
        found.setdefault("-".join(map(str, values.dims)) or "values", []).append(str(name))
    return found


def write_csv(dataset: xr.Dataset, folder: str | Path) -> list[Path]:
    """Write a tidy table for each set of dims: `snapshot-layer-head.csv`, one row a value of each of its dims.

    Columns are the dims, what else is known along them (`tokens`, `layer`, ...), and the variables; what is not a
    number is empty. Floats are written so that they read back to the same bits. `columns.json` beside has units and
    long names of the columns, and the attributes.

    Args:
        dataset: of `open_results`.
        folder: an earlier one of these is replaced whole.

    Returns:
        The tables' paths.

    Raises:
        InputError: the folder holds something else, or cannot be written; the disk is full.
    """
    folder = Path(folder)
    _check_folder(folder)
    _check_text(dataset, "csv")
    named = tables(dataset)
    described = {
        f"{table}.csv": {column: _said(values) for column, values in _columns(dataset[variables]).items()}
        for table, variables in named.items()
    }
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        for table, variables in named.items():
            _write_table(dataset[variables], temporary / f"{table}.csv")
        text = json.dumps({_WRITER: _OURS, "tables": described, "attributes": dataset.attrs}, indent=1, default=str)
        (temporary / COLUMNS).write_text(text + "\n", encoding="utf-8")
    return [folder / name for name in described]


def write_netcdf(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a NetCDF file, which `xarray.open_dataset` opens; an earlier one of these is replaced.

    Raises:
        InputError: the path holds something else, or cannot be written; the disk is full; a whole number that NetCDF
            cannot hold.
    """
    path = Path(path)
    _check_file(path)
    _check_text(dataset, "netcdf")
    narrow = dataset.assign_attrs({_WRITER: _OURS})
    for name, values in dataset.variables.items():
        if values.dtype.kind in "iu" and values.size and (values.min() < _INT32.min or values.max() > _INT32.max):
            if max(-int(values.min()), int(values.max())) > _LARGEST_EXACT:
                raise InputError(f"netcdf: {name} holds whole numbers beyond 2^53; take --csv")
            narrow[name] = narrow[name].astype(np.float64)
    with atomic_write(path) as temporary:
        narrow.to_netcdf(temporary, engine="scipy", format="NETCDF3_64BIT")
    return path


def _columns(dataset: xr.Dataset) -> dict[str, xr.Variable]:
    """What a table has a column of: dims, what else is known along them, variables."""
    dims = {str(dim): xr.Variable(dim, np.arange(size)) for dim, size in dataset.sizes.items()}
    return {**dims, **{str(name): values for name, values in dataset.variables.items()}}


def _said(values: xr.Variable) -> dict[str, str]:
    return {name: str(values.attrs[name]) for name in ("units", "long_name", "source") if name in values.attrs}


def _write_table(dataset: xr.Dataset, path: Path) -> None:
    """Some rows at a time: a frame of all of them would take many times the memory of the values."""
    table = dataset if dataset.sizes else dataset.expand_dims("row")
    dims = list(table.sizes)
    first, rows = dims[0], table.sizes[dims[0]]
    each = max(1, _ROWS // math.prod(table.sizes[dim] for dim in dims[1:]))
    for start in range(0, rows, each):
        part = table.isel({first: slice(start, start + each)})
        if first not in part.coords:
            part = part.assign_coords({first: range(start, min(start + each, rows))})
        frame = part.to_dataframe(dim_order=dims).reset_index()
        frame.to_csv(path, mode="a", header=start == 0, index=False, encoding="utf-8")


def _check_text(dataset: xr.Dataset, argument: str) -> None:
    """Neither format keeps a zero character."""
    for name, values in dataset.variables.items():
        if values.dtype.kind in "OU" and any("\0" in str(text) for text in values.values.ravel()):
            raise InputError(
                f"{argument}: {name} holds a zero character, which is lost there; take icl_fast.open_results"
            )


def _check_folder(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    found: Any = None
    if folder.is_dir():
        with suppress(InputError):
            found = read_json(folder / COLUMNS, "csv")
    listed = found.get("tables") if isinstance(found, Mapping) and found.get(_WRITER) == _OURS else None
    if not isinstance(listed, Mapping) or {entry.name for entry in folder.iterdir()} - {COLUMNS, *listed}:
        raise InputError(f"csv: {folder} holds something else; choose another folder or remove it")


def _check_file(path: Path) -> None:
    if not path.exists():
        return
    with suppress(Exception), xr.open_dataset(path, engine="scipy") as found:  # which raises its own for other files
        if found.attrs.get(_WRITER) == _OURS:
            return
    raise InputError(f"netcdf: {path} holds something else; choose another file or remove it")
