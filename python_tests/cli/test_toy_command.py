"""`icl-fast toy` as a user sees it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import icl_fast.studies.toy as studies
from icl_fast.cli.main import cli
from icl_fast.measure import open_results
from icl_fast.report.draw.figures import save_figure
from icl_fast.toy import Coopetition, Setting, TensorProduct, draw_runs, record_at, simulate
from icl_fast.toy.summary import RULES

PHASE_CHANGE = "phase-change --dims 4,5,6 --steps 60 --seeds 3 --plateau-seeds 2 --plateau-steps 50"
COOPETITION = "coopetition --dims 4,4,4,8 --steps 200 --every 20 --seeds 14"


def call(arguments: str, *more: object) -> Result:
    return CliRunner().invoke(cli, ["toy", *arguments.split(), *map(str, more)], env={"COLUMNS": "100"})


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure takes seconds; some tests put it back."""
    monkeypatch.setattr(studies, "save_figure", lambda figure, path: [Path(path).with_suffix(".png")])


def test_phase_change_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "save_figure", save_figure)
    out = tmp_path / "new" / "pc.zarr"
    result = call(PHASE_CHANGE, "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "pc.png",
        "pc.svg",
        "pc.zarr",
        "pc_plateau.zarr",
        "pc_saddle.zarr",
    ]
    data = open_results(out)
    assert data["clamp"].values.tolist() == ["none", "c", "bc"]
    runs = draw_runs("abc", (4, 5, 6), range(3), clamped="c")
    losses = simulate(TensorProduct(), runs, record_at(60, 1)).losses()[:, 0]
    np.testing.assert_allclose(data["loss"].sel(clamp="c"), losses, rtol=1e-12)
    assert "3 vectors: falls along d-, rises along d+: yes, as e^3.000" in result.output
    left = int(np.isfinite(data["plateau"].sel(clamp="bc")).sum())
    assert f"{left} of 3" in result.output


def test_clamps_are_chosen_by_name(tmp_path: Path) -> None:
    result = call(PHASE_CHANGE, "--clamp", "ac", "--clamp", "none", "--first-seed", 5, "--out", tmp_path / "pc.zarr")
    assert result.exit_code == 0, result.output
    data = open_results(tmp_path / "pc.zarr")
    assert data["clamp"].values.tolist() == ["ac", "none"]
    assert data["seed"].values.tolist() == [5, 6, 7]


def test_coopetition(tmp_path: Path) -> None:
    """Of what it draws only the names; see `test_coopetition_draws`."""
    out = tmp_path / "co.zarr"
    result = call(COOPETITION, "--mu", "0.1,0", "--alpha", "0.3", "--clamp", "b", "--out", out)
    assert result.exit_code == 0, result.output
    data = open_results(out)
    assert data["mu"].values.tolist() == [0.1, 0.0]
    assert dict(data["loss"].sizes) == {"setting": 2, "term": 4, "step": 11, "shown": 12}
    runs = Setting(0.0, 0.3, (4, 4, 4, 8), clamped=("b",)).runs(range(14))
    losses = simulate(Coopetition(0.0, 0.3), runs, record_at(200, 20)).losses()
    np.testing.assert_allclose(
        data["loss"].isel(setting=1).transpose("step", "term", "shown"), losses[..., :12], rtol=1e-12, atol=1e-15
    )
    stuck = int(data["stuck"].isel(setting=0).sum())
    assert f"{stuck} ({stuck / 14:.1%})" in result.output
    printed = " ".join(result.output.split())
    assert all(" ".join(rule.split()) in printed for rule in RULES)
    for name in ("co.png", "co_seeds_1_mu0p1_alpha0p3.png", "co_seeds_2_mu0_alpha0p3.png"):
        assert name in result.output
    assert "co_diagram.png" not in result.output
    assert call(COOPETITION, "--out", out).exit_code == 0  # an earlier one is replaced


def test_coopetition_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "save_figure", save_figure)
    monkeypatch.setattr(studies, "MUS", (0.0, 0.3))
    result = call(COOPETITION, "--diagram", 1, "--seeds", 3, "--out", tmp_path / "co.zarr")
    assert result.exit_code == 0, result.output
    for name in ("co", "co_seeds_mu0p1_alpha0p1", "co_diagram"):
        for ending in ("png", "svg"):
            assert (tmp_path / f"{name}.{ending}").stat().st_size > 1000


