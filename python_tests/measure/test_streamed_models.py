"""Models whose weights are read layer by layer: the same numbers, in less memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from icl_fast import InputError, Transformer, ablate
from icl_fast.cli.tables import print_plan
from icl_fast.measure import (
    composition_scores,
    copying_eigenvalues,
    copying_scores,
    logit_attribution,
    plan_sweep,
    prefix_matching_scores,
    previous_token_scores,
)
from icl_fast.models import save_snapshot
from icl_fast.models.foreign import load, load_foreign
from icl_fast.runs import ForeignSeries

Write = Callable[..., Path]
TOKENS = torch.randint(0, 60, (4, 33), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(llama: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("models") / "model", torch.bfloat16, num_hidden_layers=4)


@pytest.fixture
def whole(folder: Path) -> Transformer:
    return load_foreign(folder)


@pytest.fixture
def streamed(folder: Path) -> Transformer:
    return load_foreign(folder, stream=True)


def held(model: Transformer) -> int:
    """Layers whose weights are in memory."""
    weights = (weight for name, weight in model.blocks.named_parameters() if name.endswith("attention.q.weight"))
    return sum(weight.untyped_storage().nbytes() > 4 for weight in weights)


def test_sent_to_another_process(whole: Transformer, streamed: Transformer) -> None:
    packed = pickle.dumps(streamed)
    copy = pickle.loads(packed)
    assert len(packed) < sum(weight.nbytes for weight in whole.parameters())
    assert held(copy) == 0
    with torch.no_grad():
        torch.testing.assert_close(copy(TOKENS), whole(TOKENS), rtol=0, atol=0)


def test_the_same_bits(whole: Transformer, streamed: Transformer) -> None:
    assert (held(whole), held(streamed)) == (4, 0)
    with torch.no_grad():
        torch.testing.assert_close(streamed(TOKENS), whole(TOKENS), rtol=0, atol=0)
        assert held(streamed) == 1
        for name in ("3.resid_post", "1.z"):
            expected = whole(TOKENS, record=[name])[1][name]
            torch.testing.assert_close(streamed(TOKENS, record=[name])[1][name], expected, rtol=0, atol=0)
    for measure in (prefix_matching_scores, copying_scores, copying_eigenvalues, composition_scores):
        torch.testing.assert_close(measure(streamed), measure(whole), rtol=0, atol=0, equal_nan=True)
    expected = previous_token_scores(whole, TOKENS, examples=3)
    torch.testing.assert_close(previous_token_scores(streamed, TOKENS, examples=3), expected, rtol=0, atol=0)
    inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]
    for layer in (3, 0):
        expected = logit_attribution(whole, inputs, targets, layer, 1).logits
        found = logit_attribution(streamed, inputs, targets, layer, 1).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert held(streamed) == 1


@pytest.mark.parametrize("mode", ["pattern-preserving", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("positions", ["all", "5,32"])
def test_ablations(whole: Transformer, streamed: Transformer, mode: str, dtype: str, positions: str) -> None:
    for engine in ("fast", "definition"):
        expected, found = (
            ablate(model, TOKENS, mode=mode, dtype=dtype, positions=positions, engine=engine)["position_loss"]
            for model in (whole, streamed)
        )
        np.testing.assert_array_equal(found, expected)


def test_a_model_of_another_dtype(whole: Transformer, streamed: Transformer) -> None:
    with torch.no_grad():
        expected = whole.to(torch.bfloat16)(TOKENS)
        streamed(TOKENS)
        model = streamed.to(torch.bfloat16)
        assert held(model) == 0
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(model(TOKENS), expected, rtol=0, atol=0)


def test_what_is_not_there_shows(streamed: Transformer, tmp_path: Path) -> None:
    first = streamed.blocks[0]
    assert first.attention.q.weight.isfinite().all()
    assert streamed.blocks[1].attention.q.weight.isfinite().all()
    assert first.attention.q.weight.isnan().all()
    with pytest.raises(InputError, match="holds NaN"):
        save_snapshot(tmp_path / "x.safetensors", streamed, step=0, seen=0)


def test_where_memory_is_short(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whole: Transformer
) -> None:
    """Streamed unless there is room to spare; refused where not even that is enough; said in the plan."""
    weights = 4 * sum(weight.numel() for weight in whole.parameters())
    blocks = 4 * sum(weight.numel() for weight in whole.blocks.parameters())
    for free, expected in ((2 * weights, 4), (weights, 0)):
        monkeypatch.setattr(load, "available", lambda free=free: free)
        assert held(load_foreign(folder)) == expected
    planned = plan_sweep(ForeignSeries(folder), examples=8, device="cpu")
    assert planned.streamed == blocks
    print_plan(planned)
    printed = " ".join(capsys.readouterr().out.split())
    assert "KiB of a snapshot are streamed layer by layer" in printed
    assert "read 2 times" in printed
    monkeypatch.setattr("icl_fast.memory.available", lambda: weights - blocks)
    with pytest.raises(InputError, match="read layer by layer: needs"):
        load_foreign(folder)


_PROGRAM = """
import re, sys, torch
from pathlib import Path
from icl_fast.models.foreign import load_foreign

def own_bytes():  # what is not of files, which the system takes back when it needs it
    return int(re.findall(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024

tokens = torch.arange(20)[None]
load_foreign(sys.argv[1], stream=True)(tokens)  # what threads and workspaces take once is not counted
before = own_bytes()
model = load_foreign(sys.argv[1], stream=True)
with torch.no_grad():
    model(tokens)
print(own_bytes() - before)
"""


def test_in_less_memory(llama: Write, tmp_path: Path) -> None:
    """Eight layers of 13 MB as float32, in files of half that: one of them is held, and its copy while it is read."""
    folder = llama(
        tmp_path / "model", torch.bfloat16, num_hidden_layers=8, hidden_size=512, intermediate_size=1500,
        num_key_value_heads=4,
    )  # fmt: skip
    # what is freed goes back at once: the allocator would keep now more of it and now less
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000"}
    command = [sys.executable, "-c", _PROGRAM, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 13.4e6
