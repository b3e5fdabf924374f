"""The folder in which the commands of the pages are typed: configs, and two small runs, on text and on exemplars."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    "icl-fast train configs/demo/two_layer.yaml --set data.corpus=icl_fast --set training.steps=300 "
    "--set model.width=64 --set data.context=64 --set snapshots.every=100 --out runs/two",
    "icl-fast train exemplars.yaml --out runs/exemplars",
]
EXEMPLARS = """\
exemplars: {kind: gaussian, classes: 60, exemplars: 5, width: 16, encoder: none}
sequences: {p_icl: 1.0, classes: 40, label_pool: 4, held_out_classes: 10, held_out_label_pairs: 0.2}
model: {layers: 2, width: 32, heads: 4, position: rotary}
training: {steps: 400, batch: 16, lr: 3.0e-3, log_every: 50}
evaluation: {every: 100, sequences: 100}
snapshots: {every: 200}
"""


def make(folder: Path) -> None:
    """Make it anew.

    Raises:
        CalledProcessError: a command failed.
    """
    folder.mkdir(parents=True)
    for name in ("configs", "icl_fast"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "exemplars.yaml").write_text(EXEMPLARS, encoding="utf-8")
    for command in COMMANDS:
        subprocess.run(command.split(), cwd=folder, check=True, stdout=subprocess.DEVNULL)
