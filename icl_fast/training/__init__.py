"""Training runs: configs, schedules, the loop, and run folders."""

from icl_fast.runs.devices import resolve_device
from icl_fast.runs.text_config import OptimizerConfig, RunConfig, SnapshotSchedule, load_config, parse_config
from icl_fast.runs.text_run import RunFolder
from icl_fast.training.loop import TrainingProgress, train

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
