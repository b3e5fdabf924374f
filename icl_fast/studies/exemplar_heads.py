"""What the heads of one snapshot of an exemplar run do: removed, alone, their attention forced, path by path."""

from __future__ import annotations

import numpy as np
import xarray as xr
from torch import Tensor

from icl_fast.measure.exemplar.ablation import (
    composition,
    cut_output_connections,
    embedding_path,
    knock_out_each_head,
)
from icl_fast.measure.exemplar.answers import StrategyMetrics
from icl_fast.measure.exemplar.measured_model import MeasuredModel
from icl_fast.measure.exemplar.measured_run import MeasuredRun
from icl_fast.measure.exemplar.single_heads import attention_weight_curve, residual_heads, single_heads
from icl_fast.measure.exemplar.superposition import attention_deltas, temperature_curves

WEIGHTS = tuple(np.linspace(0, 1, 11).tolist())
TEMPERATURES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)


def measure_heads(measured: MeasuredRun) -> xr.Dataset:
    """What the last layer's heads do in the last chosen snapshot, on the first chosen evaluator (Singh 2025).

    Returns:
        Over all outputs, since accuracy among the labels in context has a floor of one in as many as there are:

        - `induction [member, head]`: induction strength; `whole [member]`: accuracy with all heads; `without
          [member, head]`: the head removed, of the last layer and, as `without_first`, of the first one (Fig 4.5a);
        - for `patterns` "as it is" and "perfect": `overall` and `on_mistakes` `[member, patterns, head]` of the head
          alone in its layer; `reference` and `mistakes` `[member, patterns]`: the best head and how many sequences it
          gets wrong (Fig 4.5a, C.1a, tables C.1, C.2);
        - `label_mistakes`, `label_accuracy` `[member, patterns, head, label]`: a label's share of the head's mistakes
          and the accuracy on it (Fig C.1b, c).

        Among the labels in context:

        - `forced_attention [member, head, weight]`: alone, so much of its attention on right labels (Fig 5.3c);
        - `temperature_alone`, `temperature_among_all` `[member, head, temperature]`: attending to labels only, its
          scores divided (Fig 5.4b, c);
        - `query [member, head, place, position]`: mean attention of the query, by the place of the right label (Fig
          5.3a, b); `delta [member, head, sequence]`: to right labels less wrong ones (Fig 5.4a);
        - `path_accuracy [member, path]`: connections to the output cut (4.3), compositions (5.5.3), the embedding's own
          path (5.4), all at once.

        Attributes: `step`, `sequences` seen by then, `evaluator`, `pairs`.
    """
    snapshot = measured.snapshot(measured.series.steps[-1])
    model = measured.on_each(snapshot.model)[0]
    attention = model.means(attention=True).attention
    assert attention is not None
    found = xr.Dataset(
        coords={
            "member": measured.series.population.names,
            "patterns": ["as it is", "perfect"],
            "weight": list(WEIGHTS),
            "temperature": list(TEMPERATURES),
        },
        attrs={
            "step": snapshot.step,
            "sequences": snapshot.seen,
            "evaluator": model.evaluator.name,
            "pairs": snapshot.model.config.pairs,
        },
    )
    per_head = ("member", "head")
    found["induction"] = per_head, _array(attention.induction[:, -1])
    found["whole"] = "member", _array(model.means().accuracy)
    removed = _array(knock_out_each_head(model).accuracy)
    found["without"], found["without_first"] = (("head", "member"), removed[-1]), (("head", "member"), removed[0])
    singles = [single_heads(model), single_heads(model, perfect=True)]
    tables = [residual_heads(heads) for heads in singles]
    for name in ("overall", "on_mistakes", "reference", "mistakes"):
        values = np.stack([_array(getattr(table, name)) for table in tables])
        found[name] = ("patterns", "member", "head")[: values.ndim], values
    for name in ("label_mistakes", "label_accuracy"):
        found[name] = ("patterns", *per_head, "label"), np.stack([_array(getattr(one, name)) for one in singles])
    found["forced_attention"] = ("weight", "head", "member"), _accuracy(attention_weight_curve(model, WEIGHTS))
    curves = temperature_curves(model, TEMPERATURES)
    found["temperature_alone"] = ("temperature", "head", "member"), _accuracy(curves.alone)
    found["temperature_among_all"] = ("temperature", "head", "member"), _accuracy(curves.among_all)
    found["query"] = (*per_head, "place", "position"), _array(attention.query[:, -1])
    found["delta"] = (*per_head, "sequence"), _array(attention_deltas(model))
    paths = _paths(model)
    found = found.assign_coords(path=list(paths))
    found["path_accuracy"] = ("path", "member"), np.stack(list(paths.values()))
    return found.transpose("member", "patterns", "head", ...)


def _paths(model: MeasuredModel) -> dict[str, np.ndarray]:
    """Accuracies `[P]` by what is cut."""
    cut = _accuracy(cut_output_connections(model))
    paths = {f"layer {layer} to output cut": values for layer, values in enumerate(cut)}
    if len(cut) > 1:
        read = composition(model)
        paths |= {f"layer 0 to {name} cut": _accuracy(read[f"all but {name}"]) for name in "qkv"}
    embedding = embedding_path(model)
    return paths | {
        "embedding to output alone": _accuracy(embedding["alone"]),
        "embedding to output removed": _accuracy(embedding["removed"]),
        "nothing removed": _accuracy(embedding["whole"]),
    }


def _accuracy(metrics: StrategyMetrics) -> np.ndarray:
    return _array(metrics.accuracy_in_context)


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.cpu().numpy()
    return array