def test_phase_diagrams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "MUS", (0.0, 0.3))
    monkeypatch.setattr(studies, "RATIOS", (0.5, 2.0))
    result = call(COOPETITION, "--diagram", 2, "--out", tmp_path / "co.zarr")
    assert result.exit_code == 0, result.output
    grid, line = open_results(tmp_path / "co_mu_alpha.zarr"), open_results(tmp_path / "co_ratio.zarr")
    assert dict(grid.sizes) == {"alpha": 7, "mu": 2}
    assert line["dim_d"].values.tolist() == [2, 8]


PHASE_CHANGE_MISTAKES = {
    "--dims 20.5,20,20": "--dims: '20.5,20,20' must be whole numbers",
    "--dims 1000000000000000,1,1": "--dims: [1000000000000000, 1, 1] and 12 seeds: needs 1.0",
    "--dims " + ",".join("2" * 17): "--dims: must be 1 to 16, got 17",
    "--seeds 1000000000000": "and 1000000000000 seeds: needs",
    "--first-seed 9223372036854775807": "--seeds: one or more are needed, from 0 to 2^63 - 1",
    "--steps 1000000000000000": "--steps: must be from 1 to 1000000000, got 1000000000000000",
    "--steps 1000000000": "--steps: 1000000000, recorded every 1: needs",
    "--steps 10 --every 11": "--every: must be from 1 to 10, the steps; got 11",
    "--lr nan": "--lr: must be a finite number, got nan",
    "--scale inf": "--scale: must be a finite number, got inf",
    "--scale 1e300": "--scale: vectors at 1e+300 are too long to compute with",
    "--plateau-seeds 1000000000000": "--plateau-seeds: 1000000000000: needs",
    "--plateau-steps 1000000000000": "--plateau-steps: must be from 2 to 1000000000",
    "--clamp aa": "--clamp: a is given twice",
    "--clamp bc --clamp cb": "--clamp: bc is given twice",
    "--clamp none --clamp none": "--clamp: none is given twice",
}
COOPETITION_MISTAKES = {
    "--mu 0.1,0.10": "--mu: 0.1 is given twice",
    "--mu ,": "--mu: ',' must be numbers",
    "--alpha nan": "--alpha: 'nan' must be finite numbers",
    "--alpha 1,-2": "--alpha: must be 0 or more, got -2.0",
    "--scale 1,1e200": "--scale: vectors at 1e+200 are too long",
    "--clamp abcd": "--clamp: abcd must leave a vector to learn",
    "--clamp aa": "--clamp: a is given twice",
    "--diagram 1000000000000": "--diagram: 1000000000000 in each of 49 settings: needs",
    "--seeds 1000000000000": "--seeds: 1000000000000 in each of 1 settings: needs",
    "--memory " + "9" * 5000: "--memory: '999",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("phase-change --dims 4,x", "--dims: '4,x' must be whole numbers"),
        ("phase-change --clamp abc", "--clamp: abc must leave a vector to learn"),
        ("phase-change --clamp z", "--clamp: there is no vector z; there are a, b, c"),
        ("phase-change --steps 0", "--steps: must be 1 or more"),
        ("phase-change --device tpu", "device tpu"),
        ("coopetition --dims 4,5,6", "dims: four are needed"),
        ("coopetition --mu -1 --steps 10", "mu: must be 0 or more"),
        ("coopetition --seed 40 --seeds 2 --steps 10", "--seed: must be one of those whose curves are kept, 0, 1"),
        ("coopetition --memory lots", "memory"),
        *((f"phase-change {option}", message) for option, message in PHASE_CHANGE_MISTAKES.items()),
        *((f"coopetition {option}", message) for option, message in COOPETITION_MISTAKES.items()),
    ],
)
def test_a_mistake_is_one_line(arguments: str, message: str, tmp_path: Path) -> None:
    result = call(arguments, "--out", tmp_path / "x.zarr")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_something_else_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "x.zarr"
    assert call(PHASE_CHANGE, "--out", out).exit_code == 0
    for other in ("--out", out), ("--out", tmp_path / "x"):
        result = call(COOPETITION, *other)
        assert result.exit_code == 2
        assert "out: " in result.stderr
    assert "squared_cosine" in open_results(out)
    beside = tmp_path / "x_plateau.zarr"
    shutil.rmtree(beside)
    beside.mkdir()
    (beside / "notes.txt").write_text("mine")
    result = call(PHASE_CHANGE, "--out", out, "--repair")
    assert result.exit_code == 2
    assert f"results {beside}: cannot be read, it is no zarr store" in result.stderr
    assert (beside / "notes.txt").exists()


def test_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "simulate_settings", stop)
    result = call(COOPETITION, "--out", tmp_path / "co.zarr")
    assert result.exit_code == 130
    assert "the same command begins again" in result.stderr
    assert not list(tmp_path.iterdir())
