"""Measurements of a run folder of the exemplar world: its snapshots, exemplars, evaluators and clamps put together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from icl_fast.arguments import different_names, whole_number
from icl_fast.data.evaluation_sequences import EvaluationSequences
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.answers import METRICS
from icl_fast.measure.exemplar.measured_model import MeasuredModel
from icl_fast.measure.exemplar.progress import Transplant, strategies_dataset, strategy_arrays, strategy_variables
from icl_fast.measure.exemplar.wiring import WIRING_MAP, previous_token_heads, remove_sets, wiring_map
from icl_fast.measure.over_snapshots import SnapshotProgress, measure_snapshots
from icl_fast.measure.store import Arrays
from icl_fast.memory import check_fits
from icl_fast.models import ClampName, Clamps, ExemplarModel, Snapshot, stack_clamps
from icl_fast.models.grafts import part_parameters
from icl_fast.runs import Series, Snapshots, open_series, resolve_device
from icl_fast.scale import HERE, Runner

AS_TRAINED = "as trained"
PREVIOUS_TOKEN, REST, ALL = "previous token", "rest", "all"

_WITHOUT = ("set", "preserve", "member")
WIRING_VARIABLES: dict[str, tuple[str, ...]] = {  # of `measure_wiring`: name -> dims
    **WIRING_MAP,
    **{f"{metric}_without": _WITHOUT for metric in METRICS},
    **{name: (name,) for name in ("set", "member")},
    **{"previous_token": ("writer", "member"), "is_previous_token": ("writer", "member")},
    "induction": ("reader", "member"),
}


@dataclass(frozen=True)
class MeasuredRun:
    """A run and what its snapshots are measured on, on one device.

    Attributes:
        features: `[K,E,F]`.
        evaluators: with fields `[P,N,...]`.
        clamps: what its members were trained with.
        every: whether these are all sequences that the evaluators could draw.
    """

    series: Series
    features: Tensor
    evaluators: list[EvaluationSequences]
    clamps: Clamps
    device: torch.device
    every: bool = False

    def snapshot(self, step: int) -> Snapshot[ExemplarModel]:
        """The one at a step.

        Raises:
            InputError: as `Series.load`.
        """
        snapshot = self.series.load(step)
        return replace(snapshot, model=snapshot.model.to(self.device))

    def on_each(self, model: ExemplarModel, clamps: Clamps | None = None) -> list[MeasuredModel]:
        """A snapshot's model on each evaluator, in order, under what it was trained with or other clamps."""
        forced = self.clamps if clamps is None else clamps
        return MeasuredModel.on_each(model, self.features, self.evaluators, forced)

    @property
    def count(self) -> int:
        """N, sequences of each evaluator."""
        return self.evaluators[0].answered.shape[-1]

    @property
    def asked(self) -> int | str:
        """How many sequences were asked for: a part of what decides the results of a measurement."""
        return "all" if self.every else self.count

    @property
    def definitions(self) -> list[str]:
        """The evaluators' names, with a number where their sequences were drawn otherwise by earlier versions."""
        bursty = any(one.burstiness > 1 for one in self.series.population.sequences)
        return [f"{one.name}, 2" if one.name == "ciwl" and bursty else one.name for one in self.evaluators]

    @property
    def features_hash(self) -> str:
        """SHA-256 (hex) of the exemplars: a part of what decides the results of a measurement."""
        return hashlib.sha256(self.features.cpu().numpy().tobytes()).hexdigest()


