"""What models make of texts, for the page: losses by token, attention and logit attribution by head, packed small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from icl_fast.analysis.arrays import Floats, finite
from icl_fast.measure.heads import template_attention
from icl_fast.report.study import Progress, Study

STEP = 0.01  # of what is kept of attention, logits and losses over training; those at viewed snapshots are float32
LARGEST_SNAPSHOTS = 101  # of losses over training: noise hardly compresses, and a page does not show more
MOST_VIEWED = 8  # snapshots of a model at which heads are shown
LARGEST_VIEWS = 48 * 2**20  # bytes of attention and logits of all models and texts: about 10 MB as they are packed

Add = Callable[[NDArray[Any]], int]
SCORES = {"prefix": "prefix_matching", "copying": "copying"}


def texts_payload(study: Study, add: Add) -> dict[str, Any]:
    """The data of the page's views of texts: token losses, attention, and the text view of a head's sheet.

    Args:
        study: the models with their texts.
        add: keeps an array for the page and returns what the page finds it by (`Blob.add`).

    Returns:
        `texts`, each once (models with another tokenizer have their own), and `models`, as `model_texts` gives them, at
        no more than 8 snapshots: as many as 48 MiB hold of all models and texts, and the first trained, the last and
        both ends of the interval in any case.

    Raises:
        InputError: a text with other dims than `ModelStudy.texts` says, or with values that are not finite.
    """
    of_one_view = sum(text["pattern"][0].size for model in study.models.values() for text in model.texts.values())
    most = min(MOST_VIEWED, LARGEST_VIEWS // max(1, of_one_view))  # a lower triangle of two arrays: a square of bytes
    texts: list[dict[str, Any]] = []
    models = []
    for model in study.models.values():
        viewed = {name: _thinned(text, model.interval, most) for name, text in model.texts.items()}
        models.append(model_texts(model.name, viewed, model.heads, model.interval, model.progress, texts, add))
    return {"step": STEP, "models": models, "texts": texts}


def model_texts(
    name: str,
    read: Mapping[str, xr.Dataset],
    heads: xr.Dataset,
    interval: tuple[int, int] | None,
    progress: Progress,
    texts: list[dict[str, Any]],
    add: Add,
) -> dict[str, Any]:
    """What the page is given of the texts that a model has read, arrays as references.

    Attention and logit attribution are, for each snapshot viewed, multiples of 0.01, lower triangles row by row [shown
    head, T*(T+1)/2]; signed arrays are zigzag coded (0, -1, 1, -2 are 0, 1, 2, 3). Losses over training are multiples
    of 0.01 nats, differences from one snapshot kept to the next, at no more than 101 snapshots, the first and the last
    and both ends of the interval among them; those at the snapshots viewed are float32.

    Args:
        name: of the model.
        read: by name of a text, its `icl_fast.measure.heads.text_dataset`, all of the same heads and snapshots.
        heads: scores `[snapshot, layer, head]` of which `prefix_matching` and `copying` are shown, at the snapshots
            viewed and others; those that are not there are not known.
        interval: (start, end) steps of the phase change, both viewed; None: there was none.
        progress: what the training is counted by.
        texts: those of the page so far; what is new is put there.
        add: as in `texts_payload`.

    Raises:
        InputError: as `texts_payload`.
    """
    found: dict[str, Any] = {"name": name, "texts": [], "shown": []}
    if not read:
        return found
    first = next(iter(read.values()))
    steps, viewed = first["snapshot"].values, first["viewed"].values
    seen = steps if progress == "steps" else first["tokens"].values
    before, after = (int(steps[at]) for at in compared(steps, interval))
    kept = _kept(len(steps), *np.searchsorted(steps, (before, after)))
    counted = [heads.sizes[dim] if dim in heads.sizes else int(first[dim].max()) + 1 for dim in ("layer", "head")]

    def score(variable: str) -> Floats:
        if variable not in heads:
            return np.full((len(viewed), *counted), np.nan)
        of_viewed = heads[variable].reindex(snapshot=viewed)
        return np.asarray(of_viewed.transpose("snapshot", "layer", "head").values, dtype=np.float64)

    return {
        **found,
        "changed": interval is not None,
        "snapshots": len(steps),
        "seen": add(seen[kept]),
        "viewed": [{"step": int(step), "seen": float(seen[np.searchsorted(steps, step)])} for step in viewed],
        "before": int(np.searchsorted(viewed, before)),
        "after": int(np.searchsorted(viewed, after)),
        "shown": [list(map(int, head)) for head in zip(first["layer"].values, first["head"].values, strict=True)],
        **{key: add(score(variable)) for key, variable in SCORES.items()},
        "texts": [_text(f"{name}, text {text}", of_text, kept, texts, add) for text, of_text in read.items()],
    }


def viewed_snapshots(steps: Sequence[int], interval: tuple[int, int] | None, most: int) -> list[int]:
    """Steps of the snapshots at which heads are shown on a text: the two that are compared, the first trained one and
    the last, and then, one after the other, that which lies farthest from those chosen along ln(step)."""
    before, after = compared(steps, interval)
    trained = [int(step) for step in steps if step > 0]
    chosen = {int(steps[before]), int(steps[after]), *trained[:1], int(steps[-1])}
    while len(chosen) < min(most, len(trained)):
        logs = np.log([step for step in chosen if step > 0])
        chosen.add(max(set(trained) - chosen, key=lambda step: (np.abs(np.log(step) - logs).min(), -step)))
    return sorted(chosen)


def _thinned(text: xr.Dataset, interval: tuple[int, int] | None, most: int) -> xr.Dataset:
    return text.sel(viewed=viewed_snapshots(text["viewed"].values.tolist(), interval, most))


def _text(name: str, text: xr.Dataset, kept: NDArray[np.intp], texts: list[dict[str, Any]], add: Add) -> dict[str, Any]:
    losses = finite(f"{name}: loss", text["loss"], ("snapshot", "position"))
    dims = ("viewed", "shown", "position", "source")
    pattern = finite(f"{name}: pattern", text["pattern"], dims)
    logits = finite(f"{name}: logits", text["logits"], dims)
    lower = np.tril_indices(pattern.shape[-1])
    over_training = np.diff(_steps(losses[kept].T), prepend=0)  # [position, snapshot]
    inputs, targets = (list(map(str, text[which].values)) for which in ("input", "target"))
    category = text["category"].values if "category" in text.coords else np.full(len(targets), -1)
    described = {
        **{key: str(text.attrs.get(key, "")) for key in ("name", "title", "kind", "source")},
        "start": inputs[0],
        "target": targets,
        "continues": "".join(kind[0] for kind in continuations(inputs, targets)),  # r(epeated), c(hanged), n(ew)
        "labels": [int(value) for value in np.flatnonzero(category >= 0)],
        "left_out": int(text.attrs.get("left_out_tokens", 0)),
    }
    if described not in texts:
        texts.append(described)
    return {
        "text": texts.index(described),
        "viewed": add(losses[np.searchsorted(text["snapshot"].values, text["viewed"].values)]),
        "losses": add(_zigzag(over_training)),
        "pattern": [add(_steps(of_one[..., lower[0], lower[1]])) for of_one in pattern],
        "logits": [add(_zigzag(_steps(of_one[..., lower[0], lower[1]]))) for of_one in logits],
        "direct": add(_zigzag(_steps(logits.sum(-1)))),
        "largest": _largest(logits),
        "largest_label": _largest(logits[..., category >= 0, :]),
        "labels": _labels(pattern, category, add),
    }


def _largest(logits: Floats) -> float:
    """What full colour of logits means, on all heads and snapshots alike."""
    return float(np.rint(np.abs(logits).max(initial=0) / STEP)) * STEP or 1.0


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
