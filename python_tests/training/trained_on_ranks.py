"""What each of two ranks does for test_ranks.py, all in one start of torchrun: `FOLDER`, in which values.json is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from icl_fast import ranks
from icl_fast.errors import InputError
from icl_fast.models import shards
from icl_fast.runs import Run, parse_config
from icl_fast.training import Callback, TrainingProgress, parallel, text, train

torch.set_num_threads(1)
FOLDER = Path(sys.argv[1])
VALUES = json.loads((FOLDER / "values.json").read_text())
STOP = 40


def config(**training: Any) -> Any:
    sharded = {"sharded": training.pop("sharded", False)}
    return parse_config(
        VALUES | {"training": VALUES["training"] | training, "snapshots": VALUES["snapshots"] | sharded}
    )


def stop(progress: TrainingProgress) -> None:
    if progress.step == STOP and ranks.rank() == 1:  # one rank is told, all of them stop
        os.kill(os.getpid(), signal.SIGTERM)


class Noting(Callback):
    """Notes what each rank is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_log(self, step: int, values: dict[str, Any]) -> None:
        self.told.append(["log", step])

    def on_snapshot(self, step: int, path: Path) -> None:
        self.told.append(["snapshot", step, path.exists()])

    def on_end(self, run: Run) -> None:
        (FOLDER / f"told_{ranks.rank()}.json").write_text(json.dumps(self.told))


def refused(name: str, values: Any) -> None:
    """Notes what each rank says."""
    try:
        train(values, FOLDER / name)
    except InputError as error:
        (FOLDER / f"{name}_{ranks.rank()}.json").write_text(json.dumps([type(error).__name__, str(error)]))


def splitting() -> None:
    split = {"parallel": "fsdp", "sharded": True, "accumulate": 2, "checkpoint_activations": True}
    try:
        train(config(**split), FOLDER / "fsdp", on_progress=stop)
    except KeyboardInterrupt:
        ranks.first(lambda: [shutil.copytree(FOLDER / "fsdp", FOLDER / f"on_{count}") for count in (1, 3)])
    train(config(**split), FOLDER / "fsdp", resume=True)
    train(config(parallel="fsdp", steps=4), FOLDER / "whole", callbacks=[Noting()])
    train(config(parallel="fsdp", steps=4, precision="bfloat16"), FOLDER / "bfloat16")


def faults() -> None:
    """Two that a comparison with one process must find."""
    rows, forward = text._rows, parallel.Losses.forward
    text._rows = lambda training: slice(0, rows(training).stop - rows(training).start)
    train(config(steps=4), FOLDER / "same_rows")
    text._rows = rows
    parallel.Losses.forward = lambda *arguments: tuple(ranks.count() * part for part in forward(*arguments))
    train(config(steps=4, clip=None), FOLDER / "summed")
    parallel.Losses.forward = forward


def killed() -> None:
    """A rank is killed while the second snapshot is written."""
    save, calls = shards._save, []

    def dies(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3 and ranks.rank() == 1:  # the snapshot of step 0, its state, and now
            os.kill(os.getpid(), signal.SIGKILL)
        save(*arguments)

    shards._save = dies
    train(config(sharded=True), FOLDER / "killed")


with ranks.joined():
    train(config(accumulate=3), FOLDER / "ddp")
    splitting()
    faults()
    refused("indivisible", config(batch=9))
    refused("exemplars", parse_config(json.loads((FOLDER / "exemplars.json").read_text())))
    ranks.first(lambda: (FOLDER / "done").touch())
    killed()
