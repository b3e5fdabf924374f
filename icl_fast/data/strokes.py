"""Characters of a few strokes each, from a seeded generator: images like Omniglot's on any machine, without a font.

They stand in for Omniglot's 1,623 handwritten characters of 20 drawings (Singh 2025, 2.2.1) where a machine has too few
fonts for `icl_fast.data.glyphs`. Strokes of a few pieces that begin on earlier ones are how Lake et al. 2015,
"Human-level concept learning through probabilistic program induction", describe Omniglot's; the numbers here are chosen
by eye, not fitted.

Of floats there is nothing but sums, products, quotients and square roots, which are the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from icl_fast.arguments import MOST_SEED, whole_number
from icl_fast.data.cache import cache_folder, cached, save_array
from icl_fast.data.counter_random import random_words
from icl_fast.data.exemplars import Exemplars
from icl_fast.data.image_folder import pixel_features
from icl_fast.data.transforms import transform
from icl_fast.errors import InputError
from icl_fast.memory import check_fits

CLASSES, DRAWINGS, SIZE = 1623, 20, 28  # Omniglot's numbers; the pixels that the field reduces it to
ALIKE = 0.7  # correlation of blurred pixels above which two characters are not told apart
_FORMAT = 1  # of a cache entry: raise it when what is drawn changes
_MOST_PIECES = 6  # of a character
_MOST_TRIED = 20  # characters for each that is wanted
_TRANSFORMS = 8
_TOGETHER = 64  # characters that are compared at a time
_SHAPE, _WRITER, _DRAWING = 0, 1, 2  # streams of random words; those of writer e are 2 e further
_WORDS = {_SHAPE: 128, _WRITER: 1024, _DRAWING: 1024}  # of each: more than any takes
_COMPARED = 28  # pixels of a side at which characters are compared, blurred by means of 2 x 2
_SAMPLES = 1.4  # points on a piece for each pixel of the image's side
_WIDTH = 0.07  # of a line, in sides of the image

_DIRECTIONS = [(round(math.cos(k * math.pi / 8), 6), round(math.sin(k * math.pi / 8), 6)) for k in range(16)]
_ROUND = 2 / 3  # the bend of half a circle

Floats = NDArray[np.float64]
Progress = Callable[[int, int, str], None]


def draw_strokes(
    classes: int = CLASSES,
    drawings: int = DRAWINGS,
    size: int = SIZE,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Exemplars:
    """Draw characters, each by several writers; the same for the same arguments on every machine, and cached.

    A character has one to four strokes of one to three lines or arcs; a stroke begins on an earlier one, at its end, or
    anywhere. One that looks like an earlier one, turned or mirrored too, or like itself turned or mirrored, is passed
    over, so that all eight `transformed` classes differ. Drawing e of all characters is by one writer, who has a slant,
    proportions and a pen; beyond that every drawing has its own, and its strokes and the points they go through are
    moved a little. The ink is centred but for a small shift and its longer side is five sixths of the image's, or a
    little less; ink is 1.

    Args:
        classes: K, how many characters.
        drawings: E, of each.
        size: pixels of a side.
        seed: of all of it.
        progress: called with (classes so far, classes, the name of one).

    Raises:
        InputError: a size out of range, more classes than can be told apart, or a cache that cannot be written.
    """
    classes, drawings = whole_number("classes", classes, 2), whole_number("drawings", drawings, 1)
    size, seed = whole_number("size", size, 8, 256), whole_number("seed", seed, 0, MOST_SEED)
    check_fits(5 * classes * drawings * size**2, f"classes {classes}, drawings {drawings}, size {size}")

    def build(folder: Path) -> None:
        pixels = np.empty((classes, drawings, size, size), np.uint8)
        writers = _normal(_words(seed, 0, _WRITER, drawings))
        for number, character in enumerate(_characters(classes, seed)):
            pixels[number] = _draw(character, writers, size, seed)
            if progress:
                progress(number + 1, classes, _name(number))
        save_array(folder / "pixels.npy", pixels)

    settings = (_FORMAT, classes, drawings, size, seed, ALIKE)
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:32]
    entry = cached(cache_folder() / "strokes" / key, build)
    pixels = np.load(entry / "pixels.npy", allow_pickle=False)
    return Exemplars(
        pixel_features(pixels.reshape(classes, drawings, size * size)),
        torch.arange(classes),
        tuple(_name(number) for number in range(classes)),
        (size, size),
        f"{classes} characters of strokes in {drawings} drawings, {size} pixels, seed {seed}",
    )


def _name(number: int) -> str:
    return f"strokes {number + 1}"


@dataclass(frozen=True)
class _Character:
    """What all drawings of a character have in common.

    Attributes:
        number: which of the generator's it is.
        points: `[N,2]`, x to the right and y down: the ends of pieces and, between them, two handles of each.
        strokes: of each point, which stroke it is of.
        pieces: `[M,4]`, the points of each cubic Bezier curve.
    """

    number: int
    points: Floats
    strokes: NDArray[np.int64]
    pieces: NDArray[np.int64]


def _characters(count: int, seed: int) -> list[_Character]:
    """The first characters of the generator that are told apart."""
    found: list[_Character] = []
    seen = np.zeros((count, _TRANSFORMS, (_COMPARED // 2) ** 2))
    norms = np.ones((count, _TRANSFORMS))

    def alike(first: Floats, first_norms: Floats, others: slice) -> NDArray[np.bool_]:
        # sums of products of whole numbers below 2^53, the same in whatever order they are added
        products = first @ seen[others].reshape(-1, seen.shape[-1]).T
        return np.asarray((products > ALIKE * first_norms[:, None] * norms[others].ravel()).any(1))

    for start in range(0, _MOST_TRIED * count, _TOGETHER):
        made = [_make(_Chance(_words(seed, number, _SHAPE)[0]), number) for number in range(start, start + _TOGETHER)]
        characters = [character for character in made if character is not None]
        turned = np.stack([_turned(character) for character in characters])
        norm = np.sqrt((turned * turned).sum(2))
        mirrored = ((turned[:, :1] * turned[:, 1:]).sum(2) > ALIKE * norm[:, :1] * norm[:, 1:]).any(1)
        before = len(found)
        passed_over = mirrored | alike(turned[:, 0], norm[:, 0], slice(before))
        for place in np.flatnonzero(~passed_over):
            used = len(found)
            if alike(turned[place, :1], norm[place, :1], slice(before, used)).any():
                continue
            seen[used], norms[used] = turned[place], norm[place]
            found.append(characters[place])
            if len(found) == count:
                return found
    raise InputError(f"classes: {len(found):,} characters of strokes can be told apart, not {count:,}; ask for fewer")


def _turned(character: _Character) -> Floats:
    """The blurred pixels of a character, under each of the 8 transforms `[8,P]`."""
    image = torch.from_numpy(_raster(character.points[None], character.pieces, _COMPARED, np.array([1.0]))[0])
    return np.stack([_blurred(transform(image, how).numpy()) for how in range(_TRANSFORMS)])


def _blurred(image: NDArray[np.uint8]) -> Floats:
    """Whole numbers of mean 0: means of 2 x 2 pixels, times their number, less the mean."""
    sums = image.astype(np.int64).reshape(_COMPARED // 2, 2, _COMPARED // 2, 2).sum((1, 3)).ravel()
    centred: Floats = (sums - sums.sum() // len(sums)).astype(np.float64)
    return centred


class _Chance:
    """Random numbers, one after the other."""

    def __init__(self, words: NDArray[np.int64]) -> None:
        self._words, self._next = words, 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        self._next += 1
        return low + (high - low) * (int(self._words[self._next - 1]) / 2**32)

    def pick(self, weights: Mapping[int, int]) -> int:
        at, total = self.uniform(0, sum(weights.values())), 0
        return next(value for value, weight in weights.items() if at < (total := total + weight))


def _words(seed: int, number: int, what: int, count: int = 1) -> NDArray[np.int64]:
    """Random words of 32 bits for a character, or for each of its drawings, `[count, _WORDS[what]]`."""
    streams = what + 2 * torch.arange(count)
    lanes = torch.arange(_WORDS[what] // 4)
    words = random_words(torch.full_like(streams, seed), torch.tensor([number]), lanes, streams)
    return words[:, 0].numpy()


class _Pen:
    """Draws strokes of lines and arcs and keeps what a character is made of."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.strokes: list[int] = []
        self.pieces: list[tuple[int, int, int, int]] = []

    def begin(self, x: float, y: float) -> None:
        """Put the pen down for another stroke."""
        self._add(x, y, self.strokes[-1] + 1 if self.strokes else 0)

    def draw(self, direction: int, length: float, bend: float) -> None:
        """Go on by a line (bend 0) or an arc (2/3: half a circle, to the right of where it goes; less than 0: left)."""
        (x, y), (across, down) = self.points[-1], _DIRECTIONS[direction % 16]
        along, aside, last = length * (1 / 3 - abs(bend) / 2), length * bend, len(self.points) - 1
        for forward, sideways in ((along, aside), (length - along, aside), (length, 0.0)):
            self._add(x + across * forward - down * sideways, y + down * forward + across * sideways, self.strokes[-1])
        self.pieces.append((last, last + 1, last + 2, last + 3))

    def leaves(self, direction: int, length: float) -> bool:
        """Whether that would end well outside the unit square."""
        (x, y), (across, down) = self.points[-1], _DIRECTIONS[direction % 16]
        return not (-0.1 < x + across * length < 1.1 and -0.1 < y + down * length < 1.1)

    def place(self, piece: int, where: int) -> tuple[float, float]:
        """A point of a piece: its beginning (0), middle (1) or end (2)."""
        x, y = _curves(np.array(self.points)[None], np.array([self.pieces[piece]]), 3)[0, 0, where]
        return float(x), float(y)

    def _add(self, x: float, y: float, stroke: int) -> None:
        self.points.append((x, y))
        self.strokes.append(stroke)


