from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

import icl_fast.data.glyphs as glyphs_module
from icl_fast.data import Exemplars, render_glyphs, transformed
from icl_fast.data.fonts import PACKAGES, find_fonts, read_typefaces
from icl_fast.errors import InputError

SHIPPED = Path(matplotlib.get_data_path(), "fonts", "ttf")  # the only fonts that are everywhere


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Copies of four of matplotlib's typefaces."""
    folder = tmp_path_factory.mktemp("fonts")
    for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "STIXGeneral"):
        shutil.copy(SHIPPED / f"{name}.ttf", folder)
    return [folder]


@pytest.fixture(scope="module")
def rendered(fonts: list[Path]) -> Exemplars:
    return render_glyphs(60, 3, fonts=fonts)


def characters(exemplars: Exemplars) -> list[str]:
    return [chr(int(name.split()[0][2:], 16)) for name in exemplars.names]


def correlations(images: torch.Tensor) -> torch.Tensor:
    """Of every pair of images `[n,P]`."""
    return torch.from_numpy(np.corrcoef(images.numpy()))


def test_shapes_and_names(rendered: Exemplars) -> None:
    assert rendered.features.shape == (60, 3, 28 * 28)
    assert rendered.image == (28, 28)
    assert rendered.base.tolist() == list(range(60))
    assert float(rendered.features.min()) == 0
    assert 0.5 < float(rendered.features.amax(2).min()) <= 1
    assert rendered.names == tuple(f"U+{ord(c):04X} {unicodedata.name(c)}" for c in characters(rendered))
    assert len({glyphs_module.script(c) for c in characters(rendered)}) >= 4


def test_the_ink_is_centred_and_fills_the_image_but_for_its_borders(rendered: Exemplars) -> None:
    ink = rendered.pixels.flatten(0, 1) > 0.02
    for image in ink:
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        for extent in (rows, columns):
            assert abs(int(extent[0] + extent[-1]) - 27) <= 2
        assert max(int(e[-1] - e[0]) + 1 for e in (rows, columns)) in (23, 24, 25)


