"""The template task over many random tables: is the label right, and do heads attend to the right labels?

Olsson et al. 2022, Argument 4, behavior 3, whose head "allocates about 65% of its attention from the colons to the
correct positions, when tested on a range of similar problems".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from icl_fast.arguments import whole_number
from icl_fast.data import template_text
from icl_fast.errors import InputError
from icl_fast.measure.heads.reading import TokenisedText, template_attention, tokenise
from icl_fast.measure.of_model import measures_model
from icl_fast.measure.over_snapshots import SnapshotProgress, measure_snapshots
from icl_fast.measure.store import Arrays
from icl_fast.measure.whole_pass import run_logits
from icl_fast.models import Intervention, Snapshot, Transformer, site
from icl_fast.runs import Series, Snapshots, open_series, resolve_device

TABLES, LINES = 100, 30
_SOURCE = "Olsson et al. 2022, Argument 4, behavior 3"
_SNAPSHOT, _HEADS = ("snapshot",), ("snapshot", "layer", "head")
_ATTENTION = "attention, where a label is predicted, to the labels of earlier lines of"
_VARIABLES = {  # name: (dims, long name)
    "accuracy": (_SNAPSHOT, "how often the right one of a table's labels is the likeliest"),
    "accuracy_sem": (_SNAPSHOT, "standard error of accuracy, over tables"),
    "right": (_HEADS, f"{_ATTENTION} the same category"),
    "right_sem": (_HEADS, "standard error of right, over tables"),
    "wrong": (_HEADS, f"{_ATTENTION} other categories"),
    "wrong_sem": (_HEADS, "standard error of wrong, over tables"),
}


@dataclass(frozen=True, eq=False)
class TemplateScores:
    """What a model makes of n tables, where a label is predicted that an earlier line of its category has.

    Attributes:
        accuracy: [n] how often, of the labels that stand in the table, the right one is the likeliest.
        right: [layers,heads,n] attention to the labels of earlier lines of the same category.
        wrong: [layers,heads,n] attention to those of other categories.
    """

    accuracy: Tensor
    right: Tensor
    wrong: Tensor


@measures_model
def template_scores(model: Transformer, tables: Sequence[TokenisedText]) -> TemplateScores:
    """Accuracy and attention on template texts, table by table; means over its labels, float64 on the CPU.

    Raises:
        InputError: a table in which no label has an earlier line of its category; tokens that the model does not have.
    """
    layers, heads = model.config.layers, model.config.heads
    accuracy = torch.empty(len(tables), dtype=torch.float64, device="cpu")
    right, wrong = (accuracy.new_empty(layers, heads, len(tables)) for _ in "rw")
    for number, table in enumerate(tables):
        categories = table.categories.to(model.device)
        counted = has_earlier(table)
        if not counted.any():
            raise InputError(f"text {table.name}: no label has an earlier line of its category; give a longer context")

        def reading(layer: int, number: int = number, categories: Tensor = categories) -> Intervention:
            def read(pattern: Tensor) -> Tensor:
                same, other = template_attention(pattern[0], categories)
                right[layer, :, number], wrong[layer, :, number] = same.cpu(), other.cpu()
                return pattern

            return Intervention.apply(site("pattern", layer), read)

        logits = run_logits(
            model, table.inputs[None].to(model.device), interventions=[reading(layer) for layer in range(layers)]
        )
        labels = _labels(table)
        at = logits[0].cpu()[counted]
        likeliest = labels[at[:, labels].argmax(-1)]
        accuracy[number] = (likeliest == table.targets[counted]).double().mean()
    return TemplateScores(accuracy, right, wrong)


def _labels(table: TokenisedText) -> Tensor:
    """Ids of the labels that stand in a table."""
    labels: Tensor = torch.unique(table.targets[table.categories >= 0])
    return labels


def has_earlier(table: TokenisedText) -> Tensor:
    """Whether a label is predicted that an earlier line of its category has: bool [T]."""
    seen: set[int] = set()
    earlier = []
    for category in table.categories.tolist():
        earlier.append(category in seen)
        seen.update({category} - {-1})
    return torch.tensor(earlier, device="cpu")


def measure_templates(
    ckpt: str | Path | Series,
    *,
    out: str | Path | None = None,
    snapshots: Snapshots = "all",
    tables: int = TABLES,
    lines: int = LINES,
    device: str = "auto",
    repair: bool = False,
    force: bool = False,
    on_snapshot: Callable[[SnapshotProgress], None] | None = None,
) -> Path:
    """Accuracy and attention on random template texts at every snapshot; the same call again resumes.

    Args:
        ckpt: a series, a run folder or one of its snapshots.
        out: the zarr store; default `RUN/results/templates.zarr`. Results of an equal call are kept.
        snapshots: see `icl_fast.runs.open_series`.
        tables: how many, with seeds from 0.
        lines: of each; what is beyond the context is left out.
        device: `auto`, `cpu` or `cuda`.
        repair: whether damaged results at `out` are measured again, rather than refused.
        force: whether they are measured again where `out` holds others, which stay until these are complete.
        on_snapshot: called when a snapshot is done (and once at the start).

    Returns:
        The path of the store. Its Dataset, float64: `accuracy`, `accuracy_sem` [snapshot]; `right`, `wrong` (attention
        to labels of the same category, of others), `right_sem`, `wrong_sem` [snapshot, layer, head], as in
        `TemplateScores`, means over tables. Attributes: `chance`, the accuracy of a guess among a table's labels;
        `blind`, what `right` would be if all labels so far were attended to alike, and nothing else.

    Raises:
        OtherResults: `out` holds such a measurement of other tables, of other snapshots, ...
        DamagedResults: `out` is not as it was written.
        InputError: an argument not understood, a context too short for two lines of a category, a snapshot damaged or
            not finite, the disk full. What was done so far is kept.
    """
    tables, lines = whole_number("tables", tables, 2), whole_number("lines", lines, 2)
    on = resolve_device(device)
    series = open_series(ckpt, snapshots)
    if not series.steps:
        raise InputError(f"ckpt: {series.path} has no snapshot")
    tokenizer = series.tokenizer()
    texts = [tokenise(template_text(lines, seed), tokenizer, series.context, series.bos) for seed in range(tables)]
    if not all(has_earlier(text).any() for text in texts):
        raise InputError(
            f"ckpt: {series.path}: in {series.context} tokens of context some table has no two lines of one category"
        )
    identity = {
        "measured": "templates, 1",  # raise the number when what is measured changes
        "texts": hashlib.sha256(repr([text.targets.tolist() for text in texts]).encode()).hexdigest(),
        "bos": series.bos,
        "device": on.type,
    }

    def measure(snapshot: Snapshot[Transformer]) -> Arrays:
        scores = template_scores(snapshot.model.to(on), texts)
        return {name: values.numpy() for name, values in vars(scores).items()}

    def assemble(parts: list[Arrays], steps: list[int], seen: list[int]) -> xr.Dataset:
        return _assemble(parts, steps, seen).assign_attrs(chance=_chance(texts), blind=_blind(texts))

    store = Path(out) if out is not None else series.results / "templates.zarr"
    names = {name: dims for name, (dims, _) in _VARIABLES.items()} | {"snapshot": _SNAPSHOT, "tokens": _SNAPSHOT}
    return measure_snapshots(
        series, store, identity, measure, assemble, on_snapshot, variables=names, repair=repair, force=force
    )


def _chance(tables: Sequence[TokenisedText]) -> float:
    return float(np.mean([1 / len(_labels(table)) for table in tables]))


def _blind(tables: Sequence[TokenisedText]) -> float:
    shares = []
    for table in tables:
        read = torch.cat([torch.tensor([False]), table.categories[:-1] >= 0])  # one position after it was predicted
        alike = torch.ones(len(read), len(read), dtype=torch.float64).tril() * read
        shares.append(float(template_attention(alike / alike.sum(-1, keepdim=True).clamp_min(1), table.categories)[0]))
    return float(np.mean(shares))


def _assemble(parts: list[Arrays], steps: list[int], seen: list[int]) -> xr.Dataset:
    variables = {}
    for name in ("accuracy", "right", "wrong"):
        values = np.stack([part[name] for part in parts])  # [..., tables]
        sem = values.std(-1, ddof=1) / np.sqrt(values.shape[-1])
        for of, array in ((name, values.mean(-1)), (f"{name}_sem", sem)):
            dims, long_name = _VARIABLES[of]
            variables[of] = (dims, array, {"units": "1", "long_name": long_name, "source": _SOURCE})
    layers, heads, _ = parts[0]["right"].shape
    return xr.Dataset(
        variables,
        coords={
            "snapshot": ("snapshot", np.asarray(steps, dtype=np.int64), {"long_name": "optimizer step"}),
            "tokens": ("snapshot", np.asarray(seen, dtype=np.int64), {"long_name": "training tokens seen"}),
            "layer": np.arange(layers),
            "head": np.arange(heads),
        },
        attrs={"source": _SOURCE},
    )