def _make(chance: _Chance, number: int) -> _Character | None:
    """A character in the unit square about the origin; None where it would be hardly more than a line, or a tangle."""
    pen = _Pen()
    for _ in range(chance.pick({1: 3, 2: 7, 3: 6, 4: 4})):
        direction, length = (
            chance.pick({0: 6, 4: 6, 8: 6, 12: 6, 2: 3, 6: 3, 10: 3, 14: 3, 1: 1, 3: 1, 5: 1, 7: 1}),
            0.0,
        )
        x, y = chance.uniform(0.1, 0.9), chance.uniform(0.1, 0.9)
        if pen.pieces and chance.uniform() < 0.7:
            x, y = pen.place(int(chance.uniform(0, len(pen.pieces))), chance.pick({0: 2, 1: 2, 2: 3}))
            if chance.uniform() < 0.3:  # across the earlier one
                length = _length(chance) / 2
                x, y = x - _DIRECTIONS[direction][0] * length, y - _DIRECTIONS[direction][1] * length
        pen.begin(x, y)
        for _ in range(chance.pick({1: 10, 2: 7, 3: 3})):
            length = 2 * length or _length(chance)
            if pen.leaves(direction, length):
                direction += 8
            bend = chance.pick({0: 10, 1: 4, -1: 4, 2: 3, -2: 3}) / 3
            pen.draw(direction, length, bend)
            if abs(bend) == _ROUND and chance.uniform() < 0.3:  # back to where it began: a loop
                pen.draw(direction + 8, length, bend)
            direction, length = direction + chance.pick({0: 2, 2: 2, 4: 4, 6: 3, -2: 2, -4: 4, -6: 3}), 0.0
    character = _Character(number, np.array(pen.points), np.array(pen.strokes), np.array(pen.pieces))
    low, high = _extent(_curves(character.points[None], character.pieces, 16))
    side = high[0] - low[0]
    if side.min() < 0.3 * side.max() or len(character.pieces) > _MOST_PIECES:
        return None
    return replace(character, points=(character.points - (low + high) / 2) / side.max())


