"""What the page's scripts are given: a Study and its panels as JSON, with every array in a Blob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.analysis.arrays import Floats, ablated, unablated
from icl_fast.analysis.heads import NARROW, NARROW_COPYING
from icl_fast.errors import InputError
from icl_fast.report import colours
from icl_fast.report.page.payload import Blob
from icl_fast.report.panels.builders import PROGRESS, icl_definition, seen, undefined
from icl_fast.report.panels.exemplars import Groups, learning_times
from icl_fast.report.panels.panel import Panel
from icl_fast.report.panels.table import Row
from icl_fast.report.study import EvaluationGroup, ExemplarStudy, ModelStudy, Progress, Study

# of what `icl_fast.measure.evaluate` wrote: what each score is called on the page
SCORES = {
    "prefix_matching": "prefix matching",
    "copying": "copying",
    "previous_token": "previous token",
    "qk_trace": "QK trace",
    "ov_copying": "OV copying eigenvalues",
}
COMPOSITIONS = ("composition_q", "composition_k", "composition_v")


def manifest(
    study: Study,
    table: dict[str, list[Panel]],
    rows: Sequence[Row],
    family: Sequence[tuple[str, list[Panel]]],
    exemplars: Mapping[str, Groups],
    blob: Blob,
) -> dict[str, Any]:
    """Everything on the page but the texts; an array is the number that `blob.add` gave.

    Raises:
        InputError: a table that lacks a model or a row, a run on exemplars without its panels, or two panels with one
            key.
    """
    if list(table) != list(study.models) or any(len(panels) != len(rows) for panels in table.values()):
        found = ", ".join(f"{name}: {len(panels)}" for name, panels in table.items()) or "none"
        raise InputError(f"table: must have {len(rows)} panels for each of {', '.join(study.models)}; got {found}")
    if list(exemplars) != list(study.exemplars):
        given, there = (", ".join(names) or "none" for names in (exemplars, study.exemplars))
        raise InputError(f"exemplars: must have the panels of {there}; got {given}")
    groups = [group for of_run in (family, *exemplars.values()) for group in of_run]
    behind = [claim.panel for claim in study.claims if claim.panel is not None]
    keys = [panel.key for panels in (*table.values(), *(panels for _, panels in groups), behind) for panel in panels]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"panels: {twice!r} is the key of two of them; keys must be unique")
    progress: Progress = next((model.progress for model in study.models.values()), "tokens")
    return {
        "title": study.title,
        "progress": {"unit": progress, "label": PROGRESS[progress]},
        "groups": [_group(study, group) for group in study.groups],
        "models": [_model(study, model, blob) for model in study.models.values()],
        "scores": SCORES,
        "colours": {
            "series": colours.MODELS,
            "types": colours.TYPES,
            "depth": colours.DEPTH,
            "sequential": colours.SEQUENTIAL,
            "diverging": colours.DIVERGING,
        },
        "rows": [{field.name: getattr(row, field.name) for field in fields(row)} for row in rows],
        "table": [[_panel(study, panel, blob) for panel in panels] for panels in table.values()],
        "family": _groups(study, family, blob),
        "exemplars": [
            {**_exemplar_run(study.exemplars[name]), "groups": _groups(study, of_run, blob)}
            for name, of_run in exemplars.items()
        ],
        "claims": [
            {
                **{field.name: getattr(claim, field.name) for field in fields(claim)},
                "panel": claim.panel and _panel(study, claim.panel, blob),
            }
            for claim in study.claims
        ],
    }


def _group(study: Study, group: EvaluationGroup) -> dict[str, Any]:
    names = list(study.models)
    return {
        "text": group.text,
        "context": group.context,
        "bos": group.bos,
        "models": sorted(names.index(name) for name in group.models),
    }


def _groups(study: Study, groups: Sequence[tuple[str, list[Panel]]], blob: Blob) -> list[dict[str, Any]]:
    return [
        {"heading": heading, "panels": [_panel(study, panel, blob) for panel in panels]} for heading, panels in groups
    ]


def _panel(study: Study, panel: Panel, blob: Blob) -> dict[str, Any]:
    simple = {field.name: getattr(panel, field.name) for field in fields(panel)}
    heatmap = panel.heatmap and {
        **{field.name: getattr(panel.heatmap, field.name) for field in fields(panel.heatmap)},
        **{name: blob.add(getattr(panel.heatmap, name)) for name in "xyz"},
    }
    series = [
        {
            **{field.name: getattr(one, field.name) for field in fields(one)},
            "x": blob.add(one.x),
            "y": blob.add(one.y),
            "error": None if one.error is None else blob.add(one.error),
        }
        for one in panel.series
    ]
    return {
        **simple,
        "heatmap": heatmap,
        "series": series,
        "colours": colours.series_colours(study, panel),
        "by": colours.default_by(panel),
    }


def _model(study: Study, model: ModelStudy, blob: Blob) -> dict[str, Any]:
    config = model.config
    steps = model.losses["snapshot"].values
    interval = None
    if model.interval is not None:
        interval = [int(np.flatnonzero(steps == step)[0]) for step in model.interval]
    last = model.heads.isel(snapshot=-1)
    return {
        "name": model.name,
        "colour": colours.model_colours(study)[model.name],
        "depth_colours": [colours.depth_colour(layer, config.layers) for layer in range(config.layers)],
        "layers": config.layers,
        "heads": config.heads,
        "width": config.width,
        "context": config.context,
        "vocab": config.vocab,
        "mlp": config.mlp,
        "key": config.key,
        "position": config.position,
        "parameters": model.parameters,
        "corpus": model.corpus,
        "steps": blob.add(steps),
        "seen": blob.add(seen(model)),
        "left_out": [[int(step), why] for step, why in sorted(model.left_out.items())],
        "interval": interval,  # indices of snapshots
        "changed": None if model.change is None else bool(model.change.happened),
        "icl": icl_definition(model),
        "notes": list(model.notes),
        "undefined": undefined(model),
        "types": model.types.types.tolist(),
        "thresholds": {
            **{field.name: getattr(model.types.thresholds, field.name) for field in fields(model.types.thresholds)},
            "narrow": NARROW if model.types.thresholds.copying == NARROW_COPYING else "",
        },
        "scores": {
            name: blob.add(model.heads[name].transpose("snapshot", "layer", "head").values)
            for name in SCORES
            if name in model.heads
        },
        "ablations": {
            mode: _effects(mode, sweep, config.layers, config.heads, blob) for mode, sweep in model.ablations.items()
        },
        "before_after": _before_after(model, blob),
        "composition": {
            name[-1]: blob.add(last[name].transpose("writer_layer", "writer_head", "layer", "head").values)
            for name in COMPOSITIONS
            if name in last
        },
    }


def _exemplar_run(run: ExemplarStudy) -> dict[str, Any]:
    config, seen = run.config, run.strategies["sequences"].values
    return {
        "name": run.name,
        "members": run.members,
        "architecture": config.model.architecture,
        "layers": config.model.layers,
        "heads": config.model.heads,
        "width": config.model.width,
        "exemplars": config.exemplars.kind,
        "pairs": config.sequences.pairs,
        "snapshots": len(seen),
        "sequences": int(seen[-1]),
        "left_out": [[int(step), why] for step, why in sorted(run.left_out.items())],
        "learned": [_number(time) for time in learning_times(run)],
    }


def _effects(mode: str, sweep: xr.Dataset, layers: int, heads: int, blob: Blob) -> dict[str, int]:
    """What removing each head changes, [snapshot, layer, head]: the loss (mean over examples) and the ICL score."""
    losses = ablated(mode, sweep["loss"]) - unablated(mode, sweep, "loss")
    examples = losses.sizes["example"]
    scores = ablated(mode, sweep["icl_score"]) - unablated(mode, sweep, "icl_score")
    values = {
        "loss": losses.mean("example"),
        # paired by example; of a single one it is not known
        "loss_sem": losses.std("example", ddof=1) / np.sqrt(examples)
        if examples > 1
        else losses.mean("example") * np.nan,
        "icl": scores,
        "icl_sem": ablated(mode, sweep["icl_effect_sem"]),
    }
    return {name: blob.add(_by_head(value, layers, heads)) for name, value in values.items()}


def _before_after(model: ModelStudy, blob: Blob) -> dict[str, int] | None:
    """Each head's attribution to the phase change, [snapshot, layer, head], and its standard error."""
    if "before_after" not in model.attributions:
        return None
    layers, heads = model.config.layers, model.config.heads
    return {
        name: blob.add(_by_head(model.attributions[variable], layers, heads))
        for name, variable in {"value": "before_after", "error": "before_after_sem"}.items()
    }


def _by_head(values: xr.DataArray, layers: int, heads: int) -> Floats:
    out = np.full((values.sizes["snapshot"], layers, heads), np.nan)
    out[:, values["layer"].values, values["head"].values] = values.transpose("snapshot", "ablation").values
    return out


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
