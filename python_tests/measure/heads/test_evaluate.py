"""Head scores and circuits over a run: those of each snapshot alone, resumable to the same bits, and clean failures."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from icl_fast import InputError
from icl_fast.cli.tables import print_head_scores
from icl_fast.data import load_text
from icl_fast.files import sha256
from icl_fast.measure import (
    OtherResults,
    composition_scores,
    copying_eigenvalue_score,
    copying_eigenvalues,
    copying_scores,
    evaluate,
    open_results,
    prefix_matching_scores,
    previous_token_scores,
    qk_trace,
    sweep,
)
from icl_fast.measure.heads import why_undefined
from icl_fast.measure.over_snapshots import SnapshotProgress, measure_snapshots
from icl_fast.models import Snapshot
from icl_fast.models.foreign import load_foreign
from icl_fast.runs import ForeignSeries, Run, RunSeries

HEADS = ("snapshot", "layer", "head")
PAIRS = ("snapshot", "writer_layer", "writer_head", "layer", "head")


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("seed", [0, 5])
def test_equals_the_scores_of_each_snapshot(run: Path, seed: int) -> None:
    target = evaluate(run, seed=seed)
    assert target == run / "results" / "heads.zarr"
    results, folder = open_results(target), Run(run)
    assert results["snapshot"].values.tolist() == [0, 6, 12]
    assert results["tokens"].values.tolist() == [0, 6 * 48, 12 * 48]
    assert results.sizes == {"snapshot": 3, "layer": 2, "head": 2, "writer_layer": 2, "writer_head": 2}
    for dim in ("layer", "head", "writer_layer", "writer_head"):
        assert results[dim].values.tolist() == [0, 1]
    text = load_text(folder.text_config.data).evaluation().inputs
    for step in (0, 6, 12):
        model = folder.load_snapshot(step).model
        previous = previous_token_scores(model, text, seed=seed)
        expected = {
            "prefix_matching": prefix_matching_scores(model, seed=seed),
            "copying": copying_scores(model, seed=seed),
            "previous_token": previous,
            "qk_trace": qk_trace(model, previous),
            "ov_copying": copying_eigenvalue_score(copying_eigenvalues(model)),
            **{f"composition_{by}": scores for by, scores in composition_scores(model).items()},
        }
        assert set(results.data_vars) == set(expected)
        for name, scores in expected.items():
            np.testing.assert_array_equal(results[name].sel(snapshot=step), scores, err_msg=name)
    for name, values in results.data_vars.items():
        assert values.dtype == np.float64
        assert values.dims == (PAIRS if str(name).startswith("composition") else HEADS)
        assert {"units", "long_name", "source"} <= set(values.attrs)
    writer = {"writer_layer": 0, "layer": 1}
    assert results["composition_k"].isel(writer).notnull().all()
    assert results["composition_k"].isel(writer_layer=1, layer=0).isnull().all()
    identity = json.loads(results.attrs["measurement"])
    assert identity["seed"] == seed
    assert identity["snapshots"] == {str(step): sha256(folder.snapshot_path(step)) for step in (0, 6, 12)}
    assert json.loads(results.attrs["left_out"]) == {}


def test_fewer_than_ten_held_out_windows(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("evaluation_examples: 40", "evaluation_examples: 4"))
    Run(run).note("config.yaml")  # the change is meant
    results, folder = open_results(evaluate(run, snapshots="last")), Run(run)
    text = load_text(folder.text_config.data).evaluation().inputs
    assert len(text) == 4
    expected = previous_token_scores(folder.load_snapshot(12).model, text, examples=4)
    np.testing.assert_array_equal(results["previous_token"][0], expected)


def test_what_the_architecture_does_not_define(
    llama: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NaN, with the reason; what it defines is there, on sequences that begin as the texts do."""
    series = ForeignSeries(llama(tmp_path / "model"))
    assert series.bos is None
    results = open_results(evaluate(series, out=tmp_path / "heads.zarr"))
    model = load_foreign(tmp_path / "model")
    matching = prefix_matching_scores(model, bos=None)
    np.testing.assert_array_equal(results["prefix_matching"][0], matching)
    np.testing.assert_array_equal(results["copying"][0], copying_scores(model))
    np.testing.assert_array_equal(results["composition_k"][0], composition_scores(model)["k"])
    assert results["qk_trace"].isnull().all()
    assert results["ov_copying"].notnull().all()
    reasons = json.loads(results.attrs["undefined"])
    assert reasons == why_undefined(model.config)
    print_head_scores(results, 128)
    printed = " ".join(capsys.readouterr().out.split())
    assert "QK trace: undefined because rotary positions turn queries and keys" in printed


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from icl_fast.measure import evaluate
def kill(progress):
    if progress.done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
