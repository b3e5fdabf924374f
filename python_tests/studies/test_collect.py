"""From run folders to a study and its report: what is measured, kept, measured again, left out, refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from icl_fast.cli.main import cli
from icl_fast.data import Text, load_tokenizer
from icl_fast.errors import InputError
from icl_fast.files import sha256
from icl_fast.measure import copying_scores, logit_attribution, open_results, prefix_matching_scores, sweep
from icl_fast.measure.heads import token_losses, tokenise
from icl_fast.report.study import Study
from icl_fast.runs import Run, parse_config
from icl_fast.studies.collect import Options, collect, read_claims
from icl_fast.training import train

Values = dict[str, dict[str, Any]]
STEPS = list(range(0, 13, 2))
TEXT = Text("words", "Some words", "passage", "one two one two one", "made up")
OPTIONS = Options(examples=6, icl_positions="3,20", icl_window=3)


@pytest.fixture(scope="module")
def trained(tiny_values: Values, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of one and of two layers."""
    runs = []
    for layers in (1, 2):
        values = tiny_values | {"model": tiny_values["model"] | {"layers": layers}, "snapshots": {"every": 2}}
        runs.append(train(parse_config(values), tmp_path_factory.mktemp("trained") / f"layers{layers}").path)
    return runs


@pytest.fixture
def runs(trained: list[Path], tmp_path: Path) -> list[Path]:
    return [Path(shutil.copytree(run, tmp_path / run.name)) for run in trained]


class Watched:
    """Counts what is measured, by title."""

    def __init__(self) -> None:
        self.done: dict[str, list[int]] = {}

    @contextmanager
    def __call__(self, title: str) -> Iterator[Callable[[int, int, str], None]]:
        self.done[title] = []
        yield lambda done, of, text: self.done[title].append(done)


def studied(runs: list[Path], options: Options = OPTIONS) -> tuple[Study, Watched]:
    watched = Watched()
    return collect(runs, [TEXT], options, watched), watched


