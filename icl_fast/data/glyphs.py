"""Images of characters, rendered from the fonts of this machine: real images without a download.

They stand in for Omniglot's 1,623 handwritten characters of 20 exemplars (Singh 2025, 2.2.1): an exemplar is the
character in one typeface.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from icl_fast.arguments import whole_number
from icl_fast.data.cache import cache_folder, cached, save_array
from icl_fast.data.exemplars import Exemplars
from icl_fast.data.fonts import Font, Typeface, find_fonts, install_advice, read_typefaces
from icl_fast.data.image_folder import pixel_features
from icl_fast.data.transforms import transform
from icl_fast.errors import InputError
from icl_fast.memory import check_fits

CLASSES, TYPEFACES, SIZE = 1623, 20, 28  # Omniglot's numbers; the pixels that the field reduces it to
# Two images are alike where 1 - the correlation of their pixels is below this
ALIKE, SAME_DRAWING = 0.05, 0.005
_FORMAT = 1  # of a cache entry: raise it when what is stored changes
_COMPARED = 28  # pixels of a side at which images are compared
# [8,P]: where the pixels of a transformed image come from; one look-up is faster than eight rotations
_TURNED = np.stack(
    [transform(torch.arange(_COMPARED**2).view(_COMPARED, _COMPARED), how).flatten().numpy() for how in range(8)]
)
_SUPERSAMPLING = 4
# Characters with typefaces enough, for each that is wanted: of 1,341 in 20 of the typefaces of Debian's fonts without
# Hangul, 701 passed
_NEEDED = 2.0
_NOWHERE = "\U0010ffff"  # no font has this one, so it shows .notdef
_KINDS = re.compile(r" (CAPITAL|SMALL|LETTER|SYLLABLE|SYLLABICS|UNIFIED|IDEOGRAPH|LIGATURE|CHARACTER|SIGN|HIEROGLYPH)")

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int, str], None]


def render_glyphs(
    classes: int = CLASSES,
    typefaces: int = TYPEFACES,
    size: int = SIZE,
    *,
    fonts: Sequence[str | Path] | None = None,
    progress: Progress | None = None,
) -> Exemplars:
    """Render characters in several typefaces each; the same for the same font files, and cached by their contents, also
    where they give too few.

    A class is a letter, syllable or ideograph without a diacritic (a Unicode letter that does not decompose); scripts
    take turns. Its exemplars are the first `typefaces` typefaces that have it and draw it differently; so two classes
    may have different typefaces. Every image is scaled alike: the longer side of the ink is the image's less a twelfth
    at each border, the middle of the ink is the middle of the image; ink is 1.

    A typeface is passed over for a character that it draws blank or as .notdef, that looks there like another class
    (also turned or mirrored: A and Α, b and q), or like itself turned or mirrored (o, H), so that all eight
    `transformed` classes differ. "Looks like" is `ALIKE`. A character that is so in more than a tenth of `typefaces`,
    or that looks like one other class in half of the typefaces they share, is left out.

    Args:
        classes: how many characters.
        typefaces: E, how many exemplars of each.
        size: pixels of a side.
        fonts: folders to search instead of the machine's.
        progress: called with (classes so far, classes, character).

    Raises:
        InputError: a size out of range, fonts that give too few characters (it says how many, and what to install), or
            a cache that cannot be written.
    """
    classes, typefaces = whole_number("classes", classes, 2), whole_number("typefaces", typefaces, 1)
    size = whole_number("size", size, 8, 256)
    found = find_fonts(fonts)

    def build(folder: Path) -> None:
        faces = read_typefaces(found)
        pixels, characters = _select(faces, classes, typefaces, size, progress)
        save_array(folder / "pixels.npy", pixels)
        (folder / "characters.json").write_text(json.dumps(characters), encoding="utf-8")

    entry = cached(cache_folder() / "glyphs" / _key(found, classes, typefaces, size), build)
    pixels = np.load(entry / "pixels.npy", allow_pickle=False)
    characters = json.loads((entry / "characters.json").read_text(encoding="utf-8"))
    if len(characters) < classes:
        unused = len(found) - len({face.path for face in read_typefaces(found)})
        damaged = f" ({unused} of them are damaged or no outline fonts)" if unused else ""
        raise InputError(
            f"classes: the {len(found)} font files found{damaged} give at most {len(characters):,} of {classes:,} "
            f"characters in {typefaces} typefaces; {install_advice()}, or ask for fewer classes or typefaces, or take "
            "strokes, which need no fonts"
        )
    return Exemplars(
        pixel_features(pixels.reshape(classes, typefaces, size * size)),
        torch.arange(classes),
        tuple(f"U+{ord(character):04X} {unicodedata.name(character)}" for character in characters),
        (size, size),
        f"{classes} glyphs in {typefaces} typefaces, {size} pixels",
    )


def promise_glyphs(classes: int = CLASSES, typefaces: int = TYPEFACES) -> bool:
    """Whether the fonts of this machine probably give so many characters: by their character maps, nothing is drawn.

    Of the characters that have typefaces enough some look alike or are drawn badly; so more of them must be there.
    """
    try:
        faces = read_typefaces(find_fonts())
    except InputError:
        return False
    return len(_plain_in(_drawn_by(faces), typefaces)) >= _NEEDED * classes


def script(character: str) -> str:
    """The writing system, from the character's Unicode name: `LATIN`, `CJK`, `CANADIAN`."""
    return _KINDS.split(unicodedata.name(character), maxsplit=1)[0]


