"""The members of a run on exemplars: their own configs, and what follows from them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch

from icl_fast.data import EvaluationSequences, Exemplars, evaluation_sequences, evaluators, output_labels
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.errors import InputError
from icl_fast.memory import check_fits
from icl_fast.models import Clamps, ExemplarConfig, ExemplarModel, make_exemplar_model, stack_clamps
from icl_fast.runs.config import parse_config
from icl_fast.runs.exemplar_config import ExemplarRunConfig, MemberConfig

# what members of a population may differ in; they share everything else
_FREE = ("interventions.", "sequences.", "graft.")
_FREE_OF_TRAINING = ("seed", "lr", "warmup", "l2", "l2_on")


@dataclass(frozen=True)
class Member:
    """A member's name and its own config, in which `members` is 1."""

    name: str
    config: ExemplarRunConfig


def members(config: ExemplarRunConfig) -> list[Member]:
    """The members of a population, each with the config that it would have as a run of its own.

    Raises:
        InputError: a member differs in something that all must share, or has impossible values.
    """
    base = config.model_dump(mode="json") | {"members": 1}
    if isinstance(config.members, int):
        if config.members == 1:
            return [Member("run", _parse(base))]
        first = config.training.seed
        listed = [
            MemberConfig(name=f"seed {first + i}", set={"training.seed": first + i}) for i in range(config.members)
        ]
    else:
        listed = config.members
    return [_member(base, one) for one in listed]


def _member(base: dict[str, Any], member: MemberConfig) -> Member:
    values = copy.deepcopy(base)
    for key, value in member.set.items():
        section, _, name = key.partition(".")
        free = name in _FREE_OF_TRAINING if section == "training" else key.startswith(_FREE)
        if not free or key == "sequences.pairs":
            raise InputError(
                f"members: {member.name}: {key} is one for all members, which may differ in interventions.*, graft.*, "
                f"sequences.* but pairs, and training.{', '.join(_FREE_OF_TRAINING)}; make it another run"
            )
        values[section][name] = value
    return Member(member.name, _parse(values, f"member {member.name}"))


def _parse(values: dict[str, Any], source: str = "config") -> ExemplarRunConfig:
    config = parse_config(values, source)
    assert isinstance(config, ExemplarRunConfig)
    return config


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

    @property
    def of_seeds(self) -> bool:
        """Whether there are several members that differ in nothing but the seed of their initial weights."""
        alike = [member.config.model_dump() for member in self.all]
        for values in alike:
            values["training"].pop("seed")
        return len(alike) > 1 and all(values == alike[0] for values in alike)

    def clamps(self) -> Clamps:
        """What is forced in each member.

        Raises:
            InputError: a head that the model does not have; it names the member.
        """
        clamps = []
        for member in self.all:
            try:
                clamps.append(member.config.interventions.make(self.config.model))
            except InputError as error:
                raise InputError(f"{member.name}: {error}") from None
        return stack_clamps(clamps)

    def model(self, exemplars: Exemplars) -> ExemplarModel:
        """The population at step 0, before any graft.

        Raises:
            InputError: exemplars that do not allow the members' sequences, or a ResNet without images.
        """
        outputs = [output_labels(member.config.sequences, exemplars) for member in self.all]
        config = ExemplarConfig(
            **self.config.model.model_dump(),
            features=exemplars.features.shape[-1],
            image=exemplars.image,
            outputs=max(outputs),
            pairs=self.config.sequences.pairs,
        )
        return make_exemplar_model(config, [member.config.training.seed for member in self.all], outputs)

    def evaluators(
        self,
        exemplars: Exemplars,
        names: list[str] | None = None,
        count: int | Literal["all"] = 1000,
        device: torch.device | str = "cpu",
    ) -> list[EvaluationSequences]:
        """Evaluation sets of `[P,count]` sequences each; by default, those that every member has.

        With "all" of whatever they could draw, once each.

        Raises:
            InputError: an unknown evaluator, or one that a member does not have; the message says why; or more
                sequences than this machine can hold.
        """
        if not names:
            first, *others = [evaluators(config, exemplars) for config in self.sequences]
            names = [name for name in first if all(name in other for other in others)]
        sequence = 8 * (4 * self.config.sequences.pairs + 3)  # bytes of the integers that make it
        what = f"sequences {count} of each of {len(names)} evaluators, {len(self.all)} members"
        if count != "all":
            check_fits(len(names) * len(self.all) * count * sequence, what)
        return [evaluation_sequences(name, self.sequences, exemplars, count, device) for name in names]
