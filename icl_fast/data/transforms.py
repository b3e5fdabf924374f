"""Every image in eight ways, rotated and mirrored: more classes (Singh 2025, 2.3.4), or more exemplars (3.4.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from icl_fast.data.exemplars import Exemplars
from icl_fast.errors import InputError
from icl_fast.memory import check_fits

TRANSFORMS = ("0°", "90°", "180°", "270°", "mirrored, 0°", "mirrored, 90°", "mirrored, 180°", "mirrored, 270°")
_HOW = "4 rotations x mirrored or not"


def transform(images: Tensor, number: int) -> Tensor:
    """Images `[...,S,S]` under `TRANSFORMS[number]`: mirrored (4 to 7), then turned counter-clockwise."""
    return torch.rot90(images.flip(-1) if number >= 4 else images, number % 4, (-2, -1))


def transformed(exemplars: Exemplars, into: Literal["classes", "exemplars"] = "classes") -> Exemplars:
    """Eight classes of each, or eight exemplars of each.

    A class is a character under one transform, which all of its exemplars share: class `8 * k + t` of the result is
    class k under `TRANSFORMS[t]`, exemplar by exemplar, with the `base` of k. Or class k has exemplar e under
    `TRANSFORMS[t]` as its exemplar `E * t + e`.

    Raises:
        InputError: the exemplars are no square images, or eight times as many are more than this machine can hold.
    """
    images = exemplars.pixels
    if images.shape[-1] != images.shape[-2]:
        raise InputError(f"image: {exemplars.image} is not square, so it cannot be turned by 90°; crop or pad it")
    classes, count, width = exemplars.features.shape
    check_fits(8 * exemplars.features.nbytes, f"transforms of {classes} classes")
    features = exemplars.features.new_empty(classes, 8, count, width)
    for number in range(8):
        features[:, number] = transform(images, number).flatten(2)
    if into == "exemplars":
        return replace(exemplars, features=features.flatten(1, 2), source=f"{exemplars.source}, {_HOW} as exemplars")
    return Exemplars(
        features.flatten(0, 1),
        exemplars.base.repeat_interleave(8),
        tuple(f"{name}, {how}" for name in exemplars.names for how in TRANSFORMS),
        exemplars.image,
        f"{exemplars.source}, {_HOW}",
    )
