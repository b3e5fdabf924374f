"""Training: one loop, for text and for exemplars."""

from icl_fast.training.exemplars import ExemplarProgress
from icl_fast.training.loop import train
from icl_fast.training.text import TrainingProgress

__all__ = ["ExemplarProgress", "TrainingProgress", "train"]