def open_measured(
    ckpt: str | Path | Series,
    *,
    snapshots: Snapshots = "all",
    evaluators: Sequence[str] = (),
    sequences: int | Literal["all"] = 1000,
    device: str = "auto",
    on_exemplars: Callable[[int, int, str], None] | None = None,
) -> MeasuredRun:
    """A series on exemplars, ready to be measured.

    Args:
        ckpt: a series, a run folder or one of its snapshots.
        snapshots: `all`, `last`, or steps such as `0,50,100`.
        evaluators: by name; by default all that are defined for every member.
        sequences: of each evaluator; "all": every one that it could draw, of one evaluator (Singh 2025, C.1).
        on_exemplars: called while glyphs are rendered.

    Raises:
        InputError: no run on exemplars there, no such snapshot or evaluator, exemplars that cannot be had.
    """
    chosen = different_names("evaluators", evaluators)
    if sequences == "all":
        if len(chosen) != 1:
            raise InputError(f"evaluators: with sequences all name one, got {len(chosen)}")
    else:
        sequences = whole_number("sequences", sequences, 1)
    series, where = open_series(ckpt, snapshots), resolve_device(device)
    population = series.population
    tokens = 2 * population.config.sequences.pairs + 1
    if sequences != "all":  # three numbers for each token
        check_fits(24 * tokens * sequences * len(population.names), f"sequences: {sequences}")
    exemplars = series.exemplars(on_exemplars)
    sets = population.evaluators(exemplars, chosen, sequences, where)
    clamps = population.clamps().to(where)
    return MeasuredRun(series, exemplars.features.to(where), sets, clamps, where, sequences == "all")


def measure_strategies(
    measured: MeasuredRun,
    *,
    clamps: Sequence[str] = (),
    previous_token_heads: Sequence[int] | None = None,
    induction_heads: Sequence[int] | None = None,
    graft: str | None = None,
    out: str | Path | None = None,
    repair: bool = False,
    force: bool = False,
    runner: Runner = HERE,
    on_snapshot: Callable[[SnapshotProgress], None] | None = None,
) -> Path:
    """How every snapshot answers every evaluator and where it attends, under each of some clamps, into a zarr store.

    The same call again resumes.

    Args:
        clamps: names of clamps; each is forced alone in every snapshot, besides what the run was trained with: progress
            measures (Singh 2025, Fig 4.8).
        previous_token_heads, induction_heads: of the first and of the last layer, what those clamps act on; None: those
            that the run's config names.
        graft: `STEP:PARTS`, such as `last:layer-2+unembed` (Fig 5.6b): given to every snapshot first.
        out: the store; by default `results/strategies.zarr` of the run folder, with the graft and the clamps in its
            name where there are some. What is there from an equal call is kept.
        repair: whether damaged results there are measured again, rather than refused.
        force: whether they are measured again where `out` holds others, which stay until these are complete.
        runner: what measures the snapshots.
        on_snapshot: called when a snapshot is done (and once at the start).

    Returns:
        Where the Dataset of `strategies_dataset` lies.

    Raises:
        OtherResults: `out` holds what was measured with other clamps, of other snapshots, ...
        DamagedResults: `out` is not as it was written.
        InputError: an unknown clamp or part, a graft that is not understood, a disk that is full.
    """
    clamps = different_names("clamps", clamps)
    forced = {AS_TRAINED: measured.clamps}
    chosen = {"previous_token_heads": previous_token_heads, "induction_heads": induction_heads}
    heads = {key: list(value) for key, value in chosen.items() if value is not None}
    if heads and not clamps:
        raise InputError(f"{', '.join(heads)}: name the clamps that act on them")
    forced |= {name: _with_clamp(measured, name, heads) for name in clamps}
    transplant, donor = (None, "") if graft is None else _transplant(measured, graft)
    names, count = [one.name for one in measured.evaluators], measured.count
    identity = {
        "measured": "strategies, 1",  # raise the number when what is measured changes
        "evaluators": measured.definitions,
        "sequences": measured.asked,
        "clamps": list(forced),
        **heads,
        "graft": graft or "",
        "donor": donor,
        "features": measured.features_hash,
        "device": measured.device.type,
    }

    def measure(snapshot: Snapshot[ExemplarModel]) -> Arrays:
        model = snapshot.model.to(measured.device)
        model = model if transplant is None else transplant(model)
        return strategy_arrays([measured.on_each(model, one) for one in forced.values()])

    def assemble(parts: list[Arrays], steps: list[int], seen: list[int]) -> xr.Dataset:
        found = strategies_dataset(parts, steps, seen, list(forced), names)
        return found.assign_coords(member=measured.series.population.names).assign_attrs(
            graft=graft or "", evaluated=count
        )

    given = [graft.replace(":", "_")] if graft is not None else []
    acted_on = ["".join(word[0] for word in key.split("_")) + "+".join(map(str, value)) for key, value in heads.items()]
    name = "_".join(["strategies", *given, *clamps, *acted_on])
    target = Path(out) if out is not None else measured.series.path / "results" / f"{name}.zarr"
    return measure_snapshots(
        measured.series,
        target,
        identity,
        measure,
        assemble,
        on_snapshot,
        variables=strategy_variables(measured.series.population.config.model),
        repair=repair,
        force=force,
        runner=runner,
        device=measured.device.type,
    )