def test_every_image_shows_its_character(fonts: list[Path], rendered: Exemplars) -> None:
    # drawn another way: at a size that needs no scaling by much, against every character that was chosen
    font = ImageFont.truetype(fonts[0] / "DejaVuSans.ttf", 200)
    drawn = []
    for character in characters(rendered):
        canvas = Image.new("L", (600, 600))
        ImageDraw.Draw(canvas).text((200, 200), character, 255, font)
        left, top, right, bottom = canvas.getbbox() or pytest.fail(character)
        side = max(right - left, bottom - top)
        square = Image.new("L", (side * 6 // 5, side * 6 // 5))
        square.paste(canvas.crop((left, top, right, bottom)), (
            (square.width - right + left) // 2, (square.height - bottom + top) // 2,
        ))  # fmt: skip
        drawn.append(np.asarray(square.resize((28, 28), Image.Resampling.BILINEAR), np.float32).ravel())
    every = torch.cat([torch.from_numpy(np.stack(drawn)), rendered.features.flatten(0, 1)])
    table = correlations(every)[:60, 60:].unflatten(1, (60, 3)).amax(2)
    assert table.argmax(1).tolist() == list(range(60))
    assert float(table.diagonal().min()) > 0.95


def test_characters_are_in_the_fonts(fonts: list[Path], rendered: Exemplars) -> None:
    maps = [set(TTFont(file).getBestCmap()) for file in fonts[0].iterdir()]
    for character in characters(rendered):
        assert sum(ord(character) in one for one in maps) >= 3


def test_no_two_of_all_transformed_classes_are_alike(rendered: Exemplars) -> None:
    every = transformed(rendered)
    assert len(torch.unique(every.features.flatten(1), dim=0)) == 480
    # of each class only one is of a typeface that looks like another class: a tenth of 3 is none
    table = correlations(every.features.flatten(0, 1)).unflatten(0, (480, 3)).unflatten(2, (480, 3))
    alike = (table > 1 - glyphs_module.ALIKE).sum((1, 3))
    same_class = torch.eye(480, dtype=torch.bool)
    # in typefaces that both have: all but those of other typefaces, which are not compared
    assert int((alike[~same_class] >= 3).sum()) == 0


def test_look_alikes_meet_in_one_typeface_and_one_of_them_stays(fonts: list[Path]) -> None:
    most = render_glyphs(200, 3, fonts=fonts)
    there = set(characters(most))
    for same in ("AΑА", "EΕЕ", "bdpqԀ", "OОΟoоο", "HНΗ", "lIӀ"):
        assert len(there & set(same)) <= 1, same
    assert not there & set("AHIOTUVWXYo")  # look like themselves, mirrored


def test_no_exemplar_comes_twice(rendered: Exemplars) -> None:
    for one in rendered.features:
        assert len(torch.unique(one, dim=0)) == 3


def test_the_same_fonts_give_the_same_images(
    fonts: list[Path], rendered: Exemplars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICL_FAST_CACHE", str(tmp_path / "cache"))
    for number, file in enumerate(sorted(fonts[0].iterdir(), reverse=True)):
        (tmp_path / "moved" / str(number)).mkdir(parents=True)
        shutil.copy(file, tmp_path / "moved" / str(number) / f"{number}.ttf")
    (tmp_path / "moved" / "copy.ttf").write_bytes((SHIPPED / "DejaVuSans.ttf").read_bytes())
    again = render_glyphs(60, 3, fonts=[tmp_path / "moved"])
    assert torch.equal(again.features, rendered.features)
    assert again.names == rendered.names


def test_the_second_time_nothing_is_drawn(
    fonts: list[Path], rendered: Exemplars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glyphs_module, "read_typefaces", lambda _: pytest.fail("drawn again"))
    assert torch.equal(render_glyphs(60, 3, fonts=fonts).features, rendered.features)


def test_settings_and_fonts_are_part_of_the_key(fonts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_fonts(fonts)
    keys = {glyphs_module._key(*changed) for changed in (
        (found, 60, 3, 28), (found[:3], 60, 3, 28), (found, 61, 3, 28), (found, 60, 2, 28), (found, 60, 3, 32),
    )}  # fmt: skip
    monkeypatch.setattr(glyphs_module, "ALIKE", 0.1)
    assert len(keys | {glyphs_module._key(found, 60, 3, 28)}) == 6


def test_sizes(fonts: list[Path]) -> None:
    small, large = render_glyphs(10, 2, 14, fonts=fonts), render_glyphs(10, 2, 56, fonts=fonts)
    shared = [(small.names.index(name), large.names.index(name)) for name in small.names if name in large.names]
    assert len(shared) >= 5
    for a, b in shared:
        blocks = large.pixels[b].unflatten(1, (14, 4)).unflatten(3, (14, 4)).mean((2, 4))
        assert float(correlations(torch.stack([small.pixels[a, 0].flatten(), blocks[0].flatten()]))[0, 1]) > 0.9


def test_too_few_fonts(fonts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        render_glyphs(1623, 5, fonts=fonts)
    assert "the 4 font files found give at most 0 of 1,623 characters in 5 typefaces" in str(error.value)
    assert f"apt-get install --no-install-recommends {' '.join(PACKAGES)}" in str(error.value)
    with pytest.raises(InputError, match=r"no \.ttf.* file in .*apt-get install"):
        render_glyphs(2, 1, fonts=[tmp_path])
    with pytest.raises(InputError, match=r"^fonts: .*none does not exist; give a folder"):
        render_glyphs(2, 1, fonts=[tmp_path / "none"])


def test_too_few_are_found_out_once(fonts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What took long to be drawn is kept, though it is not enough."""
    with pytest.raises(InputError) as first:
        render_glyphs(700, 3, fonts=fonts)
    monkeypatch.setattr(glyphs_module, "_select", lambda *_: pytest.fail("drawn again"))
    with pytest.raises(InputError) as second:
        render_glyphs(700, 3, fonts=fonts)
    assert str(first.value) == str(second.value)


def test_what_fonts_promise_is_told_without_drawing(fonts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs_module, "find_fonts", lambda: find_fonts(fonts))
    monkeypatch.setattr(glyphs_module, "_Pen", lambda *_: pytest.fail("drawn"))
    assert glyphs_module.promise_glyphs(200, 3)
    assert not glyphs_module.promise_glyphs(1623, 3)
    assert not glyphs_module.promise_glyphs(2, 5)

    def none() -> None:
        raise InputError("fonts: none")

    monkeypatch.setattr(glyphs_module, "find_fonts", none)
    assert not glyphs_module.promise_glyphs(2, 1)


def test_damaged_fonts_are_left_out(fonts: list[Path], tmp_path: Path) -> None:
    content = (SHIPPED / "DejaVuSansMono.ttf").read_bytes()
    for number, damaged in enumerate((b"", b"no font", content[:300], content[:9000], content[:-9000], b"ttcf" * 20)):
        (tmp_path / f"{number}.ttf").write_bytes(damaged)
    (tmp_path / "folder.ttf").mkdir()
    shutil.copy(fonts[0] / "DejaVuSans.ttf", tmp_path / "good.ttf")
    assert len(render_glyphs(5, 1, fonts=[tmp_path]).names) == 5
    with pytest.raises(InputError, match=r"7 font files found \(6 of them are damaged or no outline fonts\)"):
        render_glyphs(5, 2, fonts=[tmp_path])


def test_linked_fonts_and_names_that_are_not_utf8(fonts: list[Path], rendered: Exemplars, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(fonts[0])
    assert torch.equal(render_glyphs(60, 3, fonts=[tmp_path]).features, rendered.features)
    (tmp_path / "odd").mkdir()
    shutil.copy(fonts[0] / "DejaVuSans.ttf", tmp_path / "odd" / os.fsdecode(b"\xff[b]\n.ttf"))
    assert len(render_glyphs(5, 1, fonts=[tmp_path / "odd"]).names) == 5


@pytest.mark.parametrize("classes", [2, 10**9, 10**15])
@pytest.mark.parametrize("typefaces", [5, 10**9, 10**15])
def test_more_than_the_fonts_can_give_is_refused_before_it_is_tried(
    classes: int, typefaces: int, fonts: list[Path]
) -> None:
    with pytest.raises(InputError, match=r"^classes: the 4 font files found give at most 0 of"):
        render_glyphs(classes, typefaces, fonts=fonts)


def test_typefaces_of_unlike_families_come_first() -> None:
    families = [typeface.family for typeface in read_typefaces(find_fonts([SHIPPED]))]
    kinds = len(set(families))
    assert kinds > 5
    assert len(set(families[:kinds])) == kinds


@pytest.mark.parametrize("arguments", [(1, 3), (5, 0), (5, 1, 7), (5, 1, 257)])
def test_bad_arguments(arguments: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must be (2 or more|1 or more|8 or more|at most 256)"):
        render_glyphs(*arguments)


def test_killed_while_writing(
    fonts: list[Path], rendered: Exemplars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICL_FAST_CACHE", str(tmp_path / "cache"))
    code = (
        "import os, signal, sys\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from icl_fast.data import render_glyphs\n"
        "render_glyphs(60, 3, fonts=sys.argv[1:])"
    )
    killed = subprocess.run([sys.executable, "-c", code, *map(str, fonts)], env=dict(os.environ), capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "cache" / "glyphs").glob(".tmp-*"))
    assert torch.equal(render_glyphs(60, 3, fonts=fonts).features, rendered.features)
    (entry,) = (path for path in (tmp_path / "cache" / "glyphs").iterdir() if path.is_dir())
    assert sorted(path.name for path in entry.iterdir()) == ["characters.json", "manifest.json", "pixels.npy"]


def test_full_disk(fonts: list[Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICL_FAST_CACHE", str(small_disk))
    with pytest.raises(InputError, match="the disk is full"):
        render_glyphs(60, 3, 56, fonts=fonts)
    assert not list(small_disk.iterdir())
