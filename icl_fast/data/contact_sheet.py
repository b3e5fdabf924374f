"""A picture of exemplars: a row a class, a column an exemplar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from icl_fast.arguments import whole_number
from icl_fast.data.exemplars import Exemplars
from icl_fast.errors import InputError
from icl_fast.files import atomic_write
from icl_fast.memory import check_fits


def write_contact_sheet(
    path: str | Path, exemplars: Exemplars, *, rows: int = 24, panels: int = 2, columns: int = 20, scale: int = 2
) -> None:
    """Write a PNG of `rows * panels` classes, spread evenly over all, with their first `columns` exemplars.

    Args:
        rows: classes below each other in a panel.
        panels: side by side.
        scale: screen pixels of one pixel.

    Raises:
        InputError: exemplars that are no images, another suffix, a size below 1 or beyond memory, a file that cannot be
            written.
    """
    path, pixels = Path(path), exemplars.pixels
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: the contact sheet is written as .png; give it that suffix")
    rows, panels = whole_number("rows", rows, 1), whole_number("panels", panels, 1)
    columns, scale = whole_number("columns", columns, 1), whole_number("scale", scale, 1)
    shown = min(rows * panels, len(pixels))
    classes = np.linspace(0, len(pixels) - 1, shown).round().astype(int)
    per_panel = -(-shown // panels)
    height, width = pixels.shape[2] * scale + 2, pixels.shape[3] * scale + 2
    count = min(columns, pixels.shape[1])
    check_fits(2 * per_panel * height * panels * (count * width + 12), f"panels {panels}, scale {scale}")
    sheet = np.full((per_panel * height, panels * (count * width + 12) - 12), 200, np.uint8)
    for place, number in enumerate(classes):
        top, left = place % per_panel * height, place // per_panel * (count * width + 12)
        for column in range(count):
            image = 255 - (pixels[number, column].cpu().numpy().clip(0, 1) * 255).round().astype(np.uint8)
            image = image.repeat(scale, 0).repeat(scale, 1)
            sheet[top + 1 : top + height - 1, left + column * width + 1 : left + (column + 1) * width - 1] = image
    with atomic_write(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
