"""How much of a study of a checkpoint series goes into loading: 20 snapshots of Pythia-70m's shape, weights random.

    python bench/series_loading.py [--snapshots 20] [--examples 8] [--json FILE]

The sweep (every head, paper's positions) runs once; what counts as loading is the time in which it waits for the next
snapshot, which is read while the one before is at work, and that in which files are hashed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from report import environment

from icl_fast.data import EvaluationText
from icl_fast.files import to_json
from icl_fast.measure import sweep
from icl_fast.runs import ForeignOptions, ForeignSeries, Series


def make_series(folder: Path, snapshots: int) -> None:
    """Float16 files, as Pythia's are."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048
    )
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(config).half()
    for step in range(snapshots):
        with torch.no_grad():
            model.gpt_neox.final_layer_norm.bias.add_(0.001)  # each is another
        model.save_pretrained(folder / f"step{step}")


def main() -> None:
    """Print seconds and the share, and write them with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=20)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    waited = 0.0
    plain = Series.__iter__

    def timed(series: Series) -> Iterator[Any]:
        nonlocal waited
        snapshots = plain(series)
        while True:
            started = time.perf_counter()
            snapshot = next(snapshots, None)
            waited += time.perf_counter() - started
            if snapshot is None:
                return
            yield snapshot

    with tempfile.TemporaryDirectory() as temporary, patch.object(Series, "__iter__", timed):
        folder = Path(temporary)
        make_series(folder / "series", options.snapshots)
        started = time.perf_counter()
        text = EvaluationText(("repeated-random",), examples=options.examples)
        series = ForeignSeries(folder / "series", ForeignOptions(text))
        series.hashes()
        hashed = time.perf_counter() - started
        sweep(series, out=folder / "out.zarr")
        total = time.perf_counter() - started
    found = {
        "snapshots": options.snapshots, "examples": options.examples, "threads": torch.get_num_threads(),
        "seconds": total, "seconds hashed": hashed, "seconds waited": waited, "share": (hashed + waited) / total,
    }  # fmt: skip
    print(", ".join(f"{name} {value:.3g}" for name, value in found.items()))
    if options.json is not None:
        options.json.write_text(
            to_json(
                {
                    "environment": environment({"device": "cpu"}),
                    "series_loading": found,
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
