"""Exemplars from folders of images: Omniglot's layout, or any folder with a subfolder a class."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from icl_fast.arguments import whole_number
from icl_fast.data.cache import cache_folder, cached, save_array
from icl_fast.data.exemplar_files import stack_classes
from icl_fast.data.exemplars import Exemplars
from icl_fast.data.input_files import check_folder, files_below, printable, read_file
from icl_fast.memory import check_fits

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".pbm", ".ppm")
_FORMAT = 2  # of a cache entry: raise it when what is stored changes


def read_images(folder: str | Path, *, exemplars: int | None = None, size: int = 28) -> Exemplars:
    """Read every folder below `folder` that holds images as a class, in order of their paths; hidden ones are skipped.

    So it takes Omniglot's folder with `images_background/` and `images_evaluation/` in it (1,623 classes of 20), or one
    of these, or any `CLASS/IMAGE`; links are followed. Images become upright (EXIF), grey, on white paper where they
    are transparent, square (the centre is kept) and `size` pixels wide by averaging; of several frames or pages the
    first is read. Where the mean of all pixels is above one half, ink is dark on bright paper, and all are inverted:
    ink is 1. The result is cached by the contents of the files.

    Args:
        exemplars: how many of each class, the first by file name; all by default, and then all classes must have
            equally many.

    Raises:
        InputError: no such folder, no images in it, a link to nowhere, an image that is damaged, too large, invisible
            or of numbers without a black and a white, classes with too few images, full disk.
    """
    from icl_fast.data.image_file import grey_pixels  # here: what is not of images does without Pillow

    folder = Path(folder)
    check_folder(folder, "images")
    size = whole_number("size", size, 1)
    classes = _classes(folder)
    names = tuple(classes)
    count = stack_classes(folder, [(name, len(files)) for name, files in classes.items()], exemplars)
    files = [file for of_class in classes.values() for file in of_class[:count]]
    check_fits(5 * len(files) * size**2, f"{len(files)} images of size {size}")  # bytes and, last of all, float32

    def build(entry: Path) -> None:
        pixels = np.stack([grey_pixels(file, size) for file in files])
        save_array(entry / "pixels.npy", (255 - pixels if pixels.mean() > 127.5 else pixels))

    entry = cached(cache_folder() / "images" / _key(files, count, size), build)
    pixels = np.load(entry / "pixels.npy", allow_pickle=False).reshape(len(classes), count, -1)
    return Exemplars(
        pixel_features(pixels), torch.arange(len(classes)), names, (size, size), f"images of {printable(folder)}"
    )


def pixel_features(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels of 0 to 255 as float32 of 0 to 1."""
    return torch.from_numpy(pixels).to(torch.float32).div_(255)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class, by its path below the folder; both in order."""
    found: dict[Path, list[Path]] = {}
    for file in files_below(folder, SUFFIXES, "images").values():
        found.setdefault(file.parent, []).append(file)
    return {printable(parent.relative_to(folder)): sorted(found[parent]) for parent in sorted(found)}


def _key(files: list[Path], count: int, size: int) -> str:
    digest = hashlib.sha256(repr((_FORMAT, len(files), count, size)).encode())
    for file in files:
        digest.update(hashlib.sha256(read_file(file, "images")).hexdigest().encode())
    return digest.hexdigest()[:32]
