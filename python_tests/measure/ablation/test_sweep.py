"""The sweep over a run: the same numbers as `ablate`, resumable to the same bits, and clean failures."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icl_fast import InputError, ablate
from icl_fast.data import load_text
from icl_fast.measure import open_results, sweep
from icl_fast.measure.ablation import SweepProgress, plan_sweep
from icl_fast.measure.store import Workspace
from icl_fast.runs import Run

SMALL: dict[str, Any] = {"examples": 7, "memory": 200_000}


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_equals_ablate_on_each_snapshot(run: Path) -> None:
    results = open_results(sweep(run, heads="all,0.0+1.1", positions="all", examples=7))
    folder = Run(run)
    assert results["snapshot"].values.tolist() == [0, 6, 12]
    assert results["tokens"].values.tolist() == [0, 6 * 48, 12 * 48]
    assert results["ablation"].values.tolist() == ["none", "0.0", "0.1", "1.0", "1.1", "0.0+1.1"]
    assert results["layer"].values.tolist() == [-1, 0, 0, 1, 1, -1]
    evaluation = load_text(folder.text_config.data).evaluation()
    for step in (0, 6, 12):
        expected = ablate(
            folder.load_snapshot(step).model,
            evaluation.inputs[:7],
            evaluation.targets[:7],
            heads="all,0.0+1.1",
            random_position=evaluation.random_position[:7],
        )
        for name in ("position_loss", "position_loss_sem", "effect_sem", "loss", "icl_score", "example_icl_score"):
            np.testing.assert_array_equal(results[name].sel(snapshot=step), expected[name])


def test_chunks_give_the_same_numbers(run: Path, tmp_path: Path) -> None:
    parts: list[SweepProgress] = []
    few = open_results(sweep(run, out=tmp_path / "few", on_part=parts.append, **SMALL))
    assert parts[0].parts > 3
    assert [part.done for part in parts] == list(range(parts[0].parts + 1))
    many = open_results(sweep(run, out=tmp_path / "many", examples=7))
    xr.testing.assert_allclose(few, many, rtol=1e-6, atol=2e-6)  # float32 losses of about 6 nats


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from icl_fast.measure import sweep
def kill(progress):
    if progress.done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
sweep(sys.argv[1], out=sys.argv[2], examples=7, memory=200_000, replacement=sys.argv[4], on_part=kill)
"""


@pytest.mark.parametrize(("at", "replacement"), [(1, "zero"), (4, "zero"), (2, "mean")])
def test_killed_and_run_again_gives_the_same_bits(run: Path, tmp_path: Path, at: int, replacement: Any) -> None:
    whole = sweep(run, out=tmp_path / "whole", replacement=replacement, **SMALL)
    out = tmp_path / "killed"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(run), str(out), str(at), replacement])
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    parts = sorted((tmp_path / "killed.partial").glob("*.npz"))
    assert len(parts) == at
    parts[0].write_bytes(parts[0].read_bytes()[:-40])  # a part that a power cut left in pieces is done again
    seen: list[SweepProgress] = []
    sweep(run, out=out, replacement=replacement, on_part=seen.append, **SMALL)
    assert seen[0].done == at - 1
    assert contents(out) == contents(whole)
    assert not (tmp_path / "killed.partial").exists()


