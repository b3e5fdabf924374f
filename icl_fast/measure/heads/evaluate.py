"""The scores and circuits of every head over a series, into one zarr store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from icl_fast.arguments import MOST_SEED, whole_number
from icl_fast.errors import InputError
from icl_fast.measure.heads.circuits import (
    composition_scores,
    copying_eigenvalue_score,
    copying_eigenvalues,
    qk_trace,
    why_undefined,
)
from icl_fast.measure.heads.scores import EXAMPLES, copying_scores, prefix_matching_scores, previous_token_scores
from icl_fast.measure.over_snapshots import SnapshotProgress, measure_snapshots
from icl_fast.measure.store import Arrays
from icl_fast.models import Snapshot, Transformer
from icl_fast.runs import Series, Snapshots, open_series, resolve_device
from icl_fast.scale import HERE, Runner

_HEADS = ("snapshot", "layer", "head")
_PAIRS = ("snapshot", "writer_layer", "writer_head", "layer", "head")
_EVALUATORS = "Olsson et al. 2022, Data Collection (3)"
_CIRCUITS = "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits"
_RATIO = "||W_O W_{0}|| / (||W_O|| ||W_{0}||) of a writing head's W_O and a later head's W_{0}, Frobenius norms"
_VARIABLES = {  # name: (dims, long name, source); all are pure numbers
    "prefix_matching": (_HEADS, "attention to what followed earlier copies of the present token, 0 to 1", _EVALUATORS),
    "copying": (_HEADS, "how much the logit of the attended token is what is raised, -1 to 1", _EVALUATORS),
    "previous_token": (_HEADS, "attention to the token before, on held-out text, 0 to 1", _EVALUATORS),
    "qk_trace": (_HEADS, "trace of the previous-token QK circuit", "Olsson et al. 2022, Data Collection (4)"),
    "ov_copying": (_HEADS, "sum over |sum| of the eigenvalues of the OV circuit, -1 to 1", _CIRCUITS),
    "composition_q": (_PAIRS, "Q-composition score: " + _RATIO.format("Q"), _CIRCUITS),
    "composition_k": (_PAIRS, "K-composition score: " + _RATIO.format("K"), _CIRCUITS),
    "composition_v": (_PAIRS, "V-composition score: " + _RATIO.format("V"), _CIRCUITS),
}


def evaluate(
    ckpt: str | Path | Series,
    *,
    out: str | Path | None = None,
    snapshots: Snapshots = "all",
    seed: int = 0,
    device: str = "auto",
    skip_damaged: bool = False,
    repair: bool = False,
    force: bool = False,
    runner: Runner = HERE,
    on_snapshot: Callable[[SnapshotProgress], None] | None = None,
) -> Path:
    """Scores and circuits of every head of a run's snapshots; the same call again resumes.

    For runs on text. See `prefix_matching_scores`, `copying_scores`, `previous_token_scores` (on 10 of the run's
    held-out windows), `qk_trace`, `copying_eigenvalue_score` and `composition_scores`.

    Args:
        ckpt: a series, a run folder or one of its snapshots.
        out: the zarr store; default `RUN/results/heads.zarr`. Results of an equal call are kept.
        snapshots: see `icl_fast.runs.open_series`.
        seed: of the random tokens and the choice of windows, the same for all snapshots.
        device: `auto`, `cpu` or `cuda`.
        skip_damaged: leave out snapshots that cannot be used.
        repair: whether damaged results at `out` are measured again, rather than refused.
        force: whether they are measured again where `out` holds others, which stay until these are complete.
        runner: what measures the snapshots.
        on_snapshot: called when a snapshot is done (and once at the start).

    Returns:
        The path of the store. Its Dataset, float64: `prefix_matching`, `copying`, `previous_token`, `qk_trace` (NaN in
        layer 0), `ov_copying` [snapshot, layer, head]; `composition_q`, `_k`, `_v` [snapshot, writer_layer,
        writer_head, layer, head] (NaN where the writer's layer is not earlier); coords `snapshot` (optimizer steps) and
        `tokens` (seen). What the architecture does not define is NaN.
        Attributes: `measurement`, all that decides the values, as JSON; `left_out`, JSON: step -> why, of snapshots
        asked for that are not in it (see `Series.readable`); `undefined`, JSON: variable -> why (see `why_undefined`).

    Raises:
        OtherResults: `out` holds an evaluation with another seed, of other snapshots, ...
        DamagedResults: `out` is not as it was written.
        InputError: an argument not understood, a snapshot damaged or not finite (with `skip_damaged`: all of them), a
            model too small for the scores, the disk full. What was done so far is kept.
    """
    seed = whole_number("seed", seed, 0, MOST_SEED)
    on = resolve_device(device)
    series = open_series(ckpt, snapshots)
    left_out = series.missing()
    if skip_damaged:
        series, left_out = series.readable()
    if not series.steps:
        reasons = "; ".join(f"step {step}: {why}" for step, why in left_out.items())
        raise InputError(f"ckpt: {series.path} has no snapshot that can be used ({reasons})")
    evaluation = series.evaluation_set()
    windows, ids = min(EXAMPLES, len(evaluation.inputs)), torch.from_numpy(series.ids)
    bos = series.bos
    undefined = why_undefined(series.shape)
    identity = {
        "measured": "head scores and circuits, 2",  # raise the number when what is measured changes
        "seed": seed,
        "evaluation": evaluation.digest,
        "windows": windows,
        "device": on.type,
        "left_out": {str(step): why for step, why in left_out.items()},
    }
    if undefined:  # only then, so that stores of before that hold all of them are known again
        identity["undefined"] = sorted(undefined)

    def measure(snapshot: Snapshot[Transformer]) -> Arrays:
        model = snapshot.model.to(on)
        previous_token = previous_token_scores(model, evaluation.inputs, examples=windows, seed=seed)
        scores = {
            "prefix_matching": prefix_matching_scores(model, bos=bos, seed=seed, ids=ids),
            "copying": copying_scores(model, seed=seed, ids=ids),
            "previous_token": previous_token,
        }
        if "qk_trace" not in undefined:
            scores["qk_trace"] = qk_trace(model, previous_token)
        if "ov_copying" not in undefined:
            scores["ov_copying"] = copying_eigenvalue_score(copying_eigenvalues(model))
        if "composition_v" not in undefined:
            scores |= {f"composition_{by}": score for by, score in composition_scores(model).items()}
        found = {name: score.double().cpu().numpy() for name, score in scores.items()}
        heads = (model.config.layers, model.config.heads)
        shapes = {name: heads if dims == _HEADS else heads * 2 for name, (dims, _, _) in _VARIABLES.items()}
        return {name: found[name] if name in found else np.full(shape, np.nan) for name, shape in shapes.items()}

    def assemble(parts: list[Arrays], steps: list[int], seen: list[int]) -> xr.Dataset:
        dataset = _assemble(parts, steps, seen)
        return dataset.assign_attrs(left_out=json.dumps(identity["left_out"]), undefined=json.dumps(undefined))

    store = Path(out) if out is not None else series.results / "heads.zarr"
    names = {name: dims for name, (dims, _, _) in _VARIABLES.items()} | {"snapshot": _HEADS[:1], "tokens": _HEADS[:1]}
    return measure_snapshots(
        series,
        store,
        identity,
        measure,
        assemble,
        on_snapshot,
        variables=names,
        repair=repair,
        force=force,
        runner=runner,
        device=on.type,
    )


def _assemble(parts: list[Arrays], steps: list[int], seen: list[int]) -> xr.Dataset:
    variables = {}
    for name, (dims, long_name, source) in _VARIABLES.items():
        values = np.stack([part[name] for part in parts])
        variables[name] = (dims, values, {"units": "1", "long_name": long_name, "source": source})
    layers, heads = parts[0]["prefix_matching"].shape
    return xr.Dataset(
        variables,
        coords={
            "snapshot": ("snapshot", np.asarray(steps, dtype=np.int64), {"long_name": "optimizer step"}),
            "tokens": ("snapshot", np.asarray(seen, dtype=np.int64), {"long_name": "training tokens seen"}),
            "layer": np.arange(layers),
            "head": np.arange(heads),
            "writer_layer": np.arange(layers),
            "writer_head": np.arange(heads),
        },
        attrs={"source": "Olsson et al. 2022, Data Collection (3), (4)"},
    )
