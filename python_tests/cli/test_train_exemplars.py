"""`icl-fast train` on configs of runs on exemplars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from click.testing import CliRunner
from PIL import Image

from icl_fast.analysis import transience
from icl_fast.cli.main import cli
from icl_fast.cli.measure_tables import print_transience
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.runs import Run

VALUES = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 20, "label_pool": 5, "held_out_classes": 6, "held_out_label_pairs": 0.2},
    "model": {"width": 16, "heads": 4},
    "training": {"steps": 12, "batch": 4, "lr": 1e-2, "log_every": 4},
    "evaluation": {"every": 6, "sequences": 40},
    "snapshots": {"every": 6},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


def train(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["train", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_clamp_by_name(config: Path, tmp_path: Path) -> None:
    code, output = train(config, "--clamp", "match", "--clamp", "pt-attend", "--out", tmp_path / "run")
    assert code == 0, output
    run = Run(tmp_path / "run")
    assert run.config.interventions.clamps == ["match", "pt-attend"]
    strength = training_curves(run)["induction"].sel(evaluator="train").isel(evaluation=-1, member=0, layer=1)
    assert float(strength[3]) == 1
    end = float(training_curves(run)["accuracy_in_context"].sel(evaluator="train").isel(evaluation=-1, member=0))
    assert f"{end:.3f}" in output
    assert "3 snapshots in" in output
    with Image.open(tmp_path / "run" / "curves.png") as image:
        assert image.width > 1000
    assert (tmp_path / "run" / "curves.svg").stat().st_size > 10_000


@pytest.mark.parametrize(
    "members",
    [5, [{"name": f"{word} {i} | {clamp}"} for word in ("classes", "labels") for i in (1, 2) for clamp in "ab"]],
    ids=["seeds", "grid"],
)
def test_a_population_is_drawn(config: Path, tmp_path: Path, members: object) -> None:
    config.write_text(yaml.safe_dump(VALUES | {"members": members}))
    code, output = train(config, "--out", tmp_path / "run")
    assert code == 0, output
    assert all(name in output for name in Run(tmp_path / "run").population.names)
    assert (tmp_path / "run" / "curves.png").is_file()


def test_when_icl_came_and_went_is_printed(config: Path, tmp_path: Path) -> None:
    """After training, and of every snapshot; and both learning times."""
    fixed = {"classes": 20, "held_out_classes": 6}
    config.write_text(yaml.safe_dump(VALUES | {"sequences": fixed, "model": {"width": 16, "heads": 4}}))
    code, output = train(config, "--out", tmp_path / "run")
    assert code == 0, output
    curves = training_curves(Run(tmp_path / "run")).isel(member=0)
    found = transience(curves["sequences"], curves["accuracy_in_context"].sel(evaluator="icl"), chance=0.5)
    assert f"at most {found.height:.3f}" in output
    assert "drops below 0.4 log 2 for the first time, and until it stays below" in output
    shown = CliRunner().invoke(cli, ["evaluate", "--ckpt", str(tmp_path / "run"), "--sequences", "40"]).output
    assert "ICL" in shown.split("results in")[0].splitlines()[-1]


def test_a_rise_and_fall_of_icl_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = np.array([0.5, 0.6, 0.9, 0.9, 0.9, 0.7, 0.6, 0.5, 0.5])
    seen = np.arange(9) * 1_000_000
    values = np.stack([accuracy, np.ones(9)])[:, :, None]
    made = xr.Dataset(
        {"accuracy_in_context": (("evaluator", "snapshot", "member"), values), "sequences": ("snapshot", seen)},
        coords={"evaluator": ["icl", "ciwl"], "member": ["a"]},
    )
    print_transience(made)
    found = transience(seen, accuracy, chance=0.5)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("a: ICL sets on after 2M sequences, at most 0.900 after 2M; 0.500 at the end, ")
    assert said.endswith(f"{found.decay:+.3g} a million sequences from the peak: transient")
    print_transience(made.sel(evaluator=["icl"]))  # labels are not fixed: nothing comes and goes
    assert capsys.readouterr().out == ""


def test_bad_input(config: Path, tmp_path: Path) -> None:
    text = Path(__file__).parents[2] / "configs" / "demo" / "two_layer.yaml"
    for arguments, message in (
        ((text, "--clamp", "match"), "--clamp: "),
        ((config, "--clamp", "mtach"), "interventions.clamps.0: "),
        ((config, "--clamp", "copy", "--set", "interventions.induction_heads=[9]"), "head 1.9: the model has"),
        ((config, "--set", "training.steps=0"), "training.steps: "),
        ((tmp_path / "no.yaml",), "no.yaml does not exist"),
    ):
        code, output = train(*arguments, "--out", tmp_path / "run")
        assert code == 2
        assert output.startswith("error: ")
        assert message in output
        assert output.count("\n") == 1
        assert not (tmp_path / "run").exists()
