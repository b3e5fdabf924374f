"""The training loop: snapshots on schedule, a state to resume from, and the same bits after a resume on CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from icl_fast import ranks
from icl_fast.data import Exemplars
from icl_fast.errors import InputError
from icl_fast.measure.of_model import without_autocast
from icl_fast.models import Intervention
from icl_fast.runs import Run, RunConfig, TextRunConfig
from icl_fast.scale import HERE, Runner
from icl_fast.training.callbacks import AllOf, Callback
from icl_fast.training.exemplars import ExemplarTrainer
from icl_fast.training.interrupt import interruptible
from icl_fast.training.text import TextTrainer


@contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """Torch's settings as they are at its start, whatever surrounds the call, and its random numbers as they were."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.device("cpu"),
            without_autocast(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


class Trainer(Protocol):
    """What the loop trains: a model, its optimizer, and what is due when."""

    step: int

    @property
    def steps(self) -> int:
        """The step at which the run ends."""

    @property
    def tokenizer_json(self) -> str | None:
        """Of a run on text: part of what a resumed run must have the same."""

    @property
    def exemplars(self) -> Exemplars | None:
        """Of a run on exemplars: the same."""

    def advance(self, interrupted: Callable[[], bool]) -> None:
        """Take one or more steps, up to the next at which something is due, or until interrupted."""

    def record(self, run: Run) -> None:
        """Write what is due after this step: log lines, a snapshot, the state."""

    def save(self, run: Run) -> None:
        """Write everything that a resumed run needs."""

    def load_state(self, state: Any, source: str) -> None:
        """Continue from a saved state; `source` is what messages call it."""


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    interventions: Sequence[Intervention] = (),
    on_progress: Callable[[Any], None] | None = None,
    on_exemplars: Callable[[int, int, str], None] | None = None,
    runner: Runner = HERE,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a Transformer on text, or one run or a population of runs on exemplars, into a run folder.

    The same config gives the same weights, bit for bit, on one CPU with one thread count (on exemplars: with one
    engine), however often the run was interrupted and resumed. On several ranks (torchrun, of which each calls this; on
    text), and on another number of them, it gives the same to rounding. A member of a population has the same
    weights as the run alone, to rounding; with the fused engine to the bit.

    Args:
        config: what to train.
        out: the run folder; it must not exist, or be empty, unless `resume`; a run in it that was killed before its
            first state was saved begins anew.
        resume: continue from the last saved state of `out`, whose config must be the same.
        interventions: on exemplars: what is forced besides the clamps, in training and evaluation: zeros and functions
            of the value, with the members folded into the examples. They need the plain engine, and are not kept in
            the run folder: to resume, pass the same ones.
        on_progress: called with a `TrainingProgress` after every `training.log_every` steps and at every save on text;
            with an `ExemplarProgress` after every call of the engine, which makes many steps, on exemplars.
        on_exemplars: called while characters are drawn.
        runner: on exemplars: what takes the steps of a population's members, to the same bits; with the fused engine.
        callbacks: told of log lines, snapshots, start and end (see `Callback`), such as `TensorBoardCallback`.

    Returns:
        The run, finished.

    Raises:
        InputError: a corpus that is too small, a batch that cannot be shared out to the ranks, exemplars that cannot be
            had, members that do not fit them; interventions that the model does not have, or for a run on text; workers
            for what cannot be shared out; `out` holds something else, or another process is training there; the disk is
            full; the loss is not finite.
            The folder then holds the state of the last save.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the state was saved.
    """
    told = AllOf(callbacks)
    if isinstance(config, TextRunConfig):
        config = config.with_absolute_corpus()
        if interventions:
            raise InputError("interventions: are for training on exemplars; this config trains on text")
        if runner.workers is not None:
            raise InputError("ray: shares out the members of a population on exemplars; this config trains on text")
    run = Run(out)
    with ranks.joined(), as_in_a_new_process(), ExitStack() as stack:
        with ranks.together():
            if ranks.count() > 1 and not isinstance(config, TextRunConfig):
                raise InputError(
                    f"torchrun: {ranks.count()} ranks; trainings on exemplars run in one process: start it alone"
                )
            if ranks.rank() == 0:
                stack.enter_context(run.writing())
                run.check(config, resume=resume)  # before anything that takes long
        config = run.settled(config, resume=resume, progress=on_exemplars)
        trainer: Trainer
        if isinstance(config, TextRunConfig):
            trainer = TextTrainer(config, on_progress, told)
        else:
            trainer = ExemplarTrainer(config, interventions, on_progress, on_exemplars, runner, told)
        state = None
        with ranks.together():
            if ranks.rank() == 0:
                state = run.begin(
                    config, resume=resume, tokenizer_json=trainer.tokenizer_json, exemplars=trainer.exemplars
                )
        with ranks.together():
            if ranks.rank() > 0:
                state = run.load_state()
        if state is not None:
            trainer.load_state(state, str(run.state_path))
        ranks.first(lambda: run.cut_log(-1 if state is None else trainer.step))
        ranks.first(lambda: told.on_start(run))
        recorded = None if state is None else trainer.step
        with interruptible() as interrupted:
            while True:
                if trainer.step != recorded:
                    trainer.record(run)
                    recorded = trainer.step
                if ranks.anywhere(interrupted.is_set()):
                    trainer.save(run)
                    ranks.first(lambda: told.on_end(run))
                    raise KeyboardInterrupt(f"stopped after step {trainer.step} of {trainer.steps}, its state is saved")
                if trainer.step == trainer.steps:
                    break
                trainer.advance(interrupted.is_set)
        ranks.first(run.finish)
        ranks.first(lambda: told.on_end(run))
    return run
