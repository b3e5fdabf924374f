"""Strengths against learning times: each point is its member's, correlations are numpy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from icl_fast.analysis import learning_time
from icl_fast.cli.main import cli
from icl_fast.errors import InputError
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.measure.exemplar.measured_run import open_measured
from icl_fast.runs import Run, parse_config
from icl_fast.studies.exemplar_heads import measure_heads
from icl_fast.studies.head_race import AGAINST, measure_race
from icl_fast.training import train

VALUES: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 12, "exemplars": 2, "width": 8, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 10, "exemplars": 1, "label_pool": 2},
    "model": {"width": 16, "heads": 2},
    "training": {"steps": 400, "batch": 16, "lr": 1e-2, "log_every": 10, "engine": "plain"},
    "evaluation": {"every": 400, "sequences": 10},
    "snapshots": {"every": 400},
}
ALONE = [
    {"name": f"head {head} of {seed}", "set": {"training.seed": seed, "interventions.only_heads": [f"1.{head}"]}}
    for head in (1, 0)
    for seed in (4, 3)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    seeds = parse_config({**VALUES, "members": 2, "training": {**VALUES["training"], "seed": 3}})
    return train(seeds, folder / "seeds").path, train(parse_config({**VALUES, "members": ALONE}), folder / "alone").path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], env={"COLUMNS": "140"})


def test_each_head_has_its_own_time(runs: tuple[Path, Path]) -> None:
    measured = open_measured(runs[0], evaluators=["train"], sequences=50)
    found, heads = measure_race(measured, Run(runs[1])), measure_heads(measured)
    assert found["seed"].values.tolist() == [3, 4]
    assert np.array_equal(found["induction"].values, heads["induction"].values)
    assert np.array_equal(found["accuracy"].values, heads["overall"].sel(patterns="as it is").values)
    curves = training_curves(Run(runs[1]))
    for seed in (3, 4):
        for head in (0, 1):
            losses = curves["training_loss"].sel(member=f"head {head} of {seed}").values
            expected = float(learning_time(curves["logged_sequences"].values, losses))
            assert np.array_equal(found["learning_time"].sel(seed=seed).values[head], expected, equal_nan=True)
    assert int(found["learning_time"].notnull().sum()) >= 3
    for name in AGAINST:
        values = found[name].values.ravel()
        known = np.isfinite(values)
        r = np.corrcoef(found["induction"].values.ravel()[known], values[known])[0, 1]
        assert float(found["pearson"].sel(against=name)) == pytest.approx(r)


def test_as_a_command(runs: tuple[Path, Path], tmp_path: Path) -> None:
    options = ["--sequences", 50, "--alone", runs[1], "--figures", tmp_path / "figures"]
    result = call("wiring", "--ckpt", runs[0], *options)
    assert result.exit_code == 0, result.output
    found = measure_race(open_measured(runs[0], evaluators=["train"], sequences=50), Run(runs[1]))
    r = float(found["pearson"].sel(against="learning_time"))
    assert f"sequences until it has learned, alone from the start: r = {r:.3f}" in result.stdout
    assert (tmp_path / "figures" / "race.svg").exists()


def test_a_head_that_nobody_had_alone(runs: tuple[Path, Path]) -> None:
    measured = open_measured(runs[0], evaluators=["train"], sequences=5)
    with pytest.raises(InputError, match=r"no member with seed 3 has head 1\.0 alone"):
        measure_race(measured, Run(runs[0]))
