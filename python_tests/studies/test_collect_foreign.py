"""Reports on other people's models: alone and beside our runs, of one snapshot or several, with tokens known or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from icl_fast import InputError
from icl_fast.analysis import joint_pca
from icl_fast.cli.main import cli
from icl_fast.data import EvaluationText, Text
from icl_fast.report.panels.family import family_panels
from icl_fast.report.panels.table import ROWS, table_panels
from icl_fast.report.study import Study
from icl_fast.runs import ForeignOptions
from icl_fast.studies.collect import Options, collect

transformers = pytest.importorskip("transformers")
TEXT = Text("words", "Some words", "passage", "the cat sat on the mat, the cat sat on the hat", "made up")


def save_models(folder: Path, tokenizer: Path, steps: list[int]) -> Path:
    """Random Llamas as a series of checkpoints; of one step -1 the folder of a single model."""
    shape = dict(vocab_size=280, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    for step in steps:
        torch.manual_seed(step + 1)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, max_position_embeddings=64))
        home = folder if step < 0 else folder / f"step{step}"
        model.save_pretrained(home)
        (home / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return folder


@contextmanager
def silent(title: str) -> Iterator[Callable[[int, int, str], None]]:
    yield lambda done, of, text: None


@pytest.fixture(scope="module")
def places(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, tokenizer = tmp_path_factory.mktemp("foreign"), tiny_run / "tokenizer.json"
    return {
        "series": save_models(folder / "series", tokenizer, [0, 10, 20, 40]),
        "single": save_models(folder / "single", tokenizer, [-1]),
    }


@pytest.fixture(scope="module")
def study(
    places: dict[str, Path], tiny_run: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """Two models of other people's, and between them a run of ours of 3 snapshots."""
    text = EvaluationText(sources=(str(corpus_folder / "00.txt"),), context=30)
    options = Options(examples=6, modes=("pattern-preserving", "full"), foreign=ForeignOptions(text=text))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))  # where their results go
        return collect([places["series"], tiny_run, places["single"]], [TEXT], options, silent)


def panel(study: Study, name: str, row: str):  # type: ignore[no-untyped-def]
    return table_panels(study)[name][[of.key for of in ROWS].index(row)]


def test_a_plane_for_each_evaluation_set(study: Study) -> None:
    assert [group.models for group in study.groups] == [("series", "single"), ("tiny",)]
    assert list(study.models) == ["series", "single", "tiny"]  # columns of a group stand together
    theirs, ours = study.groups
    assert (theirs.context, ours.context) == (30, 24)
    assert theirs.text != ours.text
    for group in study.groups:
        alone = joint_pca({name: study.models[name].losses for name in group.models})
        assert group.pca is not None
        for name in group.models:
            path = panel(study, name, "pca").series[0]
            np.testing.assert_array_equal(np.stack([path.x, path.y], 1), alone.coordinates[name])
            assert {series.model for series in panel(study, name, "pca").series} <= set(group.models)
            assert f"models evaluated on {group.text}, {group.context} tokens" in panel(study, name, "pca").caption
    assert panel(study, "series", "pca").y_range == panel(study, "single", "pca").y_range
    for number in (1, 4, 6, 8):  # loss, ICL score, QK trace, ablations
        of_row = {name: panels[number] for name, panels in table_panels(study).items()}
        assert of_row["series"].y_range == of_row["single"].y_range or of_row["single"].absent
        assert of_row["series"].y_range != of_row["tiny"].y_range or of_row["series"].absent
    of_family = family_panels(study)[0][1]
    assert [[series.label for series in one.series] for one in of_family] == [["series", "single"], ["tiny"]]
    assert len({one.key for one in of_family}) == 2
    compared = next(p for _, panels in family_panels(study) for p in panels if "compared" in p.key)
    assert [series.label for series in compared.series] == ["single"]  # with the series, which is as large
    assert "Left out: tiny is evaluated on other examples than series" in compared.caption


def test_steps_where_tokens_are_not_known(study: Study) -> None:
    assert {model.progress for model in study.models.values()} == {"steps"}
    loss = panel(study, "tiny", "loss")
    assert loss.x_label == "optimizer step"
    np.testing.assert_array_equal(loss.series[0].x, [0, 6, 12])
    known = {name: replace(model, progress="tokens") for name, model in study.models.items()}
    assert panel(replace(study, models=known), "tiny", "loss").x_label == "training tokens seen"


def test_one_snapshot(study: Study) -> None:
    model = study.models["single"]
    assert model.change is None
    assert model.interval is None
    losses = model.losses["loss"].sel(ablation="none").values.astype(np.float64)
    assert f"single has one snapshot: {losses.mean():.3f} ± " in (panel(study, "single", "loss").absent or "")
    absent = panel(study, "single", "ablation_before_after").absent or ""
    assert absent.startswith("N/A: one snapshot, and 7 after step 0 or more are needed")
    for row, values in (
        ("prefix_matching", model.heads["prefix_matching"].values[0]),
        ("ablation_icl", model.attributions["icl"].values[0].reshape(2, 2)),
    ):
        found = panel(study, "single", row)
        assert (found.kind, found.x_label) == ("points", "layer, counted from 0")
        assert {series.head: float(series.y[0]) for series in found.series} == dict(np.ndenumerate(values))
        assert all(series.x.tolist() == [series.head[0]] for series in found.series)
    assert set(model.texts) == {"words"}
    for _, panels in family_panels(study):
        for one in panels:
            assert "Traceback" not in (one.absent or "")
            if one.key.startswith(("family-loss-slope", "family-formation", "family-icl-score")):
                assert "single" not in {series.label for series in one.series}
                assert "single" in f"{one.caption} {one.absent}"


def test_what_the_architecture_does_not_define_says_why(study: Study) -> None:
    model = study.models["series"]
    heads = model.heads.assign_attrs(undefined=json.dumps({"qk_trace": "positions are rotary"}))
    changed = replace(study, models=study.models | {"series": replace(model, heads=heads)})
    assert panel(changed, "series", "qk_trace").absent == "N/A: undefined because positions are rotary"
    assert panel(changed, "tiny", "qk_trace").absent is None
    weights = next(p for _, panels in family_panels(changed) for p in panels if p.key == "family-prefix-weights")
    assert "Left out: undefined because positions are rotary" in weights.caption


def test_a_foreign_series_alone(
    places: dict[str, Path], corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["report", places["single"], "--text", corpus_folder / "01.txt", "--context", 20, "--examples", 4]
    arguments += ["--modes", "pattern-preserving", "--out", tmp_path / "out", "--icl-positions", "2,18"]
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "too few snapshots" in done.output
    assert "ICL score: mean loss of token 18 minus token 2" in done.output
    assert (tmp_path / "out" / "figures" / "table.png").stat().st_size > 10_000
    assert (tmp_path / "results" / "single" / "report" / "texts" / "passage.zarr").is_dir()
    assert not list(places["single"].rglob("*.zarr"))


def test_pca_of_different_sets_is_refused_before_anything_is_measured(
    places: dict[str, Path], tiny_run: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["pca", places["series"], tiny_run, "--text", corpus_folder / "01.txt", "--out", tmp_path / "pca.zarr"]
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 2
    assert "tiny is evaluated on other examples (of " in done.output.splitlines()[-1]
    assert not (tmp_path / "results").exists()


def test_options_for_nobody(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is for other people's models"):
        collect([tiny_run], [], Options(foreign=ForeignOptions(text=EvaluationText(context=9))), silent)
