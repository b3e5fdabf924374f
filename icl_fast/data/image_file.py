"""One image file as grey pixels, whatever its format."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from icl_fast.data.input_files import read_file
from icl_fast.errors import InputError

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # whatever the suffix; others may run programs


def grey_pixels(file: Path, size: int) -> NDArray[np.uint8]:
    """The image as `[size, size]`: upright, grey, on white paper, square, as `read_images` says.

    Raises:
        InputError: it is damaged, too large, invisible, or of numbers without a black and a white.
    """
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
