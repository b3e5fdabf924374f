"""A run of the exemplar world on disk: what every run folder holds; snapshots hold all members."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
import xarray as xr

from icl_fast.data import EvaluationSequences, Exemplars, evaluation_sequences, evaluators, output_labels
from icl_fast.data.exemplar_source import load_exemplars
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.errors import InputError
from icl_fast.models import (
    Clamps,
    ExemplarConfig,
    ExemplarSnapshot,
    ExemplarTransformer,
    load_exemplar_snapshot,
    save_exemplar_snapshot,
    stack_clamps,
)
from icl_fast.runs.exemplar_config import ExemplarRunConfig, Member, load_exemplar_config, members
from icl_fast.runs.folder import RunFiles


class ExemplarRun(RunFiles):
    """Reads and writes the run folder of one run, or of a population, of the exemplar world."""

    def create(self, config: ExemplarRunConfig) -> None:
        """Begin a run.

        Raises:
            InputError: the folder holds something already, or cannot be written.
        """
        self.begin(config.to_yaml())

    @cached_property
    def config(self) -> ExemplarRunConfig:
        """The run's config.

        Raises:
            InputError: no run here, one on text, or its config is damaged.
        """
        return load_exemplar_config(self.config_path)

    @cached_property
    def population(self) -> Population:
        """The members, from the config."""
        return Population(self.config)

    @property
    def members(self) -> list[str]:
        """The names of the members, in order."""
        return self.population.names

    def exemplars(self, progress: Callable[[int, int, str], None] | None = None) -> Exemplars:
        """The encoded exemplars that it was trained on, made anew from what the config names."""
        return load_exemplars(self.config.exemplars, progress)

    def save_snapshot(self, model: ExemplarTransformer, *, step: int, sequences: int) -> None:
        """Write a snapshot and note its hash."""
        path = self.snapshot_path(step)
        save_exemplar_snapshot(path, model, step=step, sequences=sequences)
        self.note(str(path.relative_to(self.path)))

    def load_snapshot(self, step: int) -> ExemplarSnapshot:
        """Read a snapshot.

        Raises:
            InputError: none at that step, damaged (also where only its hash shows it), or with weights not finite.
        """
        return load_exemplar_snapshot(self.check_snapshot(step))

    def curves(self) -> xr.Dataset:
        """What was measured while it was trained.

        `training_loss [logged, member]` at `logged_sequences`: the mean since the line before, in nats. All else at
        `sequences [evaluation]`: `<metric> [evaluation, evaluator, member, ...]` for the metrics of
        `icl_fast.measure.exemplar.strategies`.

        Raises:
            InputError: nothing is logged yet.
        """
        records = self.read_log()
        losses = [record for record in records if "loss" in record]
        evaluations = [record for record in records if "evaluators" in record]
        if not losses and not evaluations:
            raise InputError(f"run folder {self.path}: nothing is logged yet; train it first")
        data = xr.Dataset(coords={"member": self.members})
        data["training_loss"] = ("logged", "member"), np.array([record["loss"] for record in losses])
        data["logged_sequences"] = "logged", np.array([record["sequences"] for record in losses], np.int64)
        data["training_loss"].attrs["unit"] = "nats"
        if evaluations:
            data["sequences"] = "evaluation", np.array([record["sequences"] for record in evaluations], np.int64)
            names = list(evaluations[0]["evaluators"])
            data = data.assign_coords(evaluator=names)
            for metric in evaluations[0]["evaluators"][names[0]]:
                values = np.array(
                    [[record["evaluators"][name][metric] for name in names] for record in evaluations], np.float64
                )
                per_head = ("layer", "head") if values.ndim == 5 else ()
                data[metric] = ("evaluation", "evaluator", "member", *per_head), values
        return data


class Population:
    """The members of a config, and what follows from them: configs, seeds, clamps, outputs, evaluation sets."""

    def __init__(self, config: ExemplarRunConfig) -> None:
        self.config = config
        self.all: list[Member] = members(config)

    @property
    def names(self) -> list[str]:
        """The names of the members, in order."""
        return [member.name for member in self.all]

    @property
    def sequences(self) -> list[SequenceConfig]:
        """The `sequences:` block of each member."""
        return [member.config.sequences for member in self.all]

    @property
    def noisy(self) -> bool:
        """Whether any member's features have noise."""
        return any(member.config.sequences.noise for member in self.all)

    def clamps(self) -> Clamps:
        """What is forced in each member.

        Raises:
            InputError: a head that the model does not have; it names the member.
        """
        made = []
        for member in self.all:
            try:
                made.append(member.config.interventions.make(self.config.model))
            except InputError as error:
                raise InputError(f"{member.name}: {error}") from None
        return stack_clamps(made)

    def model(self, exemplars: Exemplars) -> ExemplarTransformer:
        """The population at step 0, before any graft.

        Raises:
            InputError: exemplars that the members' sequences cannot be made of, or a ResNet without images.
        """
        outputs = [output_labels(member.config.sequences, exemplars) for member in self.all]
        config = ExemplarConfig(
            **self.config.model.model_dump(),
            features=exemplars.features.shape[-1],
            image=exemplars.image,
            outputs=max(outputs),
            pairs=self.config.sequences.pairs,
        )
        return ExemplarTransformer(config, [member.config.training.seed for member in self.all], outputs)

    def evaluators(
        self,
        exemplars: Exemplars,
        names: list[str] | None = None,
        count: int = 1000,
        device: torch.device | str = "cpu",
    ) -> list[EvaluationSequences]:
        """The evaluation sets, `[P, count]` each; by default all that every member has.

        Raises:
            InputError: an unknown evaluator, or one that a member does not have; the message says why.
        """
        if not names:
            first, *others = [evaluators(config, exemplars) for config in self.sequences]
            names = [name for name in first if all(name in other for other in others)]
        return [evaluation_sequences(name, self.sequences, exemplars, count, device) for name in names]
