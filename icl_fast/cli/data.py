"""`icl-fast data`: what exemplar sequences are made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from icl_fast.cli.commands import Commands
from icl_fast.cli.console import print_facts
from icl_fast.cli.parameters import INTEGER, PATH, PathType, distinct


@click.group(cls=Commands)
def data() -> None:
    """Exemplars: glyphs rendered from the fonts of this machine."""


@data.command()
@click.option(
    "--classes", default=1623, type=INTEGER, show_default=True, help="Characters; as many as Omniglot by default."
)
@click.option("--typefaces", default=20, type=INTEGER, show_default=True, help="Typefaces of each character.")
@click.option("--size", default=28, type=INTEGER, show_default=True, help="Pixels of a side.")
@click.option("--fonts", multiple=True, type=PATH, metavar="FOLDER", help="Take fonts from here instead; repeatable.")
@click.option(
    "--out",
    type=PathType("file", ".npz"),
    metavar="FILE.npz",
    help="Write the images here too, for icl_fast.data.read_exemplars.",
)
@click.option(
    "--sheet",
    type=PathType("file", ".png"),
    metavar="FILE.png",
    help="Write a contact sheet: a row a character, a column a typeface.",
)
def glyphs(
    classes: int, typefaces: int, size: int, fonts: tuple[Path, ...], out: Path | None, sheet: Path | None
) -> None:
    """Render characters from installed fonts and cache the images.

    With too few fonts it says how many characters they give and which Debian packages to install.
    """
    from icl_fast.cli.progress import counting
    from icl_fast.data import install_advice, render_glyphs, save_exemplars, script, write_contact_sheet

    with counting("rendering glyphs") as show:
        exemplars = render_glyphs(classes, typefaces, size, fonts=distinct("--fonts", fonts) or None, progress=show)
    scripts = Counter(script(chr(int(name.split()[0].removeprefix("U+"), 16))) for name in exemplars.names)
    counts = ", ".join(f"{name} {count:,}" for name, count in scripts.most_common())
    facts = {
        "classes": f"{classes:,} ({8 * classes:,} with rotations and mirror images)",
        "typefaces": f"{typefaces} of each",
        "images": f"{classes * typefaces:,} of {size} x {size} pixels",
        "scripts": counts,
        "more fonts": install_advice(),
    }
    if out:
        save_exemplars(out, exemplars)
        facts["written"] = str(out)
    if sheet:
        write_contact_sheet(sheet, exemplars)
        facts["sheet"] = str(sheet)
    print_facts(facts)
