"""Heads with idealised attention patterns: how much of what each does for the loss the ideal gives back.

Olsson et al. 2022, Comments & Replications, Adam Scherlis: "replacing attention-score matrices with idealized versions
and comparing the change in loss to the change from ablating that head".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from icl_fast.errors import InputError
from icl_fast.measure.of_model import measures_model
from icl_fast.measure.over_snapshots import SnapshotProgress, measure_snapshots
from icl_fast.measure.store import Arrays
from icl_fast.measure.whole_pass import run_losses
from icl_fast.models import Intervention, Snapshot, Transformer, site
from icl_fast.models.ids import as_ids
from icl_fast.runs import Series, Snapshots, open_series, resolve_device

_ENTRIES = 2**23  # of patterns at a time
_SOURCE = "Olsson et al. 2022, Comments & Replications"
_HEADS = ("snapshot", "layer", "head")
_BY_PATTERN = ("snapshot", "pattern", "layer", "head")
_RECOVERED = "share of the effect that the head keeps with the pattern in the place of its own"
_VARIABLES = {  # name: (dims, units, long name)
    "loss": (("snapshot",), "nats", "mean loss of the whole model"),
    "effect": (_HEADS, "nats", "mean loss without the head, its results zero, less that of the whole model"),
    "effect_sem": (_HEADS, "nats", "standard error of effect, over examples"),
    "pattern_loss": (_BY_PATTERN, "nats", "mean loss with the pattern in the place of the head's own"),
    "recovered": (_BY_PATTERN, "1", f"{_RECOVERED}; NaN where the effect is under two standard errors"),
    "recovered_sem": (_BY_PATTERN, "1", "standard error of recovered, over examples"),
}


def previous_token_pattern(tokens: Tensor) -> Tensor:
    """Each position attends to the one before it, the first to itself: [B,T,T] float32 of ids [B,T]."""
    keys = torch.arange(-1, tokens.shape[1] - 1, device=tokens.device).clamp_min(0)
    return _evenly(keys[None, :, None] == torch.arange(tokens.shape[1], device=tokens.device)).expand(
        len(tokens), -1, -1
    )


def matching_pattern(tokens: Tensor, longest: int = 1) -> Tensor:
    """Each position attends to what followed earlier copies of its token, evenly: [B,T,T] float32 of ids [B,T].

    Where there are none, to the first token. That is `A B ... A`; with `longest` 2 copies of the last two tokens come
    first, `A B C ... A B`.
    """
    keys = torch.zeros(len(tokens), tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device)
    keys[:, :, 0] = True
    for length in range(1, longest + 1):
        followers = _followers(tokens, length)
        keys = torch.where(followers.any(-1, keepdim=True), followers, keys)
    return _evenly(keys)


def _followers(tokens: Tensor, length: int) -> Tensor:
    """Whether the last `length` tokens at a position are those before a key that it sees: bool [B,T,T]."""
    total = tokens.shape[1]
    followers = torch.ones(total, total, dtype=torch.bool, device=tokens.device).tril().expand(len(tokens), -1, -1)
    for back in range(length):
        at_row, before_key = torch.full_like(tokens, -1), torch.full_like(tokens, -2)  # ids that there are not
        at_row[:, back:] = tokens[:, : total - back]
        before_key[:, back + 1 :] = tokens[:, : total - back - 1]
        followers = followers & (at_row[:, :, None] == before_key[:, None, :])
    return followers


def _evenly(keys: Tensor) -> Tensor:
    return keys.float() / keys.sum(-1, keepdim=True)


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "previous token": previous_token_pattern,
    "match": matching_pattern,  # [A][B]...[A]
    "match of two": lambda tokens: matching_pattern(tokens, 2),  # [A][B][C]...[A][B]
}


@measures_model
def idealised_losses(model: Transformer, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean losses of examples, of a whole model, without each head, and with each head's pattern replaced.

    What comes after the head is computed anew, as in a full ablation.

    Args:
        inputs, targets: integers [n,T].

    Returns:
        [n], [layers,heads,n] and [patterns,layers,heads,n] in the order of `PATTERNS`, float64 on the CPU, in nats.

    Raises:
        InputError: tokens that the model refuses.
    """
    inputs = as_ids("inputs", inputs, model.config.vocab, "n,T").to(model.device)
    targets = as_ids("targets", targets, model.config.vocab, "n,T").to(model.device)
    layers, heads, count = model.config.layers, model.config.heads, len(inputs)
    whole = torch.empty(count, dtype=torch.float64, device="cpu")
    without = whole.new_empty(layers, heads, count)
    replaced = whole.new_empty(len(PATTERNS), layers, heads, count)
    step = max(1, _ENTRIES // inputs.shape[1] ** 2)
    for start in range(0, count, step):
        at = slice(start, start + step)

        def losses(*interventions: Intervention, inputs: Tensor = inputs[at], targets: Tensor = targets[at]) -> Tensor:
            return run_losses(model, inputs, targets, interventions=interventions)[0].double().mean(1).cpu()

        patterns = [pattern(inputs[at]) for pattern in PATTERNS.values()]
        whole[at] = losses()
        for layer, head in np.ndindex(layers, heads):
            without[layer, head, at] = losses(Intervention.zero(site("z", layer), heads=[head]))
            for number, pattern in enumerate(patterns):
                replaced[number, layer, head, at] = losses(attending(layer, head, pattern))
    return whole, without, replaced


def attending(layer: int, head: int, pattern: Tensor) -> Intervention:
    """Has a head attend by a pattern [B,T,T]: nothing but its results changes, so they alone are forced."""

    def attend(z: Tensor, v: Tensor) -> Tensor:
        forced = z.clone()
        forced[:, head] = pattern.to(v.dtype) @ v[:, head]
        return forced

    return Intervention.apply(site("z", layer), attend, reads=[site("v", layer)])


def measure_idealised(
    ckpt: str | Path | Series,
    *,
    out: str | Path | None = None,
    snapshots: Snapshots = "all",
    examples: int | None = None,
    device: str = "auto",
    repair: bool = False,
    force: bool = False,
    on_snapshot: Callable[[SnapshotProgress], None] | None = None,
) -> Path:
    """Share of what each head does that idealised patterns recover, at every snapshot; the same call again resumes.

    For runs on text, on the first examples of their evaluation set.

    Args:
        ckpt: a series, a run folder or one of its snapshots.
        out: the zarr store; default `RUN/results/idealised.zarr`. Results of an equal call are kept.
        snapshots: see `icl_fast.runs.open_series`.
        examples: how many; default 128, or all where there are fewer.
        device: `auto`, `cpu` or `cuda`.
        repair: whether damaged results at `out` are measured again, rather than refused.
        force: whether they are measured again where `out` holds others, which stay until these are complete.
        on_snapshot: called when a snapshot is done (and once at the start).

    Returns:
        The path of the store. Its Dataset, float64, nats but for shares: `loss` [snapshot]; `effect`, loss without a
        head less that of the whole model, [snapshot, layer, head]; `pattern_loss` and `recovered`, (loss without the
        head - loss with the pattern) / effect, [snapshot, pattern, layer, head]: 1 where the pattern is as good as the
        head's own, more where it is better, 0 where it is as bad as no head at all; `effect_sem`, `recovered_sem`.

    Raises:
        OtherResults: `out` holds such a measurement of other examples, of other snapshots, ...
        DamagedResults: `out` is not as it was written.
        InputError: an argument not understood, a snapshot damaged or not finite, the disk full. What was done so far is
            kept.
    """
    on = resolve_device(device)
    series = open_series(ckpt, snapshots)
    if not series.steps:
        raise InputError(f"ckpt: {series.path} has no snapshot")
    evaluation = series.evaluation_set(examples)
    count = min(128, len(evaluation.inputs)) if examples is None else len(evaluation.inputs)
    identity = {
        "measured": "idealised patterns, 1",  # raise the number when what is measured changes
        "evaluation": evaluation.digest,
        "examples": count,
        "device": on.type,
    }

    def measure(snapshot: Snapshot[Transformer]) -> Arrays:
        model = snapshot.model.to(on)
        losses = idealised_losses(model, evaluation.inputs[:count], evaluation.targets[:count])
        return dict(zip(("whole", "without", "replaced"), (each.numpy() for each in losses), strict=True))

    store = Path(out) if out is not None else series.results / "idealised.zarr"
    names = {name: dims for name, (dims, _, _) in _VARIABLES.items()} | {"snapshot": _HEADS[:1], "tokens": _HEADS[:1]}
    return measure_snapshots(
        series, store, identity, measure, _assemble, on_snapshot, variables=names, repair=repair, force=force
    )


def _assemble(parts: list[Arrays], steps: list[int], seen: list[int]) -> xr.Dataset:
    whole, without, replaced = (np.stack([part[name] for part in parts]) for name in ("whole", "without", "replaced"))
    lost = without - whole[:, None, None]  # [S,L,H,n]
    kept = without[:, None] - replaced  # [S,P,L,H,n]
    effect, effect_sem = lost.mean(-1), _sem(lost)
    known = (np.abs(effect) >= 2 * effect_sem) & (effect != 0)
    divisor = np.where(known, effect, np.nan)[:, None]
    recovered = kept.mean(-1) / divisor
    values = {
        "loss": whole.mean(-1),
        "effect": effect,
        "effect_sem": effect_sem,
        "pattern_loss": replaced.mean(-1),
        "recovered": recovered,
        "recovered_sem": _sem(kept - recovered[..., None] * lost[:, None]) / np.abs(divisor),  # of a ratio of means
    }
    variables = {
        name: (dims, values[name], {"units": units, "long_name": long_name, "source": _SOURCE})
        for name, (dims, units, long_name) in _VARIABLES.items()
    }
    return xr.Dataset(
        variables,
        coords={
            "snapshot": ("snapshot", np.asarray(steps, dtype=np.int64), {"long_name": "optimizer step"}),
            "tokens": ("snapshot", np.asarray(seen, dtype=np.int64), {"long_name": "training tokens seen"}),
            "pattern": list(PATTERNS),
            "layer": np.arange(without.shape[1]),
            "head": np.arange(without.shape[2]),
        },
        attrs={"source": _SOURCE},
    )


def _sem(values: np.ndarray) -> np.ndarray:
    """Standard errors of the means over examples [...,n]; NaN of one."""
    count = values.shape[-1]
    if count == 1:
        return np.full(values.shape[:-1], np.nan)
    sem: np.ndarray = values.std(-1, ddof=1) / np.sqrt(count)
    return sem
