"""Training: one loop, for text and for exemplars."""

from icl_fast.training.callbacks import Callback, TensorBoardCallback, WandbCallback
from icl_fast.training.exemplars import ExemplarProgress
from icl_fast.training.loop import train
from icl_fast.training.seeds import train_seeds
from icl_fast.training.text import TrainingProgress

__all__ = [
    "Callback",
    "ExemplarProgress",
    "TensorBoardCallback",
    "TrainingProgress",
    "WandbCallback",
    "train",
    "train_seeds",
]
