"""Training runs on disk: configs, folders, snapshots, logs, manifests; and series of snapshots."""

from icl_fast.runs.config import RunConfig, load_config, parse_config
from icl_fast.runs.devices import resolve_device
from icl_fast.runs.exemplar_config import ExemplarRunConfig
from icl_fast.runs.foreign_series import ForeignOptions, ForeignSeries
from icl_fast.runs.names import run_names
from icl_fast.runs.open_series import open_all, open_series
from icl_fast.runs.population import Population
from icl_fast.runs.run import Run
from icl_fast.runs.run_series import RunSeries
from icl_fast.runs.series import Series, Snapshots
from icl_fast.runs.text_config import TextRunConfig

__all__ = [
    "ExemplarRunConfig",
    "ForeignOptions",
    "ForeignSeries",
    "Population",
    "Run",
    "RunConfig",
    "RunSeries",
    "Series",
    "Snapshots",
    "TextRunConfig",
    "load_config",
    "open_all",
    "open_series",
    "parse_config",
    "resolve_device",
    "run_names",
]
