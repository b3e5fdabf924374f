"""One experiment as data: read from YAML, changed by `--set a.b=c`, checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from icl_fast.data import CORPUS_NAMES, DataConfig
from icl_fast.errors import InputError
from icl_fast.models import ModelShape
from icl_fast.schema import Config, Field, ValidationError, model_validator, validation_message


class SnapshotSchedule(Config):
    """When snapshots are taken: step 0, the last step, and in between every so many steps or at growing steps."""

    schedule: Literal["linear", "exponential"] = "linear"
    every: int = Field(50, ge=1, description="linear: steps between snapshots; exponential: the first one after step 0")
    factor: float = Field(2.0, gt=1.0, description="exponential: each snapshot's step over the one's before")


class OptimizerConfig(Config):
    """How the weights change: AdamW, warm-up, a weight-decay change, clipping; precision and device."""

    steps: int = Field(1000, ge=1, description="optimizer steps")
    batch: int = Field(8, ge=1, description="B, sequences per step")
    lr: float = Field(1e-3, gt=0.0, description="learning rate after warm-up")
    warmup: int = Field(50, ge=0, description="steps over which the learning rate rises linearly from 0")
    decay: Literal["none", "cosine", "inverse_sqrt"] = Field("none", description="the learning rate after warm-up")
    betas: tuple[float, float] = Field((0.9, 0.99), strict=False, description="AdamW's moment decays")
    weight_decay: float = Field(0.01, ge=0.0, description="AdamW weight decay of all matrices")
    weight_decay_change_step: int | None = Field(None, ge=0, description="from this step on …")
    weight_decay_after: float = Field(0.0, ge=0.0, description="… the weight decay is this")
    clip: float | None = Field(1.0, gt=0.0, description="largest gradient norm; null: no clipping")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast; weights stay float32")
    compile: bool = Field(False, description="torch.compile the training step's forward")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: cuda where there is one")
    seed: int = Field(0, ge=0, description="seed of the initial weights (the data's order has its own: data.seed)")
    log_every: int = Field(10, ge=1, description="steps between lines of log.jsonl")
    checkpoint_every: int = Field(200, ge=1, description="steps between saves of optimizer.pt; snapshots save it too")

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerConfig:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        return self


class RunConfig(Config):
    """A whole training run."""

    model: ModelShape = ModelShape()
    data: DataConfig = DataConfig()
    training: OptimizerConfig = OptimizerConfig()
    snapshots: SnapshotSchedule = SnapshotSchedule()

    def with_absolute_corpus(self) -> RunConfig:
        """The same with a corpus folder's whole path, so that it is found again from any working directory."""
        if self.data.corpus in CORPUS_NAMES:
            return self
        folder = str(Path(self.data.corpus).expanduser().absolute())
        return self.model_copy(update={"data": self.data.model_copy(update={"corpus": folder})})

    def to_yaml(self) -> str:
        """The config with every default written out, as `load_config` reads it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_config(values: dict[str, Any], source: str = "config") -> RunConfig:
    """A config from plain data.

    Raises:
        InputError: an unknown key, a wrong type or an impossible value; the message names the dotted key.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {validation_message(error, '')}") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML config that holds what differs from the defaults; then apply `a.b=c` overrides in order.

    Raises:
        InputError: no such file, not YAML, an unknown key, a wrong type, an impossible value, a malformed override.
    """
    return parse_config(read_yaml(path, overrides), source=Path(path).name)


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The sections of a config file, as plain data, with `a.b=c` overrides applied in order.

    Raises:
        InputError: no such file, not YAML, no sections, a malformed override.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader) or {}
    except OSError as error:
        raise InputError(f"config {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"config {path}: must be sections of keys and values, got {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return values


def differing_keys(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The dotted keys of two configs, as plain data, whose values differ."""
    differing = []
    for section, value in a.items():
        if isinstance(value, dict) and isinstance(b[section], dict):
            differing += [f"{section}.{key}" for key in value if value[key] != b[section][key]]
        elif value != b[section]:
            differing.append(section)
    return differing


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {override}: write it as section.key=value, such as training.lr=1e-3")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not YAML") from None
    for part in parts[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {override}: {part!r} is a value, not a section")
    values[parts[-1]] = value


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as a string, which no one writing a learning rate means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
