"""What heads attend to on a text, in a notebook: the page's own view, offline, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from icl_fast.arguments import shown, whole_numbers
from icl_fast.data import Text
from icl_fast.errors import InputError
from icl_fast.files import atomic_write
from icl_fast.measure.ablation.names import parse_heads
from icl_fast.measure.heads import (
    copying_scores,
    head_views,
    prefix_matching_scores,
    text_dataset,
    token_losses,
    tokenise,
)
from icl_fast.measure.loaded import LoadedModel, load
from icl_fast.models import Snapshot
from icl_fast.report.page.attention import attention_text
from icl_fast.report.panels.texts import MOST_VIEWED, viewed_snapshots
from icl_fast.report.study import counted_by
from icl_fast.runs import Run, Series

MOST_NUMBERS = 2**24  # of attention, of all heads and snapshots of a model: a page of some 10 MB
_HEIGHT = 1100  # pixels: all of a view in a notebook of usual width

Source = LoadedModel | Series | Run | str | Path


@dataclass(frozen=True)
class AttentionView:
    """A page with the attention of heads on a text; a notebook shows it, `save` writes it to a file.

    Attributes:
        html: the whole page, which asks nothing of any network.
        height: of what a notebook shows, pixels.
    """

    html: str
    height: int = _HEIGHT

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.html)}" title="Attention" '
            f'style="width: 100%; height: {self.height}px; border: 0; resize: vertical"></iframe>'
        )

    def __repr__(self) -> str:
        return f"AttentionView of {len(self.html):,} bytes: shown in a notebook; or .save('attention.html')"

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.html, encoding="utf-8", errors="replace")
        return Path(path)


def attention(
    models: Source | Sequence[Source],
    text: str,
    *,
    heads: str | Sequence[str] = "all",
    steps: Sequence[int] | int | None = None,
    height: int = _HEIGHT,
) -> AttentionView:
    """What heads attend to on a text, and what that adds to the logits of what comes next, to be pointed at.

        icl_fast.attention("runs/two_layer", "the cat sat. the cat", steps=[0, 150, 1000])  # snapshots side by side
        icl_fast.attention(["runs/one_layer", "runs/two_layer"], text)  # models, each with a slider over training
        icl_fast.attention(loaded, text, heads="1.*")

    Args:
        models: a run, a model of `icl_fast.load`, a series, or whatever else `load` takes; or several, side by side.
        text: which is read up to each model's context.
        heads: which can be chosen: `all`, or such as `1.*,0.3`.
        steps: snapshots, a view of each beside the others. By default one view of each model, which begins at its last
            snapshot and has a slider over as many as 8; of what `load` gave the snapshot that was loaded.
        height: of what a notebook shows, pixels.

    Returns:
        What a notebook shows.

    Raises:
        InputError: no such model, one without a tokenizer or not on text, a head or a snapshot that it does not have,
            an empty text, or more heads and tokens than a page can show.
    """
    given = list(models) if isinstance(models, (list, tuple)) else [models]
    if not given:
        raise InputError("models: name at least one")
    if not isinstance(text, str):
        raise InputError(f"text: must be text, got {shown(text)}")
    wanted = None if steps is None else whole_numbers("steps", [steps] if np.ndim(steps) == 0 else steps)
    if wanted == []:
        raise InputError("steps: name at least one, or leave it out")
    read: dict[str, dict[str, xr.Dataset]] = {}
    scores: dict[str, xr.Dataset] = {}
    views: list[tuple[str, int]] = []
    for source in given:
        loaded = source if isinstance(source, LoadedModel) else load(source)  # type: ignore[arg-type]
        name = _name(loaded, read)
        snapshots = _snapshots(loaded, wanted, alone=isinstance(source, LoadedModel))
        reading, scores[name] = _read(loaded, snapshots, text, heads)
        read[name] = {"text": reading}
        views += [(name, step) for step in ([snapshots[-1]] if wanted is None else wanted)]
    progress = counted_by(of_model["text"] for of_model in read.values())
    return AttentionView(attention_text(read, views, heads=scores, progress=progress), height)


def _name(loaded: LoadedModel, taken: Any) -> str:
    name = loaded.path.name if loaded.series is None else loaded.series.name
    for other in (name, f"{name}, step {loaded.step}", str(loaded.path)):
        if other not in taken:
            return other
    raise InputError(f"models: {loaded.path} is given more than once; once is enough")


def _snapshots(loaded: LoadedModel, wanted: list[int] | None, *, alone: bool) -> list[int]:
    """Steps of those that are read, rising."""
    if wanted is None:
        return (
            [loaded.step]
            if alone or loaded.series is None
            else viewed_snapshots(loaded.series.steps, None, MOST_VIEWED)
        )
    there = [loaded.step] if loaded.series is None else loaded.series.steps
    if missing := [step for step in wanted if step not in there]:
        raise InputError(f"steps: no snapshot at {missing[0]} of {loaded.path}; there are {', '.join(map(str, there))}")
    return sorted(set(wanted))


def _read(
    loaded: LoadedModel, steps: list[int], text: str, heads: str | Sequence[str]
) -> tuple[xr.Dataset, xr.Dataset]:
    """What the snapshots make of the text, and the scores of their heads, as `evaluate` measures them."""
    if loaded.tokenizer is None or loaded.series is None:
        raise InputError(f"models: {loaded.path} has no tokenizer, so it reads no text")
    config = loaded.model.config
    chosen = parse_heads(heads, config, "heads")
    title = " ".join(text.split())
    of_text = Text("text", title if len(title) <= 40 else f"{title[:40]}…", "passage", text, "")
    tokenised = tokenise(of_text, loaded.tokenizer, config.context, loaded.series.bos)
    numbers = len(steps) * len(chosen) * len(tokenised.inputs) ** 2
    if numbers > MOST_NUMBERS:
        raise InputError(
            f"heads: {len(chosen)} of them, at {len(steps)} snapshots, on {len(tokenised.inputs)} tokens are more than "
            "a page can show; name fewer, such as 1.*, or give fewer steps or a shorter text"
        )
    ids, bos = torch.from_numpy(loaded.series.ids), loaded.series.bos
    seen, losses, views, scores = [], [], [], []
    for step in steps:
        snapshot = Snapshot(loaded.model, step, loaded.seen) if step == loaded.step else loaded.series.load(step)
        seen.append(snapshot.seen)
        losses.append(token_losses(snapshot.model, tokenised))
        views.append(head_views(snapshot.model, tokenised, chosen))
        scores.append(
            (prefix_matching_scores(snapshot.model, bos=bos, ids=ids), copying_scores(snapshot.model, ids=ids))
        )
    pattern, logits = (torch.stack(of_all) for of_all in zip(*views, strict=True))
    reading = text_dataset(tokenised, steps, seen, torch.stack(losses), chosen, steps, pattern, logits)
    dims = ("snapshot", "layer", "head")
    return reading, xr.Dataset(
        {
            name: (dims, torch.stack(of_all).double().cpu().numpy())
            for name, of_all in zip(("prefix_matching", "copying"), zip(*scores, strict=True), strict=True)
        },
        {"snapshot": steps},
    )
