"""Trainings on text that differ in nothing but the seed of the initial weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from icl_fast import ranks
from icl_fast.arguments import whole_number
from icl_fast.errors import InputError
from icl_fast.runs import Run, TextRunConfig
from icl_fast.training.callbacks import Callback
from icl_fast.training.loop import train
from icl_fast.training.text import TrainingProgress

MOST_SEEDS = 1000


def seed_folder(out: str | Path, seed: int) -> Path:
    """Where the run with a seed goes."""
    return Path(out) / f"seed-{seed}"


def train_seeds(
    config: TextRunConfig,
    out: str | Path,
    seeds: int,
    *,
    resume: bool = False,
    on_progress: Callable[[int, TrainingProgress], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[Run]:
    """Train a config with the seeds 0 to `seeds` - 1, one after the other, into `out/seed-0`, `out/seed-1`, ...

    Data and their order are the same for all of them.

    Args:
        config: whose `training.seed` is replaced.
        resume: go on: runs that are finished are kept, one that was stopped continues, the others begin.
        on_progress: called with the seed and the `TrainingProgress` of its run.
        callbacks: as in `train`; told of one run after the other.

    Raises:
        InputError: as `train`, for any of the runs before the first of them begins where that can be known; a config
            on exemplars, whose members have seeds of their own.
        KeyboardInterrupt: as `train`.
    """
    whole_number("seeds", seeds, 1, MOST_SEEDS)
    if not isinstance(config, TextRunConfig):
        raise InputError(
            f"seeds: are for trainings on text; on exemplars set members: {seeds}, which train side by side"
        )
    runs = [Run(seed_folder(out, seed)) for seed in range(seeds)]
    configs = [_with_seed(config, seed).with_absolute_corpus() for seed in range(seeds)]
    with ranks.joined():
        with ranks.together():
            for run, of_seed in zip(runs, configs, strict=True):
                run.check(of_seed, resume=resume and run.exists)
        for seed, (run, of_seed) in enumerate(zip(runs, configs, strict=True)):

            def told(at: TrainingProgress, seed: int = seed) -> None:
                if on_progress is not None:
                    on_progress(seed, at)

            begun = ranks.first(lambda run=run: run.exists)  # type: ignore[misc]
            train(of_seed, run.path, resume=resume and begun, on_progress=told, callbacks=callbacks)
    return runs


def _with_seed(config: TextRunConfig, seed: int) -> TextRunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
