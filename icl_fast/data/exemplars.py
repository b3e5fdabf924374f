"""What sequences of exemplars are drawn from: classes, and some exemplars of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from icl_fast.arguments import MOST_SEED, finite_number, whole_number
from icl_fast.errors import InputError
from icl_fast.memory import check_fits


@dataclass(frozen=True)
class Exemplars:
    """K classes with E exemplars each (Singh 2025, 2.2.1); checked when made.

    Attributes:
        features: `[K,E,F]` float32, finite: pixels row by row (1 is ink, 0 is paper), or a vector.
        base: `[K]` int64, 0 or more: the character that a class shows. Classes that show one character under several
            transforms have the same; hold-out goes by it, so that no transform of a held-out character is trained on.
        names: K names, or none.
        image: (height, width) where the features are pixels.
        source: where they came from, in words.

    Raises:
        InputError: another shape, type or device, a value that is not finite, fewer than 2 classes.
    """

    features: Tensor
    base: Tensor
    names: tuple[str, ...] = ()
    image: tuple[int, int] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        features, base = self.features, self.base
        if not isinstance(features, Tensor) or features.dtype != torch.float32 or features.ndim != 3:
            raise InputError(f"features: must be a float32 tensor [K,E,F], got {_described(features)}")
        classes, exemplars, width = features.shape
        if classes < 2 or exemplars < 1 or width < 1:
            raise InputError(
                f"features: are [{classes}, {exemplars}, {width}]; needs 2 classes, an exemplar of each, a feature"
            )
        for number, one in enumerate(features):  # by class: a mask of all of them would be large
            if not bool(torch.isfinite(one).all()):
                raise InputError(f"features: class {number} holds NaN or infinity; leave it out or mend it")
        if not isinstance(base, Tensor) or base.dtype != torch.int64 or base.shape != (classes,):
            raise InputError(f"base: must be an int64 tensor [{classes}], a number a class, got {_described(base)}")
        if bool((base < 0).any()):
            raise InputError(f"base: must be 0 or more, got {int(base.min())}")
        if base.device != features.device:
            raise InputError(f"base: is on {base.device}, but features are on {features.device}")
        if self.names and len(self.names) != classes:
            raise InputError(f"names: must be {classes}, one a class, or none; got {len(self.names)}")
        if self.image is not None and (
            len(self.image) != 2 or min(self.image) < 1 or self.image[0] * self.image[1] != width
        ):
            raise InputError(f"image: {self.image} is not (height, width) of {width} pixels")

    @property
    def pixels(self) -> Tensor:
        """The features as images `[K,E,height,width]`, a view where that can be.

        Raises:
            InputError: they are no images.
        """
        if self.image is None:
            raise InputError(f"exemplars ({self.source or 'no source'}): are vectors, not images, so have no pixels")
        return self.features.reshape(*self.features.shape[:2], *self.image)


def _described(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def gaussian_classes(
    classes: int = 100, exemplars: int = 20, width: int = 64, *, noise: float = 0.5, seed: int = 0
) -> Exemplars:
    """Synthetic classes: exemplar = (class mean + noise * own noise) / sqrt(1 + noise^2), both standard normal.

    So every feature has unit variance, whatever the noise; 0 makes all exemplars of a class the same. (Reddy 2024,
    "The mechanistic basis of data dependence and abrupt learning in an in-context classification task".)

    Args:
        noise: standard deviation within a class, the one between classes being 1.

    Raises:
        InputError: a size below 1 (below 2 classes) or more than this machine can hold, a noise that is negative or
            over a million, no seed.
    """
    classes, exemplars = whole_number("classes", classes, 2), whole_number("exemplars", exemplars, 1)
    width, seed = whole_number("width", width, 1), whole_number("seed", seed, 0, MOST_SEED)
    noise = finite_number("noise", noise, 0, 1e6)
    check_fits(12 * classes * exemplars * width, f"classes {classes}, exemplars {exemplars}, width {width}")
    random = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, 1, width, generator=random)
    own = torch.randn(classes, exemplars, width, generator=random)
    features = (means + noise * own) / (1 + noise**2) ** 0.5
    return Exemplars(features, torch.arange(classes), source=f"Gaussian classes, noise {noise:g}, seed {seed}")
