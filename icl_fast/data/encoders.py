"""Frozen encoders: images or vectors as vectors of a chosen width, the same for every run (Singh 2025, 4.2.1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from icl_fast.arguments import MOST_SEED, whole_number
from icl_fast.data.exemplars import Exemplars
from icl_fast.errors import InputError
from icl_fast.memory import check_fits

_CHUNK = 4096  # exemplars in one call

EncoderName = Literal["random-projection", "pca", "random-convolutions"]
Encoder = EncoderName | Callable[[Tensor], Tensor]
ENCODERS: tuple[EncoderName, ...] = ("random-projection", "pca", "random-convolutions")


def encode(
    exemplars: Exemplars, encoder: Encoder = "random-projection", *, width: int = 512, seed: int = 0
) -> Exemplars:
    """Features of another width; classes, bases and names stay.

    The result is divided by ONE number, so that the mean square of a feature over all exemplars is 1; distances keep
    their proportions. The two linear encoders are centred before. The features of a network are not: like those of the
    thesis' ResNet18, which end in a ReLU, they are largely the same for all images, so that classes are hard to tell
    apart at first.

    Args:
        encoder: `random-projection`: a matrix of independent normal entries, drawn from `seed`. `pca`: the first
            `width` principal components of all exemplars, in order; the largest entry of each direction is positive.
            `random-convolutions`: 3x3 convolutions of stride 2 with random weights from `seed`, each followed by a
            ReLU, until an image is 4 pixels wide or less; then the mean over pixels.
            Else a pretrained network, any callable (`torch.jit.load` gives one): it is given
            `[n,height,width]` float32, or `[n,F]` where the exemplars are no images, and returns `[n,F']`.
        width: F', for the named encoders; a callable decides its own.

    Raises:
        InputError: an unknown encoder, a width that PCA cannot give or this machine cannot hold, exemplars that are all
            the same, or a callable that fails or returns another shape or values that are not finite.
    """
    flat = exemplars.features.flatten(0, 1)  # [N,F]
    if not callable(encoder):
        width, seed = whole_number("width", width, 1), whole_number("seed", seed, 0, MOST_SEED)
        check_fits(4 * width * (flat.shape[1] + 2 * len(flat)), f"width {width} of {len(flat)} exemplars")
    mean = flat.mean(0)
    if encoder == "random-convolutions":
        encoded = _through(_RandomConvolutions(exemplars, width, seed), exemplars)
        name = f"random convolutions {width}, seed {seed}"
    elif callable(encoder):
        encoded = _through(encoder, exemplars)
        name = str(getattr(encoder, "original_name", "") or getattr(encoder, "__name__", type(encoder).__name__))
    else:
        if encoder == "random-projection":
            random = torch.Generator().manual_seed(seed)
            directions = torch.randn(flat.shape[1], width, generator=random).to(flat) / flat.shape[1] ** 0.5
            name = f"random projection {width}, seed {seed}"
        elif encoder == "pca":
            directions = _principal_directions(flat, mean, width)
            name = f"PCA {width}"
        else:
            raise InputError(f"encoder: {encoder!r} is not known; give {', '.join(ENCODERS)} or a callable")
        encoded = flat @ directions
        encoded -= encoded.mean(0)
    scale = _root_mean_square(encoded)
    spread = _root_mean_square(encoded - encoded.mean(0))
    if spread <= 1e-7 * max(1.0, float(mean.abs().max()), scale):
        raise InputError(f"encoder {name}: all exemplars become the same vector; check the exemplars")
    encoded /= scale
    return Exemplars(
        encoded.view(*exemplars.features.shape[:2], -1),
        exemplars.base,
        exemplars.names,
        source=f"{exemplars.source}, {name}",
    )


def _root_mean_square(values: Tensor) -> float:
    # in float64 by chunks: a copy of all of it would be twice as large as the features
    total = sum(float(part.double().square().sum()) for part in torch.split(values, _CHUNK))
    return math.sqrt(total / values.numel())


def _principal_directions(flat: Tensor, mean: Tensor, width: int) -> Tensor:
    most = min(flat.shape[1], len(flat) - 1)
    if width > most:
        raise InputError(f"width: PCA of {len(flat)} exemplars of {flat.shape[1]} features gives at most {most}")
    covariance = torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float64, device=flat.device)
    for part in torch.split(flat, _CHUNK):
        centred = (part - mean).double()
        covariance += centred.T @ centred
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :width]  # [F,F']
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    signed: Tensor = (directions * largest.sign()).to(flat)
    return signed


class _RandomConvolutions:
    """Images `[n,height,width]` to `[n,width]`: an untrained convolutional network."""

    def __init__(self, exemplars: Exemplars, width: int, seed: int) -> None:
        side = max(exemplars.pixels.shape[-2:])
        layers = max(1, math.ceil(math.log2(side / 4)))
        channels = [1, *(min(width, 32 * 2**layer) for layer in range(layers - 1)), width]
        random = torch.Generator().manual_seed(seed)
        # He et al. 2015: with this scale a ReLU network keeps the size of what passes through it
        self.kernels = [
            torch.randn(after, before, 3, 3, generator=random).to(exemplars.features) * (2 / (9 * before)) ** 0.5
            for before, after in itertools.pairwise(channels)
        ]

    def __call__(self, images: Tensor) -> Tensor:
        values = images[:, None]
        for kernel in self.kernels:
            values = F.relu(F.conv2d(values, kernel, stride=2, padding=1))
        return values.mean((2, 3))


@torch.no_grad()
def _through(encoder: Callable[[Tensor], Tensor], exemplars: Exemplars) -> Tensor:
    images = exemplars.features if exemplars.image is None else exemplars.pixels
    parts: list[Tensor] = []
    for part in torch.split(images.flatten(0, 1), _CHUNK):
        try:
            encoded = encoder(part)
        except Exception as error:  # whatever a network of the user's own raises
            raise InputError(f"encoder: fails on images {list(part.shape)}: {error}") from error
        if not isinstance(encoded, Tensor) or encoded.ndim != 2 or len(encoded) != len(part):
            got = list(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
            raise InputError(f"encoder: must return a tensor [{len(part)}, F] for {list(part.shape)}, got {got}")
        if not bool(torch.isfinite(encoded).all()):
            raise InputError(f"encoder: returns NaN or infinity for images {list(part.shape)}; check its weights")
        parts.append(encoded.to(images))
    return torch.cat(parts)
