"""A run on exemplars as data, or a population of runs that differ in what is listed."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, ClassVar, Literal

from icl_fast.data.exemplar_source import ExemplarSource
from icl_fast.data.sequence_config import SequenceConfig
from icl_fast.errors import InputError
from icl_fast.models import ClampName, Clamps, ExemplarShape, make_clamps
from icl_fast.models.exemplar_config import SEEDS
from icl_fast.runs.config_files import to_yaml
from icl_fast.runs.snapshot_schedule import MOST, MOST_STEPS, SnapshotSchedule, snapshot_steps
from icl_fast.schema import Config, Field, model_validator

_HEAD = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")


class InterventionConfig(Config):
    """What is forced throughout training (Singh 2025, 4.4.2, 5.9, C.5.2); heads are `layer.head`, 0-based."""

    clamps: list[ClampName] = Field([], description="pt-attend, layer-1, match, copy, layer-1+copy, no-previous-token")
    previous_token_heads: list[int] = Field([2], description="first-layer heads that pt-attend acts on")
    induction_heads: list[int] = Field([3], description="last-layer heads that match and copy act on")
    only_heads: list[str] = Field([], description="of each layer named, the only heads that write")
    without_heads: list[str] = Field([], description="heads that do not write")
    temperature: dict[str, float] = Field({}, description="head: what its scores are divided by")

    def make(self, shape: ExemplarShape) -> Clamps:
        """The clamps of one member of this shape.

        Raises:
            InputError: a head or a clamp that the model does not have.
        """
        return make_clamps(
            shape,
            self.clamps,
            previous_token_heads=self.previous_token_heads,
            induction_heads=self.induction_heads,
            only_heads=[_head(text) for text in self.only_heads],
            without_heads=[_head(text) for text in self.without_heads],
            temperature=[(_head(text), value) for text, value in self.temperature.items()],
        )


class GraftConfig(Config):
    """Weights taken from a snapshot of another run before training begins (Singh 2025, 5.6.2-5.6.4, C.5.1)."""

    snapshot: str | None = Field(None, description="RUN/snapshots/step_*.safetensors; null: no graft")
    member: int = Field(0, ge=0, lt=SEEDS, description="which member of that population")
    parts: list[str] = Field(
        [], description="embed, layer-1, layer-2, ..., unembed (with the final norm); none named: all of them"
    )
    frozen: bool = Field(True, description="the grafted weights stay as they are; false: they only begin there")


class ExemplarTraining(Config):
    """How the weights change: Adam, the L2 term of the loss, the learning rate; and the engine and device."""

    steps: int = Field(31_250, ge=1, le=MOST_STEPS, description="optimizer steps")
    batch: int = Field(32, ge=1, le=MOST, description="B, sequences per step and member")
    lr: float = Field(1e-5, gt=0.0, description="learning rate after warm-up")
    warmup: int = Field(0, ge=0, le=MOST, description="steps over which the learning rate rises linearly from 0")
    decay: Literal["none", "cosine", "inverse_sqrt"] = Field("none", description="the learning rate after warm-up")
    betas: tuple[float, float] = Field((0.9, 0.999), strict=False, description="Adam's moment decays")
    l2: float = Field(0.0, ge=0.0, description="coefficient of the sum of squared weights in the loss, norms left out")
    l2_on: Literal["all", "embedding", "encoder", "attention", "mlp"] = Field(
        "all", description="the weights in that sum; encoder: of exemplars alone; embedding: of labels too"
    )
    engine: Literal["auto", "plain", "fused"] = Field(
        "auto", description="fused: the CPU kernel for small attention-only models; auto: it where it can be"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: cuda where there is one")
    seed: int = Field(
        0, ge=0, lt=SEEDS, description="seed of the initial weights (the data has its own: sequences.seed)"
    )
    log_every: int = Field(100, ge=1, le=MOST, description="steps between lines of log.jsonl")
    checkpoint_every: int = Field(20_000, ge=1, le=MOST, description="steps between saves of optimizer.pt")

    @model_validator(mode="after")
    def _consistent(self) -> ExemplarTraining:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        return self


class EvaluationConfig(Config):
    """What is measured while training goes on."""

    every: int = Field(
        500, ge=1, le=MOST, description="steps between evaluations; one more before the first and after the last"
    )
    sequences: int = Field(1000, ge=1, le=MOST, description="sequences of each evaluator")
    names: list[str] = Field([], description="evaluators; none named: all that are defined")

    @model_validator(mode="after")
    def _different(self) -> EvaluationConfig:
        if doubled := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"names: {doubled[0]!r} is given twice")
        return self


class MemberConfig(Config):
    """One member of a population: its name, and the values, by dotted key, that replace those of the config."""

    name: str = Field(pattern=r"^[^\n\t]{1,60}$")
    set: dict[str, Any] = Field({}, description="such as {interventions.clamps: [match], training.seed: 3}")


class ExemplarRunConfig(Config):
    """A run on exemplars, or a population of such runs."""

    task: ClassVar[Literal["exemplars"]] = "exemplars"

    model: ExemplarShape = ExemplarShape()
    exemplars: ExemplarSource = ExemplarSource()
    sequences: SequenceConfig = SequenceConfig()
    interventions: InterventionConfig = InterventionConfig()
    graft: GraftConfig = GraftConfig()
    training: ExemplarTraining = ExemplarTraining()
    evaluation: EvaluationConfig = EvaluationConfig()
    snapshots: SnapshotSchedule = SnapshotSchedule(every=1000)
    members: int | list[MemberConfig] = Field(
        1, description="how many, with seeds one after the other; or a list of what they differ in"
    )
    seeds: int = Field(
        1, ge=1, le=SEEDS, description="of each member of a list: its own training.seed and the next ones"
    )

    @property
    def member_count(self) -> int:
        """P, how many members there are."""
        return self.members if isinstance(self.members, int) else self.seeds * len(self.members)

    @model_validator(mode="after")
    def _has_members(self) -> ExemplarRunConfig:
        if isinstance(self.members, int):
            if not 1 <= self.members <= SEEDS:
                raise ValueError(f"members: must be 1 to {SEEDS}, as each has a seed of its own")
            if self.seeds > 1:
                raise ValueError(
                    f"seeds={self.seeds}: is for a list of members; without one write members: {self.seeds}"
                )
            return self
        names = Counter(member.name for member in self.members)
        if not names or len(names) < len(self.members):
            often = "none" if not names else "{1} called {0!r}".format(*names.most_common(1)[0])
            raise ValueError(f"members: need one or more, with different names, got {often}")
        return self

    @model_validator(mode="after")
    def _can_be_snapshotted(self) -> ExemplarRunConfig:
        snapshot_steps(self.training.steps, self.snapshots)
        return self

    def to_yaml(self) -> str:
        """The config with every default written out, as `load_config` reads it."""
        return to_yaml(self.model_dump(mode="json"))


def _head(text: str) -> tuple[int, int]:
    match = _HEAD.fullmatch(text)
    if not match:
        raise InputError(f"interventions: head {text[:80]!r} is not understood; write layer.head such as 1.3")
    return int(match[1]), int(match[2])
