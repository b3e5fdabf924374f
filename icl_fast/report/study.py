"""What a report is about: some runs, everything measured of them, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import xarray as xr

from icl_fast.analysis import Curiosity, HeadTypes, JointPCA, PhaseChange
from icl_fast.models import TransformerConfig
from icl_fast.report.panels.panel import Panel
from icl_fast.runs import ExemplarRunConfig

Progress = Literal["tokens", "steps"]


def counted_by(losses: Iterable[xr.Dataset]) -> Progress:
    """What the training of models is counted by, on every axis of a report: by tokens seen, or by optimizer steps where
    the tokens of some model are not known (0 after step 0, as other people's checkpoints may say)."""
    known = all(((data["tokens"] > 0) | (data["snapshot"] == 0)).all() for data in losses)
    return "tokens" if known else "steps"


@dataclass(frozen=True)
class Setting:
    """What runs have in common that differ in their seed alone: what a curve of them is called, and a digest of it."""

    name: str = field(compare=False)
    digest: str


@dataclass(frozen=True)
class ModelStudy:
    """A model trained on text, one snapshot of it or many: a column of the Model Analysis Table.

    All Datasets have the same `snapshot` coord (optimizer steps, rising) and `tokens` (seen by then).

    Attributes:
        name: unique in a report.
        config: of the model.
        parameters: how many it has.
        corpus: what it is evaluated on, which of our own runs is what they were trained on.
        left_out: snapshots that could not be used: step -> why (missing, truncated, not finite, ...).
        losses: a sweep of no heads at all positions (`icl_fast.measure.sweep`): `position_loss` [snapshot, ablation,
            position], `loss` [snapshot, ablation, example], `icl_score` ..., ablation "none" alone.
        heads: what `icl_fast.measure.evaluate` wrote: `prefix_matching`, `copying`, `previous_token`, `qk_trace`,
            `ov_copying` [snapshot, layer, head]; `composition_q`, `_k`, `_v` [snapshot, writer_layer, writer_head,
            layer, head].
            Attribute `undefined`, JSON: of measures that the architecture does not define, why.
        ablations: by mode ("pattern-preserving", "full"), a sweep of all heads.
        change: the verdict on the phase change; None: too few snapshots to find one.
        interval: (start, end) steps of the phase change, found or set by hand; None: there was none.
        attributions: over (snapshot, ablation): `icl`, `icl_sem` and, where there is an interval, `before_after`,
            `before_after_sem` (see `icl_fast.analysis.attribute_heads`). Ablations have coords `layer` and `head`.
        types: of the heads at the last snapshot.
        texts: by name of a text, what the model makes of it (see `icl_fast.measure.heads.text_dataset`).
        progress: what its training is counted by; the same for all models of a report.
        notes: what should be known of it before its numbers are read, a sentence each.
        curiosities: what is odd about it (see `icl_fast.analysis.find_curiosities`).
        setting: the same for runs that differ in `training.seed` alone, which are one curve with a band where all
            models are drawn; None: it is compared with no other.
    """

    name: str
    config: TransformerConfig
    parameters: int
    corpus: str
    left_out: dict[int, str]
    losses: xr.Dataset
    heads: xr.Dataset
    ablations: dict[str, xr.Dataset]
    change: PhaseChange | None
    interval: tuple[int, int] | None
    attributions: xr.Dataset
    types: HeadTypes
    texts: dict[str, xr.Dataset]
    progress: Progress = "tokens"
    notes: tuple[str, ...] = ()
    curiosities: tuple[Curiosity, ...] = ()
    setting: Setting | None = None

    @property
    def snapshots(self) -> int:
        """How many were measured."""
        return int(self.losses.sizes["snapshot"])


@dataclass(frozen=True)
class EvaluationGroup:
    """Models that were evaluated on the same examples: neighbouring columns, and one plane of the PCA.

    Attributes:
        text: what the examples are from.
        context: tokens to predict in each.
        bos: the token that each begins with; None: none does.
        models: their names, in the order of the columns.
        pca: of all their snapshots together; None: too few.
    """

    text: str
    context: int
    bos: str | None
    models: tuple[str, ...]
    pca: JointPCA | None


@dataclass(frozen=True)
class ExemplarStudy:
    """A run on exemplars, or a population of them: a section of the page.

    All Datasets have the same `member` coord, its names.

    Attributes:
        name: unique in a report.
        config: of the run.
        of_seeds: whether its members are several and differ in nothing but the seed of their initial weights.
        left_out: snapshots that could not be used: step -> why.
        curves: of `icl_fast.measure.exemplar.curves.training_curves`.
        strategies: what `icl_fast.measure.measure_strategies` wrote, of all snapshots, as the run was trained.
        ablations: what `icl_fast.measure.measure_ablations` wrote: every head, and all of every layer together (`0.*`),
            removed from every snapshot, in all modes; None: the model has no attention.
        wiring: of `icl_fast.measure.exemplar.measured_run.measure_wiring`, last snapshot; None: the model has one
            layer, or no attention.
    """

    name: str
    config: ExemplarRunConfig
    of_seeds: bool
    left_out: dict[int, str]
    curves: xr.Dataset
    strategies: xr.Dataset
    ablations: xr.Dataset | None
    wiring: xr.Dataset | None

    @property
    def members(self) -> list[str]:
        """Their names, in order."""
        return [str(name) for name in self.strategies["member"].values]

    @property
    def settings(self) -> dict[str, list[int]]:
        """The numbers of the members that differ in seeds alone, by what they have in common."""
        found: dict[str, list[int]] = {}
        for number, name in enumerate(self.curves["setting"].values):
            found.setdefault(str(name), []).append(number)
        return found


@dataclass(frozen=True)
class Claim:
    """A row of the claims table: what a paper claims, and what was found here.

    Attributes:
        rule: that decides, fixed beforehand; empty: none was written down.
        panel: the figure behind the verdict.
    """

    claim: str
    source: str
    verdict: str
    evidence: str
    rule: str = ""
    panel: Panel | None = None


@dataclass(frozen=True)
class Study:
    """All runs of a report.

    Attributes:
        title: of the report.
        models: those trained on text by name, in the order of the columns.
        groups: of the models, in the order of the columns; each model is in one.
        claims: empty: there is no claims table.
        exemplars: the runs on exemplars by name, in the order of their sections.
    """

    title: str
    models: dict[str, ModelStudy]
    groups: tuple[EvaluationGroup, ...]
    claims: tuple[Claim, ...] = ()
    exemplars: dict[str, ExemplarStudy] = field(default_factory=dict)

    def group_of(self, model: str) -> EvaluationGroup:
        """The group that a model is in."""
        return next(group for group in self.groups if model in group.models)