def _select(
    typefaces: Sequence[Typeface], classes: int, count: int, size: int, progress: Progress | None
) -> tuple[Pixels, list[str]]:
    """Pixels `[classes, count, size, size]` of the first characters that pass, and these characters; the pixels are
    those of all only if there are enough."""
    drawn_by = _drawn_by(typefaces)
    codes = _plain_in(drawn_by, count)
    if len(codes) < classes:  # whatever they look like
        return np.empty((0, 0, size, size), np.uint8), [chr(code) for code in codes]
    check_fits(5 * classes * count * size**2, f"classes {classes}, typefaces {count}, size {size}")  # uint8, float32
    pens = [_Pen(typeface, size) for typeface in typefaces]
    seen = [np.empty((classes, _COMPARED**2), np.float32) for _ in typefaces]  # the classes that a typeface drew
    drew: list[list[int]] = [[] for _ in typefaces]  # which classes these are
    pixels = np.empty((classes, count, size, size), np.uint8)
    compared = np.empty((count, _COMPARED**2), np.float32)
    characters: list[str] = []
    drawn_in: list[set[int]] = []  # the typefaces of a class
    for character in _in_turns(codes):
        faces: list[int] = []
        doubtful = 0
        tried: set[int] = set()
        alike_in: Counter[int] = Counter()  # another class -> typefaces where they look alike
        for number in drawn_by[ord(character)]:
            image = pens[number].draw(character)
            if image is None:
                continue
            turned = _compared(image)
            tried.add(number)
            others = (turned @ seen[number][: len(drew[number])].T).max(0) > 1 - ALIKE
            alike_in.update(drew[number][other] for other in np.flatnonzero(others))
            if others.any() or _alike(turned[1:], turned[:1], ALIKE):
                doubtful += 1
                if doubtful > count // 10:
                    break
            elif not _alike(turned[:1], compared[: len(faces)], SAME_DRAWING):
                pixels[len(characters), len(faces)], compared[len(faces)] = image, turned[0]
                faces.append(number)
                if len(faces) == count:
                    break
        if len(faces) < count or any(2 * n >= len(tried & drawn_in[other]) for other, n in alike_in.items()):
            continue
        drawn_in.append(set(faces))
        for number, drawing in zip(faces, compared, strict=True):
            seen[number][len(drew[number])] = drawing
            drew[number].append(len(characters))
        characters.append(character)
        if progress:
            progress(len(characters), classes, character)
        if len(characters) == classes:
            break
    return pixels[: len(characters)], characters


def _drawn_by(typefaces: Sequence[Typeface]) -> dict[int, list[int]]:
    """Code point -> the numbers of the typefaces that have it."""
    drawn_by: dict[int, list[int]] = defaultdict(list)
    for number, typeface in enumerate(typefaces):
        for code in typeface.characters:
            drawn_by[code].append(number)
    return drawn_by


