"""What holds for every command: --json, --quiet, help for every option, completion; one spelling of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import matplotlib
import numpy as np
import pytest
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from icl_fast.cli.main import cli
from icl_fast.measure import evaluate, open_results
from icl_fast.runs import parse_config
from icl_fast.studies import demo
from icl_fast.training import train

EXEMPLARS = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"classes": 20, "held_out_classes": 6},
    "model": {"width": 16, "heads": 2},
    "interventions": {"previous_token_heads": [0], "induction_heads": [1]},
    "training": {"steps": 4, "batch": 4, "lr": 1e-2, "log_every": 4, "engine": "plain"},
    "evaluation": {"every": 2, "sequences": 20},
    "snapshots": {"every": 2},
}
COMMANDS = {
    "train": "{config} --out {new}",
    "plan": "{config}",
    "ablate": "{text} --examples 5",
    "evaluate": "{text}",
    "idealise": "{text} --examples 5",
    "templates": "{wide} --tables 2 --lines 4 --snapshots last",
    "wiring": "{exemplars} --sequences 20",
    "pca": "{text} --examples 5 --out {new}.zarr",
    "report": "{exemplars} --no-static --sequences 20 --out {new}",
    "results": "{store}",
    "export": "{text} --to safetensors --out {new}",
    "toy phase-change": "--seeds 2 --steps 20 --plateau-seeds 2 --plateau-steps 40 --out {new}.zarr",
    "toy coopetition": "--dims 4,4,4,8 --steps 40 --every 20 --seeds 2 --out {new}.zarr",
    "demo": "--configs {configs} --out {new}",
    "reproduce": "singh --plan --out {new}",
    "verify": "{text}",
    "corpus": "{corpus} --vocab 300 --context 24",
    "data glyphs": "--classes 4 --typefaces 1 --fonts {fonts}",
    "data strokes": "--classes 4 --drawings 2",
    "bench": "call_overhead --quick --threads 1",
    "info": "",
}
OF_THEIR_OWN = {"plan", "verify", "bench", "info"}  # documents


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def leaves(group: click.Group = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


@pytest.fixture(scope="module")
def places(
    tiny_run: Path, tiny_values: dict[str, Any], corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("every")
    (home / "config.yaml").write_text(yaml.safe_dump(tiny_values))
    wide = {**tiny_values, "data": {**tiny_values["data"], "context": 96}}
    (home / "configs").mkdir()
    for name in demo.MODELS:
        (home / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(tiny_values))
    (home / "fonts").mkdir()
    shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), home / "fonts")
    text = shutil.copytree(tiny_run, home / "text")
    return {
        "config": home / "config.yaml",
        "text": text,
        "wide": train(parse_config(wide), home / "wide").path,
        "exemplars": train(parse_config(EXEMPLARS), home / "exemplars").path,
        "store": evaluate(text, out=home / "heads.zarr"),
        "configs": home / "configs",
        "corpus": corpus_folder,
        "fonts": home / "fonts",
    }


def test_every_command_is_tried() -> None:
    assert {name for name, _ in leaves()} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_json_and_quiet(command: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EXAMPLES", 6)
    arguments = [*command.split(), *COMMANDS[command].format(**places, new=tmp_path / "new").split()]
    found = call(*arguments, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    if command not in OF_THEIR_OWN:
        assert document["command"] == f"cli {command}"
        assert document["tables"] or document["facts"] or document["lines"]
        for table in document["tables"]:
            assert table["rows"]
            assert {len(row) for row in table["rows"]} == {len(table["columns"])}
        assert all(Path(path).exists() for path in document["files"])
    more = ["--resume"] if command == "train" else []
    if command == "export":
        shutil.rmtree(tmp_path / "new")
    silent = call(*arguments, *more, "--quiet")
    assert silent.exit_code == 0, silent.output
    assert silent.stdout == ""
    if command != "bench":  # whose processes speak for themselves
        assert silent.stderr == ""
    assert call(command.split()[0], "--no-such-option", "--quiet").stderr.startswith("error: ")


def test_json_has_values_in_full_and_errors(places: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    found = json.loads(call("ablate", places["text"], "--examples", 7, "--out", out, "--json").stdout)
    assert found["files"] == [str(out)]
    (table,) = found["tables"]
    last = open_results(out).isel(snapshot=-1)
    loss = last["loss"].astype(np.float64)
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert list(rows) == last["ablation"].values.tolist()
    for name, row in rows.items():
        assert row["loss"] == float(last["loss"].sel(ablation=name).mean())
        if name != "none":
            change = loss.sel(ablation=name) - loss.sel(ablation="none")
            assert row["change of loss"] == pytest.approx(float(change.mean()), rel=1e-12)
            assert row["change of loss standard error"] == pytest.approx(float(change.std(ddof=1)) / 7**0.5, rel=1e-12)
            error = float(last["icl_effect_sem"].sel(ablation=name))
            assert row["change of ICL score standard error"] == error
    shown = call("ablate", places["text"], "--examples", 7, "--out", out).stdout
    assert f"{rows['1.0']['change of loss']:+.4f}±{rows['1.0']['change of loss standard error']:.4f}" in shown


def test_what_is_damaged_is_a_document_too(places: dict[str, Path], tmp_path: Path) -> None:
    home = Path(shutil.copytree(places["text"], tmp_path / "text"))
    (home / "log.jsonl").write_text("{")
    found = call("verify", home, "--json")
    assert found.exit_code == 2
    assert not json.loads(found.stdout)["ok"]
    assert found.stderr.startswith("error: verify: ")


def test_an_error_is_no_document(places: dict[str, Path]) -> None:
    found = call("ablate", places["text"], "--heads", "7.7", "--json")
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.startswith("error: --heads: ")


@pytest.mark.parametrize(("name", "command"), list(leaves()))
def test_every_option_says_what_it_is_and_its_default(name: str, command: click.Command) -> None:
    for option in command.params:
        if not isinstance(option, click.Option) or option.hidden:
            continue
        text = option.help or ""
        assert len(text) > 4, f"{name} {option.opts} has no help"
        if not (option.is_flag or option.required or option.secondary_opts):  # a flag's default is not to be given
            assert option.show_default or "default" in text.lower(), (
                f"{name} {option.opts}: what is its default? {text}"
            )


@pytest.mark.parametrize("command", ["ablate", "evaluate", "idealise", "export"])
def test_one_way_to_name_a_run(command: str, places: dict[str, Path], tmp_path: Path) -> None:
    more = ["--to", "safetensors", "--out", tmp_path / "out"] if command == "export" else []
    more += ["--heads", "0.0", "--examples", 5] if command == "ablate" else []
    more += ["--examples", 6] if command == "idealise" else []
    more += ["--out", tmp_path / "out.zarr"] if command != "export" else []
    assert call(command, places["text"], *more).exit_code == 0
    if command != "export":
        assert call(command, "--ckpt", places["text"], *more).exit_code == 0
    text = places["text"]
    for arguments, message in {
        (): "RUN: is needed; ",
        (text, "--ckpt", text): f"RUN: {text} and --ckpt {text} are two runs, and one is needed; ",
        (tmp_path / "no",): f"RUN: {tmp_path / 'no'} does not exist",
        ("--ckpt", tmp_path / "no"): f"--ckpt: {tmp_path / 'no'} does not exist",
    }.items():
        refused = call(command, *arguments, *more)
        assert refused.exit_code == 2
        assert refused.stderr.startswith(f"error: {message}")
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["ablate", "evaluate", "idealise", "templates", "wiring", "pca", "report"])
def test_what_is_no_run_is_called_what_it_is(command: str, places: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").touch()
    (tmp_path / "runs").mkdir()
    for name in ("a", "b"):
        shutil.copytree(places["text"], tmp_path / "runs" / name)
    for path, message in {
        places["config"]: f"a config, not a run; `icl-fast train {places['config']}` trains it",
        places["store"]: f"a store of results, not a run; `icl-fast results {places['store']}` says what is in it",
        tmp_path / "report": "a report, not a run; open ",
        tmp_path / "runs": "a folder of runs (a, b), not a run; give one of them, or all to `icl-fast report ",
        places["text"] / "snapshots": f"part of the run {places['text']}; give that",
    }.items():
        more = ["--out", tmp_path / "out.zarr"] if command in ("pca", "report") else []
        found = call(command, path, *more)
        assert found.exit_code == 2
        assert found.stderr.startswith(f"error: RUN: {path} is {message}")
        assert found.stderr.count("\n") == 1
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize(
    ("command", "path", "instead"),
    [
        ("wiring", "text", "icl-fast evaluate"),
        ("idealise", "exemplars", "icl-fast evaluate"),
        ("pca --out x.zarr", "exemplars", "icl-fast evaluate"),
        ("templates", "exemplars", "icl-fast evaluate"),
        ("export --to hf --out x", "exemplars", "icl-fast evaluate"),
    ],
)
def test_a_run_on_the_other_task(command: str, path: str, instead: str, places: dict[str, Path]) -> None:
    found = call(*command.split(), places[path])
    assert found.exit_code == 2
    assert f"{places[path]} was trained on {path}" in found.stderr
    assert instead in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_run_in_the_place_of_a_config(command: str, places: dict[str, Path]) -> None:
    run = places["text"]
    found = call(command, run)
    assert found.exit_code == 2
    goes_on = f"`icl-fast train {run / 'config.yaml'} --out {run} --resume` goes on with it"
    assert found.stderr == f"error: config: {run} is a run, not a config; {goes_on}\n"


def test_changes_at_positions_have_their_errors(places: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    found = json.loads(call("ablate", places["text"], "--positions", "6,20", "--out", out, "--json").stdout)
    (table,) = found["tables"]
    last = open_results(out).isel(snapshot=-1)
    for row in table["rows"][1:]:
        named = dict(zip(table["columns"], row, strict=True))
        for position in (6, 20):
            of = last.sel(position=position)
            change = of["position_loss"].sel(ablation=row[0]) - of["position_loss"].sel(ablation="none")
            assert named[f"change of loss at {position}"] == pytest.approx(float(change), rel=1e-6)
            error = float(of["effect_sem"].sel(ablation=row[0]))
            assert named[f"change of loss at {position} standard error"] == error


def test_a_path_in_the_place_of_a_command(places: dict[str, Path]) -> None:
    found = call(places["text"])
    assert found.exit_code == 2
    assert "is a path, and what to do with it comes first" in found.stderr


def completed(*words: str) -> list[tuple[str, str]]:
    shell = ShellComplete(cli, {}, "icl-fast", "_ICL_FAST_COMPLETE")
    return [(item.value, item.type) for item in shell.get_completions(list(words[:-1]), words[-1])]


def test_completion() -> None:
    assert ("evaluate", "plain") in completed("e")
    assert completed("evaluate", "ru") == [("ru", "file")]
    assert completed("train", "configs/") == [("configs/", "file")]
    assert completed("report", "a", "b") == [("b", "file")]
    assert completed("ablate", "run", "--out", "x") == [("x", "dir")]
    assert ("--force", "plain") in completed("ablate", "run", "--f")
    assert ("--json", "plain") in completed("info", "--j")
    assert "_ICL_FAST_COMPLETE=bash_source icl-fast" in call("--help").stdout
