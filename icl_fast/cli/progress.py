"""Progress of long work: a live line each on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from icl_fast.cli.console import is_quiet
from icl_fast.scale import by_workers

if TYPE_CHECKING:
    from icl_fast.measure.ablation import SweepProgress
    from icl_fast.measure.over_snapshots import SnapshotProgress
    from icl_fast.training import ExemplarProgress, TrainingProgress

_SECONDS_BETWEEN_LINES = 20.0
_LEAST_SECONDS = 1.0  # of steps, before the time left is estimated


class _TimeLeft(TimeRemainingColumn):
    """The time left, where there are steps enough to tell."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields["sure"] else Text("-:--:--", style="progress.remaining")


@contextmanager
def training_progress(name: str, steps: int) -> Iterator[Callable[[TrainingProgress], None]]:
    """Shows loss, ICL score so far, tokens/s and time left of a training run."""
    with _bar(f"training {name}", steps) as show:
        yield lambda at: show(at.step, _of_training(at))


@contextmanager
def seeds_progress(name: str, steps: int, seeds: int) -> Iterator[Callable[[int, TrainingProgress], None]]:
    """Shows the same of trainings with several seeds, of `steps` each, over all of them."""
    with _bar(f"training {name}, {seeds} seeds", steps * seeds) as show:
        yield lambda seed, at: show(seed * steps + at.step, f"seed {seed}  {_of_training(at)}")


@contextmanager
def population_progress(name: str, steps: int) -> Iterator[Callable[[ExemplarProgress], None]]:
    """Shows the losses (lowest and highest of a population), steps/s and time left of a run on exemplars."""
    with _bar(f"training {name}", steps) as show:
        yield lambda at: show(at.step, _of_exemplars(at))


@contextmanager
def sweep_progress(name: str, doing: str = "ablating") -> Iterator[Callable[[SweepProgress], None]]:
    """Shows how many parts of a sweep are done and the time left."""
    with counting(f"{doing} {name}") as show:
        yield lambda at: show(at.done, at.parts, at.text)


@contextmanager
def snapshot_progress(name: str) -> Iterator[Callable[[SnapshotProgress], None]]:
    """Shows how many snapshots are measured and the time left."""
    with counting(f"measuring {name}") as show:
        yield lambda at: show(at.done, at.snapshots, at.text)


@contextmanager
def counting(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Shows how much is done, of how much, at what, and the time left."""
    with _bar(title, None) as show:
        yield lambda done, of, text: show(done, text, of)


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Shows that something takes its time."""
    with _bar(title, None) as show:
        show(0, "")
        yield


@contextmanager
def progress(title: str = "working") -> Iterator[Callable[..., None]]:
    """Shows the progress of whatever tells of it, in a notebook or on a terminal; several at a time in one display.

        from icl_fast.cli.progress import progress

        with progress("training") as show:
            run = icl_fast.train(config, "runs/two", on_progress=show)
        with progress("ablating") as show:
            store = icl_fast.sweep(run.path, on_part=show)

    What is yielded takes what `on_progress` of `train`, `on_part` of `sweep` and `on_snapshot` of `evaluate` are called
    with, or how much is done, of how much, at what, as `on_exemplars` is.
    """
    with _bar(title, None) as show:

        def update(at: Any, of: int | None = None, text: str = "") -> None:
            if isinstance(at, int):
                show(at, text, of)
            elif hasattr(at, "losses"):
                show(at.step, _of_exemplars(at), at.steps)
            elif hasattr(at, "loss"):
                show(at.step, _of_training(at), at.steps)
            else:
                show(at.done, at.text, at.parts if hasattr(at, "parts") else at.snapshots)

        yield update


def _of_exemplars(at: ExemplarProgress) -> str:
    low, high = min(at.losses), max(at.losses)
    losses = f"loss {low:.3f}" if len(at.losses) == 1 else f"losses {low:.3f} to {high:.3f}"
    return f"{losses}  {at.steps_per_second:,.0f} steps/s  {at.sequences:,} sequences{by_workers(at.workers)}"


def _of_training(at: TrainingProgress) -> str:
    return f"loss {at.loss:.3f}  ICL score {at.icl_score:+.3f}  {at.tokens_per_second:,.0f} tokens/s"


_shown: list[Any] = []  # at most one: two live displays would write over each other


@contextmanager
def _display() -> Iterator[Any]:
    """The one live display of all bars, which lasts as long as the outermost of them."""
    if _shown:
        yield _shown[0]
        return
    from icl_fast.cli.notebook_display import NotebookDisplay, in_notebook

    if in_notebook():
        with NotebookDisplay() as shown:
            _shown.append(shown)
            try:
                yield shown
            finally:
                _shown.clear()
        return
    columns = (
        TextColumn("{task.description}", markup=False),  # a run's name may hold brackets
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        _TimeLeft(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=is_quiet() or not _is_live(console)) as progress:
        _shown.append(progress)
        try:
            yield progress
        finally:
            _shown.clear()


def _is_live(console: Console) -> bool:
    return console.file.isatty() and not console.is_dumb_terminal


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Callable[..., None]]:
    with _display() as progress:
        task = progress.add_task(title, total=total, done="", text="", sure=False, visible=total is not None)
        printed = time.monotonic()
        first: tuple[float, int] | None = None  # when, and how much was done

        def show(completed: int, text: str, new_total: int | None = None) -> None:
            nonlocal printed, first
            end = new_total if new_total is not None else total
            done = f"{completed}/{end}" if end is not None else ""
            now = time.monotonic()
            first = (now, completed) if first is None else first
            spent, steps = now - first[0], completed - first[1]
            sure = spent >= _LEAST_SECONDS and steps > 0
            progress.update(task, completed=completed, total=end, done=done, text=text, sure=sure, visible=True)
            due = now - printed > _SECONDS_BETWEEN_LINES or completed == end
            if progress.disable and not is_quiet() and end and due:
                printed = now
                left = f"  {spent / steps * (end - completed):.0f} s left" if sure else ""
                with suppress(OSError):  # the work goes on where nobody reads of it
                    print(f"{title}: {completed}/{end}  {text}{left}", file=progress.console.file, flush=True)

        yield show