def _plain_in(drawn_by: Mapping[int, Sequence[int]], count: int) -> list[int]:
    return [code for code, faces in drawn_by.items() if len(faces) >= count and _is_plain(code)]


def _is_plain(code: int) -> bool:
    character = chr(code)
    return (
        unicodedata.category(character) in ("Lu", "Ll", "Lo")
        and not unicodedata.decomposition(character)
        and bool(unicodedata.name(character, ""))
    )


def _in_turns(codes: list[int]) -> Iterator[str]:
    """One character of each script, then the next of each; shuffled within a script, whose neighbours look alike."""
    scripts: dict[str, list[str]] = defaultdict(list)
    for code in sorted(codes):
        scripts[script(chr(code))].append(chr(code))
    waiting = [scripts[name] for name in sorted(scripts)]
    for members in waiting:
        random.Random(0).shuffle(members)
    while waiting:
        yield from (members.pop() for members in waiting)
        waiting = [members for members in waiting if members]


class _Pen:
    """Draws characters in one typeface; the font is opened when first needed."""

    def __init__(self, typeface: Typeface, size: int) -> None:
        self._typeface = typeface
        self._size = size
        self._font: ImageFont.FreeTypeFont | None = None
        self._missing: Pixels | None = None

    def draw(self, character: str) -> Pixels | None:
        """Grey `[size,size]`, 255 is ink; None if it is blank, too small to be drawn well, or .notdef."""
        if self._font is None:
            height = self._size * _SUPERSAMPLING
            # BASIC: what raqm makes of a character depends on its version
            self._font = ImageFont.truetype(
                self._typeface.path, height, self._typeface.index, layout_engine=ImageFont.Layout.BASIC
            )
            self._missing = self._image(_NOWHERE)
        image = self._image(character)
        if image is None or (self._missing is not None and np.array_equal(image, self._missing)):
            return None
        return image

    def _image(self, character: str) -> Pixels | None:
        assert self._font is not None
        side = 4 * self._size * _SUPERSAMPLING  # a glyph reaches beyond its em square, rarely by more than this
        canvas = Image.new("L", (side, side))
        try:
            ImageDraw.Draw(canvas).text((side // 4, side // 2), character, 255, self._font, anchor="ls")
        except (OSError, ValueError, MemoryError, Image.DecompressionBombError):  # an outline that FreeType cannot draw
            return None
        ink = canvas.getbbox()
        if ink is None or min(ink) == 0 or max(ink) == side:
            return None
        left, top, right, bottom = ink
        longer = max(right - left, bottom - top)
        reach = longer * 3 / 5  # half of it, and a twelfth of the image at each border
        x, y = (left + right) / 2, (top + bottom) / 2
        if longer < self._size or min(x, y) < reach or max(x, y) + reach > side:
            return None
        box = (x - reach, y - reach, x + reach, y + reach)
        return np.asarray(canvas.resize((self._size, self._size), Image.Resampling.BOX, box))


def _compared(image: Pixels) -> NDArray[np.float32]:
    """The image under each of the 8 transforms `[8,P]`, at 28 pixels a side, of mean 0 and unit length."""
    small = Image.fromarray(image).resize((_COMPARED, _COMPARED), Image.Resampling.BOX)
    values = np.asarray(small, np.float32).ravel()
    values = values - values.mean()
    turned: NDArray[np.float32] = (values / np.linalg.norm(values))[_TURNED]
    return turned


def _alike(images: NDArray[np.float32], others: NDArray[np.float32], least: float) -> bool:
    """Whether any of `images [n,P]` and any of `others [m,P]`, of unit length, differ by less than `least`."""
    return len(others) > 0 and bool((images @ others.T).max() > 1 - least)


def _key(fonts: Sequence[Font], classes: int, count: int, size: int) -> str:
    """Everything that decides what is drawn."""
    drawn_with = (PIL.__version__, features.version("freetype2"), unicodedata.unidata_version)
    settings = (_FORMAT, *drawn_with, classes, count, size, ALIKE, SAME_DRAWING)
    return hashlib.sha256(repr((settings, [font.digest for font in fonts])).encode()).hexdigest()[:32]