def test_what_an_earlier_version_left_has_no_scores_by_example(run: Path, tmp_path: Path) -> None:
    """Its parts are continued and its stores kept, and what they lack is left out."""
    out = tmp_path / "begun"

    def stop(progress: SweepProgress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(run, out=out, on_part=stop, **SMALL)
    planned = plan_sweep(run, examples=7, memory=200_000)
    work = Workspace(out, planned.plan.as_json() | {"snapshots": planned.series.hashes()}, "sweep")
    for part in range(2):
        arrays = work.read(0, part)
        del arrays["example_score"]
        work.write(0, part, arrays)
    seen: list[SweepProgress] = []
    sweep(run, out=out, on_part=seen.append, **SMALL)
    assert seen[0].done == 2
    whole = open_results(sweep(run, out=tmp_path / "whole", **SMALL))
    xr.testing.assert_identical(open_results(out), whole.drop_vars("example_icl_score"))
    assert sweep(run, out=out, on_part=seen.append, **SMALL) == out  # a store without them is whole


def test_a_finished_sweep_is_kept(run: Path) -> None:
    target = sweep(run, **SMALL)
    before = contents(target)
    seen: list[SweepProgress] = []
    assert sweep(run, on_part=seen.append, **SMALL) == target
    assert contents(target) == before
    assert not seen
    with pytest.raises(InputError, match="belongs to a sweep with other positions"):
        sweep(run, positions="3", **SMALL)
    with pytest.raises(InputError, match="other ablations, mode, preserve"):
        sweep(run, heads="0.0", mode="full", out=target, **SMALL)


def test_one_snapshot_and_choices(run: Path, tmp_path: Path) -> None:
    file = Run(run).snapshot_path(6)
    one = open_results(sweep(file, out=tmp_path / "a", examples=7))
    assert one["snapshot"].values.tolist() == [6]
    last = open_results(sweep(run, snapshots="last", out=tmp_path / "b", examples=7))
    assert last["snapshot"].values.tolist() == [12]
    two = open_results(sweep(run, snapshots="12,0", heads="none", out=tmp_path / "c", examples=7))
    assert two["snapshot"].values.tolist() == [0, 12]
    assert two["ablation"].values.tolist() == ["none"]


def test_bad_input(run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"snapshots": "3"}, "snapshots: none at step 3; there are 0, 6, 12"),
        ({"snapshots": "some"}, "neither all, last nor steps"),
        ({"examples": 0}, "examples: must be from 1 to"),
        ({"examples": 10**6}, "examples: must be from 1 to"),
        ({"heads": "9.9"}, "'9.9' is not in this model"),
        ({"device": "cuda:77"}, "torch sees"),
    ):
        with pytest.raises(InputError, match=message):
            sweep(run, **arguments)
    with pytest.raises(InputError, match="does not exist"):
        sweep(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no run"):
        sweep(tmp_path)
    alone = Path(shutil.copy(Run(run).snapshot_path(0), tmp_path / "alone.safetensors"))
    with pytest.raises(InputError, match="is not in RUN/snapshots/"):
        sweep(alone)
    assert not (run / "results").exists()


def test_damaged_input(run: Path) -> None:
    folder = Run(run)
    path = folder.snapshot_path(6)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="SHA-256"):
        sweep(run, **SMALL)
    (run / "manifest.json").unlink()
    with pytest.raises(InputError, match="cannot be read, it is damaged"):
        sweep(run, **SMALL)
    with pytest.raises(InputError, match="cannot be read, it is no zarr store"):
        open_results(run / "snapshots")


def test_another_corpus_is_noticed(run: Path) -> None:
    (run / "tokenizer.json").write_text((run / "tokenizer.json").read_text() + " ")
    Run(run).note("tokenizer.json")
    with pytest.raises(InputError, match="is not the one of"):
        sweep(run, **SMALL)


def test_a_full_disk(run: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"0" * 220_000)
    with pytest.raises(InputError, match="the disk is full"):
        sweep(run, out=small_disk / "out", positions="all", heads="all,*,0.*,1.*", examples=40)
    assert not (small_disk / "out").exists()
    assert not list(small_disk.rglob(".tmp-*"))


MEASURE_MEMORY = """
import json, re, sys, torch
torch.set_num_threads(1)
from icl_fast import Transformer, TransformerConfig, ablate

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

model = Transformer(TransformerConfig(**json.loads(sys.argv[1])))
tokens = torch.randint(0, model.config.vocab, (int(sys.argv.pop()), model.config.context + 1))
ablate(model, tokens[:1], heads="0.0", positions="paper")
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = memory("VmRSS")
positions, mode, engine, budget = sys.argv[2:]
heads = "all" if model.config.gated else "0.0"
ablate(model, tokens, heads=heads, positions=positions, mode=mode, engine=engine, memory=int(budget))
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("engine", ["fast", "definition"])
@pytest.mark.parametrize(("positions", "mode"), [("all", "pattern-preserving"), ("paper", "full"), ("all", "direct")])
def test_peak_memory_stays_within_the_budget(positions: str, mode: str, engine: str, mlp: bool) -> None:
    config = {"vocab": 2000, "context": 192, "layers": 2, "width": 128, "heads": 4, "mlp": mlp}
    budget = 64 * 2**20
    arguments = [json.dumps(config), positions, mode, engine, str(budget), "60"]
    measured = subprocess.run([sys.executable, "-c", MEASURE_MEMORY, *arguments], capture_output=True, check=True)
    # under the budget, and not by leaving most of it unused
    assert budget / 8 < int(measured.stdout) < budget


@pytest.mark.parametrize(("positions", "context"), [("all", 64), ("paper", 300)])
def test_peak_memory_of_a_deep_model(positions: str, context: int) -> None:
    """With groups of heads and gated MLPs, all its heads: their streams stay within the budget too."""
    config = {
        "vocab": 500, "context": context, "layers": 4, "width": 96, "heads": 6, "kv_heads": 2, "mlp": True,
        "mlp_width": 256, "gated": True, "activation": "silu", "norm": "rms", "position": "rotary",
    }  # fmt: skip
    budget = 96 * 2**20
    arguments = [json.dumps(config), positions, "pattern-preserving", "fast", str(budget), "20"]
    measured = subprocess.run([sys.executable, "-c", MEASURE_MEMORY, *arguments], capture_output=True, check=True)
    assert budget / 8 < int(measured.stdout) < budget
