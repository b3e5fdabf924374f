"""Training: it learns, is reproducible, resumes to the same bits after Ctrl-C and kill -9, and fails cleanly."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from icl_fast import InputError, files
from icl_fast.data import load_text
from icl_fast.measure import open_results, sweep
from icl_fast.models import load_snapshot
from icl_fast.runs import Run, TextRunConfig, open_series, parse_config
from icl_fast.training import TrainingProgress, train
from icl_fast.training.text import TextTrainer

Values = dict[str, dict[str, Any]]


def changed(values: Values, **sections: dict[str, Any]) -> Values:
    result = copy.deepcopy(values)
    for section, keys in sections.items():
        result[section].update(keys)
    return result


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "snapshots").iterdir())}


def test_a_run_folder_is_complete(tiny_values: Values, tmp_path: Path) -> None:
    folder = train(parse_config(tiny_values), tmp_path / "run")  # others measure the one that tests share
    assert folder.snapshot_steps() == [0, 6, 12]
    assert [record["step"] for record in folder.read_log()] == list(range(1, 13))
    snapshot = folder.load_snapshot(12)
    assert (snapshot.step, snapshot.seen) == (12, 12 * 2 * 24)
    expected = {"config.yaml", "tokenizer.json", "log.jsonl", "optimizer.pt"}
    expected |= {f"snapshots/step_{step:08d}.safetensors" for step in (0, 6, 12)}
    assert set(folder.manifest()) == expected
    files = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    assert files == expected | {"manifest.json"}


def test_same_config_same_bits_other_seed_other_weights(tiny_run: Path, tiny_values: Values, tmp_path: Path) -> None:
    again = train(parse_config(tiny_values), tmp_path / "again").path
    assert weights(again) == weights(tiny_run)
    other = train(parse_config(changed(tiny_values, training={"seed": 1})), tmp_path / "other").path
    assert weights(other)["step_00000000.safetensors"] != weights(tiny_run)["step_00000000.safetensors"]


def test_the_loss_falls_and_schedules_are_followed(tiny_values: Values, tmp_path: Path) -> None:
    seen: list[TrainingProgress] = []
    training = {"steps": 150, "batch": 4, "weight_decay_change_step": 100, "weight_decay_after": 0.5}
    config = parse_config(changed(tiny_values, training=training, data={"repeat": True}))
    train(config, tmp_path / "run", on_progress=seen.append)
    losses = [progress.loss for progress in seen]
    assert sum(losses[-20:]) < sum(losses[:20]) - 20 * 0.5
    assert [progress.weight_decay for progress in seen[99:101]] == [0.01, 0.5]
    assert seen[0].lr == pytest.approx(1e-2 / 3)
    assert seen[-1].tokens == 150 * 4 * 24


def test_a_step_is_adamw_written_out(tiny_values: Values, tmp_path: Path) -> None:
    """The first update against AdamW by hand: clipped gradient, bias-corrected moments, decoupled decay of matrices."""
    config = parse_config(changed(tiny_values, training={"steps": 1, "warmup": 0, "weight_decay": 0.1, "clip": 0.1}))
    folder = train(config, tmp_path / "run")
    before, after = folder.load_snapshot(0).model, folder.load_snapshot(1).model
    from icl_fast.data import load_text

    inputs, targets = load_text(config.data).batch(0, 2)
    torch.nn.functional.cross_entropy(before(inputs).flatten(0, 1), targets.flatten()).backward()
    gradients = {name: p.grad for name, p in before.named_parameters() if p.grad is not None}
    norm = torch.sqrt(sum(g.square().sum() for g in gradients.values()))
    assert norm > 0.1
    for name, old in before.named_parameters():
        gradient = gradients[name] * (0.1 / norm)
        decayed = old * (1 - 1e-2 * 0.1) if old.ndim >= 2 else old
        expected = decayed - 1e-2 * gradient / (gradient.abs() + 1e-8)
        # where a gradient is about eps, its sign-like update is ill-conditioned in float32
        sure = gradient.abs() > 1e-6
        torch.testing.assert_close(after.get_parameter(name)[sure], expected[sure], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at", [0, 3, 6, 11])
def test_interrupted_and_resumed_gives_the_same_bits(
    tiny_run: Path, tiny_values: Values, tmp_path: Path, at: int
) -> None:
    config = parse_config(tiny_values)

    def interrupt(progress: TrainingProgress) -> None:
        if progress.step == at + 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {at + 1} of 12, its state is saved"):
        train(config, tmp_path / "run", on_progress=interrupt)
    train(config, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tiny_run)
    keys = ("step", "loss", "icl_score", "grad_norm")
    logs = [[[r[k] for k in keys] for r in Run(f).read_log()] for f in (tmp_path / "run", tiny_run)]
    assert logs[0] == logs[1]


KILLED = """
import json, os, signal, sys, torch
torch.set_num_threads(1)
from icl_fast.runs import parse_config
from icl_fast.training import train
at = int(sys.argv[3])
def kill(progress):
    if progress.step == at:
        os.kill(os.getpid(), signal.SIGKILL)
