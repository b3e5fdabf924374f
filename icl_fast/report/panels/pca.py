"""Trajectories in the joint PCA of token losses: a plane for each evaluation set, with the models evaluated on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from icl_fast.analysis import JointPCA
from icl_fast.errors import InputError
from icl_fast.report.colours import PHASE_CHANGE
from icl_fast.report.panels.builders import filled, line, slugs, snapshot_names, there
from icl_fast.report.panels.panel import Panel, Series
from icl_fast.report.study import EvaluationGroup, ModelStudy, Study

_SOURCE = "Olsson et al. 2022, Analyses, PCA"


def table_pca(study: Study, model: ModelStudy) -> Panel:
    """A model's path in the plane of its group, the paths of the group's other models behind it."""
    group = study.group_of(model.name)
    panel = Panel(
        key="",
        kind="path",
        title="",
        caption="Losses on one random token of each evaluation example, projected onto the first two principal "
        f"components of all snapshots of {_evaluated(study, group)}. Paths of others of them are behind it. {_SOURCE}.",
        x_label="component 1",
        y_label="component 2",
    )

    def content() -> dict[str, object]:
        pca = _pca(group)
        series = [_path(pca, model), _changing(pca, model)]
        others = [_path(pca, study.models[name]) for name in group.models if name != model.name]
        series += [None if path is None else replace(path, opaque=False) for path in others]
        return {"series": there(series), **_labels(pca)}

    return filled(panel, content)


def family_pca(study: Study) -> list[Panel]:
    """A panel a group: all its models' paths."""
    keys = [""] if len(study.groups) == 1 else [f"-{slug}" for slug in _group_slugs(study)]
    return [_of_group(study, group, f"family-pca{key}") for key, group in zip(keys, study.groups, strict=True)]


def _of_group(study: Study, group: EvaluationGroup, key: str) -> Panel:
    panel = Panel(
        key=key,
        kind="path",
        title=f"PCA of token losses, {_evaluated(study, group)}",
        caption="A path a model, a point a snapshot: losses on one random token of each evaluation example, projected "
        f"onto the first two principal components of all snapshots of {_evaluated(study, group)}. {_SOURCE}.",
        x_label="component 1",
        y_label="component 2",
    )

    def content() -> dict[str, object]:
        pca = _pca(group)
        return {"series": there(_path(pca, study.models[name]) for name in group.models), **_labels(pca)}

    return filled(panel, content)


def _group_slugs(study: Study) -> list[str]:
    names = [f"{number} {group.text}" for number, group in enumerate(study.groups, start=1)]
    return list(slugs(names).values())


def _evaluated(study: Study, group: EvaluationGroup) -> str:
    return "all models" if len(study.groups) == 1 else f"models evaluated on {group.text}, {group.context} tokens"


def _pca(group: EvaluationGroup) -> JointPCA:
    """Raises: InputError: the group has too few snapshots."""
    if group.pca is None:
        raise InputError(
            "no plane: 3 snapshots or more, whose losses differ, are needed of the models that were evaluated on "
            f"{group.text}"
        )
    return group.pca


def _labels(pca: JointPCA) -> dict[str, str]:
    """Axis labels, with what each component explains."""
    first, second = pca.explained_variance_ratio[:2]
    return {
        "x_label": f"component 1 (nats; {first:.0%} of the variance)",
        "y_label": f"component 2 (nats; {second:.0%})",
    }


def _path(pca: JointPCA, model: ModelStudy) -> Series | None:
    """A model's trajectory.

    Raises:
        InputError: the PCA does not have the model, or not its snapshots.
    """
    coordinates = pca.coordinates.get(model.name)
    if coordinates is None or len(coordinates) != model.snapshots:
        raise InputError(f"the joint PCA is not of the snapshots of {model.name}")
    return line(model.name, coordinates[:, 0], coordinates[:, 1], model=model.name, names=snapshot_names(model))


def _changing(pca: JointPCA, model: ModelStudy) -> Series | None:
    """The part of a model's path that lies in its phase change."""
    path = _path(pca, model)
    if model.interval is None or path is None:
        return None
    steps = model.losses["snapshot"].values
    inside = np.flatnonzero((steps >= model.interval[0]) & (steps <= model.interval[1]))
    names = tuple(path.names[at] for at in inside)
    return line(PHASE_CHANGE, path.x[inside], path.y[inside], model=model.name, names=names)
