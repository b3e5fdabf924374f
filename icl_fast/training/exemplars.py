"""Training on exemplars: a population as one, measured on the way."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from icl_fast.data import Exemplars, training_sequences
from icl_fast.data.exemplar_source import load_exemplars
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.answers import StrategyMetrics
from icl_fast.measure.exemplar.strategies import evaluate_strategies
from icl_fast.models import ExemplarModel, Intervention, load_snapshot
from icl_fast.models.grafts import graft, part_parameters
from icl_fast.models.interventions import check_any_batch
from icl_fast.runs import ExemplarRunConfig, Population, Run, resolve_device
from icl_fast.runs.snapshot_schedule import snapshot_steps
from icl_fast.runs.states import check_count, check_state
from icl_fast.scale import HERE, Runner
from icl_fast.training.callbacks import NOBODY, Callback, log
from icl_fast.training.exemplar_draws import Drawer
from icl_fast.training.exemplar_engine import Engine, Task, check_losses, make_engine
from icl_fast.training.member_groups import MemberGroups
from icl_fast.training.schedules import learning_rate
from icl_fast.training.sizes import check_exemplar_run_fits

_LONGEST_CALL = 2.0  # seconds of steps in one call, so that Ctrl-C is heard


@dataclass(frozen=True)
class ExemplarProgress:
    """The state of a run. `losses` are the members' mean training losses since the last log line, in nats."""

    step: int
    steps: int
    sequences: int
    losses: list[float]
    steps_per_second: float
    workers: int | None = None


