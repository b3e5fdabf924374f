"""A claim of one of the two works, as a row of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from icl_fast.analysis.claims import Measurement
from icl_fast.studies.reproduction.trained import Trained

Work = Literal["olsson", "singh"]
Scale = Literal["tiny", "small", "paper"]
WORKS: tuple[Work, ...] = ("olsson", "singh")
SCALES: tuple[Scale, ...] = ("tiny", "small", "paper")

Measure = Callable[..., Measurement]  # of the trainings by role, each a list with one for every seed


@dataclass(frozen=True)
class Claim:
    """What a work says, and how it is decided whether it holds here.

    The rule is written from what the work says, before anything is measured. It must fail on trainings that lack the
    effect (`without`): a rule that holds there too decides nothing.

    Attributes:
        name: unique in its work.
        source: where the work says it: section, figure.
        statement: what it says, in a sentence.
        runs: role -> trainings, `EXPERIMENT`, `EXPERIMENT:MEMBER`; behind it `@SHARE`: only that part of the training,
            from its start, is looked at (`@0`: the initial weights).
        measure: called with `runs` (role -> `Trained` of each seed) and the arguments.
        rule: see `icl_fast.analysis.claims.Rule`.
        without: roles -> other trainings, in the control; see `measured`.
        arguments: of `measure`.
        without_arguments: those that differ in the control.
        untested: scale -> why it cannot be tested at that scale, and its cost in GPU-hours.
        note: what is smaller than in the work, or differs from it.
    """

    name: str
    source: str
    statement: str
    runs: Mapping[str, str]
    measure: Measure
    rule: str
    without: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    without_arguments: Mapping[str, Any] = field(default_factory=dict)
    untested: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def control(self) -> Mapping[str, str]:
        """The trainings of the control, by role."""
        return {**self.runs, **self.without}

    @property
    def experiments(self) -> list[str]:
        """The experiments of all its trainings, each once."""
        named = [*self.runs.values(), *self.without.values()]
        return list(dict.fromkeys(which.partition("@")[0].partition(":")[0] for which in named))

    def measured(self, trained: Callable[[str], Sequence[Trained]], *, control: bool = False) -> Measurement:
        """What the claim speaks of, or the same of the control.

        Where trainings that the claim compares are one and the same in the control, each role has one seed, those of
        that training another one each: what differs is chance.

        Args:
            trained: which trainings -> one of each seed.
        """
        if not control:
            return self.measure({role: trained(which) for role, which in self.runs.items()}, **self.arguments)
        found = {role: trained(which) for role, which in self.control.items()}
        alike = {role: [other for other in found if self.control[other] == self.control[role]] for role in found}
        if any(len({self.runs[role] for role in roles}) > 1 for roles in alike.values()):
            turn = {role: roles.index(role) % len(found[role]) for role, roles in alike.items()}
            found = {role: seeds[turn[role] : turn[role] + 1] for role, seeds in found.items()}
        return self.measure(found, **{**self.arguments, **self.without_arguments})
