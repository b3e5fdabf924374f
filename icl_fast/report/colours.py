"""The colours of models, heads, evaluators and scales, as hex strings: the page and all figures take them from here.

All lines and points have a contrast of 3 or more on white and on near-black, and are told apart with any colour vision.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from icl_fast.analysis.heads import INDUCTION, OTHER, PREVIOUS_TOKEN
from icl_fast.report.panels.panel import Panel
from icl_fast.report.study import ModelStudy, Study

By = Literal["depth", "type"]

PHASE_CHANGE = "phase change"  # the label of a series that marks it in another series' path
BAND = "#E8871E"
MARK = "#808080"
OTHERS = "#8C8C8C"  # behind a model's own path
MODELS = (  # none near the orange of the band
    "#2A7FC1",
    "#C4427F",
    "#16946B",
    "#A88200",
    "#7C6FD6",
    "#8A7460",
    "#4B9AA8",
    "#C0504A",
)
EVALUATORS = {  # of runs on exemplars; the strategies first
    "icl": MODELS[0],
    "ciwl": MODELS[2],
    "flip": MODELS[7],
    "iwl": OTHERS,
    "held-out-classes": MODELS[4],
    "held-out-label-pairs": MODELS[3],
    "held-out-exemplars": MODELS[6],
    "train": MODELS[1],
}
TYPES = {PREVIOUS_TOKEN: "#D8507F", INDUCTION: "#4F74E3", OTHER: "#B58B10"}
DEPTH = ("#E0651B", "#C9577E", "#9468C4", "#3F82D8")  # from early to late
# low to high; the second from negative through 0 to positive
SEQUENTIAL = (
    "#440154",
    "#482475",
    "#414487",
    "#355F8D",
    "#2A788E",
    "#21918C",
    "#22A884",
    "#44BF70",
    "#7AD151",
    "#FDE725",
)
DIVERGING = (
    "#0B3C73",
    "#2166AC",
    "#4393C3",
    "#92C5DE",
    "#D1E5F0",
    "#F7F7F7",
    "#FDDBC7",
    "#F4A582",
    "#D6604D",
    "#B2182B",
    "#700A20",
)


def head_colours(model: ModelStudy, by: By) -> list[list[str]]:
    """The colour of every head, [layers][heads]: by depth from early (warm) to late (cool), or by type.

    As Olsson et al. 2022 colour the Model Analysis Table: scores by depth, ablations by type.
    """
    if by == "type":
        return [[TYPES[str(kind)] for kind in layer] for layer in model.types.types]
    layers, heads = model.config.layers, model.config.heads
    return [[depth_colour(layer, layers)] * heads for layer in range(layers)]


def depth_colour(layer: int, layers: int) -> str:
    """The colour of one layer of so many."""
    stops = np.array([[int(stop[at : at + 2], 16) for at in (1, 3, 5)] for stop in DEPTH])
    at = layer / max(1, layers - 1) * (len(stops) - 1)
    channels = [round(float(np.interp(at, range(len(stops)), stops[:, channel]))) for channel in range(3)]
    return "#" + "".join(f"{channel:02X}" for channel in channels)


def model_colours(study: Study) -> dict[str, str]:
    """The colour of every model, by name."""
    return {name: MODELS[index % len(MODELS)] for index, name in enumerate(study.models)}


def default_by(panel: Panel) -> By:
    """How a panel's heads are coloured to begin with: what is removed by type, scores by depth."""
    return "type" if "ablation" in panel.key else "depth"


def series_colours(study: Study, panel: Panel, by: By | None = None) -> list[str]:
    """The colour of each of a panel's series, in order.

    That of its head or its evaluator; where the series are of different models, of its model; else one after the other.

    Args:
        by: how heads are coloured; default: see `default_by`.
    """
    chosen = default_by(panel) if by is None else by
    heads = {series.model for series in panel.series if series.head is not None}
    of_heads = {name: head_colours(study.models[name], chosen) for name in heads if name is not None}
    of_models = model_colours(study)
    plain = [series.model for series in panel.series if series.head is None and series.label != PHASE_CHANGE]
    by_model = None not in plain and len(set(plain)) == len(plain)
    colours = []
    for index, series in enumerate(panel.series):
        if series.head is not None and series.model is not None:
            layer, head = series.head
            colours.append(of_heads[series.model][layer][head])
        elif series.evaluator is not None:
            colours.append(EVALUATORS[series.evaluator])
        elif series.label == PHASE_CHANGE:
            colours.append(BAND)
        elif of_heads:
            colours.append(MARK)
        elif not series.opaque:
            colours.append(OTHERS)
        elif by_model and series.model is not None:
            colours.append(of_models[series.model])
        else:
            colours.append(MODELS[index % len(MODELS)])
    return colours
