"""Training runs: configs, schedules, the loop, and run folders."""

from icl_fast.training.config import OptimizerConfig, RunConfig, SnapshotSchedule, load_config, parse_config
from icl_fast.training.loop import TrainingProgress, resolve_device, train
from icl_fast.training.run_folder import RunFolder

__all__ = [
    "OptimizerConfig",
    "RunConfig",
    "RunFolder",
    "SnapshotSchedule",
    "TrainingProgress",
    "load_config",
    "parse_config",
    "resolve_device",
    "train",
]