def test_everything_is_what_direct_calls_give(runs: list[Path]) -> None:
    study, _ = studied(runs)
    assert list(study.models) == ["layers1", "layers2"]
    (group,) = study.groups
    assert group.pca is not None
    assert (group.models, group.context, group.bos) == (("layers1", "layers2"), 24, "<|bos|>")
    two, folder = study.models["layers2"], Run(runs[1])
    for data in (two.losses, two.heads, two.texts["words"], *two.ablations.values()):
        assert data["snapshot"].values.tolist() == STEPS
        assert data["tokens"].values.tolist() == [step * 2 * 24 for step in STEPS]
    model = folder.load_snapshot(6).model
    at = {"snapshot": 6}
    np.testing.assert_array_equal(two.heads["prefix_matching"].sel(at).values, prefix_matching_scores(model).numpy())
    np.testing.assert_array_equal(two.heads["copying"].sel(at).values, copying_scores(model).numpy())
    assert two.losses.sizes["position"] == 24
    for mode in ("pattern-preserving", "full"):
        alone = open_results(
            sweep(
                runs[1],
                out=runs[1] / mode,
                snapshots="6",
                mode=mode,
                examples=6,
                icl_positions="3,20",
                icl_window=3,
                memory="1GiB",
            )
        )
        np.testing.assert_allclose(two.ablations[mode]["loss"].sel(at), alone["loss"].sel(at), atol=1e-6)
    text = tokenise(TEXT, load_tokenizer(runs[1]), 24)
    reading = two.texts["words"]
    np.testing.assert_array_equal(reading["loss"].sel(at).values, token_losses(model, text).numpy())
    assert reading["viewed"].values.tolist() == [step for step in two.losses["snapshot"].values if step > 0]
    for step in reading["viewed"].values.tolist():
        viewed = reading.sel(viewed=step)
        direct = logit_attribution(folder.load_snapshot(step).model, text.inputs[None], text.targets[None], 1, 0)
        np.testing.assert_allclose(viewed["pattern"][2], direct.pattern[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(viewed["logits"][2], direct.logits[0], rtol=1e-4, atol=1e-6)
    assert two.setting is not None
    assert two.setting.name == "layers2"
    assert two.setting != study.models["layers1"].setting
    assert two.parameters == sum(weights.numel() for weights in model.parameters())
    assert two.types.types.shape == (2, 2)


def test_no_change_no_vector(runs: list[Path]) -> None:
    """A run of 12 steps has no phase change; one set by hand is taken."""
    study, _ = studied(runs)
    two = study.models["layers2"]
    assert two.interval is None
    assert set(two.attributions.data_vars) == {"icl", "icl_sem"}
    by_hand, _ = studied(runs, replace(OPTIONS, intervals={"layers2": (4, 10)}))
    attributions = by_hand.models["layers2"].attributions
    whole = two.ablations["pattern-preserving"]["loss"]
    change = whole.sel(snapshot=10, ablation="none") - whole.sel(snapshot=4, ablation="none")
    effect = whole.sel(snapshot=12, ablation="1.0") - whole.sel(snapshot=12, ablation="none")
    expected = float((change * effect).sum() / np.sqrt((change**2).sum()))
    assert float(attributions["before_after"].sel(snapshot=12, ablation="1.0")) == pytest.approx(expected, rel=1e-4)


def test_what_is_there_is_kept(runs: list[Path]) -> None:
    _, first = studied(runs)
    assert all(counts[-1] > 0 for counts in first.done.values())
    stores = {path: path.stat().st_mtime_ns for run in runs for path in (run / "results").rglob(".zmetadata")}
    assert len(stores) == 2 * 5
    study, second = studied(runs)
    assert second.done.keys() == first.done.keys()
    assert not any(counts for counts in second.done.values())
    assert {path: path.stat().st_mtime_ns for path in stores} == stores
    assert study.models["layers2"].losses.sizes["example"] == 6


def test_other_options_and_snapshots_are_measured_again(runs: list[Path]) -> None:
    studied(runs)
    study, watched = studied(runs, replace(OPTIONS, examples=5))
    assert study.models["layers1"].losses.sizes["example"] == 5
    assert watched.done["layers1: losses"]
    assert not watched.done["layers1: heads"]
    study, watched = studied(runs, replace(OPTIONS, snapshots="4,6,8,10"))
    assert study.models["layers1"].heads["snapshot"].values.tolist() == [4, 6, 8, 10]
    assert watched.done["layers1: heads"]


def test_some_heads_of_many_are_shown_on_texts(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_fast.studies.collect.MOST_SHOWN", 2)
    monkeypatch.setattr("icl_fast.studies.collect.MOST_TOKENS", 5)
    two = studied(runs)[0].models["layers2"]
    matching = two.heads["prefix_matching"].values[-1]
    effect = np.abs(two.attributions["icl"].values[-1])  # [0.0, 0.1, 1.0, 1.1]
    order = np.argsort(-effect)
    best = int(matching.argmax())
    shown = sorted({best, int(next(head for head in order if head != best))})
    text = two.texts["words"]
    assert list(zip(text["layer"].values, text["head"].values, strict=True)) == [divmod(head, 2) for head in shown]
    assert text.sizes["position"] == text.sizes["source"] == 5
    assert text.attrs["left_out_tokens"] > 0


def test_more_examples_than_there_are(runs: list[Path]) -> None:
    study, _ = studied(runs[:1], replace(OPTIONS, examples=10**6, modes=("pattern-preserving",)))
    assert study.models["layers1"].losses.sizes["example"] == 40


def damage(run: Path) -> None:
    """A missing, a truncated and a NaN snapshot."""
    folder = Run(run)
    folder.snapshot_path(2).unlink()
    truncated = folder.snapshot_path(4)
    truncated.write_bytes(truncated.read_bytes()[:-100])
    diverged = folder.snapshot_path(8)
    with open(diverged, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    weights = load_file(diverged)
    weights["embed.weight"][3, 3] = torch.nan
    save_file(weights, diverged, metadata=header["__metadata__"])
    manifest = json.loads((run / "manifest.json").read_text())
    manifest[f"snapshots/{diverged.name}"] = sha256(diverged)
    (run / "manifest.json").write_text(json.dumps(manifest))


def test_damaged_snapshots_are_left_out(runs: list[Path], tmp_path: Path) -> None:
    damage(runs[1])
    result = report(*runs, "--out", tmp_path / "out", "--no-static")
    assert result.exit_code == 0, result.output
    for step, reason in ((2, "missing"), (4, "truncated"), (8, "weights not finite")):
        assert f"layers2: step {step} left out: {reason}" in result.output
    study, watched = studied(runs)
    assert not any(counts for title, counts in watched.done.items() if "Some words" not in title)
    assert study.models["layers2"].losses["snapshot"].values.tolist() == [0, 6, 10, 12]
    assert study.models["layers1"].losses["snapshot"].values.tolist() == STEPS
    assert list(study.models["layers2"].left_out) == [2, 4, 8]
    for step in (0, 6, 10, 12):
        Run(runs[1]).snapshot_path(step).unlink()
    with pytest.raises(InputError, match=r"layers2: a usable snapshot is needed, it has none \(step 0: missing;"):
        studied(runs)


def report(*arguments: object) -> Result:
    options = ("--examples", 6, "--icl-positions", "3,20", "--icl-window", 3)
    return CliRunner().invoke(cli, [str(argument) for argument in ("report", *arguments, *options)])


def test_the_command(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text('[{"claim": "c", "source": "s", "verdict": "v", "evidence": "e"}]')
    (tmp_path / "mine.txt").write_text("my own text, my own <b>words</b>")
    arguments = [
        *runs,
        "--out",
        tmp_path / "out",
        "--claims",
        tmp_path / "claims.json",
        "--passage",
        tmp_path / "mine.txt",
    ]
    result = report(*arguments, "--interval", "layers2=4:10", "--modes", "pattern-preserving", "--title", "Mine")
    assert result.exit_code == 0, result.output
    assert "layers1" in result.output
    assert f"{tmp_path / 'out' / 'index.html'}: " in result.output
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"table.png", "table.svg"} <= names
    assert len([name for name in names if name.endswith(".png")]) * 2 == len(names) > 2 * 9
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--interval", "layers2"], "interval: 'layers2' is not RUN=START:END"),
        (["--interval", "layers2=9:3"], "interval: 'layers2=9:3' is not RUN=START:END"),
        (["--interval", "three=2:4"], "interval: there is no model three; there are layers1, layers2"),
        (["--interval", "layers2=3:10"], "interval: layers2 has no usable snapshot at step 3"),
        (["--modes", "full"], "modes: pattern-preserving must be among them"),
        (["--modes", "pattern-preserving,sideways"], "mode: 'sideways' is neither"),
        (["--claims", "nowhere.json"], "claims: nowhere.json does not exist"),
        (["--passage", "nowhere.txt"], "nowhere.txt"),
        (["--snapshots", "0,3"], "snapshots: none at step 3"),
        (["--memory", "much"], "memory: 'much' is not an amount"),
    ],
)
def test_bad_options(runs: list[Path], tmp_path: Path, arguments: list[str], message: str) -> None:
    result = report(*runs, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("error: ")
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_positions_that_a_context_lacks(runs: list[Path]) -> None:
    with pytest.raises(InputError, match="icl_positions: '5,99' must be two of the context's positions"):
        studied(runs, replace(OPTIONS, icl_positions="5,99"))
    assert not list(runs[0].rglob("report/*"))


def test_bad_runs(runs: list[Path], tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path / "nowhere"], "does not exist"),
        ([runs[0], runs[0]], "is given twice"),
        ([runs[0] / "config.yaml"], "is a config, not a run; `icl-fast train "),
    ):
        result = report(*arguments, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert message in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}}", "is not JSON .*\\(Extra data: line 1"),
        ("\n\n[,]", "is not JSON .*\\(.*line 3"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "1" * 5_000 + "]", "is not JSON .*\\(Exceeds the limit"),
        ("\x00", "is not JSON"),
        ("null", "must be a JSON list of objects .*; number 1 is none"),
        ('{"claim": "c"}', "must be a JSON list of objects"),
        ("[1]", "must be a JSON list of objects"),
        ('[{"claim": "c"}]', "must be a JSON list of objects"),
        ('[{"claim": 1, "source": "s", "verdict": "v", "evidence": "e"}]', "must be a JSON list of objects"),
        ('[{"claim": "c", "source": "s", "verdict": "v", "evidence": "e"}, []]', "; number 2 is none"),
    ],
)
def test_bad_claims(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "claims.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_claims(path)


def test_claims_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xd8")
    for name, message in (
        ("pipe", "is a pipe"),
        (".", "is a folder"),
        ("nowhere", "not exist"),
        ("binary", "is not JSON"),
    ):
        with pytest.raises(InputError, match=message):
            read_claims(tmp_path / name)


def test_a_full_disk(runs: list[Path], small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(200 * 1024))  # leaves less than the page's scripts take
    result = report(runs[0], "--out", small_disk / "out", "--no-static")
    assert result.exit_code == 2
    assert "the disk is full" in result.output
    assert not list(small_disk.rglob("*.html")) + list(small_disk.rglob(".tmp-*"))
