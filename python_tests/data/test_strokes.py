"""Characters of strokes: the same on every machine, unlike each other, and a character's drawings alike."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_fast.cli.main import cli
from icl_fast.data import Exemplars, draw_strokes, glyphs, strokes, transformed
from icl_fast.data.exemplar_source import ExemplarSource, load_exemplars, settled
from icl_fast.errors import InputError
from icl_fast.runs import Run, load_config, parse_config
from icl_fast.runs.config import differing_keys

SHA256 = "8172472169225acd5f80c03646e5dfb20cfc8e02ecf034546d22c9f573f215ad"


@pytest.fixture(scope="module")
def drawn() -> Exemplars:
    return draw_strokes(60, 6)


def unit(images: torch.Tensor) -> torch.Tensor:
    """Of mean 0 and length 1, `[..., P]`."""
    images = images - images.mean(-1, keepdim=True)
    return images / images.norm(dim=-1, keepdim=True)


def test_shapes_and_names(drawn: Exemplars) -> None:
    assert drawn.features.shape == (60, 6, 28 * 28)
    assert drawn.image == (28, 28)
    assert drawn.base.tolist() == list(range(60))
    assert len(set(drawn.names)) == 60
    assert float(drawn.features.min()) == 0
    assert float(drawn.features.amax(2).min()) == 1
    assert len(torch.unique(drawn.features.flatten(0, 1), dim=0)) == 360


def test_the_same_bits_on_every_machine(drawn: Exemplars) -> None:
    """Of 360 images: written down once; nothing but IEEE arithmetic decides them."""
    pixels = (drawn.features * 255).round().to(torch.uint8).numpy()
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == SHA256


def test_other_arguments(drawn: Exemplars) -> None:
    fewer = draw_strokes(9, 4)
    assert torch.equal(fewer.features, drawn.features[:9, :4])
    other = draw_strokes(9, 4, seed=1)
    assert not torch.equal(other.features, fewer.features)
    large = draw_strokes(9, 4, 56)
    blocks = large.pixels.unflatten(2, (28, 2)).unflatten(4, (28, 2)).mean((3, 5)).flatten(2)
    assert float((unit(blocks) * unit(fewer.features)).sum(-1).min()) > 0.9


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(18, 40))
def test_ink_is_within_the_image(seed: int, size: int) -> None:
    images = draw_strokes(3, 2, size, seed=seed).pixels.flatten(0, 1)
    frame = torch.ones(size, size, dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    assert float(images[:, frame].max()) == 0
    for image in images:
        rows, columns = (image > 0.5).any(1).nonzero().flatten(), (image > 0.5).any(0).nonzero().flatten()
        longer = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
        assert 0.55 * size <= longer <= 0.9 * size + 1


def test_a_pixel_is_the_distance_from_the_line() -> None:
    """Against the definition: a line from (-1/4, 0) to (1/4, 0), of a width in pixels."""
    points = np.array([[[-0.25 + 0.5 * t, 0.0] for t in (0, 1 / 3, 2 / 3, 1)]])
    image = strokes._raster(points, np.array([[0, 1, 2, 3]]), 32, np.array([1.0]))[0]
    half = strokes._WIDTH * 32 / 2
    reach = 0.25 * (32 * 5 / 6 - 2 * half)
    y, x = np.mgrid[:32, :32] + 0.5 - 16
    distance = np.hypot(np.maximum(abs(x) - reach, 0), y)
    expected = np.clip(half + 0.5 - distance, 0, 1) * 255
    assert np.abs(image - expected).max() < 6  # the line is of points 0.3 pixels apart


def test_drawings_are_nearest_to_those_of_their_own_character(drawn: Exemplars) -> None:
    every = unit(drawn.features.flatten(0, 1))
    alike = every @ every.T
    alike.fill_diagonal_(-1)
    of = torch.arange(60).repeat_interleave(6)
    assert float((of[alike.argmax(1)] == of).float().mean()) > 0.9
    same = of[:, None] == of
    assert float(alike[same & (alike > -1)].mean()) > float(alike[~same].mean()) + 0.3


def test_all_transformed_classes_differ(drawn: Exemplars) -> None:
    """As they were chosen, by the character and not by a drawing: blurred pixels correlate less than `ALIKE`."""
    chosen = strokes._characters(60, 0)
    images = np.stack([strokes._raster(c.points[None], c.pieces, 28, np.array([1.0])) for c in chosen])
    pixels = torch.from_numpy(images).float().flatten(2)
    every = transformed(Exemplars(pixels, torch.arange(60), (), (28, 28)))
    blurred = unit(every.pixels[:, 0].unflatten(1, (14, 2)).unflatten(3, (14, 2)).mean((2, 4)).flatten(1))
    table = (blurred @ blurred.T).fill_diagonal_(0)
    assert float(table.max()) < strokes.ALIKE + 0.005  # means there are whole numbers


def test_the_second_time_nothing_is_drawn(drawn: Exemplars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strokes, "_characters", lambda *_: pytest.fail("drawn again"))
    assert torch.equal(draw_strokes(60, 6).features, drawn.features)


@pytest.mark.parametrize("arguments", [(1, 3), (5, 0), (5, 1, 7), (5, 1, 257)])
def test_bad_arguments(arguments: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must be (2 or more|1 or more|8 or more|at most 256)"):
        draw_strokes(*arguments)
    with pytest.raises(InputError, match="seed: must be"):
        draw_strokes(5, 1, seed=-1)


def test_more_than_can_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strokes, "_MOST_TRIED", 1)
    with pytest.raises(InputError, match=r"^classes: \d+ characters of strokes can be told apart, not 61"):
        draw_strokes(61, 1)


def test_taken_where_the_fonts_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ExemplarSource(classes=6, exemplars=2, encoder="none")
    assert source.kind == "auto"
    assert settled(source).kind == "glyphs"
    monkeypatch.setattr(glyphs, "promise_glyphs", lambda *_: False)
    assert settled(source) == ExemplarSource(kind="strokes", classes=6, exemplars=2, encoder="none")
    assert torch.equal(load_exemplars(source).features, draw_strokes(6, 2).features)
    rendered = ExemplarSource(kind="glyphs", classes=6, exemplars=2, encoder="none")
    assert settled(rendered) is rendered


VALUES = {
    "exemplars": {"classes": 12, "exemplars": 2, "encoder": "random-projection", "width": 8},
    "sequences": {"classes": 8, "held_out_classes": 3},
    "model": {"width": 16, "heads": 2},
    "interventions": {"previous_token_heads": [0], "induction_heads": [1]},
    "training": {"steps": 4, "batch": 4, "checkpoint_every": 2, "engine": "plain"},
    "evaluation": {"every": 4, "sequences": 20},
}


def test_a_run_says_what_it_took_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(VALUES))
    monkeypatch.setattr(glyphs, "promise_glyphs", lambda *_: False)
    begun = CliRunner().invoke(cli, ["train", str(config), "--out", str(out)])
    assert begun.exit_code == 0, begun.output
    assert "run: exemplars are characters of strokes, as this machine's fonts give too few" in begun.stderr
    assert Run(out).config.exemplars.kind == "strokes"
    monkeypatch.undo()  # fonts enough were installed meanwhile
    resumed = CliRunner().invoke(cli, ["train", str(config), "--out", str(out), "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert Run(out).config.exemplars.kind == "strokes"
    for kind, differs in (("auto", []), ("glyphs", ["exemplars.kind"]), ("gaussian", ["exemplars.kind"])):
        other = load_config(config, [f"exemplars.kind={kind}"])
        assert differing_keys(Run(out).config, other) == differs


@pytest.mark.slow
def test_in_context_learning_on_strokes(tmp_path: Path) -> None:
    """Chapter 4 at small scale (Singh 2025, Figure 4.3): labels drawn anew, so that only the context tells them."""
    from icl_fast.training import train

    values = {
        "exemplars": {
            "kind": "strokes",
            "classes": 200,
            "exemplars": 2,
            "encoder": "random-convolutions",
            "width": 512,
        },
        "sequences": {"p_icl": 1.0, "classes": 50, "exemplars": 1, "label_pool": 5, "held_out_classes": 50},
        "model": {"layers": 2, "width": 64, "heads": 8, "position": "rotary"},
        "training": {"steps": 8000, "batch": 32, "lr": 1e-4, "seed": 5},
        "evaluation": {"every": 1000, "sequences": 1000},
        "snapshots": {"every": 8000},
    }
    run = train(parse_config(values), tmp_path / "run")
    evaluated = [line["evaluators"] for line in run.read_log() if "evaluators" in line]
    first, last = (line["train"]["accuracy_in_context"][0] for line in (evaluated[0], evaluated[-1]))
    assert first < 0.6
    assert last > 0.95
