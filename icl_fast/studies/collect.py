"""From run folders to a study: measure what is missing, keep what is there, analyse."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from icl_fast.analysis import (
    PhaseChange,
    Thresholds,
    attribute_heads,
    attribute_icl,
    find_curiosities,
    head_types,
    heads_of_interest,
    joint_pca,
    phase_change_of,
)
from icl_fast.data import Text
from icl_fast.data.positions import icl_positions
from icl_fast.errors import InputError
from icl_fast.files import read_json, to_json
from icl_fast.measure import AblationOptions, evaluate, open_results, sweep
from icl_fast.measure.ablation import UNABLATED, AblationMode
from icl_fast.measure.heads import head_views, text_dataset, token_losses, tokenise
from icl_fast.measure.heads.reading import TEXT_VARIABLES
from icl_fast.measure.over_snapshots import measure_snapshots
from icl_fast.models import Snapshot, Transformer
from icl_fast.report.panels.texts import MOST_VIEWED, viewed_snapshots
from icl_fast.report.study import Claim, EvaluationGroup, ModelStudy, Setting, Study, counted_by
from icl_fast.runs import ForeignOptions, RunSeries, Series, open_all
from icl_fast.scale import HERE, Runner
from icl_fast.studies.collect_exemplars import Show, study_exemplars

MOST_SHOWN = 32  # heads of a model whose attention on the texts is kept
MOST_TOKENS = 512  # of a text
MOST_CELLS = 2**25  # of all attention patterns that are kept of a text: 128 MiB as float32
MODES = ("pattern-preserving", "full")


@dataclass(frozen=True)
class Options:
    """What is measured, and how it is judged.

    Attributes:
        snapshots: `all`, or steps such as `0,50,100`.
        examples: of a run on text: use the first so many of the evaluation set, or all where there are fewer.
        icl_positions: of a run on text: the two of the ICL score, such as `50,500` (see `AblationOptions`).
        icl_window: of a run on text: positions averaged around each of the ICL score's two (the paper: 1).
        modes: of a run on text: of ablation, "pattern-preserving" among them.
        intervals: of runs on text: phase changes set by hand: model -> (start, end) steps.
        thresholds: of a run on text: of the head types.
        memory: of a run on text: as in `sweep`.
        sequences: of a run on exemplars: of each evaluator.
        device: as in `sweep`.
        repair: whether damaged results are measured again, rather than refused.
        foreign: what is said of other people's models among the runs.
        runner: what measures.
    """

    snapshots: str = "all"
    examples: int = 512
    icl_positions: str | Sequence[int] | None = None
    icl_window: int = 1
    modes: tuple[str, ...] = MODES
    intervals: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    thresholds: Thresholds = field(default_factory=Thresholds)
    memory: str = "2GiB"
    sequences: int = 1000
    device: str = "auto"
    repair: bool = False
    foreign: ForeignOptions | None = None
    runner: Runner = HERE


def collect(
    runs: Sequence[str | Path],
    texts: Sequence[Text],
    options: Options,
    show: Show,
    *,
    title: str = "In-context learning over training",
    claims: Sequence[Claim] = (),
) -> Study:
    """Measure some runs, in `RUN/results/report/` (of other people's models `results/NAME/report/`), and put together
    what a report shows.

    What is there from an equal measurement is kept; what was stopped goes on. Snapshots that cannot be read or are not
    finite are left out, and the study says so.

    Args:
        runs: run folders, on text or on exemplars, and other people's models (see `icl_fast.runs.open_series`). Each
            on text is a model, in the order of the columns, but that those evaluated on the same examples stand
            together.
        texts: that the models on text read.
        options: what is measured.
        show: makes, for a title, a context manager that shows progress.
        title, claims: of the report.

    Raises:
        DamagedResults: results that are not as they were written.
        InputError: no such run, no usable snapshot, an option not understood, the disk full.
    """
    if not runs:
        raise InputError("runs: give at least one run folder")
    if "pattern-preserving" not in options.modes:
        raise InputError("modes: pattern-preserving must be among them; the table's last rows rest on it")
    for mode in options.modes:
        AblationMode.parse(mode)
    if options.sequences < 1:
        raise InputError(f"sequences: must be 1 or more, got {options.sequences}")
    # all runs are looked at before the first is measured, which may take long
    opened = open_all(runs, options.snapshots, options.foreign)
    usable = {name: _usable(name, series, options) for name, series in opened.items()}
    on_text = {name: run for name, run in usable.items() if run.series.task == "text"}
    if unknown := sorted(set(options.intervals) - set(on_text)):
        raise InputError(f"interval: there is no model {unknown[0]}; there are {', '.join(on_text)}")
    grouped = _grouped(on_text)
    models = {name: _study(name, on_text[name], texts, options, show) for names in grouped.values() for name in names}
    progress = counted_by(model.losses for model in models.values())
    models = {name: replace(model, progress=progress) for name, model in models.items()}
    groups = [_group(on_text[names[0]].series, {name: models[name] for name in names}) for names in grouped.values()]
    exemplars = {
        name: study_exemplars(
            name,
            run.series,
            run.left_out,
            show,
            sequences=options.sequences,
            device=options.device,
            repair=options.repair,
            runner=options.runner,
        )
        for name, run in usable.items()
        if run.series.task == "exemplars"
    }
    return Study(title, models, tuple(groups), tuple(claims), exemplars)


def read_claims(path: str | Path) -> list[Claim]:
    """A JSON list of objects with `claim`, `source`, `verdict` and `evidence`, each text.

    Raises:
        InputError: no such file, or not of that form.
    """
    rows, names = read_json(path, "claims"), ["claim", "source", "verdict", "evidence"]
    whole = [
        isinstance(row, dict) and sorted(row) == sorted(names) and all(isinstance(text, str) for text in row.values())
        for row in (rows if isinstance(rows, list) else [None])
    ]
    if not all(whole):
        raise InputError(
            f"claims {path}: must be a JSON list of objects with the texts {', '.join(names)}; "
            f"number {whole.index(False) + 1} is none"
        )
    return [Claim(**row) for row in rows]


@dataclass(frozen=True)
class _Usable:
    """A run's snapshots that can be used, and why each other cannot."""

    series: Series
    left_out: dict[int, str]


def _usable(name: str, whole: Series, options: Options) -> _Usable:
    series, left_out = whole.readable()
    steps = series.steps
    if not steps:
        why = "; ".join(f"step {step}: {reason}" for step, reason in left_out.items())
        raise InputError(f"run {whole.path}: a usable snapshot is needed, it has none" + (f" ({why})" if why else ""))
    if absent := [step for step in options.intervals.get(name, ()) if step not in steps]:
        raise InputError(f"interval: {name} has no usable snapshot at step {absent[0]}; give two of its steps")
    if series.task == "text":
        icl_positions(series.context, options.icl_window, options.icl_positions)
    return _Usable(series, left_out)


def _study(name: str, run: _Usable, texts: Sequence[Text], options: Options, show: Show) -> ModelStudy:
    series, steps = run.series, run.series.steps
    results = series.results / "report"
    examples = min(options.examples, len(series.evaluation_set().inputs))

    def swept(what: str, ablation: AblationOptions, out: Path) -> xr.Dataset:
        def measure() -> Path:
            with show(f"{name}: {what}") as on:
                return sweep(
                    series,
                    ablation,
                    out=out,
                    examples=examples,
                    device=options.device,
                    repair=options.repair,
                    force=True,
                    runner=options.runner,
                    on_part=lambda at: on(at.done, at.parts, at.text),
                )

        return open_results(measure())

    shared = AblationOptions(icl_positions=options.icl_positions, icl_window=options.icl_window, memory=options.memory)
    losses = swept("losses", replace(shared, heads=UNABLATED, positions="all"), results / "losses.zarr")
    ablations = {
        mode: swept(f"{mode} ablation", replace(shared, mode=mode), results / f"{mode}.zarr") for mode in options.modes
    }
    heads = _heads(name, series, results / "heads.zarr", options, show)
    model = series.load(steps[-1]).model
    change = phase_change_of(losses, heads["prefix_matching"])
    interval = options.intervals.get(name, _found(change, steps))
    by_pattern, last = ablations["pattern-preserving"], heads.isel(snapshot=-1)
    of_interest = _of_interest(heads, attribute_icl(by_pattern))
    notes, readings = list(series.notes()), {}
    try:
        series.tokenizer()
    except InputError as error:
        notes.append(f"{error}: it reads no text")
    else:
        for text in texts:
            readings[text.name] = _reading(name, series, interval, of_interest, text, results / "texts", options, show)
    attributions = attribute_icl(by_pattern) if interval is None else attribute_heads(by_pattern, *interval)
    types = head_types(
        last["previous_token"].values,
        last["prefix_matching"].values,
        last["copying"].values,
        options.thresholds.for_width(model.config.width),
    )
    return ModelStudy(
        name=name,
        config=model.config,
        parameters=sum(weights.numel() for weights in model.parameters()),
        corpus=series.corpus,
        left_out=run.left_out,
        losses=losses,
        heads=heads,
        ablations=ablations,
        change=change,
        interval=interval,
        attributions=attributions,
        types=types,
        texts=readings,
        notes=tuple(notes),
        curiosities=find_curiosities(losses, heads, attributions, types),
        setting=_setting(series),
    )


def _setting(series: Series) -> Setting | None:
    """What a run of our own has in common with those that differ in their seed alone. Its name is that of the folder
    nearest to the run's that is not called after a seed."""
    if not isinstance(series, RunSeries):
        return None
    values = series.run.config.model_dump(mode="json")
    del values["training"]["seed"]
    digest = hashlib.sha256(to_json(values).encode()).hexdigest()
    folders = [part for part in series.path.resolve().parts if not part.startswith("seed")]
    return Setting(folders[-1], digest)


def _of_interest(heads: xr.Dataset, effects: xr.Dataset) -> list[tuple[int, int]]:
    """The heads that match prefixes best, and those without which the ICL score changes most, at the last snapshot."""
    matching = heads["prefix_matching"].isel(snapshot=-1).values
    effect = np.zeros(matching.shape)
    effect[effects["layer"].values, effects["head"].values] = np.abs(effects["icl"].isel(snapshot=-1).values)
    return heads_of_interest([matching, effect], MOST_SHOWN)


def _found(change: PhaseChange | None, steps: Sequence[int]) -> tuple[int, int] | None:
    if change is None or not change.happened or change.start is None or change.end is None:
        return None
    return steps[change.start], steps[change.end]


def _heads(name: str, series: Series, out: Path, options: Options, show: Show) -> xr.Dataset:
    def measure() -> Path:
        with show(f"{name}: heads") as on:
            return evaluate(
                series,
                out=out,
                device=options.device,
                repair=options.repair,
                force=True,
                runner=options.runner,
                on_snapshot=lambda at: on(at.done, at.snapshots, at.text),
            )

    return open_results(measure())


def _reading(
    name: str,
    series: Series,
    interval: tuple[int, int] | None,
    heads: Sequence[tuple[int, int]],
    text: Text,
    results: Path,
    options: Options,
    show: Show,
) -> xr.Dataset:
    """What a run's snapshots make of a text, and some heads of some of them."""
    tokenised = tokenise(text, series.tokenizer(), min(series.context, MOST_TOKENS), series.bos)
    viewed = viewed_snapshots(series.steps, interval, _most_viewed(len(heads), len(tokenised.inputs)))
    identity = {
        "text": hashlib.sha256(repr(text).encode()).hexdigest(),
        "heads": [list(head) for head in heads],
        "viewed": viewed,
    }
    out = results / f"{text.name}.zarr"

    def read(snapshot: Snapshot[Transformer]) -> dict[str, np.ndarray]:
        found = {"loss": token_losses(snapshot.model, tokenised).numpy()}
        if snapshot.step in viewed:
            pattern, logits = head_views(snapshot.model, tokenised, heads)
            found |= {"pattern": pattern.numpy(), "logits": logits.numpy()}
        return found

    def assemble(parts: list[dict[str, np.ndarray]], steps: list[int], tokens: list[int]) -> xr.Dataset:
        def stacked(what: str) -> torch.Tensor:
            return torch.from_numpy(np.stack([part.pop(what) for part in parts if what in part]))

        return text_dataset(
            tokenised, steps, tokens, stacked("loss"), heads, viewed, stacked("pattern"), stacked("logits")
        )

    def measure() -> Path:
        with show(f"{name}: {text.title}") as on:
            return measure_snapshots(
                series,
                out,
                identity,
                read,
                assemble,
                lambda at: on(at.done, at.snapshots, at.text),
                variables=TEXT_VARIABLES,
                repair=options.repair,
                force=True,
                runner=options.runner,
            )

    return open_results(measure())


def _most_viewed(heads: int, length: int) -> int:
    return min(MOST_VIEWED, MOST_CELLS // (heads * length**2))


def _grouped(runs: Mapping[str, _Usable]) -> dict[str, list[str]]:
    """By digest of what they are evaluated on, the names of the runs, in their order."""
    grouped: dict[str, list[str]] = {}
    for name, run in runs.items():
        grouped.setdefault(run.series.evaluation_set().digest, []).append(name)
    return grouped


def _group(series: Series, models: Mapping[str, ModelStudy]) -> EvaluationGroup:
    """Models that were evaluated on the same examples, one of whose series this is."""
    try:
        pca = joint_pca({name: model.losses for name, model in models.items()})
    except InputError:
        pca = None  # fewer than 3 snapshots, or all alike
    bos = None if series.bos is None else series.tokenizer().id_to_token(series.bos)
    return EvaluationGroup(series.corpus, series.context, bos, tuple(models), pca)
