"""A model as one works with it in a notebook: with tokenizer, evaluation set and results, and runs over text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor

from icl_fast.arguments import shown, whole_number
from icl_fast.data import EvaluationSet
from icl_fast.errors import InputError
from icl_fast.measure.heads.reading import token_pieces
from icl_fast.measure.of_model import as_stated
from icl_fast.measure.store import open_results
from icl_fast.memory import check_fits
from icl_fast.models import ExemplarModel, Intervention, Snapshot, Transformer, TransformerConfig, load_snapshot
from icl_fast.models.ids import as_ids
from icl_fast.models.interventions import HEAD_SITES, named_sites
from icl_fast.notebook import some, table
from icl_fast.runs import Run, Series, open_series
from icl_fast.runs.open_series import is_foreign_series
from icl_fast.runs.run_series import run_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Step = int | Literal["last", "first"]
Record = str | Sequence[str]


def load(ckpt: str | Path | Run | Series, step: Step = "last") -> LoadedModel:
    """A snapshot of anybody's training, with all that goes with it.

        loaded = icl_fast.load("runs/two_layer")
        out = loaded.run("the cat sat on the mat. the cat", record="*.pattern")
        out.losses, out["1.pattern"][0, 3], loaded.results["heads"]["prefix_matching"]

    Args:
        ckpt: a run folder, a snapshot file, or whatever else `open_series` takes: a folder with other people's model or
            series, `hf:ORG/NAME`, a GGUF file.
        step: of the snapshot: a number of optimizer steps, `last` or `first`.

    Raises:
        InputError: as `open_series`, no snapshot at that step, or one that is damaged.
    """
    if isinstance(ckpt, Run):
        ckpt = ckpt.path
    if not isinstance(ckpt, Series) and _is_alone(Path(ckpt)):
        snapshot = load_snapshot(ckpt)
        _chosen([snapshot.step], step)
        return LoadedModel(snapshot, None, Path(ckpt))
    series = open_series(ckpt)
    last = isinstance(step, str) and step == "last"  # of which a series knows whether it is gone
    at = series.chosen("last").steps[0] if last else _chosen(series.steps, step)
    return LoadedModel(series.load(at), series, series.path)


class LoadedModel:
    """A model, and what goes with it; `load` makes one.

    Attributes:
        model: a `Transformer`, or of a run on exemplars an `ExemplarModel` of all its members.
        step: optimizer steps made.
        seen: training tokens or sequences by then.
        series: the snapshots that it is one of; None: of a snapshot file that is in no run folder.
        path: where it is from.
    """

    def __init__(self, snapshot: Snapshot[Any], series: Series | None, path: Path) -> None:
        self.model: Any = snapshot.model
        self.step, self.seen, self.series, self.path = snapshot.step, snapshot.seen, series, path

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        config = self.model.config
        facts = {
            "from": self.path,
            "step": f"{self.step:,}",
            "trained on": f"{self.seen:,} {'sequences' if isinstance(self.model, ExemplarModel) else 'tokens'}",
            "model": f"{type(self.model).__name__}, {config.layers} layers of {config.heads} heads, "
            f"width {config.width}",
            "parameters": f"{sum(weights.numel() for weights in self.model.parameters()):,}",
            "snapshots": None if self.series is None else some(self.series.steps),
            "reads text": "yes" if self.series is not None and self.series.reads_text else "no: it has no tokenizer",
            "results": ", ".join(self.results) or None,
        }
        return table("LoadedModel", facts)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None where there is none, as of a run on exemplars.

        Raises:
            InputError: that of a run is missing or damaged.
        """
        return self.series.tokenizer() if self.series is not None and self.series.reads_text else None

    @cached_property
    def evaluation(self) -> EvaluationSet:
        """What the snapshots of its series are evaluated on: examples of the text that was held out.

        Raises:
            InputError: as `Series.evaluation_set`, or there is no series.
        """
        if self.series is None:
            raise InputError(f"evaluation: {self.path} is in no run folder, which would say on what; load that")
        return self.series.evaluation_set()

    @property
    def results(self) -> StoredResults:
        """What was measured of its series: name of a store -> Dataset, opened when it is asked for."""
        return StoredResults(None if self.series is None else self.series.results)

    def encode(self, text: str) -> Tensor:
        """Ids [T] int64 of a text as the model reads it: the token that begins a text, where there is one, comes first.

        Raises:
            InputError: no tokenizer.
        """
        return torch.tensor([*self._begin, *self._encoding(text).ids])

    def run(self, text: Any, record: Record = (), interventions: Sequence[Intervention] = ()) -> ModelOutput:
        """Run the model over a text; no gradients are kept.

        Args:
            text: a text, which is read as `encode` gives it; or token ids [T] or [B,T], integers of any kind, which are
                read as they are.
            record: sites to keep: `all`, names or patterns, such as `*.pattern` (see `icl_fast.models.interventions`).
            interventions: what is forced at which site. What is recorded in one run fits another of as many tokens:
                `Intervention.set("1.z", out["1.z"])`.

        Raises:
            InputError: no tokenizer for a text; ids that the model does not have, or more than it has positions; an
                unknown site; more to record than fits the memory. A model on exemplars.
        """
        model = self.model
        if isinstance(model, ExemplarModel):
            raise InputError(
                f"text: {self.path} was trained on exemplars and reads none; call loaded.model(exemplars, labels, "
                "record=[...]), whose help says what these are"
            )
        ids, tokens = self._read(text)
        if ids.shape[1] == 0:
            raise InputError("text: is empty; give one with some text")
        if model.position is not None and ids.shape[1] > model.config.context:
            raise InputError(
                f"text: its {ids.shape[1]} tokens are more than the {model.config.context} positions of the model; "
                "give a shorter one"
            )
        _check_memory(record, model, *ids.shape)
        with as_stated():
            logits, sites = model(ids, record=record, interventions=interventions)
            wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
            losses = F.cross_entropy(wide.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return ModelOutput(tokens, ids, logits, losses.view(len(ids), ids.shape[1] - 1), sites)

    @property
    def _begin(self) -> list[int]:
        bos = None if self.series is None else self.series.bos
        return [] if bos is None else [bos]

    def _encoding(self, text: Any) -> Any:
        if not isinstance(text, str):
            raise InputError(f"text: must be text, got {shown(text)}")
        if self.tokenizer is None:
            raise InputError(f"text: {self.path} has no tokenizer, so its model reads no text; give token ids")
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _read(self, text: Any) -> tuple[Tensor, list[list[str]]]:
        """Ids [B,T] on the model's device, and each as it is written."""
        model = self.model
        if not isinstance(text, str):
            ids = as_ids("text", text, model.config.vocab, "B,T" if _is_nested(text) else "T", device=model.device)
            ids = ids if ids.ndim == 2 else ids[None]
            return ids.to(model.device), [[self._written(id) for id in row] for row in ids.tolist()]
        encoding = self._encoding(text)
        pieces = token_pieces(text, encoding) or [self._written(id) for id in encoding.ids]
        ids = as_ids("text", [*self._begin, *encoding.ids], model.config.vocab, "T", device=model.device)
        return ids[None], [[*map(self._written, self._begin), *pieces]]

    def _written(self, id: int) -> str:
        if self.tokenizer is None:
            return str(id)
        text: str = self.tokenizer.decode([id], skip_special_tokens=False)
        return text


@dataclass(frozen=True, eq=False, repr=False)
class ModelOutput(Mapping[str, Tensor]):
    """What a model made of B sequences of T tokens, one of them where a text was given; a mapping of recorded sites.

    Shapes are those of `icl_fast.models.interventions`, with the sequences first also where there is one:
    `out["1.pattern"]` is [B,H,T,T].

    Attributes:
        tokens: of each sequence its tokens, as they are written: B lists of T.
        ids: [B,T] int64.
        logits: [B,T,V] of the token after each.
        losses: [B,T-1] nats; the first is that of the second token.
        sites: name -> tensor.
    """

    tokens: list[list[str]]
    ids: Tensor
    logits: Tensor
    losses: Tensor
    sites: dict[str, Tensor]

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.sites:
            raise KeyError(f"{site} was not recorded; recorded: {', '.join(self.sites) or 'nothing'}")
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        recorded = ", ".join(f"{site} {list(value.shape)}" for site, value in self.sites.items())
        return f"{self.ids.shape[0]} x {self.ids.shape[1]} tokens, recorded: {recorded or 'nothing'}"


class StoredResults(Mapping[str, xr.Dataset]):
    """The stores in a results folder by their names in it, such as `heads` or `report/losses`; each opened anew."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> xr.Dataset:
        if name not in (names := list(self)):
            raise KeyError(f"{name} was not measured; there are: {', '.join(names) or 'no results'}")
        assert self.folder is not None
        return open_results(self.folder / f"{name}.zarr")

    def __iter__(self) -> Iterator[str]:
        if self.folder is not None:
            yield from (path.relative_to(self.folder).with_suffix("").as_posix() for path in _stores(self.folder))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __repr__(self) -> str:
        return f"results in {self.folder}: {', '.join(self) or 'none'}"


def _stores(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix == ".zarr":
            yield path
        elif path.is_dir() and not path.name.startswith("."):
            yield from _stores(path)


def _is_alone(path: Path) -> bool:
    """Whether it is a snapshot file outside of a run folder."""
    return os.path.isfile(path) and not run_of(path).exists and not is_foreign_series(path)


def _is_nested(values: Any) -> bool:
    """Whether these are several sequences."""
    if hasattr(values, "ndim"):
        return bool(values.ndim > 1)
    return isinstance(values, Sequence) and np.ndim(next(iter(values), 0)) > 0


def _chosen(steps: Sequence[int], step: Any) -> int:
    if isinstance(step, str):
        if step not in ("last", "first"):
            raise InputError(f"step: must be a number of steps, last or first; got {shown(step)}")
        return steps[-1 if step == "last" else 0]
    at = whole_number("step", step)
    if at not in steps:
        raise InputError(f"step: no snapshot at {at}; there are {', '.join(map(str, steps))}")
    return at


def _check_memory(record: Record, model: Transformer, count: int, length: int) -> None:
    """Refuse to record more than this machine holds."""
    config = model.config
    numbers = sum(_numbers(name.rpartition(".")[2], config, length) for name in named_sites(record, config))
    check_fits(model.dtype.itemsize * count * numbers, f"record: {shown(record)} of {count * length} tokens")


def _numbers(local: str, config: TransformerConfig, length: int) -> int:
    """In one sequence at a site."""
    if local in ("scores", "pattern"):
        return config.heads * length * length
    width = config.d_head if local in HEAD_SITES - {"head_out"} else config.width
    return length * (config.vocab if local == "logits" else width * (config.heads if local in HEAD_SITES else 1))
