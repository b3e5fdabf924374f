"""Measurements over a run's snapshots, resumable at any moment, into one zarr store: the scores and circuits of heads.

A part of the work is one snapshot (see `icl_fast.measure.store`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from icl_fast.errors import InputError
from icl_fast.files import sha256
from icl_fast.measure.heads.circuits import composition_scores, copying_eigenvalue_score, copying_eigenvalues, qk_trace
from icl_fast.measure.heads.scores import EXAMPLES, copying_scores, prefix_matching_scores, previous_token_scores
from icl_fast.measure.store import Arrays, Workspace
from icl_fast.models import Snapshot, Transformer
from icl_fast.runs.devices import resolve_device
from icl_fast.runs.snapshots import (
    evaluation_tokens,
    find_snapshots,
    load_ahead,
    missing_snapshots,
    readable_snapshots,
)
from icl_fast.runs.text_run import RunFolder

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
_TOKENS = "tokens seen"  # kept beside a snapshot's arrays


@dataclass(frozen=True)
class SnapshotProgress:
    """Where a measurement is: how many snapshots are done, of how many, and the step of the last one looked at."""

    done: int
    snapshots: int
    step: int


def evaluate(
    ckpt: str | Path,
    *,
    out: str | Path | None = None,
    snapshots: str = "all",
    seed: int = 0,
    device: str = "auto",
    skip_damaged: bool = False,
    on_snapshot: Callable[[SnapshotProgress], None] | None = None,
) -> Path:
    """Scores and circuits of every head of a run's snapshots; the same call again resumes.

    See `prefix_matching_scores`, `copying_scores`, `previous_token_scores` (on the run's held-out windows, 10 of them),
    `qk_trace`, `copying_eigenvalue_score` and `composition_scores`.

    Args:
        ckpt: a run folder or one of its snapshots.
        out: the zarr store; default `RUN/results/heads.zarr`. What is there from an equal call is kept.
        snapshots: see `find_snapshots`.
        seed: of the random tokens and the choice of windows, the same for all snapshots.
        device: `auto`, `cpu` or `cuda`.
        skip_damaged: leave out what cannot be used and go on with the rest.
        on_snapshot: called when a snapshot is done (and once at the start).

    Returns:
        Where the Dataset lies, float64: `prefix_matching`, `copying`, `previous_token`, `qk_trace` (NaN in layer 0),
        `ov_copying` [snapshot, layer, head]; `composition_q`, `_k`, `_v` [snapshot, writer_layer, writer_head, layer,
        head] (NaN where the writer's layer is not earlier); coords `snapshot` (optimizer steps) and `tokens` (seen).
        Attributes: `measurement`, all that decides the values, as JSON; `left_out`, JSON: step -> why, of snapshots
        asked for that are not in it (see `readable_snapshots`).

    Raises:
        OtherResults: `out` holds an evaluation with another seed, of other snapshots, ...
        InputError: an argument not understood, a snapshot damaged or not finite (with `skip_damaged`: all of them), a
            model too small for the scores, the disk full. What was done so far is kept.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"seed: must be from 0 to 2^63 - 1, got {seed}")
    on = resolve_device(device)
    folder, asked = find_snapshots(ckpt, snapshots)
    steps, left_out = readable_snapshots(folder, asked) if skip_damaged else (asked, missing_snapshots(folder))
    if asked != folder.snapshot_steps():  # a snapshot that nobody asked for is not left out
        left_out = {step: why for step, why in left_out.items() if step in asked}
    if not steps:
        reasons = "; ".join(f"step {step}: {why}" for step, why in left_out.items())
        raise InputError(f"ckpt: {ckpt} has no snapshot that can be used ({reasons})")
    evaluation = evaluation_tokens(folder)
    windows = min(EXAMPLES, len(evaluation.inputs))
    identity = {
        "measured": "head scores and circuits, 1",  # raise the number when what is measured changes
        "seed": seed,
        "evaluation": evaluation.digest,
        "windows": windows,
        "device": on.type,
        "left_out": {str(step): why for step, why in left_out.items()},
    }

    def measure(snapshot: Snapshot) -> Arrays:
        model: Transformer = snapshot.model.to(on)
        previous_token = previous_token_scores(model, evaluation.inputs, examples=windows, seed=seed)
        scores = {
            "prefix_matching": prefix_matching_scores(model, seed=seed),
            "copying": copying_scores(model, seed=seed),
            "previous_token": previous_token,
            "qk_trace": qk_trace(model, previous_token),
            "ov_copying": copying_eigenvalue_score(copying_eigenvalues(model)),
            **{f"composition_{by}": score for by, score in composition_scores(model).items()},
        }
        return {name: score.double().cpu().numpy() for name, score in scores.items()}

    def assemble(parts: list[Arrays], steps: list[int], tokens: list[int]) -> xr.Dataset:
        dataset = _assemble(parts, steps, tokens)
        return dataset.assign_attrs(left_out=json.dumps(identity["left_out"]))

    store = Path(out) if out is not None else folder.path / "results" / "heads.zarr"
    return measure_snapshots(folder, steps, store, identity, measure, assemble, on_snapshot)


def measure_snapshots(
    folder: RunFolder,
    steps: Sequence[int],
    store: Path,
    identity: Mapping[str, Any],
    measure: Callable[[Snapshot], Arrays],
    assemble: Callable[[list[Arrays], list[int], list[int]], xr.Dataset],
    on_snapshot: Callable[[SnapshotProgress], None] | None = None,
) -> Path:
    """Measure snapshots one after the other and put the results into one zarr store; the same call again resumes.

    Args:
        folder: the run.
        steps: of its snapshots, one or more, rising.
        store: the zarr store. What is there, or half done there, with an equal identity is kept.
        identity: all that decides what `measure` and `assemble` give, as JSON data; the SHA-256 of the snapshots is
            added to it as `snapshots`, and the Dataset gets it as its attribute `measurement`.
        measure: named arrays of one snapshot, whose model is on the CPU. Given the same snapshot, the same bits.
        assemble: from the arrays of all snapshots, the steps, and the tokens seen by then, the Dataset.
        on_snapshot: called when a snapshot is done (and once at the start).

    Returns:
        `store`.

    Raises:
        OtherResults: what is there has another identity.
        InputError: a snapshot damaged or not finite, `store` holds something else, the disk full. What was done so
            far is kept.
    """
    hashes = {str(step): sha256(folder.snapshot_path(step)) for step in steps}
    work = Workspace(store, {**identity, "snapshots": hashes}, "measurement")
    if work.finished():
        return store
    work.begin()
    missing = [step for step in steps if not work.has(step)]
    done = len(steps) - len(missing)

    def report(step: int) -> None:
        if on_snapshot is not None:
            on_snapshot(SnapshotProgress(done, len(steps), step))

    report(steps[0])
    for step, snapshot in zip(missing, load_ahead(folder, missing), strict=True):
        work.write(step, None, {**measure(snapshot), _TOKENS: np.array(snapshot.tokens)})
        done += 1
        report(step)
    parts = [work.read(step) for step in steps]
    tokens = [int(part.pop(_TOKENS)) for part in parts]
    work.finish(assemble(parts, list(steps), tokens))
    return store


def _assemble(parts: list[Arrays], steps: list[int], tokens: list[int]) -> xr.Dataset:
    variables = {}
    for name, (dims, long_name, source) in _VARIABLES.items():
        values = np.stack([part[name] for part in parts])
        variables[name] = (dims, values, {"units": "1", "long_name": long_name, "source": source})
    layers, heads = parts[0]["prefix_matching"].shape
    return xr.Dataset(
        variables,
        coords={
            "snapshot": ("snapshot", np.asarray(steps, dtype=np.int64), {"long_name": "optimizer step"}),
            "tokens": ("snapshot", np.asarray(tokens, dtype=np.int64), {"long_name": "training tokens seen"}),
            "layer": np.arange(layers),
            "head": np.arange(heads),
            "writer_layer": np.arange(layers),
            "writer_head": np.arange(heads),
        },
        attrs={"source": "Olsson et al. 2022, Data Collection (3), (4)"},
    )