class ExemplarTrainer:
    """The population, its engine, and what is due when."""

    tokenizer_json: str | None = None

    def __init__(
        self,
        config: ExemplarRunConfig,
        interventions: Sequence[Intervention] = (),
        on_progress: Callable[[ExemplarProgress], None] | None = None,
        on_exemplars: Callable[[int, int, str], None] | None = None,
        runner: Runner = HERE,
        told: Callback = NOBODY,
    ) -> None:
        """Set up what `config` says; for the other arguments see `icl_fast.training.train`.

        Raises:
            InputError: exemplars that cannot be had, members that do not fit them, interventions that they do not have
                or that hold for one size of batch only, no such device, more than this machine can hold; workers, and
                no members to be shared out among them.
        """
        self.config, self.on_progress, self.told = config, on_progress, told
        self.interventions = tuple(interventions)
        if self.interventions:
            config.model.check_attention("interventions")
        device = resolve_device(config.training.device)
        check_exemplar_run_fits(config, 1, device)
        self.population = Population(config)
        exemplars = load_exemplars(config.exemplars, on_exemplars)
        self.exemplars: Exemplars | None = exemplars
        check_exemplar_run_fits(config, exemplars.features.shape[-1], device)
        self.model = self.population.model(exemplars).to(device)
        trainable = _graft(self.model, self.population)
        self.clamps = self.population.clamps().to(device)
        sampler = training_sequences(self.population.sequences, exemplars, device)
        self.evaluators = self.population.evaluators(
            exemplars, config.evaluation.names, config.evaluation.sequences, device
        )
        self.features = exemplars.features.to(device)
        noise = self.features.shape[-1] if self.population.noisy else 0
        self.draws = Drawer(sampler, config.training.batch, config.training.steps, noise)
        check_any_batch(self.interventions, self.model.config)
        own = tuple(member.config.training for member in self.population.all)
        self.task = Task(self.model, self.features, self.clamps, trainable, config.training, self.interventions, own)
        self.engine: Engine = make_engine(self.task, self.population.noisy)
        shared_out = runner.workers is not None
        self.groups = MemberGroups(self.engine, self.population, exemplars, runner) if shared_out else None
        self.workers = runner.workers
        self.snapshots = snapshot_steps(config.training.steps, config.snapshots)
        self.step = 0
        # sums of losses since the last log line
        self.losses = torch.zeros(self.model.members, dtype=torch.float64)
        self.since = 0
        self.rate = 0.0

    @property
    def steps(self) -> int:
        """The step at which the run ends."""
        return self.config.training.steps

    def _next(self) -> int:
        """The next step at which something is written."""
        config, step = self.config, self.step
        every = (config.evaluation.every, config.training.log_every, config.training.checkpoint_every)
        snapshot = self.snapshots[bisect_right(self.snapshots, step)]  # there is one at the end of the run
        return min(snapshot, *((step // period + 1) * period for period in every))

    def advance(self, interrupted: Callable[[], bool]) -> None:
        """Take the steps up to the next at which something is written, in calls short enough for an interrupt to be
        heard between them."""
        until = self._next()
        while self.step < until and not interrupted():
            count = min(until - self.step, self._call())
            started = time.monotonic()
            if self.groups is None:
                losses = self.engine.run(self.draws(self.step, count), self.step)
            else:
                losses = self.groups.run(self.step, count)
            self.rate = count / max(time.monotonic() - started, 1e-9)
            check_losses(losses, self.population.names, self.step)
            for row in losses.double():  # one by one: the sum must not depend on how the steps were cut into calls
                self.losses += row
            self.step, self.since = self.step + count, self.since + count
            if self.on_progress is not None:
                self.on_progress(
                    ExemplarProgress(
                        step=self.step,
                        steps=self.steps,
                        sequences=self.step * self.config.training.batch,
                        losses=(self.losses / self.since).tolist(),
                        steps_per_second=self.rate,
                        workers=self.workers,
                    )
                )

    def record(self, run: Run) -> None:
        """Write what is due after this step: log line, evaluation, snapshot, state."""
        config, step = self.config, self.step
        last = step == self.steps
        seen = {"step": step, "sequences": step * config.training.batch}
        if self.since and (step % config.training.log_every == 0 or last):
            log(run, seen | self._training_line(step), self.told)
            self.losses.zero_()
            self.since = 0
        if step % config.evaluation.every == 0 or last:
            log(run, seen | {"evaluators": self._evaluate()}, self.told)
        if step in self.snapshots:
            run.save_snapshot(self.model, step=step, seen=seen["sequences"])
            self.told.on_snapshot(step, run.snapshot_path(step))
        if last or step % config.training.checkpoint_every == 0:
            self.save(run)

    def _training_line(self, step: int) -> dict[str, Any]:
        """Losses and learning rates; where there is L2, `total_loss` too: with that of the weights after this step."""
        mean = self.losses / self.since
        rates = [learning_rate(step - 1, member.config.training) for member in self.population.all]
        line = {"loss": _rounded(mean), "lr": rates[0] if len(set(rates)) == 1 else rates}
        if self.task.l2:
            with torch.no_grad():
                line["total_loss"] = _rounded(mean + self.task.penalty().double().cpu())
        return line

    def _evaluate(self) -> dict[str, dict[str, Any]]:
        measured = evaluate_strategies(
            self.model,
            self.features,
            self.evaluators,
            self.clamps,
            interventions=self.interventions,
            attention=self.config.model.architecture == "transformer",
        )
        return {name: _numbers(metrics) for name, metrics in measured.items()}

    def _call(self) -> int:
        """How many steps to take in one call."""
        by_time = max(1, int(self.rate * _LONGEST_CALL)) if self.rate else 16
        return min(self.draws.most, by_time)

    def save(self, run: Run) -> None:
        """Write the state, after which a run can go on."""
        run.save_state(self.state())

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "engine": self.engine.state(),
            "losses": self.losses,
            "since": self.since,
        } | ({"interventions": self._forced()} if self.interventions else {})

    def _forced(self) -> list[list[Any]]:
        """What of the interventions can be compared."""
        return [
            [one.site, one.action, *(list(part or ()) for part in (one.heads, one.positions, one.reads))]
            for one in self.interventions
        ]

    def load_state(self, state: Any, source: str) -> None:
        """Continue from a saved state; `source` is what messages call it.

        Raises:
            InputError: it is not one of this run; or the interventions are not those of the saved run, as far as
                their sites, actions, heads, positions and what they read tell.
        """
        if state.get("interventions", []) != self._forced():
            raise InputError("interventions: are not those of the saved run; resume it with the same ones")
        check_state(state, self.state(), source)
        check_count(state["step"], 0, self.steps, f"{source}: step")
        check_count(state["since"], 0, state["step"], f"{source}: since")
        self.model.load_state_dict(state["model"])
        self.step, self.since = state["step"], state["since"]
        self.losses = state["losses"]
        self.engine.load_state(state["engine"], self.step)


def _graft(model: ExemplarModel, population: Population) -> dict[str, Tensor]:
    """Put other runs' weights into members; which parameters of which members are still trained."""
    trainable: dict[str, Tensor] = {}
    for number, member in enumerate(population.all):
        config = member.config.graft
        if config.snapshot is None:
            continue
        try:
            donor = load_snapshot(os.path.expanduser(config.snapshot)).model
            if not isinstance(donor, ExemplarModel):
                raise InputError(f"snapshot {config.snapshot}: is of a model on text")
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