evaluate(sys.argv[1], out=sys.argv[2], on_snapshot=kill)
"""


@pytest.mark.parametrize("at", [1, 3])
def test_killed_and_run_again_gives_the_same_bits(run: Path, tmp_path: Path, at: int) -> None:
    whole = evaluate(run, out=tmp_path / "whole")
    out = tmp_path / "killed"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(run), str(out), str(at)])
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    parts = sorted((tmp_path / "killed.partial").glob("*.npz"))
    assert len(parts) == at
    cut_off(parts[0])  # what a power cut left in pieces is done again
    seen: list[SnapshotProgress] = []
    evaluate(run, out=out, on_snapshot=seen.append)
    assert [progress.done for progress in seen] == list(range(at - 1, 4))
    assert {progress.snapshots for progress in seen} == {3}
    assert contents(out) == contents(whole)
    assert not (tmp_path / "killed.partial").exists()


def test_a_finished_evaluation_is_kept(run: Path) -> None:
    target = evaluate(run)
    before = contents(target)
    seen: list[SnapshotProgress] = []
    assert evaluate(run, on_snapshot=seen.append, skip_damaged=True) == target
    assert not seen
    for options, differing in (({"seed": 1}, "seed"), ({"snapshots": "last"}, "snapshots")):
        message = f"out: {target} belongs to a measurement with other {differing}; --force measures again in its place"
        with pytest.raises(OtherResults, match=message) as raised:
            evaluate(run, **options)
        assert raised.value.where == target
    assert contents(target) == before
    assert evaluate(run, seed=1, out=run / "results" / "other") != target


def test_parts_of_another_evaluation(run: Path, tmp_path: Path, write_weight: Callable[..., None]) -> None:
    def stop(progress: SnapshotProgress) -> None:
        if progress.done == 1:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, out=out, on_snapshot=stop)
    with pytest.raises(OtherResults, match=r"out.partial belongs to a measurement with other seed") as raised:
        evaluate(run, out=out, seed=1)
    assert raised.value.where == tmp_path / "out.partial"
    write_weight(Run(run), 0, "blocks.1.attention.q.weight", torch.nan)
    with pytest.raises(InputError, match=r"attention\.q\.weight holds NaN"):
        evaluate(run, out=out)
    measured = open_results(evaluate(run, out=out, skip_damaged=True))  # goes on with the parts of the others
    whole = open_results(evaluate(run, out=tmp_path / "whole", skip_damaged=True))
    assert measured.identical(whole)


def test_forced(run: Path, tmp_path: Path) -> None:
    """What is there stays until the new results are complete; parts of others are dropped, own ones gone on with."""
    whole, out = evaluate(run, seed=1, out=tmp_path / "whole"), evaluate(run, out=tmp_path / "out")
    before = contents(out)

    def stop(progress: SnapshotProgress) -> None:
        if progress.done == 1:
            raise KeyboardInterrupt

    for seed in (2, 1):
        with pytest.raises(KeyboardInterrupt):
            evaluate(run, seed=seed, out=out, force=True, on_snapshot=stop)
        assert contents(out) == before
    assert evaluate(run, out=out) == out  # asked for what is there, it is
    seen: list[int] = []
    evaluate(run, seed=1, out=out, force=True, on_snapshot=lambda progress: seen.append(progress.done))
    assert seen == [1, 2, 3]
    assert contents(out) == contents(whole)
    evaluate(run, seed=1, out=out, force=True, on_snapshot=lambda progress: pytest.fail("measured again"))
    assert not list(tmp_path.glob("*.partial"))


def test_something_else_there(run: Path, tmp_path: Path) -> None:
    store = sweep(run, heads="none", examples=5, out=tmp_path / "sweep")
    with pytest.raises(OtherResults, match="belongs to results of another kind"):
        evaluate(run, out=store)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        evaluate(run, out=tmp_path / "folder")


def test_some_snapshots(run: Path, tmp_path: Path) -> None:
    whole = open_results(evaluate(run))
    for number, (ckpt, which, steps) in enumerate(
        [(run, "last", [12]), (run, "12,0", [0, 12]), (Run(run).snapshot_path(6), "all", [6])]
    ):
        some = open_results(evaluate(ckpt, snapshots=which, out=tmp_path / str(number)))
        xr.testing.assert_equal(some, whole.sel(snapshot=steps))


def test_damaged_snapshots(run: Path, tmp_path: Path, write_weight: Callable[..., None]) -> None:
    whole = open_results(evaluate(run, out=tmp_path / "whole"))
    folder = Run(run)
    write_weight(folder, 0, "blocks.1.attention.q.weight", torch.nan)
    with pytest.raises(InputError, match=r"step_00000000.safetensors: .* holds NaN or infinity"):
        evaluate(run)
    shutil.rmtree(run / "results")
    why = {"0": "weights not finite: blocks.1.attention.q.weight holds NaN or infinity"}
    some = open_results(evaluate(run, skip_damaged=True, out=tmp_path / "nan"))
    xr.testing.assert_equal(some, whole.sel(snapshot=[6, 12]))
    assert json.loads(some.attrs["left_out"]) == why
    folder.snapshot_path(12).unlink()
    some = open_results(evaluate(run, skip_damaged=True, out=tmp_path / "missing"))
    xr.testing.assert_equal(some, whole.sel(snapshot=[6]))
    assert json.loads(some.attrs["left_out"]) == why | {"12": "missing"}
    asked = open_results(evaluate(run, snapshots="6", skip_damaged=True, out=tmp_path / "asked"))
    assert json.loads(asked.attrs["left_out"]) == {}
    cut_off(folder.snapshot_path(6))
    with pytest.raises(InputError, match="SHA-256"):
        evaluate(run, snapshots="6")
    with pytest.raises(
        InputError, match=r"has no snapshot that can be used \(step 0: .*; step 6: truncated; step 12: mis"
    ):
        evaluate(run, skip_damaged=True)


def test_a_missing_snapshot_is_noted_without_being_asked(run: Path) -> None:
    Run(run).snapshot_path(6).unlink()
    results = open_results(evaluate(run))
    assert results["snapshot"].values.tolist() == [0, 12]
    assert json.loads(results.attrs["left_out"]) == {"6": "missing"}


def test_bad_input(run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"snapshots": "3"}, "snapshots: none at step 3; there are 0, 6, 12"),
        ({"snapshots": "some"}, "neither all, last nor steps"),
        ({"seed": -1}, "seed: must be 0 or more, got -1"),
        ({"seed": 2**63}, "seed: must be at most 9223372036854775807, got 9223372036854775808"),
        ({"device": "cuda:77"}, "torch sees"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(run, **arguments)
    with pytest.raises(InputError, match="does not exist"):
        evaluate(tmp_path / "nowhere")
    (run / "tokenizer.json").write_text((run / "tokenizer.json").read_text() + " ")
    Run(run).note("tokenizer.json")
    with pytest.raises(InputError, match="is not the one of"):
        evaluate(run)
    assert not (run / "results").exists()


def test_a_full_disk(run: Path, small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * 200_000)
    with pytest.raises(InputError, match="the disk is full"):
        evaluate(run, out=small_disk / "out")
    assert not (small_disk / "out").exists()
    assert not list(small_disk.rglob(".tmp-*"))
    kept = len(list((small_disk / "out.partial").glob("*.npz")))
    assert kept > 0
    filler.unlink()
    seen: list[SnapshotProgress] = []
    evaluate(run, out=small_disk / "out", on_snapshot=seen.append)
    assert seen[0].done == kept


def test_any_measurement(run: Path, tmp_path: Path) -> None:
    folder, target, measured = Run(run), tmp_path / "norms", []
    identity: dict[str, Any] = {"what": ("norms", 2)}  # a tuple, which JSON gives back as a list

    def measure(snapshot: Snapshot) -> dict[str, np.ndarray]:
        measured.append(snapshot.step)
        return {"norms": np.array([weight.norm().item() for weight in snapshot.model.parameters()])}

    def assemble(parts: list[dict[str, np.ndarray]], steps: list[int], tokens: list[int]) -> xr.Dataset:
        assert all(set(part) == {"norms"} for part in parts)
        norms = np.stack([part["norms"] for part in parts])
        return xr.Dataset(
            {"norms": (("snapshot", "weight"), norms), "tokens": ("snapshot", tokens)}, {"snapshot": steps}
        )

    def stop(progress: SnapshotProgress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_snapshots(RunSeries(folder), target, identity, measure, assemble, stop)
    assert measured == [0, 6]
    for _ in range(2):
        assert measure_snapshots(RunSeries(folder), target, identity, measure, assemble) == target
        assert measured == [0, 6, 12]
    results = open_results(target)
    assert results["tokens"].values.tolist() == [0, 6 * 48, 12 * 48]
    for step in (0, 6, 12):
        expected = [weight.norm().item() for weight in folder.load_snapshot(step).model.parameters()]
        assert results["norms"].sel(snapshot=step).values.tolist() == expected
    with pytest.raises(OtherResults, match="other what"):
        measure_snapshots(RunSeries(folder), target, {"what": "sums"}, measure, assemble)
