"""An installed icl_fast does what it promises without its source: run from an empty folder, by the Python that has it.

Every check is one of the base install. --compiled: the CPU kernels must be there. --torch: how its version must begin.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SMALL = ["data.corpus=text", "data.vocab=280", "data.context=24", "data.evaluation_examples=40", "model.width=16"]
SMALL += ["model.heads=2", "training.steps=3", "training.batch=2", "training.warmup=1"]


def icl_fast(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, through the module: a script need not be on PATH."""
    return subprocess.run([sys.executable, "-m", "icl_fast", *arguments], capture_output=True, text=True)


def done(*arguments: str) -> str:
    """What a command prints that must succeed."""
    process = icl_fast(*arguments)
    assert process.returncode == 0, process.stderr
    return process.stdout


def check_op(compiled: bool) -> None:
    import torch

    from icl_fast import linear_cross_entropy, ops

    assert not compiled or "cpu" in ops._backend.places("linear_cross_entropy"), ops._backend.load_error()
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(2, 9, 16), torch.randn(33, 16), torch.randint(33, (2, 9))
    fast, slow = (linear_cross_entropy(hidden, weight, targets, impl=impl) for impl in ("auto", "reference"))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


def check_training() -> None:
    from icl_fast import load_config

    Path("text").mkdir()
    for number in range(40):
        Path("text", f"{number}.txt").write_text(f"the {number} heads of layer {number % 7} read what came. " * 60)
    names = done("train", "--list").split()
    assert "demo/two_layer" in names, names
    changes = [word for change in SMALL for word in ("--set", change)]
    done("train", "demo/two_layer", *changes, "--out", "run")
    assert Path("run", "snapshots", "step_00000003.safetensors").is_file()
    assert (
        load_config("demo/two_layer")
        == load_config("configs/demo/two_layer.yaml")
        == load_config("demo/two_layer.yaml")
    )


def check_what_is_missing() -> None:
    process = icl_fast("ablate", "--ckpt", "run")
    expected = "error: xarray is not installed; pip install 'icl_fast[measure]'\n"
    assert (process.returncode, process.stderr) == (2, expected), process.stderr


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--torch", default="")
    wanted = parser.parse_args()
    facts = json.loads(done("info", "--json"))
    assert not wanted.compiled or facts["built"]["cpu_kernels"], facts["built"]
    torch = facts["versions"]["torch"]
    assert torch.startswith(wanted.torch), torch
    check_op(wanted.compiled)
    check_training()
    if find_spec("xarray") is None:
        check_what_is_missing()
    print(f"Python {sys.version.split()[0]}, torch {torch}: info, an op, training, extras as they should be")


if __name__ == "__main__":
    main()
