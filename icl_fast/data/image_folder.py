"""Exemplars from folders of images: Omniglot's layout, or any folder with a subfolder a class."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from icl_fast.arguments import whole_number
from icl_fast.data.cache import cache_folder, cached, save_array
from icl_fast.data.exemplar_files import stack_classes
from icl_fast.data.exemplars import Exemplars
from icl_fast.data.input_files import check_folder, files_below, printable, read_file
from icl_fast.errors import InputError
from icl_fast.memory import check_fits

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".pbm", ".ppm")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # whatever the suffix; others may run programs
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
    folder = Path(folder)
    check_folder(folder, "images")
    size = whole_number("size", size, 1)
    classes = _classes(folder)
    names = tuple(classes)
    count = stack_classes(folder, [(name, len(files)) for name, files in classes.items()], exemplars)
    files = [file for of_class in classes.values() for file in of_class[:count]]
    check_fits(5 * len(files) * size**2, f"{len(files)} images of size {size}")  # bytes and, last of all, float32

    def build(entry: Path) -> None:
        pixels = np.stack([_pixels(file, size) for file in files])
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


def _pixels(file: Path, size: int) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that do not matter, unlike
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("error", "Corrupt EXIF data")
            with Image.open(io.BytesIO(read_file(file, "images")), formats=_FORMATS) as image:
                _check_range(image)
                grey = _on_paper(_of_8_bits(ImageOps.exif_transpose(image)))
        return np.asarray(ImageOps.fit(grey, (size, size), Image.Resampling.BOX), np.uint8)
    except InputError:
        raise
    except _Refused as error:
        raise InputError(f"images: {file} {error}") from None
    except Exception as error:  # Pillow raises nearly everything for damaged files
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise InputError(f"images: {file} is no image or damaged{reason}; mend it or take it away") from None


class _Refused(Exception):
    """Why an image that is not damaged cannot be used."""


def _check_range(image: Image.Image) -> None:
    """Refuse numbers whose black and white the format does not fix: floats, and integers in most kinds of TIFF."""
    known = image.mode != "F"
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode.startswith("I"):
        bits, black_is_zero = image.tag_v2.get(258), image.tag_v2.get(262) == 1
        known = image.mode.startswith("I;16") and bits == (16,) and black_is_zero
    if not known:
        raise _Refused("holds numbers without a known black and white; save it with 8 bits, or as a 16-bit PNG")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8 bits, with its transparency; other modes as they are."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    grey = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _on_paper(image: Image.Image) -> Image.Image:
    """Grey of 8 bits; what is transparent shows white paper."""
    if not image.has_transparency_data:
        return image.convert("L")
    colours = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    grey = Image.alpha_composite(paper, colours).convert("L")
    darkest, brightest = grey.getextrema()
    if darkest == brightest and colours.getchannel("A").getextrema() != (255, 255):
        raise _Refused("shows nothing on white paper: all of it is transparent or white; fill its ground")
    return grey


def _key(files: list[Path], count: int, size: int) -> str:
    digest = hashlib.sha256(repr((_FORMAT, len(files), count, size)).encode())
    for file in files:
        digest.update(hashlib.sha256(read_file(file, "images")).hexdigest().encode())
    return digest.hexdigest()[:32]
