"""Texts to look at one by one: a passage, some code, and the tasks of Olsson et al. 2022, Argument 4.

Argument 4 shows what a head does on literally repeated text (behavior 1), on a sentence in several languages (behavior
2) and on lines that follow one of four templates (behavior 3).
"""

from __future__ import annotations

import gettext
import re
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from icl_fast.arguments import whole_number
from icl_fast.data.input_files import printable, read_file
from icl_fast.errors import InputError
from icl_fast.files import regular_file

Kind = Literal["passage", "repeated", "parallel", "template"]

LARGEST_TEXT = 2**20  # bytes of a user's file
_SHORTEST_SENTENCE, _LONGEST_SENTENCE = 5, 80  # words, characters

# 204 bytes: a context of so many tokens holds all of it, whatever the tokenizer
_GENESIS = (
    "And God said, Let there be light: and there was light. And God saw the light, that it was good: and God divided "
    "the light from the darkness. And God called the light Day, and the darkness he called Night."
)

# Emphasis is dropped and quotation marks are straight: with the default tokenizer a curly one takes three tokens.
_CARROLL = (
    "There was nothing so very remarkable in that; nor did Alice think it so very much out of the way to hear the "
    'Rabbit say to itself, "Oh dear! Oh dear! I shall be late!"\n'
)

_CODE = '''\
"""Points, read from lines of text."""


class PointError(ValueError):
    """A line that holds no point."""


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __repr__(self):
        return f"Point({self.x}, {self.y})"


class PointReader:
    def __init__(self, stream, separator=","):
        self.stream = stream
        self.separator = separator
        self.line_number = 0

    def read_line(self):
        self.line_number += 1
        return self.stream.readline()

    def read_point(self):
        line = self.read_line()
        if not line:
            return None
        fields = line.split(self.separator)
        if len(fields) != 2:
            raise PointError(f"line {self.line_number}: expected two fields")
        return Point(float(fields[0]), float(fields[1]))

    def read_points(self):
        points = []
        point = self.read_point()
        while point is not None:
            points.append(point)
            point = self.read_point()
        return points
'''

_VERSES = (
    {
        "en": "In the beginning God created the heaven and the earth.",
        "fr": "Au commencement, Dieu créa les cieux et la terre.",
        "de": "Am Anfang schuf Gott Himmel und Erde.",
    },
    {
        "en": "And God said, Let there be light: and there was light.",
        "fr": "Dieu dit: Que la lumière soit! Et la lumière fut.",
        "de": "Und Gott sprach: Es werde Licht! und es ward Licht.",
    },
    {
        "en": "In the beginning was the Word, and the Word was with God, and the Word was God.",
        "fr": "Au commencement était la Parole, et la Parole était avec Dieu, et la Parole était Dieu.",
        "de": "Im Anfang war das Wort, und das Wort war bei Gott, und Gott war das Wort.",
    },
)
_VERSES_SOURCE = "Genesis 1:1, 1:3 and John 1:1 in the King James Version, by Segond (1910) and by Luther (1912)"

_MONTHS = ("January", "March", "April", "June", "July", "September", "October", "December")
_COLOURS = ("red", "blue", "green", "yellow", "gray", "purple", "black", "white")
_ANIMALS = ("cat", "bird", "fish", "frog", "lion", "bear", "wolf", "snake", "lizard")
_FRUITS = ("apple", "banana", "cherry", "grape", "lemon", "peach", "pineapple", "strawberry")
_TEMPLATES = ((_MONTHS, _ANIMALS), (_MONTHS, _FRUITS), (_COLOURS, _ANIMALS), (_COLOURS, _FRUITS))


@dataclass(frozen=True)
class Mark:
    """A label of a template text: the 0-based offset of its character in the text, and its category, 0 to 3."""

    start: int
    category: int


