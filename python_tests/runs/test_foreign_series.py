"""Other people's checkpoints as a series."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from icl_fast import InputError
from icl_fast.data import EvaluationText
from icl_fast.measure import ablate, evaluate, open_results, sweep
from icl_fast.models.foreign import load_foreign
from icl_fast.runs import ForeignOptions, ForeignSeries, open_all, open_series

from .conftest import STEPS


def on(*sources: Any, context: int | None = 24, examples: int = 6, **others: Any) -> ForeignOptions:
    return ForeignOptions(EvaluationText(tuple(map(str, sources)), context, examples), **others)


@pytest.fixture
def damaged(foreign: Path, tmp_path: Path) -> Path:
    """The series with NaN in a weight at step 8, a file cut short at step 1, another shape at step 64."""
    folder = Path(shutil.copytree(foreign, tmp_path / "damaged"))
    file = folder / "step8" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][2, 3] = torch.nan
    save_file(weights, file)
    file = folder / "step1" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    config = folder / "step64" / "config.json"
    config.write_text(config.read_text().replace('"rope_theta": 1000.0', '"rope_theta": 500.0'))
    return folder


def test_its_snapshots_are_those_of_the_folders(foreign: Path, corpus_folder: Path) -> None:
    series = open_series(foreign, foreign=on(corpus_folder))
    assert isinstance(series, ForeignSeries)
    assert (series.steps, series.name, series.bos, series.context) == ([*STEPS], "tiny", 0, 24)
    for snapshot in series:
        own = load_foreign(foreign / f"step{snapshot.step}").state_dict()
        assert all(torch.equal(weight, own[name]) for name, weight in snapshot.model.state_dict().items())
    assert open_series(foreign, "last", on(corpus_folder)).steps == [1000]
    assert open_series(foreign, "0,64", on(corpus_folder)).whole().steps == [*STEPS]


def test_what_should_be_known_is_said(foreign: Path, corpus_folder: Path) -> None:
    about, same = open_series(foreign, foreign=on(corpus_folder)).notes()
    assert about.startswith("corpus0, 24 tokens an example; examples begin with <|bos|> (id 0), which stands between")
    assert same == "snapshots 2, 64 hold the same weights; those between differ (8, ...), which no training does"
    assert len(open_series(foreign, "0,1", on(corpus_folder)).notes()) == 1
    alone = open_series(foreign / "step8", foreign=on(corpus_folder))
    assert (alone.name, alone.steps) == ("step8", [8])


def test_what_is_damaged_is_said_by_step_and_tensor(damaged: Path, corpus_folder: Path) -> None:
    series = open_series(damaged, foreign=on(corpus_folder))
    (damaged / "step2" / "config.json").write_text("{")
    assert "hold the same weights" not in " ".join(series.notes())
    usable, left_out = series.readable()
    assert usable.steps == [0, 1000]
    assert left_out.keys() == {1, 2, 8, 64}
    assert "cannot be read" in left_out[1]
    assert "model.layers.1.mlp.up_proj.weight" in left_out[8]
    assert "NaN or infinity" in left_out[8]
    assert left_out[64] == "is another model than the first snapshot (rotary_base 500.0, not 1000.0)"
    assert not any(str(damaged) in why for why in left_out.values())
    with pytest.raises(InputError, match=r"step8.*mlp\.up_proj\.weight.* holds NaN or infinity"):
        sweep(series.at([0, 8]), out=damaged.parent / "out")


def test_a_sweep_is_the_ablation_of_each_snapshot(foreign: Path, corpus_folder: Path, tmp_path: Path) -> None:
    series = open_series(foreign, "1,8,1000", on(corpus_folder))
    results = open_results(sweep(series, out=tmp_path / "out", positions="all"))
    assert results["snapshot"].values.tolist() == [1, 8, 1000]
    evaluation = series.evaluation_set()
    for step in (1, 8, 1000):
        alone = ablate(load_foreign(foreign / f"step{step}"), evaluation.inputs, evaluation.targets)
        for name in ("position_loss", "effect_sem", "icl_score"):
            np.testing.assert_allclose(results[name].sel(snapshot=step), alone[name], rtol=1e-5, atol=1e-6)


def test_results_go_to_the_working_directory(
    foreign: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = evaluate(open_series(foreign, "1000", on(corpus_folder)))
    assert store == Path("results/tiny/heads.zarr")
    assert open_results(store)["prefix_matching"].shape == (1, 2, 4)
    assert not (foreign / "results").exists()


def test_without_a_tokenizer(write_llama: Callable[..., Path], corpus_folder: Path, tmp_path: Path) -> None:
    """Everything on random tokens still works."""
    folder = write_llama(tmp_path / "model")
    series = open_series(folder, foreign=on(context=20))
    assert series.bos is None
    assert series.corpus == "repeated-random"
    assert "no tokenizer" in series.notes()[0]
    begun = open_series(folder, foreign=ForeignOptions(EvaluationText(context=20, examples=3, bos="7")))
    assert begun.evaluation_set().inputs[:, 0].tolist() == [7, 7, 7]
    with pytest.raises(InputError, match=r"^bos: '300' is neither auto, none nor one of the tokens 0 to 299"):
        open_series(folder, foreign=ForeignOptions(EvaluationText(bos="300")))
    assert open_results(evaluate(series, out=tmp_path / "heads"))["copying"].notnull().all()
    assert "icl_score" in open_results(sweep(series, out=tmp_path / "out"))
    with pytest.raises(InputError, match=r"^text: .* has no tokenizer\.json, so its model can read no text"):
        open_series(folder, foreign=on(corpus_folder))
    with pytest.raises(InputError, match=r"^tokenizer: .*; put it there"):
        series.tokenizer()


def test_a_tokenizer_beside_the_snapshots_or_given(
    write_llama: Callable[..., Path], foreign_tokenizer_json: Any, corpus_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    write_llama(folder / "step1")
    other = tmp_path / "other.json"
    foreign_tokenizer_json.save(str(other))
    given = open_series(folder, foreign=on(corpus_folder, tokenizer=other)).evaluation_set()
    shutil.copy(other, folder / "tokenizer.json")
    assert open_series(folder, foreign=on(corpus_folder)).evaluation_set().digest == given.digest
    with pytest.raises(InputError, match=r"^tokenizer: .* does not exist"):
        open_series(folder, foreign=on(corpus_folder, tokenizer=tmp_path / "gone.json"))


def test_examples(foreign: Path, corpus_folder: Path) -> None:
    series = open_series(foreign, foreign=on(corpus_folder, context=60, examples=4))
    assert len(series.evaluation_set().inputs) == 4
    assert len(series.evaluation_set(9).inputs) == 9
    with pytest.raises(InputError, match=r"^examples: must be from 1 to \d+, what corpus0 holds at context 60"):
        series.evaluation_set(1_000_000)
    with pytest.raises(InputError, match=r"^context: 65 is more than the 64 positions"):
        open_series(foreign, foreign=on(corpus_folder, context=65))


def test_options_of_other_peoples_models_mean_nothing_for_runs(
    foreign: Path, tiny_run: Path, corpus_folder: Path
) -> None:
    options = on(corpus_folder)
    with pytest.raises(InputError, match=r"^text: is for other people's models; .*tiny is evaluated on the corpus"):
        open_series(tiny_run, foreign=options)
    both = open_all([tiny_run, foreign], foreign=options)
    assert [type(series).__name__ for series in both.values()] == ["RunSeries", "ForeignSeries"]
    with pytest.raises(InputError, match=r"^revisions: is for other people's models"):
        open_all([tiny_run], foreign=ForeignOptions(revisions="step0"))


def test_hashes_tell_weights_and_shapes_apart(foreign: Path, corpus_folder: Path, tmp_path: Path) -> None:
    hashes = open_series(foreign, foreign=on(corpus_folder)).hashes()
    assert hashes["2"] == hashes["64"]
    assert len(set(hashes.values())) == len(STEPS) - 1
    copy = Path(shutil.copytree(foreign / "step2", tmp_path / "step2"))
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"rope_theta": 1000.0', '"rope_theta": 500.0'))
    assert open_series(copy, foreign=on(corpus_folder)).hashes()["2"] != hashes["2"]
