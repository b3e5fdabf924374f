"""Tables of strategies, ablations and wiring in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from rich import box
from rich.table import Column, Table

from icl_fast.analysis.learning import LEAST_RISE, learning_time, transience
from icl_fast.cli.console import Cell, echo, number, print_table
from icl_fast.errors import InputError
from icl_fast.measure.ablation import UNABLATED
from icl_fast.measure.exemplar.ablation_sweep import seconds_per_snapshot
from icl_fast.studies.head_race import AGAINST

if TYPE_CHECKING:
    from icl_fast.measure.exemplar.ablation_sweep import AblationPlan
    from icl_fast.measure.exemplar.measured_run import MeasuredRun

_NAME = 34  # of a member's name
_ERRORS = (
    "±: the standard error of the change is at most this, the sum of those of the two accuracies; a change of less "
    "than two of them may be none"
)


def print_end(curves: xr.Dataset) -> None:
    """The last evaluation of a training run, as `training_curves` gives it, and when each member had learned."""
    end = curves.isel(evaluation=[-1]).rename(evaluation="snapshot")
    columns = {}
    for title, for_good in (("first below", False), ("learned after", True)):
        times = learning_time(curves["logged_sequences"].values, curves["training_loss"].values, for_good=for_good)
        columns[title] = [
            Cell(f"{time / 1e6:.3f}M", float(time)) if np.isfinite(time) else Cell("not", None) for time in times
        ]
    print_strategies(end.expand_dims(clamp=["as trained"]).assign(sequences=end["sequences"]), columns)
    echo(
        "first below, learned after: sequences until the training loss drops below 0.4 log 2 for the first time, and "
        "until it stays below"
    )
    print_transience(curves.rename(evaluation="snapshot"))


def print_transience(results: xr.Dataset) -> None:
    """When ICL of each member rose and how it fell, of a run whose labels are fixed (Singh 2025, Fig 3.2a).

    Args:
        results: `accuracy_in_context` `[snapshot, evaluator, member]`, and `sequences` `[snapshot]`.
    """
    if not {"icl", "ciwl"} <= set(results["evaluator"].values) or results.sizes["snapshot"] < 3:
        return
    for member in results["member"].values:
        accuracy = results["accuracy_in_context"].sel(evaluator="icl", member=member).values
        if not np.isfinite(accuracy).all():
            continue
        one = transience(results["sequences"].values, accuracy, chance=0.5)
        if one.height < 0.5 + LEAST_RISE:
            echo(f"{member}: no ICL, at most {one.height:.3f}")
            continue
        fall = "" if np.isnan(one.decay) else f", {one.decay:+.3g} a million sequences from the peak"
        verdict = "transient" if one.transient else "not transient"
        echo(
            f"{member}: ICL sets on after {one.onset / 1e6:.3g}M sequences, at most {one.height:.3f} after "
            f"{one.peak / 1e6:.3g}M; {one.end:.3f} at the end{fall}: {verdict}"
        )


def print_strategies(
    results: xr.Dataset, columns: Mapping[str, Sequence[str]] | None = None, *, most: int = 40
) -> None:
    """Accuracy by evaluator: of one run at every snapshot, of a population's members at the last; a table a clamp.

    Accuracy is that among the labels in context; with a star among all outputs, where no label in context is right.

    Args:
        columns: more of them, by title: a text for every row.
        most: rows; of more, some evenly spaced ones.
    """
    alone = results.sizes["member"] == 1
    what = "at every snapshot" if alone else f"after {int(results['sequences'][-1]):,} sequences"
    for clamp in results["clamp"].values:
        rows = results.sel(clamp=clamp)
        rows = rows.isel(member=0) if alone else rows.isel(snapshot=-1)
        if alone:
            names: list[str] = [Cell(f"{int(count):,}", int(count)) for count in rows["sequences"]]
        else:
            names = [str(member) for member in rows["member"].values]
        dim = "snapshot" if alone else "member"
        shown = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int))
        table = Table(
            Column(
                "sequences" if alone else "member",
                justify="right" if alone else "left",
                max_width=_NAME,
                overflow="fold",
            ),
            Column("loss\n(train)" if "train" in rows["evaluator"].values else "loss", justify="right"),
            *(Column(name, justify="right") for name in columns or {}),
            *(Column(str(name).replace("-", "\n"), justify="right") for name in rows["evaluator"].values),
            title=f"{clamp}, {what}: accuracy among the labels in context",
            caption="* among all outputs",
            box=box.SIMPLE_HEAD,
        )
        for place in shown:
            one = rows.isel({dim: place})
            first = one.sel(evaluator="train") if "train" in one["evaluator"].values else one.isel(evaluator=0)
            cells = []
            for name in rows["evaluator"].values:
                within, among = (float(one[key].sel(evaluator=name)) for key in ("accuracy_in_context", "accuracy"))
                cells.append(Cell(f"{among:.3f}*", among) if np.isnan(within) else number(within, ".3f"))
            more_cells = [values[place] for values in (columns or {}).values()]
            table.add_row(names[place], number(first["loss"], ".4f"), *more_cells, *cells)
        print_table(table)
        if (more := len(names) - len(shown)) > 0:
            echo(f"and {more} more in the results")


def check_member(names: Sequence[str], member: str | None) -> None:
    """Refuse a member that a run does not have; None: not asked for one.

    Raises:
        InputError: no such member.
    """
    if member is not None and member not in names:
        raise InputError(f"member {member}: must be one of {', '.join(names)}")


def print_exemplar_plan(measured: MeasuredRun, plan: AblationPlan) -> None:
    """What a sweep over a run on exemplars does, and how long it takes at the speed of this machine."""
    snapshots, seconds = len(measured.series.steps), seconds_per_snapshot(measured, plan)
    echo(
        f"{len(plan.ablations) - 1} ablations ({', '.join(plan.modes)}) of {snapshots} snapshots on "
        f"{len(measured.evaluators)} evaluators of {measured.count:,} sequences, members: "
        f"{len(measured.series.population.names)}\n"
        f"of every sequence 1 first pass and {len(plan.passes)} different second passes\n"
        f"on {measured.device}: about {seconds:.1f} s a snapshot, {seconds * snapshots:.0f} s in all"
    )


def print_exemplar_ablations(
    results: xr.Dataset, member: str | None = None, *, all_outputs: bool = False, most: int = 40
) -> None:
    """What each ablation does to the accuracies of one member at the last snapshot; a table a mode, worst falls first.

    Where labels are fixed, first at the snapshot where in-context learning is strongest: it may be gone by the last one
    (Singh 2025, 5.9.2).

    Accuracy is that among the labels in context; with a star among all outputs, where no label in context is right.

    Args:
        member: by default the first.
        all_outputs: whether accuracy is among all outputs throughout, as where labels are drawn anew in all sequences:
            among those in context it has a floor of one in as many as there are, which hides what heads do.
        most: rows of all tables together, as far as each has 8.

    Raises:
        InputError: no such member.
    """
    names = [str(name) for name in results["member"].values]
    check_member(names, member)
    of_member = results.sel(member=names[0] if member is None else member)
    places = [results.sizes["snapshot"] - 1]
    if {"icl", "ciwl"} <= set(results["evaluator"].values.tolist()):
        strength = of_member["accuracy_in_context"].sel(evaluator="icl", ablation=UNABLATED).isel(mode=0)
        places = sorted({int(strength.fillna(-1).values.argmax()), *places})
    for place in places:
        _print_ablations_at(of_member.isel(snapshot=place), len(names) > 1, all_outputs, most)
    echo(_ERRORS)


def _at_most(accuracy: xr.DataArray, sequences: int) -> xr.DataArray:
    """The standard error of an accuracy over so many sequences; of a difference of two at most the sum of theirs."""
    error: xr.DataArray = (accuracy * (1 - accuracy)).clip(min=0) ** 0.5 / sequences**0.5
    return error


def _print_ablations_at(last: xr.Dataset, named: bool, all_outputs: bool, most: int) -> None:
    evaluated = last.attrs["evaluated"]
    shown = max(8, most // last.sizes["mode"])
    undefined = last["accuracy_in_context"].isnull().all(("mode", "ablation")) | all_outputs
    accuracy = last["accuracy_in_context"].where(~undefined, last["accuracy"])
    of = f"{last['member'].item()}, " if named else ""
    for mode in last["mode"].values:
        whole = accuracy.sel(mode=mode, ablation=UNABLATED)
        changes = accuracy.sel(mode=mode).drop_sel(ablation=UNABLATED) - whole
        errors = _at_most(accuracy.sel(mode=mode), evaluated) + _at_most(whole, evaluated)
        lowest = changes.min("evaluator")
        table = Table(
            "removed",
            *(
                Column(f"{name}{'*' if undefined.sel(evaluator=name) else ''}".replace("-", "\n"), justify="right")
                for name in last["evaluator"].values
            ),
            title=f"{of}{mode}, step {int(last['snapshot'])}: accuracy among the labels in context, and its change",
            caption="* among all outputs" if undefined.any() else None,
            box=box.SIMPLE_HEAD,
        )
        table.add_row(UNABLATED, *(number(value, ".3f") for value in whole))
        for ablation in lowest.sortby(lowest)["ablation"].values[:shown]:
            cells = []
            for name in last["evaluator"].values:
                change = changes.sel(evaluator=name)
                strongest = bool(change.sel(ablation=ablation) == change.min() < 0)
                error = errors.sel(evaluator=name, ablation=ablation)
                cells.append(number(change.sel(ablation=ablation), "+.3f", error, bold=strongest))
            table.add_row(str(ablation), *cells)
        print_table(table)
        if (more := changes.sizes["ablation"] - shown) > 0:
            echo(f"and {more} more in the results")


def print_wiring(found: xr.Dataset, member: str | None = None) -> None:
    """The maps of one member, by default the first.

    Raises:
        InputError: no such member.
    """
    names = [str(name) for name in found["member"].values]
    check_member(names, member)
    one = found.sel(member=names[0] if member is None else member)
    of = f"{one['member'].values}, " if len(names) > 1 else ""
    echo(
        f"{of}step {one.attrs['step']}, {one.attrs['evaluated']:,} sequences of {one.attrs['evaluator']}; rows: heads "
        "of the first layer, columns: heads of the last, all others of that layer removed; accuracy over all outputs"
    )
    for preserve in one["preserve"].values:
        at = one["accuracy"].sel(preserve=preserve)
        _print_map(f"accuracy with one head of each layer, {preserve}", at.sel(kind="single-pair"), ".3f")
    for preserve in one["preserve"].values:
        removed, alone = one["accuracy"].sel(preserve=preserve, kind="single"), one["accuracy_alone"]
        errors = _at_most(removed, one.attrs["evaluated"]) + _at_most(alone, one.attrs["evaluated"])
        title = f"change of accuracy without one head of the first layer, {preserve}"
        _print_map(title, removed - alone, "+.3f", errors)
    echo(_ERRORS)
    for matrix in ("k", "v"):
        for name, what in (("composition", "weights as they are"), ("composition_folded", "norms folded in")):
            _print_map(f"composition score with {matrix.upper()}, {what}", one[name].sel(matrix=matrix), ".3f")
    heads = Table("", *map(str, range(len(one["writer"]))), box=box.SIMPLE, title="heads")
    heads.add_row("first layer: previous token", *(number(value, ".2f") for value in one["previous_token"]))
    heads.add_row("last layer: induction", *(number(value, ".2f") for value in one["induction"]))
    heads.add_row("last layer: accuracy alone", *(number(value, ".3f") for value in one["accuracy_alone"]))
    print_table(heads)
    previous = [str(head) for head in one["writer"].values[one["is_previous_token"].values]]
    sets = Table("heads removed", *(str(p) for p in one["preserve"].values), box=box.SIMPLE, title="accuracy")
    for name in one["set"].values:
        text = f"{name} ({', '.join(previous) or 'none'})" if name == "previous token" else str(name)
        sets.add_row(text, *(number(value, ".4f") for value in one["accuracy_without"].sel(set=name)))
    print_table(sets)


def print_heads(found: xr.Dataset, member: str | None = None) -> None:
    """Each head of the last layer removed, alone, and on what the best one gets wrong (Fig 4.5a, tables C.1, C.2).

    Args:
        found: of `icl_fast.studies.exemplar_heads.measure_heads`.
        member: by default the first.

    Raises:
        InputError: no such member.
    """
    names = [str(name) for name in found["member"].values]
    check_member(names, member)
    one = found.sel(member=names[0] if member is None else member)
    table = Table("", *map(str, range(one.sizes["head"])), box=box.SIMPLE, title="heads of the last layer, all outputs")
    table.add_row("induction strength", *(number(value, ".3f") for value in one["induction"]))
    table.add_row(f"without it (with all {float(one['whole']):.4f})", *(number(x, ".4f") for x in one["without"]))
    for patterns in one["patterns"].values:
        at = one.sel(patterns=patterns)
        best, wrong = int(at["reference"]), int(at["mistakes"])
        what = "it alone" if patterns == "as it is" else "it alone, its pattern perfect"
        table.add_row(what, *(number(value, ".4f") for value in at["overall"]))
        mistakes = enumerate(at["on_mistakes"])
        cells = [Cell("", None) if head == best else number(value, ".4f") for head, value in mistakes]
        table.add_row(f"  on the {wrong:,} mistakes of head {best}", *cells)
    print_table(table)


def print_race(found: xr.Dataset) -> None:
    """Strengths of heads against what each does alone (Singh 2025, Fig C.6), of `measure_race`."""
    echo(f"over {found['induction'].size} heads of {found.sizes['seed']} seeds, induction strength against")
    for name, what in AGAINST.items():
        one = found.sel(against=name)
        pearson, spearman = float(one["pearson"]), float(one["spearman"])
        facts = {f"r, {what}": pearson, f"r by ranks, {what}": spearman}
        echo(f"  {what}: r = {pearson:.3f}, by ranks {spearman:.3f}", facts=facts)
    if never := int(found["learning_time"].isnull().sum()):
        echo(f"  {never} heads had not learned alone by the end; they are left out of the last")


def _print_map(title: str, values: xr.DataArray, form: str, errors: xr.DataArray | None = None) -> None:
    columns = (Column(str(name), justify="right") for name in values["reader"].values)
    table = Table("", *columns, box=box.SIMPLE_HEAD, title=title)
    for name in values["writer"].values:
        cells = []
        for reader, value in zip(values["reader"].values, values.sel(writer=name).values, strict=True):
            error = None if errors is None else errors.sel(writer=name, reader=reader)
            strongest = bool(np.isclose(abs(value), float(np.abs(values).max())))
            cells.append(number(value, form, error, bold=strongest))
        table.add_row(str(name), *cells)
    print_table(table)
