"""The typefaces installed on this machine, and which characters each of them has."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from icl_fast.data.input_files import check_folder, files_below, read_file
from icl_fast.errors import InputError

# free, 39 MB to download; they give more than 1,623 characters in 20 typefaces
PACKAGES = (
    "culmus",
    "fonts-alee",
    "fonts-arabeyes",
    "fonts-bpg-georgian",
    "fonts-dejavu-extra",
    "fonts-freefont-ttf",
    "fonts-hack",
    "fonts-kacst",
    "fonts-liberation",
    "fonts-linuxlibertine",
    "fonts-roboto-unhinted",
    "fonts-thai-tlwg-ttf",
    "fonts-unfonts-core",
    "fonts-unfonts-extra",
)
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")


@dataclass(frozen=True)
class Font:
    """A font file and the sha256 of its bytes."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Typeface:
    """One face of a font file.

    Attributes:
        index: of the face in a font collection (.ttc); else 0.
        characters: code points that its character map gives a glyph other than .notdef.
    """

    path: Path
    index: int
    family: str
    style: str
    characters: frozenset[int]


def find_fonts(folders: Sequence[str | Path] | None = None) -> list[Font]:
    """Font files of this machine and those that matplotlib brings, or those below `folders`; no two the same.

    In order of their digests, so that the same fonts in other places come in the same order.

    Raises:
        InputError: a missing folder, one with a file that cannot be read or a link to nowhere, or no font at all.
    """
    by_digest: dict[str, Path] = {}
    if folders is None:
        for path in sorted(set(_installed())):
            with suppress(InputError):  # one that may not be read is no reason to do without the others
                by_digest.setdefault(hashlib.sha256(read_file(path, "fonts")).hexdigest(), path)
    for folder in folders or ():
        check_folder(folder, "fonts")
        for path in files_below(Path(folder), SUFFIXES, "fonts").values():
            by_digest.setdefault(hashlib.sha256(read_file(path, "fonts")).hexdigest(), path)
    if not by_digest:
        where = "on this machine" if folders is None else f"in {', '.join(map(str, folders))}"
        raise InputError(f"fonts: no {'/'.join(SUFFIXES)} file {where}; {install_advice()}")
    return [Font(path, digest) for digest, path in sorted(by_digest.items())]


def install_advice() -> str:
    """Which Debian packages to install."""
    return f"apt-get install --no-install-recommends {' '.join(PACKAGES)}"


def read_typefaces(fonts: Iterable[Font]) -> list[Typeface]:
    """The typefaces of some fonts; unlike ones first.

    The first face of every family comes before the second of any; families with many characters come first, so that
    characters of different scripts meet in one typeface, where those that look alike are found. Files that are no
    outline fonts are left out.
    """
    families: dict[str, list[Typeface]] = defaultdict(list)
    for font in fonts:
        for typeface in _faces(font.path):
            families[typeface.family].append(typeface)
    ordered: list[tuple[int, int, str, str, str, Typeface]] = []
    digests = {font.path: font.digest for font in fonts}
    for family, faces in families.items():
        size = max(len(face.characters) for face in faces)
        faces.sort(key=lambda face: (_decoration(face.style), face.style, digests[face.path], face.index))
        for rank, face in enumerate(faces):
            ordered.append((rank, -size, family, digests[face.path], f"{face.index:04d}", face))
    return [face for *_, face in sorted(ordered, key=lambda item: item[:-1])]


def _decoration(style: str) -> int:
    return 0 if style.lower() in ("regular", "book", "roman", "medium", "normal") else 1


def _installed() -> list[Path]:
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    own = Path(matplotlib.get_data_path(), "fonts", "ttf")
    # its others are TeX's and give mathematical symbols in the places of letters
    shipped = [path for name in ("DejaVu*", "STIXGeneral*") for path in own.glob(name)]
    return [*map(Path, findSystemFonts()), *shipped]


def _faces(path: Path) -> list[Typeface]:
    from fontTools.ttLib import TTCollection, TTFont, TTLibError
    from PIL import ImageFont

    faces: list[Typeface] = []
    try:
        with open(path, "rb") as file:
            is_collection = file.read(4) == b"ttcf"
        opened = TTCollection(path, lazy=True).fonts if is_collection else [TTFont(path, lazy=True)]
        for index, face in enumerate(opened):
            if not ("glyf" in face or "CFF " in face or "CFF2" in face) or "COLR" in face:
                continue
            missing = face.getGlyphOrder()[0]
            characters = frozenset(code for code, glyph in (face.getBestCmap() or {}).items() if glyph != missing)
            family, style = ImageFont.truetype(path, 12, index).getname()
            faces.append(Typeface(path, index, family or path.stem, style or "", characters))
    except (OSError, TTLibError, ValueError, KeyError, IndexError, AssertionError, AttributeError, TypeError):
        return []
    except Exception as error:  # struct.error and whatever else a damaged font makes fontTools raise
        if not isinstance(error, (ArithmeticError, LookupError)) and type(error).__module__ != "struct":
            raise
        return []
    return faces