train(parse_config(json.loads(sys.argv[1])), sys.argv[2], on_progress=kill)
"""


@pytest.mark.parametrize("at", [2, 8])
def test_killed_and_resumed_gives_the_same_bits(tiny_run: Path, tiny_values: Values, tmp_path: Path, at: int) -> None:
    arguments = [json.dumps(tiny_values), str(tmp_path / "run"), str(at)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.write('{"step": 9, "lo')  # as a kill in mid-write leaves it
    half = f".tmp-{files._host()}.999999999.0-00000000-step_00000006.safetensors"
    (tmp_path / "run" / "snapshots" / half).write_bytes(b"half")
    train(parse_config(tiny_values), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tiny_run)
    assert [record["step"] for record in Run(tmp_path / "run").read_log()] == list(range(1, 13))


def test_killed_at_random_moments(tiny_run: Path, tiny_values: Values, tmp_path: Path) -> None:
    """Whatever a kill -9 interrupts, every file that has its final name is whole and the run can go on."""
    script = KILLED.replace("if progress.step == at", "if False")
    for delay in (1.2, 2.0, 2.4):
        if not (tmp_path / "run" / "config.yaml").exists():
            process = subprocess.Popen(
                [sys.executable, "-c", script, json.dumps(tiny_values), str(tmp_path / "run"), "0"]
            )
            time.sleep(delay)
            process.kill()
            process.wait()
    for path in (tmp_path / "run").glob("snapshots/step_*"):
        assert load_snapshot(path).step in (0, 6, 12)
    train(parse_config(tiny_values), tmp_path / "run", resume=Run(tmp_path / "run").exists)
    assert weights(tmp_path / "run") == weights(tiny_run)


def test_resuming_a_finished_run_changes_nothing(tiny_values: Values, tmp_path: Path) -> None:
    train(parse_config(tiny_values), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    train(parse_config(tiny_values), tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_bad_input(tiny_run: Path, tiny_values: Values, tmp_path: Path) -> None:
    config = parse_config(tiny_values)
    with pytest.raises(InputError, match="exists and is not empty; use --resume or another --out"):
        train(config, tiny_run)
    with pytest.raises(InputError, match="holds no run to resume"):
        train(config, tmp_path / "nothing", resume=True)
    with pytest.raises(InputError, match=r"begun with other values of model.heads, training.lr"):
        train(parse_config(changed(tiny_values, model={"heads": 4}, training={"lr": 1e-3})), tiny_run, resume=True)
    with pytest.raises(InputError, match="training tokens"):
        train(parse_config(changed(tiny_values, training={"steps": 10**5})), tmp_path / "long")
    with pytest.raises(
        InputError, match="torch sees 0 CUDA devices" if not torch.cuda.is_available() else "torch sees"
    ):
        train(parse_config(changed(tiny_values, training={"device": "cuda:99"})), tmp_path / "cuda")
    assert not any((tmp_path / name).exists() for name in ("nothing", "long", "cuda"))


def test_a_diverging_run_stops_with_advice(tiny_values: Values, tmp_path: Path) -> None:
    config = parse_config(changed(tiny_values, training={"lr": 1e30, "warmup": 0, "clip": None}))
    with pytest.raises(InputError, match=r"training.lr=1e\+30: the loss or its gradient is not finite at step"):
        train(config, tmp_path / "run")
    assert Run(tmp_path / "run").load_snapshot(0).step == 0


def test_a_full_disk(tiny_values: Values, small_disk: Path) -> None:
    config = parse_config(changed(tiny_values, model={"width": 32}, training={"steps": 100}, snapshots={"every": 1}))
    with pytest.raises(InputError, match="the disk is full"):
        train(config, small_disk / "run")
    folder = Run(small_disk / "run")
    assert not list(folder.path.rglob(".tmp-*"))
    for step in folder.snapshot_steps():
        assert folder.load_snapshot(step).step == step


def test_damaged_files(tiny_values: Values, tmp_path: Path) -> None:
    folder = train(parse_config(tiny_values), tmp_path / "run")
    snapshot = folder.snapshot_path(6)
    content = bytearray(snapshot.read_bytes())
    content[-3] ^= 1
    snapshot.write_bytes(content)
    with pytest.raises(InputError, match=r"its SHA-256 is not the one in manifest\.json"):
        folder.load_snapshot(6)
    state = folder.path / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"optimizer\.pt: is not as the run wrote it"):
        train(parse_config(tiny_values), folder.path, resume=True)
    (folder.path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json: is not JSON"):
        folder.load_snapshot(0)


@pytest.mark.parametrize("training", [{"precision": "bfloat16"}, {"compile": True}])
def test_options_train_about_the_same(
    tiny_run: Path, tiny_values: Values, tmp_path: Path, training: dict[str, Any]
) -> None:
    folder = train(parse_config(changed(tiny_values, training=training)), tmp_path / "run")
    losses = [[record["loss"] for record in Run(path).read_log()] for path in (folder.path, tiny_run)]
    # bfloat16 has 8 bits: losses of about 6 nats agree to about 6/256
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < (2e-2 if "precision" in training else 1e-4)
    assert losses[0] != losses[1] or "compile" in training


def test_ambient_settings_change_nothing(tiny_run: Path, tiny_values: Values, tmp_path: Path) -> None:
    """Neither in the run nor, by the run, in the program around it."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            train(parse_config(tiny_values), tmp_path / "run")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(2), expected)
    assert weights(tmp_path / "run") == weights(tiny_run)


def test_the_loss_is_that_of_the_models_logits(tiny_values: Values, tmp_path: Path) -> None:
    """Of whatever makes them: here they are capped, and the unembedding is the embedding."""
    config = parse_config(changed(tiny_values, model={"logit_cap": 0.5, "tied": True}))
    trainer = TextTrainer(config, None)
    inputs, targets = torch.randint(0, 8, (2, 3, 12))
    expected = F.cross_entropy(trainer.model(inputs).flatten(0, 1), targets.flatten(), reduction="none")
    loss, by_position = trainer.losses(inputs, targets)
    torch.testing.assert_close(loss, expected.mean())
    torch.testing.assert_close(by_position, expected.view(3, 12).double().mean(0))
    assert (
        expected - math.log(trainer.model.config.vocab)
    ).abs().max() <= 1.0  # no two capped logits are further apart


@pytest.mark.parametrize("length", [10, 60])
def test_evaluated_at_another_length_than_trained(tiny_values: Values, tmp_path: Path, length: int) -> None:
    config = parse_config(
        changed(
            tiny_values,
            model={"position": "rotary"},
            data={"evaluation_context": length},
            training={"steps": 6},
        )
    )
    assert isinstance(config, TextRunConfig)
    train(config, tmp_path / "run")
    series = open_series(tmp_path / "run", "last")
    assert series.context == length
    results = open_results(sweep(series, heads="1.0", positions="all"))
    assert results["position"].values.tolist() == list(range(1, length + 1))
    text = load_text(config.data).evaluation()
    model = series.load(6).model
    hidden, _ = model.hidden(text.inputs)
    expected = model.token_losses(hidden, text.targets).detach().double().mean(0)
    found = results["position_loss"].sel(ablation="none").isel(snapshot=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
