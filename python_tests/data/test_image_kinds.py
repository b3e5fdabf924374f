"""Every kind of image file gives the features of its grey copy on white paper, or is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from icl_fast.data import read_images
from icl_fast.data.image_file import grey_pixels
from icl_fast.errors import InputError

GREY = np.full((28, 28), 230, np.uint8)
GREY[5:14, 4:11], GREY[0, 0] = 70, 0
INK, DEEP = 255 - GREY, GREY.astype(np.uint16) * 257
L = Image.fromarray(GREY)
COLOUR = L.convert("RGB")
TURNED = Image.Exif()
TURNED[0x0112] = 6  # shown turned by 90° clockwise


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_alpha(mode: str) -> Image.Image:
    """Black, drawn in the alpha channel."""
    return Image.merge(mode, [Image.new("L", (28, 28))] * (len(mode) - 1) + [Image.fromarray(INK)])


def keyed(mode: str, paper: int | tuple[int, ...]) -> Image.Image:
    """Two values: 0 where GREY is dark, and that of the transparent paper."""
    places = np.where(GREY == 230, 3, 0)
    dtype = np.uint16 if mode == "I;16" else np.uint8
    if mode == "1":
        return Image.fromarray(np.where(GREY == 230, 255, 0).astype(np.uint8)).convert("1")
    image = Image.fromarray(places.astype(dtype))
    if mode == "P":
        image = image.convert("P")
        image.putpalette([0] * 768)
    return Image.merge("RGB", [image] * 3) if mode == "RGB" else image


def palette_of_alphas() -> bytes:
    image = Image.fromarray(INK).convert("P")
    image.putpalette([0] * 768)
    return saved(image, "PNG", transparency=bytes(range(256)))


def png(depth: int, colour: int, rows: NDArray[np.generic], size: int = 28) -> bytes:
    """A PNG as Pillow does not write it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", size, size, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deep(*channels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return np.stack(channels, -1).astype(">u2")