def measure_wiring(measured: MeasuredRun) -> xr.Dataset:
    """`wiring_map` of the last chosen snapshot on the first chosen evaluator, and table C.3 of each member.

    Returns:
        Of `wiring_map`, with the members' names; besides the metrics of `remove_sets` as `<metric>_without`
        `[set, preserve, member]`, for the sets "previous token" (`previous_token_heads`), "rest" and "all"; which those
        heads are and what they rest on as `is_previous_token` and `previous_token` `[writer, member]`; the last layer's
        induction strengths as `induction` `[reader, member]`.

    Raises:
        InputError: a model of one layer.
    """
    snapshot = measured.snapshot(measured.series.steps[-1])
    model = measured.on_each(snapshot.model)[0]
    found = wiring_map(model).assign_coords(member=measured.series.population.names)
    attention = model.means(attention=True).attention
    assert attention is not None
    heads = range(snapshot.model.config.heads)
    tables, is_previous = [], np.zeros((len(heads), snapshot.model.members), dtype=bool)
    for member in range(snapshot.model.members):
        previous = previous_token_heads(attention.previous_token[member])
        is_previous[[head for _, head in previous], member] = True
        every = [(0, head) for head in heads]
        sets = {PREVIOUS_TOKEN: previous, REST: [head for head in every if head not in previous], ALL: every}
        tables.append(remove_sets(model, sets).isel(member=member))
    both = xr.concat(tables, dim="member").transpose(*_WITHOUT)
    found = found.merge(both.rename({name: f"{name}_without" for name in both}).assign_coords(member=found["member"]))
    found["previous_token"] = ("writer", "member"), attention.previous_token[:, 0].T.cpu().numpy()
    found["is_previous_token"] = ("writer", "member"), is_previous
    found["induction"] = ("reader", "member"), attention.induction[:, -1].T.cpu().numpy()
    found.attrs |= {"step": snapshot.step, "sequences": snapshot.seen, "evaluated": measured.count}
    return found


def _with_clamp(measured: MeasuredRun, name: str, heads: Mapping[str, list[int]]) -> Clamps:
    if name not in get_args(ClampName):
        raise InputError(f"clamp {name}: must be one of {', '.join(get_args(ClampName))}")
    population = measured.series.population
    population.config.model.check_attention(f"clamp {name}")
    configs = [member.config.interventions for member in population.all]
    with_clamp = [
        config.model_copy(update={**heads, "clamps": list(dict.fromkeys([*config.clamps, name]))}) for config in configs
    ]
    return stack_clamps([config.make(population.config.model) for config in with_clamp]).to(measured.device)


def _transplant(measured: MeasuredRun, graft: str) -> tuple[Transplant, str]:
    """What a graft is asked for as, and the hash of the weights that it takes."""
    step, _, joined = graft.partition(":")
    if not step or not joined:
        raise InputError(f"graft {graft!r}: must be STEP:PARTS, such as last:layer-2+unembed")
    whole = measured.series.whole()
    try:
        steps = whole.chosen(step).steps
    except InputError as error:
        raise InputError(f"graft {graft!r}: {str(error).removeprefix('snapshots: ')}") from None
    if len(steps) != 1:
        raise InputError(f"graft {graft!r}: name one step, or last")
    names = different_names(f"graft {graft!r}", joined.split("+"))
    donor = measured.snapshot(steps[0]).model
    part_parameters(donor, names)  # before anything is kept of the measurement
    return Transplant(donor, tuple(names)), whole.weights_hash(steps[0])
