"""The page's attention view alone, for notebooks: any heads on texts, side by side over snapshots or models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from icl_fast.errors import InputError
from icl_fast.report.page.payload import Blob
from icl_fast.report.page.write import html
from icl_fast.report.panels.builders import PROGRESS
from icl_fast.report.panels.texts import STEP, model_texts
from icl_fast.report.study import Progress


def attention_text(
    read: Mapping[str, Mapping[str, xr.Dataset]],
    views: Sequence[tuple[str, int]],
    *,
    heads: Mapping[str, xr.Dataset] | None = None,
    progress: Progress = "tokens",
    title: str = "Attention",
) -> str:
    """HTML of one file, offline, for a page of its own or the `srcdoc` of an iframe.

    Args:
        read: by model, by name of a text, what the model makes of it (`icl_fast.measure.heads.text_dataset`), with the
            heads and snapshots that can be chosen.
        views: (model, step) of each view, from left to right: where its slider begins, at the snapshot read nearest to
            the step.
        heads: by model, scores of the heads (`icl_fast.measure.evaluate`), which are shown where they are known.
        progress: what training is counted by.
        title: of the page.

    Raises:
        InputError: a view of a model that has read no text, or values that are not finite.
    """
    if unread := [name for name, _ in views if not read.get(name)]:
        raise InputError(f"views: {unread[0]} has read no text; there are {', '.join(read) or 'none'}")
    blob = Blob()
    texts: list[dict[str, Any]] = []
    models = [
        model_texts(name, of_model, (heads or {}).get(name, xr.Dataset()), None, progress, texts, blob.add)
        for name, of_model in read.items()
    ]
    data = {
        "texts": {"step": STEP, "models": models, "texts": texts},
        "progress": {"unit": progress, "label": PROGRESS[progress]},
        "views": [{"model": name, "step": int(step)} for name, step in views],
    }
    return html("attention_page", title, data, blob)