def tiff(bits: int, black_is: int, data: bytes) -> bytes:
    """A grey TIFF, uncompressed."""
    tags = {256: 28, 257: 28, 258: bits, 259: 1, 262: black_is, 273: 8, 277: 1, 278: 28, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


BLACK = np.zeros((28, 28), np.uint16)
SAME: dict[str, bytes] = {
    "RGB.png": saved(COLOUR, "PNG"),
    "I16.png": saved(Image.fromarray(DEEP), "PNG"),
    "I16.tif": saved(Image.fromarray(DEEP), "TIFF"),
    "I16B.tif": saved(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
    "65535.pgm": b"P5 28 28 65535\n" + DEEP.astype(">u2").tobytes(),
    "1023.pgm": b"P5 28 28 1023\n" + np.round(GREY / 255 * 1023).astype(">u2").tobytes(),
    "RGB16.png": png(16, 2, deep(DEEP, DEEP, DEEP)),
    "LA16.png": png(16, 4, deep(BLACK, 65535 - DEEP)),
    "RGBA16.png": png(16, 6, deep(BLACK, BLACK, BLACK, 65535 - DEEP)),
    "P.gif": saved(L.convert("P"), "GIF"),
    "LA.png": saved(with_alpha("LA"), "PNG"),
    "RGBA.png": saved(with_alpha("RGBA"), "PNG"),
    "RGBA.tif": saved(with_alpha("RGBA"), "TIFF"),
    "RGBA.webp": saved(with_alpha("RGBA"), "WEBP", lossless=True),
    "P of alphas.png": palette_of_alphas(),
    "CMYK.tif": saved(L.convert("CMYK"), "TIFF"),
    "CMYK.jpg": saved(L.convert("CMYK"), "JPEG", quality=100),
    "YCbCr.tif": saved(COLOUR.convert("YCbCr"), "TIFF"),
    "WhiteIsZero.tif": tiff(8, 0, INK.tobytes()),
    "two frames.gif": saved(L, "GIF", save_all=True, append_images=[Image.new("L", (28, 28), 9)]),
    "two frames.png": saved(L, "PNG", save_all=True, append_images=[Image.new("L", (28, 28), 9)]),
    "two pages.tif": saved(L, "TIFF", save_all=True, append_images=[Image.new("L", (28, 28), 9)]),
    "turned.jpg": saved(L.rotate(90), "JPEG", exif=TURNED, quality=100),
    "turned.png": saved(L.rotate(90), "PNG", exif=TURNED),
    "turned.tif": saved(L.rotate(90), "TIFF", exif=TURNED),
    "turned.webp": saved(COLOUR.rotate(90), "WEBP", exif=TURNED, lossless=True),
    "turned 16 bits.png": saved(Image.fromarray(np.rot90(DEEP).copy()), "PNG", exif=TURNED),
    "RGB.PNG": saved(COLOUR, "PNG"),
    "a JPEG.png": saved(L, "JPEG", quality=100),
}
# of these, what is no ink is transparent, so white, and the ink is black
TWO_VALUES: dict[str, bytes] = {
    "1.png": saved(keyed("1", 1), "PNG"),
    "1.tif": saved(keyed("1", 1), "TIFF"),
    "1 keyed.png": saved(keyed("1", 1), "PNG", transparency=1),
    "L keyed.png": saved(keyed("L", 3), "PNG", transparency=3),
    "I16 keyed.png": saved(keyed("I;16", 3), "PNG", transparency=3),
    "RGB keyed.png": saved(keyed("RGB", 3), "PNG", transparency=(3, 3, 3)),
    "P keyed.png": saved(keyed("P", 3), "PNG", transparency=3),
    "P keyed.gif": saved(keyed("P", 3), "GIF", transparency=3),
}
NO_RANGE = "holds numbers without a known black and white"
REFUSED: dict[str, tuple[bytes, str]] = {
    "I.tif": (saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), NO_RANGE),
    "F.tif": (saved(Image.fromarray(GREY / np.float32(255)), "TIFF"), NO_RANGE),
    "F.pgm": (b"Pf 28 28 -1.0\n" + (GREY / 255).astype("<f4").tobytes(), NO_RANGE),
    "12 bits.tif": (tiff(12, 1, bytes(28 * 42)), NO_RANGE),
    "WhiteIsZero 16.tif": (tiff(16, 0, bytes(28 * 56)), NO_RANGE),
    "clear.png": (saved(Image.new("RGBA", (28, 28)), "PNG"), "shows nothing on white paper"),
    "white.png": (saved(Image.merge("LA", [Image.new("L", (28, 28), 255), L]), "PNG"), "shows nothing on white paper"),
    "LAB.tif": (saved(Image.new("LAB", (28, 28)), "TIFF"), "is no image or damaged"),
    "0 by 0.png": (png(8, 0, np.zeros((0, 0)), 0), "is no image or damaged"),
    "0 by 0.pgm": (b"P5 0 0 255\n", "is no image or damaged"),
    "bomb.png": (png(1, 0, np.zeros((0, 0)), 60_000), "exceeds limit"),
    "large.png": (png(1, 0, np.zeros((0, 0)), 10_000), "exceeds limit"),
    "text.png": (b"text", "is no image or damaged;"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\nshowpage\n", "is no image or damaged;"),
    "empty.png": (b"", "is no image or damaged"),
}


@pytest.mark.parametrize("name", [*SAME, *TWO_VALUES])
def test_features_are_those_of_the_grey_copy(name: str, tmp_path: Path) -> None:
    for number, grey in (("1", GREY), ("2", np.flipud(GREY))):
        expected = grey if name in SAME else np.where(grey == 230, 255, 0).astype(np.uint8)
        for kind in ("as it is", "grey"):
            (tmp_path / kind / number).mkdir(parents=True)
        Image.fromarray(expected).save(tmp_path / "grey" / number / "x.png")
        # the second class is grey in both, so that the folders agree on whether ink is dark
        data = (SAME | TWO_VALUES)[name] if number == "1" else (tmp_path / "grey" / number / "x.png").read_bytes()
        (tmp_path / "as it is" / number / (name if number == "1" else "x.png")).write_bytes(data)
    features, grey_features = (read_images(tmp_path / kind).features for kind in ("as it is", "grey"))
    assert float(grey_features.max() - grey_features.min()) > 0.6
    assert float((features - grey_features).abs().max()) <= (3 if "J" in name or "jpg" in name else 1) / 255 + 1e-6


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_right_features_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    for number in "12":
        (tmp_path / number).mkdir()
        L.save(tmp_path / number / "x.png")
    (tmp_path / "1" / "x.png").rename(tmp_path / "1" / "y.png")
    (tmp_path / "1" / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^images: {tmp_path}/1/{name} .*{message}") as error:
        read_images(tmp_path, exemplars=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_thin_images(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("L", size, 40).save(tmp_path / "x.png")
    assert np.unique(grey_pixels(tmp_path / "x.png", 28)).tolist() == [40]


FUZZED = [SAME[name] for name in ("I16.png", "I16.tif", "P.gif", "RGBA.webp", "CMYK.jpg", "turned.png", "turned.tif")]


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_images_are_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray(data.draw(st.sampled_from(FUZZED)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 300)))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "fuzzed.png"
    file.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        shape = grey_pixels(file, 9).shape
    except InputError as error:
        shape = (9, 9) if str(error).startswith(f"images: {file} ") else ()
    assert shape == (9, 9)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"])
def test_truncated_images(kind: str, tmp_path: Path) -> None:
    content = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)), kind)
    for kept in (0.2, 0.6, 0.95):
        (tmp_path / "x.png").write_bytes(content[: int(kept * len(content))])
        with pytest.raises(InputError, match=r"x\.png is no image or damaged"):
            grey_pixels(tmp_path / "x.png", 28)


def test_linked_classes_and_images(tmp_path: Path) -> None:
    for name in ("in/a", "out/b", "store"):
        (tmp_path / name).mkdir(parents=True)
    L.save(tmp_path / "in/a/1.png")
    L.save(tmp_path / "out/b/1.png")
    Image.fromarray(np.flipud(GREY)).save(tmp_path / "store" / "0a1b2c", "PNG")  # as git-annex keeps them
    for folder in ("in/a", "out/b"):
        (tmp_path / folder / "2.png").symlink_to(tmp_path / "store" / "0a1b2c")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "out" / "b")
    (tmp_path / "in" / "a" / "loop").symlink_to(tmp_path / "in")
    found = read_images(tmp_path / "in")
    assert found.names == ("a", "linked")
    assert found.features[0].equal(found.features[1])
    (tmp_path / "in" / "third").symlink_to(tmp_path / "out" / "c")
    with pytest.raises(InputError, match=r"^images: .*third is a link to a file that is gone$"):
        read_images(tmp_path / "in")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for name in (b"\xff[b]", b"b\n"):
        (tmp_path / name.decode(errors="surrogateescape")).mkdir()
        L.save(tmp_path / name.decode(errors="surrogateescape") / "\udcff.png")
    assert set(read_images(tmp_path).names) == {r"\xff[b]", "b\n"}


@pytest.mark.parametrize("size", [10**6, 10**9, 10**15])
def test_sizes_beyond_memory(size: int, tmp_path: Path) -> None:
    for number in "12":
        (tmp_path / number).mkdir()
        L.save(tmp_path / number / "x.png")
    with pytest.raises(InputError, match=rf"^2 images of size {size}: needs .* of memory"):
        read_images(tmp_path, size=size)
