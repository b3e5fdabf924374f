"""Training of the exemplar world: a population as one, measured on the way, resumed to the same bits on CPU."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icl_fast.data import training_sequences
from icl_fast.data.exemplar_source import load_exemplars
from icl_fast.errors import InputError
from icl_fast.models import ExemplarTransformer, Intervention, load_exemplar_snapshot
from icl_fast.models.grafts import graft, part_parameters
from icl_fast.models.interventions import check_any_batch
from icl_fast.training.exemplar_config import ExemplarRunConfig
from icl_fast.training.exemplar_engine import Draws, Engine, Task, check_losses, make_engine, steps_of
from icl_fast.training.exemplar_run import ExemplarRun, Population
from icl_fast.training.interrupt import interruptible
from icl_fast.training.loop import differing_keys, resolve_device
from icl_fast.training.schedules import learning_rate, snapshot_steps
from icl_fast.training.strategies import StrategyMetrics, evaluate_strategies

_CHUNK_BYTES = 32 * 2**20  # of integer draws; larger calls cost less per sequence
_LONGEST_CALL = 2.0  # seconds of steps in one call, so that Ctrl-C is heard


@dataclass(frozen=True)
class ExemplarProgress:
    """Where a run is. `losses` are the members' mean training losses since the last log line, in nats."""

    step: int
    steps: int
    sequences: int
    losses: list[float]
    steps_per_second: float


def train_exemplars(
    config: ExemplarRunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    interventions: Sequence[Intervention] = (),
    on_progress: Callable[[ExemplarProgress], None] | None = None,
    on_exemplars: Callable[[int, int, str], None] | None = None,
) -> ExemplarRun:
    """Train a run, or a population of runs as one, and leave a run folder behind.

    The same config gives the same weights, bit for bit, on one CPU with one engine, also if it was interrupted and
    resumed any number of times; a member of a population has the same as the run alone, to rounding (with the fused
    engine: to the bit).

    Args:
        config: what to train.
        out: the run folder; it must not exist, or be empty, unless `resume`.
        resume: go on from the last saved state of `out`, whose config must be the same.
        interventions: what is forced besides the clamps, in training and evaluation: zeros and functions of the value,
            with the members folded into the examples. It takes the plain engine, and is not kept in the run folder: to
            resume, give the same again.
        on_progress: called after every call of the engine.
        on_exemplars: called while glyphs are rendered.

    Raises:
        InputError: exemplars that cannot be had, members that do not fit them, interventions that they
            do not have or that hold for one size of batch only, `out` is taken or holds another run, a
            full disk, a loss that is not finite. The folder then holds the state of the last save.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the state was saved.
    """
    run = ExemplarRun(out)
    if resume and not run.exists:
        raise InputError(f"--resume: {run.path} holds no run to resume; leave --resume out to begin one")
    if resume and (differing := differing_keys(run.config.model_dump(), config.model_dump())):
        raise InputError(f"--resume: {run.path} was begun with other values of {', '.join(differing)}")
    trainer = _Trainer(config, tuple(interventions), on_exemplars)
    state = None
    if resume:
        state = run.load_state()
    else:
        run.create(config)
    if state is not None:
        trainer.load_state(state)
    run.cut_log(-1 if state is None else trainer.step)
    begun_at = None if state is None else trainer.step
    last, events = config.training.steps, trainer.events()
    with interruptible() as interrupted:
        while True:
            step = trainer.step
            if step != begun_at:
                trainer.record(run)
            if interrupted.is_set():
                run.save_state(trainer.state())
                raise KeyboardInterrupt(f"stopped after step {step} of {last}, its state is saved")
            if step == last:
                break
            trainer.advance(events[bisect_right(events, step)], interrupted.is_set, on_progress)
    run.finish()
    return run


