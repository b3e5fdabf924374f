"""Exemplars from folders of images: Omniglot's layout, or any folder with a subfolder a class."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from icl_fast.data.cache import cache_folder, cached, save_array
from icl_fast.data.exemplar_files import stack_classes
from icl_fast.data.exemplars import Exemplars
from icl_fast.errors import InputError
from icl_fast.files import sha256

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".pbm", ".ppm")
_FORMAT = 1  # of a cache entry: raise it when what is stored changes


def read_images(folder: str | Path, *, exemplars: int | None = None, size: int = 28) -> Exemplars:
    """Read every folder below `folder` that holds images as a class, in order of their paths; hidden ones are skipped.

    So it takes Omniglot's folder with `images_background/` and `images_evaluation/` in it (1,623 classes of 20), or one
    of these, or any `CLASS/IMAGE`. Images become grey, square (the centre is kept) and `size` pixels wide by averaging.
    Where the mean of all pixels is above one half, ink is dark on bright paper, and all are inverted: ink is 1.
    The result is cached by the contents of the files.

    Args:
        exemplars: how many of each class, the first by file name; all by default, and then all classes must have
            equally many.

    Raises:
        InputError: no such folder, no images in it, an image that is damaged, classes with too few images, full disk.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: {'is a file; give a folder' if folder.exists() else 'no such folder'}")
    if size < 1:
        raise InputError(f"size: must be 1 pixel or more, got {size}")
    classes = _classes(folder)
    names = tuple(path.relative_to(folder).as_posix() for path, _ in classes)
    count = stack_classes(
        folder, [(name, len(files)) for name, (_, files) in zip(names, classes, strict=True)], exemplars
    )
    files = [path / name for path, names_in in classes for name in names_in[:count]]

    def build(entry: Path) -> None:
        pixels = np.stack([_pixels(file, size) for file in files])
        save_array(entry / "pixels.npy", (255 - pixels if pixels.mean() > 127.5 else pixels))

    entry = cached(cache_folder() / "images" / _key(files, count, size), build)
    pixels = np.load(entry / "pixels.npy", allow_pickle=False).reshape(len(classes), count, -1)
    return Exemplars(pixel_features(pixels), torch.arange(len(classes)), names, (size, size), f"images of {folder}")


def pixel_features(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels of 0 to 255 as float32 of 0 to 1."""
    return torch.from_numpy(pixels).to(torch.float32).div_(255)


def _classes(folder: Path) -> list[tuple[Path, list[str]]]:
    found: list[tuple[Path, list[str]]] = []
    for parent, subfolders, names in os.walk(folder, onerror=_unreadable):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        images = sorted(name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        if images:
            found.append((Path(parent), images))
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror}); allow it") from error


def _pixels(file: Path, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            grey = ImageOps.fit(image.convert("L"), (size, size), Image.Resampling.BOX)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: is no image or damaged ({error}); mend it or take it away") from None
    return np.asarray(grey, np.uint8)


def _key(files: list[Path], count: int, size: int) -> str:
    digest = hashlib.sha256(repr((_FORMAT, len(files), count, size)).encode())
    for file in files:
        try:
            digest.update(sha256(file).encode())
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); allow it") from error
    return digest.hexdigest()[:32]
