"""`icl-fast evaluate` of runs on exemplars and `icl-fast wiring` as a user sees them, and what they save."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from icl_fast.cli.main import cli
from icl_fast.data.exemplar_source import load_exemplars
from icl_fast.errors import InputError
from icl_fast.measure import OtherResults, open_results
from icl_fast.measure.exemplar.measured_model import MeasuredModel
from icl_fast.measure.exemplar.measured_run import measure_strategies, measure_wiring, open_measured
from icl_fast.measure.exemplar.progress import Transplant
from icl_fast.measure.exemplar.single_heads import residual_heads, single_heads
from icl_fast.measure.exemplar.strategies import evaluate_strategies
from icl_fast.measure.exemplar.wiring import remove_sets, wiring_map
from icl_fast.measure.over_snapshots import SnapshotProgress
from icl_fast.models import make_clamps, stack_clamps
from icl_fast.runs import Run, parse_config
from icl_fast.training import train

VALUES = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"classes": 20, "held_out_classes": 6},
    "model": {"width": 16, "heads": 2},
    "interventions": {"previous_token_heads": [0], "induction_heads": [1]},
    "training": {"steps": 12, "batch": 4, "lr": 1e-2, "log_every": 4, "engine": "plain"},
    "evaluation": {"every": 6, "sequences": 40},
    "snapshots": {"every": 6},
}
MEMBERS = [{"name": "free"}, {"name": "one head", "set": {"interventions.only_heads": ["1.1"], "training.seed": 7}}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = parse_config({**VALUES, "members": MEMBERS})
    return train(config, tmp_path_factory.mktemp("runs") / "two").path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], env={"COLUMNS": "140"})


def test_every_snapshot_and_evaluator(run: Path) -> None:
    result = call("evaluate", "--ckpt", run, "--sequences", 30, "--clamp", "match")
    assert result.exit_code == 0, result.output
    store = run / "results" / "strategies_match.zarr"
    assert result.stdout.splitlines()[-1] == f"results in {store}"
    found = open_results(store)
    assert found["snapshot"].values.tolist() == [0, 6, 12]
    assert found["clamp"].values.tolist() == ["as trained", "match"]
    assert found["member"].values.tolist() == ["free", "one head"]
    whole = Run(run)
    exemplars = load_exemplars(whole.population.config.exemplars)
    sets = whole.population.evaluators(exemplars, count=30)
    assert found["evaluator"].values.tolist() == [one.name for one in sets]
    expected = evaluate_strategies(whole.load_snapshot(6).model, exemplars.features, sets, whole.population.clamps())
    for name, metrics in expected.items():
        one = found.sel(snapshot=6, clamp="as trained", evaluator=name)
        torch.testing.assert_close(torch.from_numpy(one["loss"].values), metrics.loss)
    strengths = found["induction"].sel(clamp="match", evaluator="train", layer=1, head=1)
    assert (strengths.values == 1).all()
    last = found.isel(snapshot=-1).sel(clamp="match", member="one head")
    within = float(last["accuracy_in_context"].sel(evaluator="ciwl"))
    among = float(last["accuracy"].sel(evaluator="iwl"))
    row = re.findall(r"^ +one head +(.*?) *$", result.stdout, re.MULTILINE)[-1].split()
    names = ["loss", *found["evaluator"].values]
    assert row[names.index("ciwl")] == f"{within:.3f}"
    assert row[names.index("iwl")] == f"{among:.3f}*"


def test_a_run_alone_has_a_row_a_snapshot(tmp_path: Path) -> None:
    alone = train(parse_config(VALUES), tmp_path / "alone").path
    result = call("evaluate", "--ckpt", alone, "--sequences", 20, "--snapshots", "0,12", "--out", tmp_path / "o")
    assert result.exit_code == 0, result.output
    assert re.findall(r"^ +(\d+) +\d\.\d{4} ", result.stdout, re.MULTILINE) == ["0", "48"]
    assert open_results(tmp_path / "o").attrs["evaluated"] == 20


def test_grafts_of_a_snapshot_into_all(run: Path) -> None:
    result = call("evaluate", "--ckpt", run, "--sequences", 25, "--graft", "last:layer-2+unembed")
    assert result.exit_code == 0, result.output
    found = open_results(run / "results" / "strategies_last_layer-2+unembed.zarr")
    whole = Run(run)
    exemplars = load_exemplars(whole.population.config.exemplars)
    sets = whole.population.evaluators(exemplars, count=25)
    mixed = Transplant(whole.load_snapshot(12).model, ("layer-2", "unembed"))(whole.load_snapshot(0).model)
    expected = evaluate_strategies(mixed, exemplars.features, sets, whole.population.clamps())
    one = found["loss"].isel(snapshot=0, clamp=0).sel(evaluator="train")
    torch.testing.assert_close(torch.from_numpy(one.values), expected["train"].loss)


def test_wiring(run: Path, tmp_path: Path) -> None:
    result = call("wiring", "--ckpt", run, "--sequences", 60, "--evaluator", "icl", "--out", tmp_path / "map.npz")
    assert result.exit_code == 0, result.output
    assert "free, step 12, 60 sequences of icl" in result.stdout
    assert result.stdout.splitlines()[-1] == f"arrays in {tmp_path / 'map.npz'}"
    whole = Run(run)
    exemplars, clamps = load_exemplars(whole.population.config.exemplars), whole.population.clamps()
    (evaluator,) = whole.population.evaluators(exemplars, ["icl"], 60)
    model = MeasuredModel(whole.load_snapshot(12).model, exemplars.features, evaluator, clamps)
    expected = wiring_map(model)
    with np.load(tmp_path / "map.npz") as saved:
        assert np.array_equal(saved["accuracy"], expected["accuracy"].values)
        assert saved["dims of accuracy"].tolist() == ["kind", "preserve", "writer", "reader", "member"]
        assert saved["dim:member"].tolist() == ["free", "one head"]
        strengths = saved["induction"]
        is_previous, without = saved["is_previous_token"], saved["accuracy_without"]
    measured = model.means(attention=True).attention
    assert measured is not None
    assert np.array_equal(strengths, measured.induction[:, 1].T.numpy())
    for member in range(2):
        previous = [(0, int(head)) for head in np.flatnonzero(is_previous[:, member])]
        assert [head for _, head in previous] == np.flatnonzero(measured.previous_token[member, 0] >= 0.5).tolist()
        removed = remove_sets(model, {"previous token": previous})["accuracy"].isel(set=0, member=member)
        assert np.array_equal(without[0, :, member], removed.values)
    rows = re.findall(r"^ +0\.1 +([\d. ]+?) *$", result.stdout, re.MULTILINE)
    pairs = expected["accuracy"].sel(kind="single-pair", preserve="value-preserving", writer="0.1", member=0)
    assert rows[0].split() == [f"{float(value):.3f}" for value in pairs]
    other = call("wiring", "--ckpt", run, "--sequences", 60, "--member", "one head", "--snapshot", 6)
    assert other.exit_code == 0, other.output
    assert "one head, step 6, 60 sequences of train" in other.stdout


def test_wiring_of_a_run_as_data(run: Path) -> None:
    found = measure_wiring(open_measured(run, snapshots="0", evaluators=["train"], sequences=20))
    assert (found.attrs["step"], found.attrs["evaluated"]) == (0, 20)
    assert found["loss_without"].sizes == {"set": 3, "preserve": 2, "member": 2}


def test_clamps_act_on_chosen_heads(run: Path) -> None:
    options = ["--sequences", 20, "--snapshots", "last", "--clamp", "match", "--clamp", "pt-attend"]
    result = call("evaluate", "--ckpt", run, *options, "--induction-heads", "1.0,1.1", "--previous-token-heads", "0.1")
    assert result.exit_code == 0, result.output
    found = open_results(run / "results" / "strategies_match_pt-attend_pth1_ih0+1.zarr")
    whole = Run(run)
    exemplars, shape = load_exemplars(whole.population.config.exemplars), whole.population.config.model
    sets = whole.population.evaluators(exemplars, count=20)
    for name in ("match", "pt-attend"):
        forced = stack_clamps(
            [
                make_clamps(shape, [name], induction_heads=[0, 1], previous_token_heads=[1], only_heads=only)
                for only in (None, [(1, 1)])
            ]
        )
        expected = evaluate_strategies(whole.load_snapshot(12).model, exemplars.features, sets, forced)["train"]
        loss = found["loss"].sel(clamp=name, evaluator="train").isel(snapshot=0)
        torch.testing.assert_close(torch.from_numpy(loss.values), expected.loss)


def test_heads_of_one_layer_and_every_sequence(tmp_path: Path) -> None:
    values = {
        **VALUES,
        "model": {"width": 16, "heads": 2, "layers": 1},
        "sequences": {"p_icl": 1.0, "classes": 5, "exemplars": 1, "label_pool": 3},
        "interventions": {},
    }
    path = train(parse_config(values), tmp_path / "one").path
    result = call("wiring", "--ckpt", path, "--sequences", "all", "--figures", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["heads.png", "heads.svg"]
    # 2 C (C - 1) L (L - 1) = 240 sequences
    (evaluator,) = Run(path).population.evaluators(load_exemplars(parse_config(values).exemplars), ["train"], "all")
    model = MeasuredModel(Run(path).load_snapshot(12).model, *_features(path), evaluator)
    alone = single_heads(model)
    assert alone.correct.shape == (1, 2, 240)
    row = re.search(r"it alone +([\d. ]+)", result.stdout)
    assert row is not None
    assert row[1].split() == [f"{float(value):.4f}" for value in alone.accuracy[0]]
    best = int(residual_heads(alone).reference[0])
    assert f"on the {int(residual_heads(alone).mistakes[0])} mistakes of head {best}" in result.stdout


def _features(path: Path) -> tuple[torch.Tensor]:
    return (load_exemplars(Run(path).population.config.exemplars).features,)


def test_mistakes_are_said_in_one_line(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        (["evaluate", "--ckpt", tiny_run, "--clamp", "match"], "--clamp: for runs on exemplars"),
        (["evaluate", "--ckpt", tiny_run, "--sequences", "5"], "--sequences: for runs on exemplars"),
        (["evaluate", "--ckpt", run, "--seed", "1"], "--seed: for runs on text"),
        (["evaluate", "--ckpt", tmp_path / "none"], "does not exist"),
        (["evaluate", "--ckpt", tmp_path], "is a folder of runs (run), not a run"),
        (["wiring", "--ckpt", tiny_run], "wiring: is for runs on exemplars"),
        (["evaluate", "--ckpt", run, "--snapshots", "7"], "none at step 7; there are 0, 6, 12"),
        (["evaluate", "--ckpt", run, "--sequences", "0"], "sequences: must be 1 or more"),
        (["evaluate", "--ckpt", run, "--clamp", "mitch"], "clamp mitch: must be one of"),
        (["evaluate", "--ckpt", run, "--graft", "last"], "must be STEP:PARTS"),
        (["evaluate", "--ckpt", run, "--graft", "all:embed"], "name one step, or last"),
        (["evaluate", "--ckpt", run, "--graft", "6:layer-9"], "layer-9"),
        (["evaluate", "--ckpt", run, "--graft", "6:embed+embed"], "embed asked for more than once"),
        (["evaluate", "--ckpt", run, "--graft", ":embed"], "must be STEP:PARTS"),
        (["evaluate", "--ckpt", run, "--clamp", "match", "--clamp", "match"], "--clamp: match is given twice"),
        (["evaluate", "--ckpt", run, "--clamp", ""], "--clamp: an empty value"),
        (["evaluate", "--ckpt", run, "--induction-heads", "1.0"], "--induction-heads: without --clamp nothing acts"),
        (["evaluate", "--ckpt", run, "--clamp", "match", "--induction-heads", "0.1"], "must be heads of layer 1"),
        (
            ["evaluate", "--ckpt", run, "--clamp", "match", "--induction-heads", "1.5"],
            "--induction-heads: '1.5' is not in",
        ),
        (["evaluate", "--ckpt", tiny_run, "--induction-heads", "1.0"], "--induction-heads: for runs on exemplars"),
        (["wiring", "--ckpt", run, "--sequences", "all"], "sequences all: sequences.p_icl"),
        (["ablate", "--ckpt", run, "--sequences", "all"], "with sequences all name one"),
        (["evaluate", "--ckpt", run, "--sequences", 10**18], "--sequences: 1000000000000000000: needs"),
        (["wiring", "--ckpt", run, "--snapshot", "all"], "--snapshot: all is not one snapshot"),
        (["wiring", "--ckpt", run, "--snapshot", "7"], "--snapshot: none at step 7; there are 0, 6, 12"),
        (["wiring", "--ckpt", Run(run).snapshot_path(6), "--snapshot", "6"], "--snapshot: changes nothing with"),
        (["wiring", "--ckpt", run, "--out", run / "config.yaml" / "x.npz"], "which is a file; choose another place"),
        (["wiring", "--ckpt", run, "--figures", run / "snapshots"], "--figures: "),
        (["wiring", "--ckpt", run, "--evaluator", "nonsense"], "nonsense"),
        (["wiring", "--ckpt", run, "--snapshot", "0,6"], "0,6 is not one snapshot; give a step, or last"),
        (["evaluate", "--ckpt", Run(run).snapshot_path(6), "--snapshots", "0"], "which is one snapshot"),
        (
            ["wiring", "--ckpt", run, "--member", "nobody", "--sequences", "5"],
            "member nobody: must be one of free, one head",
        ),
    ):
        result = call(*arguments)
        assert sorted(tmp_path.rglob("*")) == before, arguments
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr, (arguments, result.stderr)
        assert len(result.stderr.strip().splitlines()) == 1 or "measuring" in result.stderr


def test_a_run_without_snapshots_is_refused(run: Path) -> None:
    shutil.rmtree(run / "snapshots")
    with pytest.raises(InputError, match="has none of its snapshots any more"):
        open_measured(run)


def test_stopped_and_gone_on_with(run: Path) -> None:
    """The same bits as in one go; what was measured otherwise is not touched."""
    told: list[SnapshotProgress] = []
    measured = open_measured(run, sequences=5, evaluators=["train"])
    whole = open_results(measure_strategies(measured, out=run / "whole", on_snapshot=told.append))
    assert told == [SnapshotProgress(done, 3, step) for done, step in ((0, 0), (1, 0), (2, 6), (3, 12))]

    def stop(at: SnapshotProgress) -> None:
        if at.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_strategies(measured, out=run / "parts", on_snapshot=stop)
    told.clear()
    parts = measure_strategies(measured, out=run / "parts", on_snapshot=told.append)
    assert told == [SnapshotProgress(2, 3, 0), SnapshotProgress(3, 3, 12)]
    assert open_results(parts).identical(whole)
    with pytest.raises(OtherResults, match="clamps"):
        measure_strategies(measured, clamps=["match"], out=run / "parts")


def test_a_damaged_snapshot_can_be_left_out(run: Path) -> None:
    Run(run).snapshot_path(6).write_bytes(b"")
    refused = call("evaluate", "--ckpt", run, "--sequences", 5, "--out", run / "all")
    assert refused.exit_code == 2
    assert "step_00000006.safetensors" in refused.stderr
    result = call("evaluate", "--ckpt", run, "--sequences", 5, "--skip-damaged")
    assert result.exit_code == 0, result.output
    assert "snapshot 6 is left out: truncated" in result.stderr
    assert open_results(run / "results" / "strategies.zarr")["snapshot"].values.tolist() == [0, 12]


def test_no_usable_snapshot_is_said(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    text = Path(shutil.copytree(tiny_run, tmp_path / "text"))
    for path in (run, text):
        for step in Run(path).snapshot_steps():
            Run(path).snapshot_path(step).write_bytes(b"")
        result = call("evaluate", "--ckpt", path, "--skip-damaged")
        assert result.exit_code == 2, result.output
        assert f"ckpt: {path} has no snapshot that can be used" in result.stderr
        assert "truncated" in result.stderr


def test_another_donor_is_another_measurement(run: Path) -> None:
    """The same words, `last:...`, mean other weights once there are other snapshots."""

    def graft() -> Path:
        measured = open_measured(run, snapshots="0", sequences=5, evaluators=["train"])
        return measure_strategies(measured, graft="last:layer-2+unembed", out=run / "grafted")

    before = open_results(graft())["loss"].values
    Run(run).snapshot_path(12).unlink()
    Run(run).forget("snapshots/step_00000012.safetensors")
    with pytest.raises(OtherResults, match="other donor"):
        graft()
    shutil.rmtree(run / "grafted")
    assert not np.array_equal(open_results(graft())["loss"].values, before)
