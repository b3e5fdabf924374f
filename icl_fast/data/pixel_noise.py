"""Noise on the pixels of images before a frozen encoder: variation within a class (Singh 2025, 2.3.2)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from icl_fast.arguments import MOST_SEED, finite_number, whole_number
from icl_fast.data.exemplars import Exemplars
from icl_fast.errors import InputError
from icl_fast.memory import check_fits

_STREAM = 1  # encoders draw from the seed too


def with_pixel_noise(exemplars: Exemplars, noise: float, copies: int = 1, *, seed: int = 0) -> Exemplars:
    """Copies of every image, each with Gaussian noise of its own on every pixel, drawn once and for all.

    Exemplar `copies * e + c` of a class is the c-th copy of exemplar e. Noise drawn anew whenever an exemplar is shown
    is `sequences.noise`, which with `exemplars.encoder: none` is on pixels too, before a jointly trained encoder.

    Args:
        noise: standard deviation; ink is 1 and paper 0.
        copies: of each image.

    Raises:
        InputError: the exemplars are no images; more copies than this machine can hold; a number out of range.
    """
    noise, copies = finite_number("pixel_noise", noise, 0, 1e6), whole_number("copies", copies, 1)
    seed = whole_number("seed", seed, 0, MOST_SEED)
    if exemplars.image is None:
        raise InputError("pixel_noise: these exemplars are vectors, not images; noise on vectors is sequences.noise")
    check_fits(2 * copies * exemplars.features.nbytes, f"copies {copies} of {exemplars.features.shape[1]} exemplars")
    features = exemplars.features.repeat_interleave(copies, dim=1)
    random = np.random.default_rng((_STREAM, seed))
    for of_class in features:
        drawn = random.standard_normal(of_class.shape, dtype=np.float32)
        of_class.add_(torch.from_numpy(drawn).to(of_class), alpha=noise)
    source = f"{exemplars.source}, {copies} x pixel noise {noise:g}, seed {seed}"
    return replace(exemplars, features=features, source=source)
