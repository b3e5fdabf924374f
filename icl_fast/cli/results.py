"""`icl-fast results`."""

from __future__ import annotations

from pathlib import Path

import click

from icl_fast.cli.commands import Command
from icl_fast.cli.console import echo
from icl_fast.cli.parameters import FOLDER_TO_WRITE, PATH, PathType
from icl_fast.errors import InputError


@click.command(cls=Command)
@click.argument("store", type=PATH, metavar="STORE")
@click.option(
    "--csv", type=FOLDER_TO_WRITE, help="Folder for CSV tables, one for each set of dims; default none written."
)
@click.option("--netcdf", type=PathType("file", ".nc"), help="NetCDF file, NAME.nc; default none written.")
def results(store: Path, csv: Path | None, netcdf: Path | None) -> None:
    """Say what a store of results holds, or write it for other programs.

    A store is what ablate, evaluate, wiring, pca, toy or report wrote, such as RUN/results/heads.zarr. It is compared
    with its checksums first; nothing of it is changed.
    """
    from icl_fast.cli.tables import print_results
    from icl_fast.measure import open_results
    from icl_fast.measure.store_files import is_store
    from icl_fast.measure.store_formats import write_csv, write_netcdf
    from icl_fast.memory import in_units

    if store.is_dir() and not is_store(store):
        inside = next((path for path in sorted(store.rglob("*.zarr")) if is_store(path)), None)
        raise InputError(f"STORE: {store} is no store" + (f"; give one, such as {inside}" if inside else ""))
    for option, out in {"--csv": csv, "--netcdf": netcdf}.items():
        if out is not None and out.resolve().is_relative_to(store.resolve()):
            raise InputError(f"{option}: {out} is in {store}, which is only read; write it elsewhere")
    dataset = open_results(store)
    if csv is None and netcdf is None:
        print_results(dataset, store)
    if csv is not None:
        for path in write_csv(dataset, csv):
            echo(f"{path}: {in_units(path.stat().st_size)}", files=[path])
    if netcdf is not None:
        written = write_netcdf(dataset, netcdf)
        echo(f"{written}: {in_units(written.stat().st_size)}", files=[written])
