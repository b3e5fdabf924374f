"""The members of a run on exemplars: their own configs, and what follows from them."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
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
_SEED = re.compile(r"[\s|,:;]*\bseed \d+$")  # at the end of a name
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
    base = config.model_dump(mode="json") | {"members": 1, "seeds": 1}
    if isinstance(config.members, int):
        if config.members == 1:
            return [Member("run", _parse(base))]
        first = config.training.seed
        seeds = range(first, first + config.members)
        return [_member(base, f"seed {seed}", {"training.seed": seed}) for seed in seeds]
    if config.seeds == 1:
        return [_member(base, one.name, one.set) for one in config.members]
    return [_of_seed(base, one, number) for one in config.members for number in range(config.seeds)]


def _of_seed(base: dict[str, Any], member: MemberConfig, number: int) -> Member:
    """The n-th seed of a member, from its own on."""
    own = _member(base, member.name, member.set).config.training.seed
    return _member(base, f"{member.name} | seed {own + number}", member.set | {"training.seed": own + number})


def _member(base: dict[str, Any], name: str, changed: dict[str, Any]) -> Member:
    values = copy.deepcopy(base)
    for key, value in changed.items():
        section, _, field = key.partition(".")
        free = field in _FREE_OF_TRAINING if section == "training" else key.startswith(_FREE)
        if not free or key == "sequences.pairs":
            raise InputError(
                f"members: {name}: {key} is one for all members, which may differ in interventions.*, graft.*, "
                f"sequences.* but pairs, and training.{', '.join(_FREE_OF_TRAINING)}; make it another run"
            )
        values[section][field] = value
    return Member(name, _parse(values, f"member {name}"))


def _setting(member: Member) -> tuple[str, str]:
    """A member's name and config without seeds."""
    values = member.config.model_dump(mode="json")
    values["training"].pop("seed")
    values["sequences"].pop("seed")
    return _SEED.sub("", member.name), json.dumps(values, sort_keys=True)


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
    def settings(self) -> list[str]:
        """What each member is a seed of: members whose names and configs are the same but for seeds have one name."""
        keys = [_setting(member) for member in self.all]
        if len({name for name, _ in keys}) < len(set(keys)):  # one name for several configs
            return self.names
        several = Counter(keys)
        return [
            (key[0] or f"{several[key]} seeds") if several[key] > 1 else name
            for key, name in zip(keys, self.names, strict=True)
        ]

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
