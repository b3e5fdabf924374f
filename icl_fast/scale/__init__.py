"""Where work is done: in this process, or by the workers of Ray."""

from icl_fast.scale.runner import HERE, Here, Needs, Runner, by_workers
from icl_fast.scale.starting import ray_runner

__all__ = ["HERE", "Here", "Needs", "Runner", "by_workers", "ray_runner"]
