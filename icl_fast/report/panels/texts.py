"""What models make of texts, for the page: losses by token, attention and logit attribution by head, packed small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from icl_fast.analysis.arrays import Floats, finite
from icl_fast.measure.heads import template_attention
from icl_fast.report.panels.builders import seen
from icl_fast.report.study import ModelStudy, Study

STEP = 0.01  # of what is kept of attention, logits and losses over training; before and after are float32
LARGEST_SNAPSHOTS = 101  # of losses over training: noise hardly compresses, and a page does not show more

Add = Callable[[NDArray[Any]], int]


def texts_payload(study: Study, add: Add) -> dict[str, Any]:
    """The data of the page's passage view, its abstract-head examples and the text view of a head's sheet.

    Attention and logit attribution are multiples of 0.01, lower triangles row by row [shown head, T*(T+1)/2]; signed
    arrays are zigzag coded (0, -1, 1, -2 are 0, 1, 2, 3). Losses over training are multiples of 0.01 nats, differences
    from one snapshot kept to the next, at no more than 101 snapshots, the first and the last and both ends of the
    interval among them.

    Args:
        study: the models with their texts.
        add: keeps an array for the page and returns what the page finds it by (`Blob.add`).

    Returns:
        `texts`, each once (models with another tokenizer have their own), and `models`, with arrays as references.

    Raises:
        InputError: a text with other dims than `ModelStudy.texts` says, or with values that are not finite.
    """
    texts: list[dict[str, Any]] = []
    return {
        "step": STEP,
        "models": [_model(model, texts, add) for model in study.models.values()],
        "texts": texts,
    }


def _model(model: ModelStudy, texts: list[dict[str, Any]], add: Add) -> dict[str, Any]:
    steps = model.losses["snapshot"].values
    progress = seen(model)
    before, after = compared(steps, model.interval)
    kept = _kept(len(steps), before, after)
    heads = (model.config.layers, model.config.heads)

    def last(score: str) -> NDArray[Any]:
        if score not in model.heads:
            return np.full(heads, np.nan)
        return model.heads[score].isel(snapshot=-1).transpose("layer", "head").values

    return {
        "name": model.name,
        "changed": model.interval is not None,
        "before": {"step": int(steps[before]), "seen": float(progress[before])},
        "after": {"step": int(steps[after]), "seen": float(progress[after])},
        "snapshots": len(steps),
        "seen": add(progress[kept]),
        "shown": _shown(model),
        "prefix": add(last("prefix_matching")),
        "copying": add(last("copying")),
        "texts": [
            _text(f"{model.name}, text {name}", text, (before, after), kept, texts, add)
            for name, text in model.texts.items()
        ],
    }


def _shown(model: ModelStudy) -> list[list[int]]:
    """[layer, head] of the heads whose attention on the texts was kept, in order."""
    for text in model.texts.values():
        return [list(map(int, head)) for head in zip(text["layer"].values, text["head"].values, strict=True)]
    return []


def _text(
    name: str, text: xr.Dataset, ends: tuple[int, int], kept: NDArray[np.intp], texts: list[dict[str, Any]], add: Add
) -> dict[str, Any]:
    losses = finite(f"{name}: loss", text["loss"], ("snapshot", "position"))
    dims = ("shown", "position", "source")
    pattern = finite(f"{name}: pattern", text["pattern"], dims)
    logits = finite(f"{name}: logits", text["logits"], dims)
    lower = np.tril_indices(pattern.shape[-1])
    before, after = losses[ends[0]], losses[ends[1]]
    over_training = np.diff(_steps(losses[kept].T), prepend=0)  # [position, snapshot]
    inputs, targets = (list(map(str, text[which].values)) for which in ("input", "target"))
    category = text["category"].values if "category" in text.coords else np.full(len(targets), -1)
    groups = continuations(inputs, targets)
    described = {
        **{key: str(text.attrs.get(key, "")) for key in ("name", "title", "kind", "source")},
        "start": inputs[0],
        "target": targets,
        "continues": "".join(kind[0] for kind in groups),  # r(epeated), c(hanged), n(ew)
        "labels": [int(value) for value in np.flatnonzero(category >= 0)],
        "left_out": int(text.attrs.get("left_out_tokens", 0)),
    }
    if described not in texts:
        texts.append(described)
    return {
        "text": texts.index(described),
        "before": add(before),
        "after": add(after),
        "losses": add(_zigzag(over_training)),
        "pattern": add(_steps(pattern[..., lower[0], lower[1]])),
        "logits": add(_zigzag(_steps(logits[..., lower[0], lower[1]]))),
        "direct": add(_zigzag(_steps(logits.sum(-1)))),
        "groups": {
            kind: {"n": int(where.sum()), "mean": float((after - before)[where].mean()) if where.any() else None}
            for kind in ("repeated", "changed", "new")
            for where in [groups == kind]
        },
        "labels": _labels(pattern, category, add),
    }


def compared(steps: Sequence[int] | NDArray[Any], interval: tuple[int, int] | None) -> tuple[int, int]:
    """Indices of the snapshots before and after: the ends of the interval, or the first trained and the last one."""
    rising = list(map(int, steps))
    if interval is not None:
        return rising.index(interval[0]), rising.index(interval[1])
    return min(int(rising[0] == 0), len(rising) - 1), len(rising) - 1


def continuations(inputs: Sequence[str], targets: Sequence[str]) -> NDArray[np.str_]:
    """How each token goes on from the one before it, in the light of the text so far [position].

    `repeated`: the token before stood earlier and was followed by this one; `changed`: it stood earlier, but was never
    followed by this one; `new`: it did not stand earlier (Olsson et al. 2022, "Looking at the Phase Change More
    Closely").
    """
    seen: dict[str, set[str]] = {}
    kinds = []
    for before, token in zip(inputs, targets, strict=True):
        followers = seen.setdefault(before, set())
        kinds.append("repeated" if token in followers else "changed" if followers else "new")
        followers.add(token)
    return np.array(kinds)


def _labels(pattern: Floats, category: NDArray[Any], add: Add) -> dict[str, Any] | None:
    """Attention on labels of the right and of wrong categories where a label is predicted, and what is had blindly."""
    categories = torch.from_numpy(category.astype(np.int64))
    right, wrong = template_attention(torch.from_numpy(pattern), categories)
    read = np.concatenate([[-1], category[:-1]]) >= 0  # a label is read one position after it was predicted
    alike = np.tri(len(category)) * read  # every earlier label alike
    alike /= np.maximum(alike.sum(-1, keepdims=True), 1)
    blind = float(template_attention(torch.from_numpy(alike), categories)[0])
    return None if np.isnan(blind) else {"right": add(right.numpy()), "wrong": add(wrong.numpy()), "blind": blind}


def _kept(snapshots: int, *also: int) -> NDArray[np.intp]:
    even = np.linspace(0, snapshots - 1, min(snapshots, LARGEST_SNAPSHOTS - len(also))).round().astype(np.intp)
    return np.union1d(even, also)


def _steps(values: Floats) -> NDArray[np.int64]:
    return np.rint(values / STEP).astype(np.int64)


def _zigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers of small size as small ones that are not negative: the sign then costs no byte of its own."""
    return np.where(values < 0, -2 * values - 1, 2 * values)