def _length(chance: _Chance) -> float:
    return chance.pick({3: 3, 5: 4, 8: 3}) / 10 * chance.uniform(0.85, 1.15)


def _draw(character: _Character, writers: Floats, size: int, seed: int) -> NDArray[np.uint8]:
    """The character by each writer, `[drawings, size, size]`."""
    count, strokes = len(character.points), int(character.strokes.max()) + 1
    own = _normal(_words(seed, character.number, _DRAWING, len(writers)))
    slant, tilt, tall, pen = writers[:, :4].T
    more_slant, more_tilt, more_tall, more_pen, smaller, right, down = own[:, :7].T
    own = own[:, 7:]
    moved, grown = own[:, : 2 * strokes].reshape(-1, strokes, 2), own[:, 2 * strokes : 3 * strokes]
    jitter = own[:, 3 * strokes : 3 * strokes + 2 * count].reshape(-1, count, 2)

    of = character.strokes
    middle = np.stack([_middle(character.points[of == stroke]) for stroke in range(strokes)])[of]
    points = middle + (character.points - middle) * (1 + 0.07 * grown[:, of, None])
    points = points + 0.025 * moved[:, of] + 0.02 * jitter
    x, y = points[..., 0], points[..., 1]
    slant, tilt = 0.1 * slant + 0.07 * more_slant, 0.05 * tilt + 0.05 * more_tilt
    tall = 1 + 0.1 * tall + 0.06 * more_tall
    points = np.stack([x - slant[:, None] * y, tilt[:, None] * x + tall[:, None] * y], -1)
    low, high = _extent(_curves(points, character.pieces, 16))
    points = (points - ((low + high) / 2)[:, None]) / (high - low).max(1)[:, None, None]
    room = 0.045 * np.abs(smaller)  # that it leaves, and in which it lies anywhere
    shift = np.clip(np.stack([right, down], -1), -1, 1) * room[:, None] / 2
    points = points * (1 - room)[:, None, None] + shift[:, None]
    return _raster(points, character.pieces, size, 1 + 0.15 * pen + 0.06 * more_pen)


