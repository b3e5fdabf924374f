"""`icl-fast ablate` of runs on exemplars as a user sees it, and what each command says of the other kind of run."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from icl_fast.cli.main import cli
from icl_fast.cli.measure_tables import print_exemplar_ablations
from icl_fast.measure import measure_ablations, open_measured, open_results
from icl_fast.measure.ablation import MODES
from icl_fast.runs import parse_config
from icl_fast.training import train

VALUES = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"classes": 20},
    "model": {"width": 16, "heads": 2},
    "training": {"steps": 60, "batch": 8, "lr": 1e-2, "log_every": 4, "engine": "plain"},
    "evaluation": {"every": 60, "sequences": 40},
    "snapshots": {"every": 30},
    "members": [{"name": "free"}, {"name": "one head", "set": {"interventions.only_heads": ["1.1"]}}],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(parse_config(VALUES), tmp_path_factory.mktemp("runs") / "two").path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], env={"COLUMNS": "140"})


def rows(table: str) -> dict[str, list[str]]:
    found = re.findall(r"^ +(none|[\d.~*+]+|embed\S*) +([-+±.\d]+(?: +[-+±.\d]+)*) *$", table, re.MULTILINE)
    return {name: numbers.split() for name, numbers in found}


def test_every_mode_and_evaluator(run: Path) -> None:
    result = call("ablate", "--ckpt", run, "--sequences", 40)
    assert result.exit_code == 0, result.output
    store = run / "results" / "ablation.zarr"
    assert result.stdout.splitlines()[-1] == f"results in {store}"
    found = open_results(store)
    measured = open_measured(run, sequences=40)
    assert found.identical(open_results(measure_ablations(measured, out=run / "direct.zarr")))
    tables = re.split(r"(?=free, \S+, step 60)", result.stdout)[1:]
    assert [re.match(r"free, (\S+), ", table)[1] for table in tables] == list(MODES)  # type: ignore[index]
    last = found.isel(snapshot=-1, member=0)
    for mode, table in zip(MODES, tables, strict=True):
        assert "* among all outputs" in table  # of the sequences whose answer is in the weights alone
        printed, changes = rows(table), {}
        assert next(iter(printed)) == "none"
        assert set(printed) == set(found["ablation"].values)
        for ablation, cells in printed.items():
            for name, cell in zip(found["evaluator"].values, cells, strict=True):
                metric = "accuracy" if name.startswith("iwl") else "accuracy_in_context"
                values = last[metric].sel(mode=mode, evaluator=name)
                value, whole = float(values.sel(ablation=ablation)), float(values.sel(ablation="none"))
                # at most the sum of the two standard errors of accuracies over 40 sequences
                error = sum((one * (1 - one) / 40) ** 0.5 for one in (value, whole))
                shown = f"{value - whole:+.3f}±{error:.3f}"
                assert cell == (f"{whole:.3f}" if ablation == "none" else shown)
                if ablation != "none":
                    changes[ablation] = min(changes.get(ablation, 1.0), value - whole)
        assert list(changes.values()) == sorted(changes.values())  # the worst fall first


def test_the_peak_of_in_context_learning_is_shown_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = open_results(measure_ablations(open_measured(run, sequences=10), modes=["full"], out=run / "peak"))
    for peak in range(3):  # wherever it is
        accuracy = found["accuracy_in_context"].copy(deep=True)
        accuracy.loc[{"evaluator": "icl"}] = 0.5
        accuracy[peak, ...] = accuracy[peak].where(accuracy["evaluator"] != "icl", 0.9)
        print_exemplar_ablations(found.assign(accuracy_in_context=accuracy))
        steps = re.findall(r"full, step (\d+)", capsys.readouterr().out)
        assert [int(step) for step in steps] == sorted({int(found["snapshot"][peak]), 60})


def test_of_labels_drawn_anew_all_outputs_count(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = open_results(measure_ablations(open_measured(run, sequences=10), modes=["full"], out=run / "all"))
    last = found["accuracy"].isel(snapshot=-1, member=0, mode=0).sel(ablation="none")
    print_exemplar_ablations(found.sel(evaluator=["train"]), all_outputs=True)
    assert rows(capsys.readouterr().out)["none"] == [f"{float(last.sel(evaluator='train')):.3f}"]


def test_every_option(run: Path, tmp_path: Path) -> None:
    options = "--mode pattern+k --heads 0.0+1.1,~1.0,embed,* --snapshots 0,60 --sequences 20 --device cpu"
    named = ["--evaluator", "ciwl", "--evaluator", "train", "--member", "one head"]
    result = call("ablate", "--ckpt", run, *options.split(), *named, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "one head, pattern+k, step 60" in result.stdout
    found = open_results(tmp_path / "out")
    assert found["ablation"].values.tolist() == ["none", "0.0+1.1", "~1.0", "embed", "*"]
    assert found["snapshot"].values.tolist() == [0, 60]
    assert found["mode"].values.tolist() == ["pattern+k"]
    assert found["evaluator"].values.tolist() == ["ciwl", "train"]
    assert found.attrs["evaluated"] == 20
    last = found["accuracy_in_context"].isel(snapshot=-1, mode=0).sel(member="one head")
    assert rows(result.stdout)["none"] == [f"{float(value):.3f}" for value in last.sel(ablation="none")]


def test_one_mode_has_a_store_of_its_own(run: Path) -> None:
    result = call("ablate", "--ckpt", run, "--mode", "direct", "--sequences", 5, "--heads", "none")
    assert result.stdout.splitlines()[-1] == f"results in {run / 'results' / 'ablation_direct.zarr'}"
    assert list(rows(result.stdout)) == ["none"]


def test_a_plan_measures_nothing(run: Path) -> None:
    before = sorted(run.rglob("*"))
    result = call("ablate", "--ckpt", run, "--plan", "--sequences", 30, "--mode", "full")
    assert result.exit_code == 0, result.output
    evaluators = len(open_measured(run, sequences=1).evaluators)
    assert f"4 ablations (full) of 3 snapshots on {evaluators} evaluators of 30 sequences" in result.stdout
    assert "1 first pass and 5 different second passes" in result.stdout
    assert re.search(r"about \d+\.\d s a snapshot, \d+ s in all", result.stdout)
    assert sorted(run.rglob("*")) == before


def test_ctrl_c_and_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["icl_fast.measure.exemplar.ablation_sweep"]
    whole = measure_ablations(open_measured(run, sequences=7), out=tmp_path / "whole")
    arrays, calls = module.AblationPlan.arrays, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return arrays(*arguments)

    monkeypatch.setattr(module.AblationPlan, "arrays", interrupted)
    result = call("ablate", "--ckpt", run, "--sequences", 7)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "error: stopped; the same command goes on from there"
    assert call("ablate", "--ckpt", run, "--sequences", 7).exit_code == 0
    assert len(calls) == 4  # the first snapshot was not measured again
    assert open_results(run / "results" / "ablation.zarr").identical(open_results(whole))


def bad_inputs() -> list[tuple[str, str]]:
    on_text = {
        "--positions": "all",
        "--replacement": "zero",
        "--preserve-heads": "1.0",
        "--icl-positions": "1,2",
        "--icl-window": "3",
        "--examples": "5",
        "--memory": "1GiB",
        "--engine": "fast",
        "--dtype": "float32",
    }
    refused = [
        (f"ablate --ckpt {{run}} {option} {value}", f"{option}: for runs on text; {{run}} was trained on exemplars")
        for option, value in on_text.items()
    ]
    on_exemplars = {"--evaluator": "icl", "--sequences": "5", "--member": "free"}
    refused += [
        (f"ablate --ckpt {{text}} {option} {value}", f"{option}: for runs on exemplars; {{text}} was trained on text")
        for option, value in on_exemplars.items()
    ]
    return [
        *refused,
        ("ablate --ckpt {run} --mode frozen", "mode: 'frozen' is neither one of"),
        ("ablate --ckpt {run} --heads 2.0", "'2.0' is not in this model; it has layers 0 to 1 and heads 0 to 1"),
        ("ablate --ckpt {run} --heads 0.-1", "'0.-1' is not understood"),
        ("ablate --ckpt {run} --snapshots 7", "snapshots: none at step 7; there are 0, 30, 60"),
        ("ablate --ckpt {run} --evaluator nonsense", "nonsense"),
        ("ablate --ckpt {run} --sequences 0", "sequences: must be 1 or more"),
        ("ablate --ckpt {run} --member nobody", "member nobody: must be one of free, one head"),
        ("ablate --ckpt {run} --device tpu", "device"),
        (
            "pca {text} {run} --out {new}.zarr",
            "pca: is for runs on text; {run} was trained on exemplars: `icl-fast evaluate RUN`",
        ),
        (
            "wiring --ckpt {text}",
            "wiring: is for runs on exemplars; {text} was trained on text: `icl-fast evaluate RUN`",
        ),
        (
            "wiring --ckpt {text}/snapshots/step_00000006.safetensors",
            "wiring: is for runs on exemplars; {text}/snapshots/step_00000006.safetensors was trained on text",
        ),
    ]


@pytest.mark.parametrize(("command", "message"), bad_inputs(), ids=[command for command, _ in bad_inputs()])
def test_bad_input(command: str, message: str, run: Path, tiny_run: Path, tmp_path: Path) -> None:
    places = {"run": run, "text": shutil.copytree(tiny_run, tmp_path / "text"), "new": tmp_path / "new"}
    before = sorted(tmp_path.rglob("*"))
    result = call(*command.format(**places).split())
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1
    assert result.output.startswith("error: ")
    assert message.format(**places) in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_results_of_another_sweep_are_not_touched(run: Path) -> None:
    first = call("ablate", "--ckpt", run, "--sequences", 5, "--heads", "0.0")
    assert first.exit_code == 0, first.output
    store = run / "results" / "ablation.zarr"
    kept = open_results(store)
    again = call("ablate", "--ckpt", run, "--sequences", 6, "--heads", "0.0")
    assert again.exit_code == 2
    assert f"{store} belongs to a measurement with other sequences; --force measures again" in again.stderr
    assert open_results(store).identical(kept)
    assert np.isfinite(kept["loss"]).all()
    forced = call("ablate", run, "--sequences", 6, "--heads", "0.0", "--force")
    assert forced.exit_code == 0, forced.output
    assert open_results(store).attrs["evaluated"] == 6
