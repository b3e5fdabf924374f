"""A run on text as data."""

from __future__ import annotations

from typing import ClassVar, Literal

from icl_fast.data import DataConfig
from icl_fast.data.corpora import absolute_name
from icl_fast.models import ModelShape
from icl_fast.runs.config_files import to_yaml
from icl_fast.runs.snapshot_schedule import MOST, MOST_STEPS, SnapshotSchedule, snapshot_steps
from icl_fast.schema import Config, Field, model_validator


class OptimizerConfig(Config):
    """How the weights change: AdamW, warm-up, a weight-decay change, clipping; precision and device."""

    steps: int = Field(1000, ge=1, le=MOST_STEPS, description="optimizer steps")
    batch: int = Field(8, ge=1, le=MOST, description="B, sequences per step, those of all ranks together")
    accumulate: int = Field(
        1, ge=1, le=MOST, description="parts in which a rank computes its share of a batch: less memory, the same step"
    )
    lr: float = Field(1e-3, gt=0.0, description="learning rate after warm-up")
    warmup: int = Field(50, ge=0, le=MOST, description="steps over which the learning rate rises linearly from 0")
    decay: Literal["none", "cosine", "inverse_sqrt"] = Field("none", description="the learning rate after warm-up")
    betas: tuple[float, float] = Field((0.9, 0.99), strict=False, description="AdamW's moment decays")
    weight_decay: float = Field(0.01, ge=0.0, description="AdamW weight decay of all matrices")
    weight_decay_change_step: int | None = Field(None, ge=0, le=MOST, description="from this step on …")
    weight_decay_after: float = Field(0.0, ge=0.0, description="… the weight decay is this")
    clip: float | None = Field(1.0, gt=0.0, description="largest gradient norm; null: no clipping")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast; weights stay float32")
    compile: bool = Field(False, description="torch.compile the training step's forward")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="under torchrun: ddp: every rank holds the weights; fsdp: each a part of them (FSDP2)"
    )
    checkpoint_activations: bool = Field(
        False, description="keep of a block what enters it, and compute it again for the backward pass"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: cuda where there is one")
    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of the initial weights (the data's order has its own: data.seed)"
    )
    log_every: int = Field(10, ge=1, le=MOST, description="steps between lines of log.jsonl")
    checkpoint_every: int = Field(
        200, ge=1, le=MOST, description="steps between saves of optimizer.pt; snapshots save it too"
    )

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerConfig:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        return self


# keys that say how a step is computed, and not what: a run may go on with others
HOW_COMPUTED = frozenset(f"training.{key}" for key in ("accumulate", "parallel", "checkpoint_activations"))


class TextSnapshots(SnapshotSchedule):
    """When snapshots are taken, and in how many files they are written."""

    sharded: bool = Field(
        False, description="snapshots and the optimizer's state in a file for each rank, without gathering them"
    )


class TextRunConfig(Config):
    """A training run on text."""

    task: ClassVar[Literal["text"]] = "text"

    model: ModelShape = ModelShape()
    data: DataConfig = DataConfig()
    training: OptimizerConfig = OptimizerConfig()
    snapshots: TextSnapshots = TextSnapshots()

    @model_validator(mode="after")
    def _can_be_snapshotted(self) -> TextRunConfig:
        snapshot_steps(self.training.steps, self.snapshots)
        return self

    @model_validator(mode="after")
    def _can_be_evaluated(self) -> TextRunConfig:
        length, position = self.data.evaluation_length, self.model.position
        if length > self.data.context and position in ("learned", "shortformer"):
            raise ValueError(
                f"data.evaluation_context {length}: model.position {position} has a table of data.context "
                f"{self.data.context} positions; take no more, or another model.position"
            )
        return self

    def with_absolute_corpus(self) -> TextRunConfig:
        """The same config with absolute corpus folders, so that they are found from any working directory."""
        data = self.data.model_copy(update={"corpus": absolute_name(self.data.corpus)})
        return self.model_copy(update={"data": data})

    def to_yaml(self) -> str:
        """The config with every default written out, as `load_config` reads it."""
        return to_yaml(self.model_dump(mode="json"))