@dataclass(frozen=True)
class Text:
    """A text to be read by a model.

    Attributes:
        name: unique in a report, `[a-z0-9-]+`.
        title: a few words.
        kind: `passage` (nothing known about it), or a task of Olsson et al. 2022, Argument 4: `repeated`, `parallel`,
            `template`.
        text: the text itself.
        source: where it comes from.
        marks: the labels of a template text, in order.
    """

    name: str
    title: str
    kind: Kind
    text: str
    source: str
    marks: tuple[Mark, ...] = ()


def default_texts(seed: int = 0) -> list[Text]:
    """A passage, a piece of code, and the three tasks.

    The passage is full of words that come back, with what followed them before (And God, the light, the darkness) and
    with something else (God said, saw, divided, called), as in Argument 1, "Per-token losses on Harry Potter"; it is
    short enough for them to come back within the context of a small model. The code is for models trained on code.

    Args:
        seed: of the parallel and the template text.
    """
    return [
        Text(
            "passage",
            "Let there be light",
            "passage",
            _GENESIS,
            "Genesis 1:3-5 in the King James Version, without its last sentence",
        ),
        Text("code", "A Python module", "passage", _CODE, "written for icl_fast"),
        Text(
            "repeated",
            "A sentence said twice",
            "repeated",
            _CARROLL * 2,
            "Lewis Carroll, Alice's Adventures in Wonderland (1865), chapter 1; cut short, emphasis left out; twice",
        ),
        parallel_text(seed=seed),
        template_text(seed=seed),
    ]


def parallel_text(
    languages: Sequence[str] = ("en", "fr", "de"),
    seed: int = 0,
    *,
    sentences: int = 2,
    folders: Sequence[str | Path] | None = None,
) -> Text:
    r"""Sentences, each in every language: `EN: ...\n FR: ...\n DE: ...\n` (Olsson et al. 2022, Argument 4, behavior 2).

    They come from one catalogue of program messages (gettext's `LANGUAGE/LC_MESSAGES/*.mo`), the first in a seeded
    order that has enough: full sentences of five words or more with no placeholder, number or name of an option. Where
    no catalogue has, verses of the Bible stand in.

    Args:
        languages: two or more codes as in the names of the folders; "en" is what the others are translated from.
        seed: of the order of the catalogues and the choice of sentences.
        sentences: how many; of the verses there are three at most.
        folders: where locales are; default: where Python's own gettext looks, and /usr/share/locale.

    Raises:
        InputError: fewer than two languages, one twice, no sentence asked for, or nothing found and no verse known in
            one of the languages.
    """
    languages = tuple(languages)
    if len(languages) < 2 or len(set(languages)) < len(languages):
        raise InputError(f"languages: {', '.join(languages) or 'none'}: give two or more that differ, such as en, fr")
    sentences = whole_number("sentences", sentences, 1)
    random = Random(whole_number("seed", seed))
    found, source = _VERSES[:sentences], _VERSES_SOURCE
    catalogues = _catalogues(languages, folders)
    random.shuffle(catalogues)
    for folder, name in catalogues:
        candidates = _translated(folder, name, languages)
        if len(candidates) >= sentences:
            found = tuple(random.sample(candidates, sentences))
            source = f"messages of {name.removesuffix('.mo')} in the gettext catalogues of {folder}"
            break
    else:
        if not set(languages) <= _VERSES[0].keys():
            raise InputError(
                f"languages: found no sentence that is in all of {', '.join(languages)}; install programs that are "
                f"translated into them, or use some of {', '.join(_VERSES[0])}"
            )
    blocks = ("\n ".join(f"{code.upper()}: {said[code]}" for code in languages) for said in found)
    return Text("parallel", ", ".join(languages).upper(), "parallel", "\n".join(blocks) + "\n", source)


