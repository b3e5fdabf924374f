"""The bench of a model of transformers: both of its loops are the engine's definition, and it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import foreign_sweep
import pytest
import torch

pytest.importorskip("transformers")


@pytest.mark.parametrize("positions", ["all", "paper"])
@torch.no_grad()
def test_their_loops_are_ours(tmp_path: Path, positions: str) -> None:
    from hooked_transformers import HookedSweep

    theirs = foreign_sweep.make_model(foreign_sweep.TINY, 24)
    theirs.save_pretrained(tmp_path)
    batch = foreign_sweep.make_batch(theirs.config.vocab_size, 3, 24, positions)
    ours = foreign_sweep.Ours(foreign_sweep.load_foreign(tmp_path), batch, 1 << 30)
    losses = torch.cat([ours.chunk(examples) for examples in ours.chunks], 1)
    hooked = HookedSweep(theirs, batch.inputs, batch.targets, batch.rows)
    torch.testing.assert_close(losses[0], hooked.losses, rtol=0, atol=2e-5)
    for index, ablation in enumerate(ours.ablations):
        head = ablation.heads[0]
        for loop in (hooked.without, hooked.without_from_layer):
            torch.testing.assert_close(losses[1 + index], loop(*head), rtol=0, atol=2e-5)
    assert (losses[1:] - losses[0]).abs().max() > 0.5


def test_heads_are_spread() -> None:
    assert foreign_sweep.spread(30, 9, 3) == [(5, 0), (15, 1), (25, 2)]
    assert [layer for layer, _ in foreign_sweep.spread(4, 2, 8)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file, threads = tmp_path / "results.json", str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", ["foreign_sweep.py", "--quick", "--threads", threads, "--json", str(file)])
    foreign_sweep.main()
    assert "16 heads, all positions" in capsys.readouterr().out
    results = json.loads(file.read_text())
    assert results["heads_timed"] == {"ours": 16, "theirs": 4, "theirs, from its layer": 4}
    assert results["largest_difference"] < 2e-5
