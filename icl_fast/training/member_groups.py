"""The steps of a population on several workers: each takes those of a group of members, drawing their sequences itself.

Only with the fused engine, in which the bits of a member do not depend on others, and so not on how they are grouped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from icl_fast.data import Exemplars, training_sequences
from icl_fast.data.sequences import SequenceSampler
from icl_fast.errors import InputError
from icl_fast.models import make_exemplar_model
from icl_fast.runs import Population
from icl_fast.scale import Needs, Runner
from icl_fast.training.exemplar_draws import steps_of
from icl_fast.training.exemplar_engine import Engine, FusedEngine, State, Task


@dataclass(frozen=True)
class _Steps:
    """Steps to take: from which weights and moments on, from which step, and how many."""

    weights: State
    moments: State
    step: int
    count: int


class MemberGroups:
    """A population in as many groups as its runner has workers.

    Raises:
        InputError: a population of one, or one that takes the plain engine.
    """

    def __init__(self, engine: Engine, population: Population, exemplars: Exemplars, runner: Runner) -> None:
        members = len(population.all)
        if members == 1:
            raise InputError("ray: shares out the members of a population, and this config has one; leave it out")
        if not isinstance(engine, FusedEngine):
            raise InputError(
                "ray: members are shared out with the fused engine, and this config takes the plain one, which rounds "
                "the numbers of members by what is beside them; leave it out"
            )
        self._engine, self._runner = engine, runner
        groups = min(members, runner.workers or 1)
        bounds = [members * group // groups for group in range(groups + 1)]
        self._members = [slice(start, end) for start, end in pairwise(bounds)]
        batch = engine.task.training.batch
        self._compute = _Compute(
            [_part(engine.task, population, of) for of in self._members],
            [training_sequences(population.sequences[of], exemplars) for of in self._members],
            batch,
        )

    def run(self, step: int, count: int) -> Tensor:
        """Take the steps `step`, `step + 1`, ... of all members; the losses before each, `[count,P]` nats."""
        weights, moments = self._engine.model.state_dict(), self._engine.state()
        work = [
            (_Steps(_of(weights, members), _of(moments, members), step, count), [group])
            for group, members in enumerate(self._members)
        ]
        losses = torch.empty(count, len(weights["outputs"]))
        for group, (lost, after, moved) in self._runner.run(self._compute, work, Needs()):
            members = self._members[group]
            losses[:, members] = lost
            for all_of, of_group in ((weights, after), (moments, moved)):
                for name, values in of_group.items():
                    all_of[name][members] = values
        self._engine.load_state(moments, step + count)  # the weights are the model's own
        return losses


class _Compute:
    """A task: the steps of one group."""

    def __init__(self, tasks: list[Task], samplers: list[SequenceSampler], batch: int) -> None:
        self._tasks, self._samplers, self._batch = tasks, samplers, batch

    def __call__(self, steps: _Steps, group: int) -> tuple[Tensor, State, State]:
        engine = FusedEngine(self._tasks[group])
        engine.model.load_state_dict(steps.weights)
        engine.load_state(steps.moments, steps.step)
        sequences = self._samplers[group].draw(steps.step * self._batch, steps.count * self._batch)
        losses = engine.run(steps_of(sequences, steps.count), steps.step)
        return losses, engine.model.state_dict(), engine.state()


def _part(task: Task, population: Population, members: slice) -> Task:
    """What is trained of some members."""
    seeds = [member.config.training.seed for member in population.all[members]]
    return replace(
        task,
        model=make_exemplar_model(task.model.config, seeds, task.model.outputs[members].tolist()),
        clamps=task.clamps[members],
        trainable={name: mask[members] for name, mask in task.trainable.items()},
        of_members=task.of_members[members],
    )


def _of(values: State, members: slice) -> State:
    return {name: tensor[members].clone() for name, tensor in values.items()}
