"""`icl-fast evaluate` and `icl-fast pca` as a user sees them."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from icl_fast.analysis import joint_pca
from icl_fast.cli.main import cli
from icl_fast.measure import evaluate, open_results, sweep
from icl_fast.runs import Run, parse_config
from icl_fast.training import train


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def other(tiny_run: Path, tmp_path: Path) -> Path:
    """A run of the same corpus with the last snapshot missing, so that its path is another."""
    folder = Path(shutil.copytree(tiny_run, tmp_path / "other"))
    Run(folder).snapshot_path(12).unlink()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_evaluate(run: Path, tmp_path: Path) -> None:
    result = call("evaluate", "--ckpt", run)
    assert result.exit_code == 0, result.output
    store = run / "results" / "heads.zarr"
    assert result.stdout.splitlines()[-1] == f"results in {store}"
    last = open_results(store).isel(snapshot=-1)
    rows = re.findall(r"^ +(\d)\.(\d) +(previous token|induction|other) +(.*?) *$", result.stdout, re.MULTILINE)
    assert len(rows) == 4
    matching = [float(last["prefix_matching"].sel(layer=int(layer), head=int(head))) for layer, head, *_ in rows]
    assert matching == sorted(matching, reverse=True)
    for layer, head, _, numbers in rows:
        scores = last.sel(layer=int(layer), head=int(head))
        names = ("prefix_matching", "copying", "previous_token", "qk_trace", "ov_copying")
        expected = [f"{float(scores[name]):.3f}".replace("nan", "-") for name in names]
        assert numbers.split() == expected
    assert "prefix matching > 0.2 and copying > -0.6, else" in result.stdout
    assert "(copying: the paper's 0 is out of reach of models under 512 wide" in result.stdout
    assert "left out" not in result.stdout
    before = contents(store)
    assert call("evaluate", "--ckpt", run).stdout == result.stdout
    assert contents(store) == before


def test_evaluate_every_option(run: Path, tmp_path: Path) -> None:
    folder, out = Run(run), tmp_path / "out"
    folder.snapshot_path(6).write_bytes(folder.snapshot_path(6).read_bytes()[:-8])
    options = ["--snapshots", "0,6", "--seed", 3, "--device", "cpu", "--skip-damaged", "--out", out]
    result = call("evaluate", "--ckpt", run, *options)
    assert result.exit_code == 0, result.output
    assert "left out: step 6, truncated" in result.stdout
    assert result.stdout.splitlines()[-1] == f"results in {out}"
    assert contents(out) == contents(
        evaluate(run, snapshots="0,6", seed=3, skip_damaged=True, device="cpu", out=tmp_path / "direct")
    )


def test_at_most_forty_heads(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from icl_fast.cli.tables import print_head_scores

    print_head_scores(open_results(evaluate(run)), 128, most=3)
    shown = capsys.readouterr().out
    assert len(re.findall(r"^ +\d\.\d ", shown, re.MULTILINE)) == 3
    assert "… and 1 more in the results" in shown


def test_ctrl_c_and_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["icl_fast.measure.heads.evaluate"]
    whole, trace, calls = evaluate(run, out=tmp_path / "whole"), module.qk_trace, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return trace(*arguments)

    monkeypatch.setattr(module, "qk_trace", interrupted)
    result = call("evaluate", "--ckpt", run)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "error: stopped; the same command goes on from there"
    assert call("evaluate", "--ckpt", run).exit_code == 0
    assert len(calls) == 4  # the first snapshot was not measured again
    assert contents(run / "results" / "heads.zarr") == contents(whole)


def test_pca(run: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "family.v1.zarr"
    command = ["pca", run, other, "--components", 3, "--out", out]
    result = call(*command)
    assert result.exit_code == 0, result.output
    losses = {
        path.name: open_results(sweep(path, heads="none", out=tmp_path / f"{path.name}_losses"))
        for path in (run, other)
    }
    expected, store = joint_pca(losses, components=3), open_results(out)
    np.testing.assert_array_equal(store["coordinates"], np.concatenate([*expected.coordinates.values()]))
    for name in ("components", "mean", "explained_variance", "explained_variance_ratio"):
        np.testing.assert_array_equal(store[name], getattr(expected, name))
    assert store["coordinates"].dims == ("point", "component")
    assert store["run"].values.tolist() == ["run"] * 3 + ["other"] * 2
    assert store["snapshot"].values.tolist() == [0, 6, 12, 0, 6]
    assert store["tokens"].values.tolist() == [0, 288, 576, 0, 288]
    for number, part in enumerate(expected.explained_variance_ratio, start=1):
        assert f"component {number}: {part:.1%} of the variance" in result.stdout
    for name, path in expected.coordinates.items():
        ends = (", ".join(f"{value:+.2f}" for value in point) for point in (path[0], path[-1]))
        assert re.search(rf"{name} +{len(path)} +{' +'.join(map(re.escape, ends))}", result.stdout)
    assert (tmp_path / "family.v1.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "family.v1.svg").read_text()
    assert svg.rstrip().endswith("</svg>")
    assert result.stdout.splitlines()[-2:] == [f"results in {out}", f"figure: {tmp_path / 'family.v1.png'}"]
    kept = contents(run / "results" / "losses.zarr")
    again = call(*command)
    assert again.stdout == result.stdout
    assert "losses of" not in again.stderr  # nothing was measured
    assert contents(run / "results" / "losses.zarr") == kept


def test_runs_of_the_same_name(run: Path, tmp_path: Path) -> None:
    namesake = Path(shutil.copytree(run, tmp_path / "elsewhere" / "run"))
    options = ["--snapshots", "0,12", "--examples", 9, "--memory", "100MB", "--device", "cpu"]
    result = call("pca", run, namesake, *options, "--out", tmp_path / "out.zarr")
    assert result.exit_code == 0, result.output
    store = open_results(tmp_path / "out.zarr")
    assert store["run"].values.tolist() == [str(run)] * 2 + [str(namesake)] * 2
    assert store.sizes["example"] == 9


def test_other_losses_and_other_examples(run: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    assert call("pca", run, "--out", out).exit_code == 0
    result = call("pca", run, "--examples", 9, "--out", out)
    losses = run / "results" / "losses.zarr"
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        f"error: runs: {losses} belongs to a sweep with other chunk, examples; --force measures again in its "
        "place, or ask for what it holds"
    )
    forced = call("pca", run, "--examples", 9, "--out", out, "--force")
    assert forced.exit_code == 0, forced.output
    assert open_results(losses).sizes["example"] == open_results(out).sizes["example"] == 9
    assert call("pca", run, "--out", out, "--force").exit_code == 0
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("evaluation_examples: 40", "evaluation_examples: 39"))
    Run(other).note("config.yaml")  # the change is meant
    result = call("pca", run, other, "--out", out)
    assert result.exit_code == 2
    assert "error: runs: other is evaluated on other examples (of " in result.stderr
    assert open_results(out)["run"].values.tolist() == ["run"] * 3  # as it was


def test_bad_input(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file.zarr").write_text("")
    snapshot = Run(run).snapshot_path(0)
    before = sorted(tmp_path.rglob("*"))
    for command, message in (
        (["evaluate", "--ckpt", tmp_path / "nothing"], "does not exist"),
        (["evaluate", "--ckpt", run, "--snapshots", "7"], "snapshots: none at step 7; there are 0, 6, 12"),
        (["evaluate", "--ckpt", run, "--seed", "-1"], "--seed: must be 0 or more, got -1"),
        (["evaluate", "--ckpt", run, "--device", "tpu"], "device"),
        (["pca", run, "--out", tmp_path / "out"], "must be NAME.zarr"),
        (["pca", run, run, "--out", tmp_path / "out.zarr"], f"runs: {run} is given twice"),
        (["pca", snapshot, "--out", tmp_path / "out.zarr"], "is a file; give run folders"),
        (["pca", tmp_path / "nothing", "--out", tmp_path / "out.zarr"], "does not exist"),
        (["pca", run, "--memory", "1KiB", "--out", tmp_path / "out.zarr"], "memory: one example"),
        (["pca", run, "--examples", 99999, "--out", tmp_path / "out.zarr"], "examples: must be from 1 to"),
        (["pca", run, "--out", tmp_path / "file.zarr"], "file.zarr is a file; give a folder"),
    ):
        result = call(*command)
        assert result.exit_code == 2, result.output
        assert result.output.startswith("error: ")
        assert result.output.count("\n") == 1
        assert message in result.output
        assert sorted(tmp_path.rglob("*")) == before
    assert call("pca", "--out", tmp_path / "out.zarr").exit_code == 2
    assert call("pca", run, "--components", 1, "--out", tmp_path / "out.zarr").exit_code == 2
    store = sweep(run, heads="none", examples=5, out=tmp_path / "sweep.zarr")
    result = call("pca", run, "--out", store)
    assert "holds something else than a PCA" in result.output
    assert "loss" in open_results(store)


def test_idealise(run: Path) -> None:
    result = call("idealise", "--ckpt", run, "--examples", 9, "--snapshots", "6,12")
    assert result.exit_code == 0, result.output
    store = run / "results" / "idealised.zarr"
    assert f"results in {store}\nfigure in {store.with_suffix('.png')}" in result.stdout
    assert store.with_suffix(".svg").is_file()
    last = open_results(store).isel(snapshot=-1)
    rows = re.findall(r"^ +(\d)\.(\d) +(\S+)±\S+ +(.*?) *$", result.stdout, re.MULTILINE)
    assert len(rows) == 4
    for layer, head, effect, shares in rows:
        of = last.sel(layer=int(layer), head=int(head))
        assert effect == f"{float(of['effect']):.4f}"
        expected = ["-" if np.isnan(share) else f"{share:.2f}" for share in of["recovered"].values]
        assert [share.partition("±")[0] for share in shares.split()] == expected
    assert call("idealise", "--ckpt", run, "--examples", 9, "--snapshots", "6,12").stdout == result.stdout


def test_idealise_refuses(run: Path) -> None:
    result = call("idealise", "--ckpt", run, "--examples", 0)
    assert result.exit_code == 2
    assert "--examples: must be from 1 to" in result.stderr
    assert not (run / "results" / "idealised.zarr").exists()


def test_templates(tiny_values: dict[str, dict[str, object]], tmp_path: Path) -> None:
    values = {**tiny_values, "data": {**tiny_values["data"], "context": 120}}
    run = train(parse_config(values), tmp_path / "run").path
    result = call("templates", "--ckpt", run, "--tables", 5, "--snapshots", "last")
    assert result.exit_code == 0, result.output
    last = open_results(run / "results" / "templates.zarr").isel(snapshot=-1)
    assert f"accuracy {float(last['accuracy']):.3f}±{float(last['accuracy_sem']):.3f}" in result.stdout
    rows = re.findall(r"^ +(\d)\.(\d) +(\S+)±\S+ +\S+±", result.stdout, re.MULTILINE)
    assert len(rows) == 4
    for layer, head, right in rows:
        assert right == f"{float(last['right'].sel(layer=int(layer), head=int(head))):.3f}"
    refused = call("templates", "--ckpt", run, "--tables", 1)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--tables: must be" in refused.stderr