def _middle(points: Floats) -> Floats:
    middle: Floats = (points.min(0) + points.max(0)) / 2
    return middle


def _normal(words: NDArray[np.int64]) -> Floats:
    """Numbers of mean 0 and deviation 1, nearly normal: sums of four uniform ones, `[*, words/4]`."""
    uniform = words.reshape(len(words), -1, 4) / 2.0**32
    return (uniform[..., 0] + uniform[..., 1] + uniform[..., 2] + uniform[..., 3] - 2) * math.sqrt(3)


def _curves(points: Floats, pieces: NDArray[np.int64], samples: int) -> Floats:
    """Points on the pieces of drawings: `[drawings, N, 2]` to `[drawings, M, samples, 2]`."""
    at = (np.arange(samples) / (samples - 1))[:, None]
    a, b, c, d = (points[:, pieces[:, corner], None] for corner in range(4))
    ab, bc, cd = a + (b - a) * at, b + (c - b) * at, c + (d - c) * at
    abc, bcd = ab + (bc - ab) * at, bc + (cd - bc) * at
    curves: Floats = abc + (bcd - abc) * at
    return curves


def _extent(curves: Floats) -> tuple[Floats, Floats]:
    """The least and the largest coordinates of each drawing, `[drawings, 2]`."""
    return curves.min((1, 2)), curves.max((1, 2))


def _raster(points: Floats, pieces: NDArray[np.int64], size: int, pen: Floats) -> NDArray[np.uint8]:
    """Lines of some width through points in the unit square about the origin: `[drawings, size, size]`, 255 is ink.

    A pixel's ink is by the distance of its middle from the nearest point of a line, so that edges are smooth.
    """
    half = np.clip(_WIDTH * size * pen, 1.0, None) / 2
    reach = math.ceil(float(half.max()) + 0.5)
    side = size * 5 / 6 - 2 * half  # the ink goes half a width beyond the lines
    curves = _curves(points, pieces, max(8, round(_SAMPLES * size)))
    places = curves.reshape(len(points), -1, 2) * side[:, None, None] + size / 2  # in pixels
    nearest = np.floor(places).astype(np.int64)
    least = np.full(len(points) * size * size, np.inf)
    of = np.arange(len(points))[:, None] * size * size
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            column, row = nearest[..., 0] + right, nearest[..., 1] + down
            inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
            x, y = column + 0.5 - places[..., 0], row + 0.5 - places[..., 1]
            np.minimum.at(least, (of + row * size + column)[inside], (x * x + y * y)[inside])
    distance = np.sqrt(least).reshape(len(points), size, size)
    ink = np.clip(half[:, None, None] + 0.5 - distance, 0, 1)
    pixels: NDArray[np.uint8] = np.floor(ink * 255 + 0.5).astype(np.uint8)
    return pixels
