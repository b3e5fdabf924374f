"""`icl-fast data`: what exemplar sequences are made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from icl_fast.cli.commands import Commands
from icl_fast.cli.console import Cell, print_facts
from icl_fast.cli.parameters import INTEGER, PATH, STEP, PathType, distinct

if TYPE_CHECKING:
    from icl_fast.data import Exemplars


@click.group(cls=Commands)
def data() -> None:
    """Exemplars: characters rendered from the fonts of this machine, or drawn with strokes."""


_SIZE = click.option("--size", default=28, type=INTEGER, show_default=True, help="Pixels of a side.")
_CLASSES = click.option(
    "--classes", default=1623, type=INTEGER, show_default=True, help="Characters; as many as Omniglot by default."
)
_OUT = click.option(
    "--out",
    type=PathType("file", ".npz"),
    metavar="FILE.npz",
    help="Write the images here too, for icl_fast.data.read_exemplars; by default they are only cached.",
)
_SHEET = click.option(
    "--sheet",
    type=PathType("file", ".png"),
    metavar="FILE.png",
    help="Write a contact sheet: a row a character, a column a drawing; none by default.",
)


@data.command()
@_CLASSES
@click.option("--typefaces", default=20, type=INTEGER, show_default=True, help="Typefaces of each character.")
@_SIZE
@click.option(
    "--fonts",
    multiple=True,
    type=PATH,
    metavar="FOLDER",
    help="Take fonts from here; repeatable; default those of the machine.",
)
@_OUT
@_SHEET
def glyphs(
    classes: int, typefaces: int, size: int, fonts: tuple[Path, ...], out: Path | None, sheet: Path | None
) -> None:
    """Render characters from installed fonts and cache the images.

    With too few fonts it says how many characters they give and which Debian packages to install.
    """
    from icl_fast.cli.progress import counting
    from icl_fast.data import install_advice, render_glyphs, script

    with counting("rendering glyphs") as show:
        exemplars = render_glyphs(classes, typefaces, size, fonts=distinct("--fonts", fonts) or None, progress=show)
    scripts = Counter(script(chr(int(name.split()[0].removeprefix("U+"), 16))) for name in exemplars.names)
    facts = {
        **_facts(exemplars),
        "typefaces": f"{typefaces} of each",
        "scripts": ", ".join(f"{name} {count:,}" for name, count in scripts.most_common()),
        "more fonts": install_advice(),
    }
    print_facts(facts | _written(exemplars, out, sheet))


@data.command()
@_CLASSES
@click.option("--drawings", default=20, type=INTEGER, show_default=True, help="Drawings of each character.")
@_SIZE
@click.option("--seed", default=0, type=STEP, show_default=True, help="Of all of it: another one, other characters.")
@_OUT
@_SHEET
def strokes(classes: int, drawings: int, size: int, seed: int, out: Path | None, sheet: Path | None) -> None:
    """Draw characters of a few strokes each, as a seeded generator has them, and cache the images.

    They need no fonts, and are the same on every machine.
    """
    from icl_fast.cli.progress import counting
    from icl_fast.data import draw_strokes

    with counting("drawing strokes") as show:
        exemplars = draw_strokes(classes, drawings, size, seed=seed, progress=show)
    print_facts({**_facts(exemplars), "drawings": f"{drawings} of each"} | _written(exemplars, out, sheet))


def _facts(exemplars: Exemplars) -> dict[str, str]:
    classes, count, _ = exemplars.features.shape
    height, width = exemplars.pixels.shape[2:]
    return {
        "classes": Cell(f"{classes:,} ({8 * classes:,} with rotations and mirror images)", classes),
        "images": Cell(f"{classes * count:,} of {height} x {width} pixels", classes * count),
    }


def _written(exemplars: Exemplars, out: Path | None, sheet: Path | None) -> dict[str, str]:
    from icl_fast.data import save_exemplars, write_contact_sheet

    written = {}
    if out:
        save_exemplars(out, exemplars)
        written["written"] = str(out)
    if sheet:
        write_contact_sheet(sheet, exemplars)
        written["sheet"] = str(sheet)
    return written
