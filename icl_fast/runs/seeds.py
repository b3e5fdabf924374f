"""Which runs are one training with several seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from icl_fast.runs.run_series import RunSeries
from icl_fast.runs.series import Series
from icl_fast.runs.text_config import HOW_COMPUTED


def seed_families(series: Mapping[str, Series]) -> dict[str, list[str]]:
    """Runs on text whose configs differ in the seed of the initial weights alone, two or more of them.

    Args:
        series: by unique name, as `open_all` gives them.

    Returns:
        What they are together (the folder that holds all of them, else the first one's name) -> their names, in order.
    """
    families: dict[str, list[str]] = {}
    for name, one in series.items():
        if isinstance(one, RunSeries) and one.task == "text":
            families.setdefault(json.dumps(_without_seed(one), sort_keys=True), []).append(name)
    several = [names for names in families.values() if len(names) > 1]
    folders = [_folder(names, series) for names in several]
    return {
        folder if folder is not None and folders.count(folder) == 1 else names[0]: names
        for folder, names in zip(folders, several, strict=True)
    }


def _without_seed(series: RunSeries) -> dict[str, Any]:
    values: dict[str, Any] = series.run.text_config.model_dump(mode="json")
    for key in ("training.seed", *HOW_COMPUTED):
        section, name = key.split(".")
        del values[section][name]
    return values


def _folder(names: list[str], series: Mapping[str, Series]) -> str | None:
    """What the folder is called that holds all of these."""
    folders = {series[name].path.resolve().parent for name in names}
    return next(iter(folders)).name if len(folders) == 1 else None
