from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from icl_fast.cli.main import cli
from icl_fast.data import read_exemplars, render_glyphs


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Copies of some of matplotlib's typefaces."""
    folder = tmp_path_factory.mktemp("fonts")
    for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "STIXGeneral"):
        shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), folder)
    return str(folder)


def test_glyphs(fonts: str, tmp_path: Path) -> None:
    out, sheet = tmp_path / "g.npz", tmp_path / "g.png"
    arguments = ["data", "glyphs", "--classes", "40", "--typefaces", "3", "--size", "20", "--fonts", fonts]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(out), "--sheet", str(sheet)])
    assert result.exit_code == 0, result.output
    facts = {line[:12].strip(): line[12:] for line in result.stdout.splitlines()}
    assert facts["classes"] == "40 (320 with rotations and mirror images)"
    assert facts["images"] == "120 of 20 x 20 pixels"
    assert sum(int(part.split()[-1]) for part in facts["scripts"].split(", ")) == 40
    assert facts["more fonts"].startswith("apt-get install --no-install-recommends ")
    written = read_exemplars(out)
    expected = render_glyphs(40, 3, 20, fonts=[fonts])
    assert torch.equal(written.features, expected.features)
    assert (written.names, written.image) == (expected.names, (20, 20))
    assert np.asarray(Image.open(sheet)).shape == (20 * 42, 2 * (3 * 42) + 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--typefaces", "5", "--fonts", "FONTS"], "apt-get install --no-install-recommends culmus"),
        (["--classes", "1"], "error: --classes: must be 2 or more, got 1"),
        (["--size", "3"], "error: --size: must be 8 or more, got 3"),
        (["--fonts", "no-such-folder"], "error: --fonts: no-such-folder does not exist; give a folder"),
    ],
)
def test_bad_input(arguments: list[str], message: str, fonts: str) -> None:
    arguments = [fonts if argument == "FONTS" else argument for argument in arguments]
    result = CliRunner().invoke(cli, ["data", "glyphs", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout
