"""Training on several ranks gives what one process gives, to rounding, and what they write opens in one process."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from icl_fast import InputError
from icl_fast.data import load_text
from icl_fast.files import is_temporary
from icl_fast.measure import evaluate
from icl_fast.models import ids
from icl_fast.ops import linear_cross_entropy as op
from icl_fast.runs import Run, TextRunConfig, open_series, parse_config
from icl_fast.studies.verify import verify
from icl_fast.training import text, train
from icl_fast.training.text import TextTrainer

Values = dict[str, dict[str, Any]]

# losses are 3 to 6 nats, float32 there is 2.4e-7 apart, and the log has 6 digits; 50 steps of AdamW may make ten times
# that of it. What is wrong in a step shows in the third digit (`test_the_comparison_finds_faults`)
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def values(tiny_values: Values) -> Values:
    """50 steps of 12 sequences, of a model with tied tables, and with a weight of fewer numbers than three ranks."""
    values = copy.deepcopy(tiny_values)
    values["model"] |= {"key": "smeared", "tied": True}
    values["training"] |= {"steps": 50, "batch": 12, "checkpoint_every": 1000}
    values["snapshots"] = {"every": 25}
    return values


@pytest.fixture(scope="module")
def folder(values: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where trained_on_ranks.py was run by torchrun on two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "values.json").write_text(json.dumps(values))
    (folder / "exemplars.json").write_text(json.dumps({"exemplars": {}}))
    ended = torchrun(2, str(Path(__file__).with_name("trained_on_ranks.py")), str(folder))
    assert (folder / "done").exists(), ended.stderr
    assert ended.returncode != 0  # it ends with a rank that is killed
    return folder


@pytest.fixture(scope="module")
def alone(values: Values, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same training in one process."""
    return train(parse_config(values), tmp_path_factory.mktemp("alone") / "run")


def torchrun(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def differences(run: Run, other: Run, key: str = "loss") -> list[float]:
    mine, theirs = ({record["step"]: record[key] for record in one.read_log()} for one in (run, other))
    assert mine
    return [abs(value - theirs[step]) for step, value in mine.items()]


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_train_as_one_process(name: str, folder: Path, alone: Run) -> None:
    """With accumulation (3 and 2 parts), fsdp with checkpointed activations, and stopped and resumed on two ranks."""
    run = Run(folder / name)
    for key in ("loss", "grad_norm", "icl_score"):
        found = differences(run, alone, key)
        assert len(found) == 50
        assert max(found) < ROUNDING
    first, other = run.load_snapshot(0).model, alone.load_snapshot(0).model
    assert all(torch.equal(weight, other.get_parameter(name)) for name, weight in first.named_parameters())


def test_the_comparison_finds_faults(folder: Path, alone: Run, values: Values, tmp_path: Path) -> None:
    assert max(differences(Run(folder / "same_rows"), alone)) > 100 * ROUNDING
    values = copy.deepcopy(values)
    values["training"] |= {"steps": 4, "clip": None}
    unclipped = train(parse_config(values), tmp_path / "unclipped")
    assert max(differences(Run(folder / "summed"), unclipped, "grad_norm")) > 100 * ROUNDING


@pytest.mark.parametrize("count", [1, 3])
def test_shards_of_two_ranks_go_on_with_others(count: int, folder: Path, alone: Run) -> None:
    run = Run(folder / f"on_{count}")
    assert len(run.read_log()) == 40
    if count == 1:
        train(run.config, run.path, resume=True)
    else:
        config = str(run.path / "config.yaml")
        ended = torchrun(count, "-m", "icl_fast", "train", config, "--out", str(run.path), "--resume", "--json")
        assert ended.returncode == 0, ended.stderr
        said = json.loads(ended.stdout)  # one rank says it
        assert said["lines"] == [f"3 snapshots in {run.path}/snapshots"]
    found = differences(run, alone)
    assert len(found) == 50
    assert max(found) < ROUNDING
    assert [path.name for path in run.path.glob("*-ranks")] == [f"optimizer_00000050.{count}-ranks"]
    assert all(finding.ok for finding in verify([run.path]))


def test_a_sharded_snapshot_opens_in_one_process(folder: Path, alone: Run) -> None:
    run = Run(folder / "fsdp")
    assert len(list((run.path / "snapshots/step_00000050.2-ranks").iterdir())) == 2
    model, other = (one.load_snapshot(50).model for one in (run, alone))
    assert model.unembed.weight is model.embed.weight
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, other.get_parameter(name), rtol=1e-3, atol=1e-4)
    index = run.snapshot_path(50)
    assert open_series(index).steps == [50]
    evaluate(open_series(run.path, "last"), out=run.path / "heads.zarr")
    assert all(finding.ok for finding in verify([index]))


def test_weights_of_split_models_are_saved_whole(folder: Path, values: Values, alone: Run) -> None:
    run = Run(folder / "whole")
    assert max(differences(run, alone)) < ROUNDING
    assert run.snapshot_path(4).suffix == ".safetensors"
    values = copy.deepcopy(values)
    values["training"] |= {"steps": 4}
    other = train(parse_config(values), folder / "four")
    for name, weight in run.load_snapshot(4).model.named_parameters():
        torch.testing.assert_close(weight, other.load_snapshot(4).model.get_parameter(name))
    state, expected = run.load_state(), other.load_state()
    assert isinstance(state, dict)
    assert isinstance(expected, dict)
    for number, moments in expected["optimizer"]["state"].items():
        torch.testing.assert_close(state["optimizer"]["state"][number], moments, rtol=1e-4, atol=1e-6)


def test_bfloat16_on_two_ranks(folder: Path, values: Values, tmp_path: Path) -> None:
    """Weights stay float32; the losses are those of bfloat16 in one process, to its 8 bits."""
    run, values = Run(folder / "bfloat16"), copy.deepcopy(values)
    values["training"] |= {"steps": 4, "precision": "bfloat16"}
    other = train(parse_config(values), tmp_path / "run")
    assert max(differences(run, other)) < 6 / 256
    assert {weight.dtype for weight in run.load_snapshot(4).model.parameters()} == {torch.float32}


def test_a_rank_that_is_killed_while_it_writes(folder: Path, values: Values, alone: Run) -> None:
    run = Run(folder / "killed")
    assert run.snapshot_steps() == [0]
    assert run.load_snapshot(0).step == 0
    train(run.config, run.path, resume=True)
    assert max(differences(run, alone)) < ROUNDING
    assert not [path for path in run.path.rglob("*") if is_temporary(path.name)]
    assert all(finding.ok for finding in verify([run.path]))


def test_what_ranks_refuse_one_of_them_says(folder: Path) -> None:
    for name, message in (
        ("indivisible", "training.batch 9: cannot be shared out to 2 ranks x training.accumulate 1 = 2 equal parts"),
        ("exemplars", "torchrun: 2 ranks; trainings on exemplars run in one process"),
    ):
        (kind, said), (other_kind, _) = (json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in (0, 1))
        assert (kind, other_kind) == ("InputError", "RefusedElsewhere")
        assert said.startswith(message)
        assert not (folder / name).exists()


@pytest.mark.parametrize("damage", ["missing", "truncated", "index"])
def test_a_damaged_shard(damage: str, values: Values, tmp_path: Path) -> None:
    values = copy.deepcopy(values)
    values["training"] |= {"steps": 2}
    values["snapshots"] = {"every": 2, "sharded": True}
    run = train(parse_config(values), tmp_path / "run")
    index = run.snapshot_path(2)
    (shard,) = (run.path / "snapshots/step_00000002.1-ranks").iterdir()
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        index.write_text("{}")
        run.note("snapshots/step_00000002.shards.json")
    message = {
        "missing": f"snapshot {index}: its shard {shard} is missing; put back a copy",
        "truncated": f"snapshot {index}: its shard {shard} is not as it was written (its SHA-256 is another); "
        "put back a copy",
        "index": f"snapshot {index}: is no index of shards, or a damaged one; put back a copy",
    }[damage]
    with pytest.raises(InputError) as refused:
        run.load_snapshot(2)
    assert str(refused.value) == message
    assert open_series(run.path).readable()[1].keys() == {2}
    assert run.load_snapshot(0).step == 0


def test_damaged_shards_of_the_state(values: Values, tmp_path: Path) -> None:
    values = copy.deepcopy(values)
    values["training"] |= {"steps": 2}
    values["snapshots"] = {"every": 2, "sharded": True}
    run = train(parse_config(values), tmp_path / "run")
    shard = next(run.path.glob("optimizer_*/*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match="is not as it was written"):
        train(run.config, run.path, resume=True)
    shutil.rmtree(shard.parent)
    with pytest.raises(InputError, match="is missing; put back a copy"):
        train(run.config, run.path, resume=True)


def losses(values: Values, out: Path, **training: Any) -> list[tuple[float, float]]:
    values = copy.deepcopy(values)
    values["training"] |= {"steps": 8} | training
    return [(record["loss"], record["grad_norm"]) for record in train(parse_config(values), out).read_log()]


def test_accumulation_changes_rounding_alone(values: Values, tmp_path: Path) -> None:
    whole = losses(values, tmp_path / "whole")
    for found, expected in zip(losses(values, tmp_path / "parts", accumulate=4), whole, strict=True):
        assert found == pytest.approx(expected, abs=ROUNDING)


def test_checkpointed_activations_change_no_bit(values: Values, tmp_path: Path) -> None:
    values = copy.deepcopy(values)
    values["model"] |= {"mlp": True}
    plain = losses(values, tmp_path / "plain")
    assert losses(values, tmp_path / "checkpointed", checkpoint_activations=True) == plain
    ends = [Run(tmp_path / name).load_snapshot(8).model.state_dict() for name in ("plain", "checkpointed")]
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


def test_how_a_step_is_computed_may_change_at_a_resume(values: Values, tmp_path: Path) -> None:
    losses(values, tmp_path / "run")
    changed = copy.deepcopy(values)
    changed["training"] |= {"steps": 8, "accumulate": 2, "parallel": "fsdp", "checkpoint_activations": True}
    train(parse_config(changed), tmp_path / "run", resume=True)
    changed["training"]["batch"] = 6
    with pytest.raises(InputError, match=r"begun with other values of training\.batch$"):
        train(parse_config(changed), tmp_path / "run", resume=True)


def test_a_batch_that_cannot_be_divided(values: Values, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"training\.batch 12: cannot be shared out to training\.accumulate 5 = 5 equal"
    ):
        losses(values, tmp_path / "run", accumulate=5)
    assert not (tmp_path / "run").exists()


class Waits(TorchDispatchMode):
    """Counts what would make a program wait for its device: numbers that are taken off it."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"):
            self.met.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [{}, {"accumulate": 2, "checkpoint_activations": True, "precision": "bfloat16"}])
def test_no_step_waits_for_the_device(
    values: Values, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = copy.deepcopy(values)
    values["training"] |= {"log_every": 3} | training
    config = parse_config(values)
    assert isinstance(config, TextRunConfig)
    # on a GPU ids are not looked at
    monkeypatch.setattr(ids, "_check_range", lambda *_: None)
    monkeypatch.setattr(sys.modules[op.__module__], "check_index_range", lambda *_, **__: None)
    trainer = TextTrainer(config)
    groups = [{"params": group["params"]} for group in trainer.optimizer.param_groups]
    trainer.optimizer = torch.optim.AdamW(groups, fused=True)  # as on a GPU
    read = []
    for _ in range(7):
        with Waits() as waits:
            trainer.advance(lambda: False)
        read.append(bool(waits.met))
    assert read == [False, False, True, False, False, True, False]
    assert trainer.progress is not None
    assert trainer.progress.step == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_for_a_gpu(values: Values) -> None:
    config = parse_config(values | {"training": values["training"] | {"log_every": 3, "device": "cuda"}})
    assert isinstance(config, TextRunConfig)
    trainer = TextTrainer(config)
    for _ in range(3):
        trainer.advance(lambda: False)  # the first steps set up what later ones use
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.advance(lambda: False)
        trainer.advance(lambda: False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_that_was_not_finite_is_named_when_it_is_read(values: Values, tmp_path: Path) -> None:
    values = copy.deepcopy(values)
    values["training"] |= {"log_every": 10}
    config = parse_config(values)
    assert isinstance(config, TextRunConfig)
    trainer = TextTrainer(config)
    for step in range(5):
        if step == 3:
            trainer.model.get_parameter("embed.weight").data.fill_(torch.nan)
        trainer.advance(lambda: False)
    with pytest.raises(InputError, match="is not finite at step 3;"):
        trainer.read()


def test_rows_are_a_rank_s_share_of_the_same_batch(values: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config(values)
    assert isinstance(config, TextRunConfig)
    data, parts = load_text(config.data), []
    monkeypatch.setattr(text.ranks, "count", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(text.ranks, "rank", lambda rank=rank: rank)
        parts.append(data.batch(5, 12, text._rows(config.training)))
    for part, whole in zip(zip(*parts, strict=True), data.batch(5, 12), strict=True):
        assert torch.equal(torch.cat(part), whole)


def test_callbacks_are_told_on_the_first_rank_alone(folder: Path) -> None:
    logs = [["log", step] for step in range(1, 5)]
    assert json.loads((folder / "told_0.json").read_text()) == [
        ["snapshot", 0, True],
        *logs,
        ["snapshot", 4, True],
    ]
    assert not (folder / "told_1.json").exists()