class _Trainer:
    """The population, its engine, and what is due when."""

    def __init__(
        self,
        config: ExemplarRunConfig,
        interventions: tuple[Intervention, ...],
        on_exemplars: Callable[[int, int, str], None] | None,
    ) -> None:
        self.config, self.population = config, Population(config)
        device = resolve_device(config.training.device)
        exemplars = load_exemplars(config.exemplars, on_exemplars)
        self.model = self.population.model(exemplars).to(device)
        trainable = _graft(self.model, self.population)
        self.clamps = self.population.clamps().to(device)
        self.sampler = training_sequences(self.population.sequences, exemplars, device)
        self.evaluators = self.population.evaluators(
            exemplars, config.evaluation.names, config.evaluation.sequences, device
        )
        self.features = exemplars.features.to(device)
        check_any_batch(interventions, self.model.config)
        self.interventions = interventions
        task = Task(self.model, self.features, self.clamps, trainable, config.training, interventions)
        self.engine: Engine = make_engine(task, self.population.noisy)
        self.snapshots = set(snapshot_steps(config.training.steps, config.snapshots))
        self.step = 0
        # sums of losses since the last log line
        self.losses = torch.zeros(self.model.members, dtype=torch.float64)
        self.since = 0
        self.rate = 0.0

    def events(self) -> list[int]:
        """The steps at which something is written, in order."""
        config, last = self.config, self.config.training.steps
        every = [config.evaluation.every, config.training.log_every, config.training.checkpoint_every]
        due = {step for period in every for step in range(0, last, period)}
        return sorted(due | self.snapshots | {last})

    def advance(
        self, until: int, interrupted: Callable[[], bool], on_progress: Callable[[ExemplarProgress], None] | None
    ) -> None:
        """Make the steps up to `until`, in calls short enough to be interrupted between."""
        while self.step < until and not interrupted():
            count = min(until - self.step, self._call())
            begun = time.monotonic()
            losses = self.engine.run(self._draws(count), self.step)
            self.rate = count / max(time.monotonic() - begun, 1e-9)
            check_losses(losses, self.population.names, self.step)
            for row in losses.double():  # one by one: the sum must not depend on how the steps were cut into calls
                self.losses += row
            self.step, self.since = self.step + count, self.since + count
            if on_progress is not None:
                on_progress(
                    ExemplarProgress(
                        step=self.step,
                        steps=self.config.training.steps,
                        sequences=self.step * self.config.training.batch,
                        losses=(self.losses / self.since).tolist(),
                        steps_per_second=self.rate,
                    )
                )

    def record(self, run: ExemplarRun) -> None:
        """Write what is due after this step: log line, evaluation, snapshot, state."""
        config, step = self.config, self.step
        last = step == config.training.steps
        seen = {"step": step, "sequences": step * config.training.batch}
        if self.since and (step % config.training.log_every == 0 or last):
            mean = _rounded(self.losses / self.since)
            run.append_log(seen | {"loss": mean, "lr": learning_rate(step - 1, config.training)})
            self.losses.zero_()
            self.since = 0
        if step % config.evaluation.every == 0 or last:
            run.append_log(seen | {"evaluators": self._evaluate()})
        if step in self.snapshots:
            run.save_snapshot(self.model, step=step, sequences=seen["sequences"])
        if last or step % config.training.checkpoint_every == 0:
            run.save_state(self.state())

    def _evaluate(self) -> dict[str, dict[str, Any]]:
        measured = evaluate_strategies(
            self.model, self.features, self.evaluators, self.clamps, interventions=self.interventions, attention=True
        )
        return {name: _numbers(metrics) for name, metrics in measured.items()}

    def _call(self) -> int:
        """How many steps to make in one call."""
        config = self.config
        words = self.model.members * config.training.batch * (4 * config.sequences.pairs + 3)
        by_memory = max(1, _CHUNK_BYTES // (8 * words))
        by_time = max(1, int(self.rate * _LONGEST_CALL)) if self.rate else 16
        return min(by_memory, by_time)

    def _draws(self, count: int) -> Draws:
        batch = self.config.training.batch
        start = self.step * batch

        def noise(i: int) -> Tensor:
            return self.sampler.noise(start + i * batch, batch, self.features.shape[-1])

        sequences = self.sampler.draw(start, count * batch)
        return steps_of(sequences, count, noise if self.population.noisy else None)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "engine": self.engine.state(),
            "losses": self.losses,
            "since": self.since,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.model.load_state_dict(state["model"])
        self.step, self.since = state["step"], state["since"]
        self.losses = state["losses"]
        self.engine.load_state(state["engine"], self.step)


def _graft(model: ExemplarTransformer, population: Population) -> dict[str, Tensor]:
    """Put other runs' weights into members; which parameters of which members are still trained."""
    trainable: dict[str, Tensor] = {}
    for number, member in enumerate(population.all):
        config = member.config.graft
        if config.snapshot is None:
            continue
        try:
            donor = load_exemplar_snapshot(config.snapshot).model
            graft(model, donor, config.parts, member=number, donor_member=config.member)
        except InputError as error:
            raise InputError(f"{member.name}: graft: {error}") from None
        if config.frozen:
            for name in part_parameters(model, config.parts):
                trainable.setdefault(name, torch.ones(model.members, dtype=torch.bool))[number] = False
    return trainable


def _numbers(metrics: StrategyMetrics) -> dict[str, Any]:
    """What of an evaluator goes into the log; where each position is attended to would be too much."""
    values = {name: value for name, value in vars(metrics).items() if isinstance(value, Tensor)}
    if metrics.attention is not None:
        values |= {name: value for name, value in vars(metrics.attention).items() if name != "query"}
    return {name: _rounded(value) for name, value in values.items()}


def _rounded(values: Tensor) -> Any:
    """As nested lists, to 6 digits; NaN as it is (json writes and reads it)."""
    return torch.round(values.double().cpu(), decimals=6).tolist()
