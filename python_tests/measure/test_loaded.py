"""`icl_fast.load` and what it gives: against the model called by hand, on runs, lone snapshots and foreign models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import icl_fast
from icl_fast import InputError, Intervention
from icl_fast.data import load_tokenizer
from icl_fast.measure.loaded import LoadedModel
from icl_fast.runs import Run, parse_config
from icl_fast.training import train

EXEMPLARS = {
    "exemplars": {"kind": "gaussian", "classes": 12, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 8, "label_pool": 5, "held_out_classes": 3, "held_out_label_pairs": 0.2},
    "model": {"width": 16, "heads": 4},
    "training": {"steps": 2, "batch": 4},
    "evaluation": {"every": 2, "sequences": 8},
}


@pytest.fixture(scope="module")
def loaded(tiny_run: Path) -> LoadedModel:
    return icl_fast.load(tiny_run)


@pytest.mark.parametrize(
    ("step", "found"),
    [("last", 12), ("first", 0), (6, 6), (np.int64(6), 6), (np.array(6, np.int32), 6), (torch.tensor(0), 0)],
)
def test_a_run(tiny_run: Path, step: Any, found: int) -> None:
    expected = Run(tiny_run).load_snapshot(found)
    for ckpt in (tiny_run, str(tiny_run), Run(tiny_run), icl_fast.open_series(tiny_run)):
        loaded = icl_fast.load(ckpt, step)
        assert (loaded.step, loaded.seen) == (found, expected.seen)
        assert loaded.series is not None
        assert loaded.series.steps == [0, 6, 12]
        for name, weights in loaded.model.state_dict().items():
            assert torch.equal(weights, expected.model.state_dict()[name])


def test_what_goes_with_it(tiny_run: Path, loaded: LoadedModel) -> None:
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.to_str() == load_tokenizer(tiny_run).to_str()
    assert loaded.evaluation.inputs.shape == (40, 24)
    ids = loaded.encode("so it is")
    assert ids.dtype == torch.int64
    assert ids.tolist() == [0, *loaded.tokenizer.encode("so it is").ids]


def test_run_a_text(loaded: LoadedModel) -> None:
    """The model called by hand: logits, sites, losses; the tokens are the text."""
    text = "é tu mil é tu"
    out = loaded.run(text, record="*.pattern")
    ids = loaded.encode(text)[None]
    logits, sites = loaded.model(ids, record=["0.pattern", "1.pattern"])
    assert torch.equal(out.logits, logits)
    assert torch.equal(out.ids, ids)
    assert list(out) == ["0.pattern", "1.pattern"]
    assert torch.equal(out["1.pattern"], sites["1.pattern"])
    torch.testing.assert_close(out.losses, -F.log_softmax(logits, -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0])
    assert not out.logits.requires_grad
    assert repr(out) == f"1 x {ids.shape[1]} tokens, recorded: " + ", ".join(
        f"{site} [1, 2, {ids.shape[1]}, {ids.shape[1]}]" for site in ("0.pattern", "1.pattern")
    )
    (tokens,) = out.tokens
    assert (tokens[0], "".join(tokens[1:])) == ("<|bos|>", text.replace("é", r"\xc3\xa9"))


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list, lambda ids: np.array(ids, np.int32)])
def test_run_ids(loaded: LoadedModel, kind: Callable[[Any], Any]) -> None:
    rows = loaded.evaluation.inputs[:3, :9].tolist()
    out = loaded.run(kind(rows), record="all")
    torch.testing.assert_close(out.logits, loaded.model(torch.tensor(rows)))
    assert out.losses.shape == (3, 8)
    assert set(out) == set(loaded.model(torch.tensor(rows), record="all")[1])
    one = loaded.run(kind(rows[1]))
    torch.testing.assert_close(one.logits, out.logits[1:2])
    assert one.tokens == out.tokens[1:2]
    assert loaded.tokenizer is not None
    assert "".join(one.tokens[0][1:]) == loaded.tokenizer.decode(rows[1][1:])
    assert loaded.run(kind(rows[1][:1])).losses.shape == (1, 0)


def test_what_one_run_records_is_set_in_another(loaded: LoadedModel) -> None:
    clean, other = loaded.encode("an is to an is"), loaded.encode("or is to or is")
    length = min(len(clean), len(other))
    out = loaded.run(clean[:length], record=["all"])
    last = Intervention.set("1.resid_post", out["1.resid_post"])
    torch.testing.assert_close(loaded.run(other[:length], interventions=[last]).logits, out.logits)


def test_results(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    loaded = icl_fast.load(run)
    assert (list(loaded.results), len(loaded.results)) == ([], 0)
    with pytest.raises(KeyError, match="heads was not measured; there are: no results"):
        loaded.results["heads"]
    icl_fast.evaluate(run, snapshots="last")
    icl_fast.sweep(run, snapshots="last", examples=3, heads="0.1", out=run / "results" / "report" / "full.zarr")
    assert list(loaded.results) == ["heads", "report/full"]
    assert "heads" in loaded.results
    assert loaded.results.get("report/other") is None
    assert loaded.results["report/full"].equals(icl_fast.open_results(run / "results" / "report" / "full.zarr"))


def test_a_snapshot_file(tiny_run: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    path = Run(tiny_run).snapshot_path(6)
    inside = icl_fast.load(path)
    assert (inside.step, inside.tokenizer is not None) == (6, True)
    alone = icl_fast.load(shutil.copy(path, tmp_path / "some.safetensors"))
    assert (alone.step, alone.series, alone.tokenizer, list(alone.results)) == (6, None, None, [])
    ids = loaded.encode("so it is")
    assert torch.equal(alone.run(ids).logits, inside.run("so it is").logits)
    assert alone.run(ids).tokens == [list(map(str, ids.tolist()))]
    with pytest.raises(InputError, match=r"^text: .*some.safetensors has no tokenizer, so its model reads no text"):
        alone.run("so it is")
    with pytest.raises(InputError, match=r"^evaluation: .*some.safetensors is in no run folder"):
        alone.evaluation  # noqa: B018
    for other in (path, tmp_path / "some.safetensors"):
        with pytest.raises(InputError, match=r"^step: no snapshot at 5; there are 6$"):
            icl_fast.load(other, step=5)


def test_other_peoples_models(tiny_run: Path, tmp_path: Path, write_llama: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(tiny_run)
    for step, seed in ((0, 1), (512, 2)):
        write_llama(tmp_path / "series" / f"step{step}", seed, tokenizer if step == 0 else None)
    series = icl_fast.load(tmp_path / "series")
    assert (series.step, icl_fast.load(tmp_path / "series", "first").step) == (512, 0)
    out = series.run("so it is", record="1.*")
    torch.testing.assert_close(out.logits, series.model(series.encode("so it is")[None]))
    assert "".join(out.tokens[0]).endswith("so it is")
    mute = icl_fast.load(write_llama(tmp_path / "mute", 3))
    assert mute.tokenizer is None
    assert mute.run([1, 2, 3]).tokens == [["1", "2", "3"]]
    with pytest.raises(InputError, match="has no tokenizer"):
        mute.run("so it is")


def test_exemplars(tmp_path: Path) -> None:
    run = train(parse_config(EXEMPLARS), tmp_path / "run")
    loaded = icl_fast.load(run.path)
    assert (loaded.step, loaded.tokenizer, list(loaded.results)) == (2, None, [])
    with pytest.raises(InputError, match=r"^text: .* was trained on exemplars and reads none; call loaded.model"):
        loaded.run("so it is")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", None),  # BOS alone
        ([], "^text: is empty"),
        (5, r"^text must be integers \[T\]"),
        (["so", "it"], r"^text must be integers \[T\]"),
        ([True, False], r"^text must be integers"),
        ([1.5], r"^text must be integers"),
        ([[1, 2], [3]], r"^text must be integers \[B,T\]"),
        ([280], "^text holds 280, but there are 280"),
        (np.zeros((1, 1, 3), int), r"^text must be integers \[B,T\]"),
        ([0] * 25, "^text: its 25 tokens are more than the 24 positions of the model; give a shorter one"),
    ],
)
def test_no_text(loaded: LoadedModel, text: Any, message: str | None) -> None:
    if message is None:
        assert loaded.run(text).losses.shape == (1, 0)
        return
    with pytest.raises(InputError, match=message):
        loaded.run(text)


@pytest.mark.parametrize("step", [True, 1.0, "3", None, 5, [0], np.array([0, 6])])
def test_no_step(tiny_run: Path, step: Any) -> None:
    with pytest.raises(InputError, match=r"^step: "):
        icl_fast.load(tiny_run, step)


def test_nothing_there(tiny_run: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"^ckpt: "):
        icl_fast.load(tmp_path / "nowhere")
    with pytest.raises(KeyError, match=r"1.z was not recorded; recorded: 0.z"):
        loaded.run([0, 1], record="0.z")["1.z"]
    with pytest.raises(InputError, match=r"^record: no site matches"):
        loaded.run([0, 1], record="*.patern")


def test_more_to_record_than_memory_holds(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_fast.memory.available", lambda: 10_000)
    loaded.run([0, 1], record="0.z")
    with pytest.raises(InputError, match=r"^record: 'all' of 24 tokens: needs .* of memory"):
        loaded.run([0] * 24, record="all")