def template_text(lines: int = 30, seed: int = 0) -> Text:
    """Lines such as `April fish: 0`, labelled by their template (Olsson et al. 2022, Argument 4, behavior 3).

    Templates are drawn evenly, and so are their words: `(month) (animal): 0`, `(month) (fruit): 1`,
    `(colour) (animal): 2`, `(colour) (fruit): 3`.

    Raises:
        InputError: fewer than one line, or more than a text may have.
    """
    lines = whole_number("lines", lines, 1, LARGEST_TEXT // 32)
    seed = whole_number("seed", seed)
    random = Random(seed)
    text, marks = "", []
    for _ in range(lines):
        category = random.randrange(len(_TEMPLATES))
        firsts, seconds = _TEMPLATES[category]
        text += f"{random.choice(firsts)} {random.choice(seconds)}: "
        marks.append(Mark(len(text), category))
        text += f"{category}\n"
    title = "Month or colour, animal or fruit"
    return Text("template", title, "template", text, f"made up with seed {seed}", tuple(marks))


def read_texts(paths: Sequence[str | Path]) -> list[Text]:
    """Files of UTF-8 text, named `text-1`, `text-2`, ... in this order and titled by their file names.

    Raises:
        InputError: a file that is missing, unreadable, empty, not text, or over 1 MiB.
    """
    texts = []
    for number, path in enumerate(map(Path, paths), start=1):
        if (size := regular_file(path, "text").stat().st_size) > LARGEST_TEXT:
            raise InputError(
                f"text {path}: {size:,} bytes are more than {LARGEST_TEXT:,}; a model reads no "
                "further than its context: cut out the part to look at"
            )
        data = read_file(path, "text")
        try:
            text = data.decode("utf-8-sig")  # a byte order mark is not part of the text
        except UnicodeDecodeError as error:
            raise InputError(f"text {path}: is not UTF-8 (byte {error.start}); convert it to UTF-8") from error
        if "\0" in text:
            raise InputError(f"text {path}: holds a zero byte, so it is not text; give a file of UTF-8 text")
        if not text.strip():
            raise InputError(f"text {path}: is empty; give a file with some text")
        name = printable(Path(path.name))
        texts.append(Text(f"text-{number}", name, "passage", text, f"the file {name}"))
    return texts


def _catalogues(languages: Sequence[str], folders: Sequence[str | Path] | None) -> list[tuple[Path, str]]:
    """(locale folder, file name) of what is there in every language, sorted."""
    if folders is None:
        # a Python of its own prefix does not look where the system's programs have theirs
        folders = list(dict.fromkeys([f"{sys.base_prefix}/share/locale", "/usr/share/locale"]))
    found = []
    for folder in map(Path, folders):
        names = [
            {file.name for file in (folder / code / "LC_MESSAGES").glob("*.mo")} for code in languages if code != "en"
        ]
        found += [(folder, name) for name in sorted(set.intersection(*names))]
    return found


def _translated(folder: Path, name: str, languages: Sequence[str]) -> list[dict[str, str]]:
    """The sentences of a catalogue by language, sorted by the English; none if it is damaged in any language."""
    others = [code for code in languages if code != "en"]
    try:
        messages = {code: _messages(folder / code / "LC_MESSAGES" / name) for code in others}
    except (OSError, ValueError, LookupError, struct.error):  # gettext raises all of these for damaged files
        return []
    found = []
    for english in sorted(set.intersection(*(set(catalogue) for catalogue in messages.values()))):
        said = {"en": english} | {code: messages[code][english] for code in others}
        if all(_is_sentence(sentence) for sentence in said.values()) and len(set(said.values())) == len(said):
            found.append(said)
    return found


def _messages(file: Path) -> dict[str, str]:
    with regular_file(file, "catalogue").open("rb") as stream:
        # the catalogue has no public name, and gettext no other way to list what is in it; keys of plurals are tuples
        catalogue: dict[object, str] = vars(gettext.GNUTranslations(stream))["_catalog"]
    return {key: message for key, message in catalogue.items() if isinstance(key, str)}


def _is_sentence(text: str) -> bool:
    plain = re.fullmatch(r"[^\W\d_]+(?:(?:[\xa0 ]?[,;:]? |['’-])[^\W\d_]+)*\.", text)
    return (
        plain is not None
        and text[0].isupper()
        and len(text) <= _LONGEST_SENTENCE
        and len(text.split()) >= _SHORTEST_SENTENCE
    )
