"""verify, and commands that measure: a changed byte anywhere is noticed; --repair measures damaged results again."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result

from icl_fast import files
from icl_fast.cli.main import cli
from icl_fast.measure import DamagedResults, evaluate, open_results, sweep
from icl_fast.report.write import write_report
from icl_fast.runs import Run, parse_config
from icl_fast.studies.collect import Options, collect
from icl_fast.studies.verify import verify
from icl_fast.training import train

EXEMPLARS: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
    "sequences": {"classes": 20, "held_out_classes": 6},
    "model": {"width": 16, "heads": 2},
    "training": {"steps": 12, "batch": 4, "lr": 1e-2, "log_every": 4, "engine": "plain"},
    "evaluation": {"every": 6, "sequences": 20},
    "snapshots": {"every": 6},
}
OPTIONS = Options(examples=7, sequences=20, modes=("pattern-preserving",))
SNAPSHOT, CHUNK = "snapshots/step_00000004.safetensors", "results/heads.zarr/copying/0.0.0"
PARTS = "results/ablation_full.zarr.partial"
# figures beside results, which no command reads and the same command draws again; what decides nothing in a zip file of
# unfinished results, such as its dates
HARMLESS = (".png", ".svg", ".npz")

Change = Callable[[Path], object]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@contextmanager
def silent(title: str) -> Iterator[Callable[[int, int, str], None]]:
    yield lambda done, of, text: None


@pytest.fixture(scope="module")
def measured(tiny_values: dict[str, dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on text, one on exemplars, results of both, unfinished ones, a report."""
    home = tmp_path_factory.mktemp("home")
    text = train(parse_config({**tiny_values, "snapshots": {"every": 4}}), home / "text").path
    seeds = train(parse_config(EXEMPLARS), home / "seeds").path
    sweep(text, examples=7)
    evaluate(text)

    def stop(progress: Any) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(text, examples=7, mode="full", on_part=stop)
    assert call("evaluate", "--ckpt", seeds, "--sequences", 20).exit_code == 0
    write_report(collect([text, seeds], [], OPTIONS, silent), home / "report", static=False)
    return home


@pytest.fixture
def home(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "home"))


def wrong(path: Path) -> dict[str, str]:
    """What is not as it should be, by its path."""
    return {str(finding.path): finding.what for finding in verify([path]) if not finding.ok}


# --- verify ----------------------------------------------------------------------------------------------------------


def test_all_is_well(measured: Path) -> None:
    assert not wrong(measured)
    found = {str(finding.path.relative_to(measured)) for finding in verify([measured])}
    assert {"text/snapshots", "text/tokenizer.json", "text/optimizer.pt", "seeds/log.jsonl"} <= found
    assert {"text/results/heads.zarr", f"text/{PARTS}", "report/index.html"} <= found
    assert {"text/results/report/losses.zarr", "seeds/results/report/wiring.zarr"} <= found
    result = call("verify", measured / "text", measured / "report")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].endswith("is as checksums.json has it")


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_a_changed_byte_anywhere_is_noticed(measured: Path, count: int) -> None:
    random = Random(count)
    paths = sorted(path for path in measured.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = [path.stat().st_size for path in paths]
    for number in range(count):  # as many in small files as in large ones
        path = random.choice(paths) if number % 2 else random.choices(paths, sizes)[0]
        whole, at = path.read_bytes(), random.randrange(path.stat().st_size)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ random.randrange(1, 256)]) + whole[at + 1 :])
        try:
            assert wrong(measured) or path.suffix in HARMLESS, (path, at)
        finally:
            path.write_bytes(whole)
    assert not wrong(measured)


def spoilt(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3] + b"???")


def removed(path: Path) -> None:
    path.unlink()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def written(text: str) -> Change:
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("manifest.json", removed, "is missing"),
        ("manifest.json", written("{"), "JSON|damaged"),
        ("tokenizer.json", removed, "does not exist; manifest.json lists it"),
        ("tokenizer.json", spoilt, "is not as manifest.json has it"),
        ("config.yaml", removed, "does not exist"),
        ("optimizer.pt", spoilt, "is not as manifest.json has it"),
        ("log.jsonl", spoilt, "is not as manifest.json has it"),
        (SNAPSHOT, removed, "does not exist"),
        (SNAPSHOT, spoilt, "damaged: its SHA-256 is not"),
        (SNAPSHOT, a_pipe, ""),
        (CHUNK, removed, "is missing"),
        (CHUNK, a_pipe, "is a pipe"),
        (f"{PARTS}/plan.json", removed, "does not exist"),
        (f"{PARTS}/plan.json", written("[]"), "must be a JSON object"),
        (f"{PARTS}/00000000.npz", written(""), "the same command measures it again"),
    ],
)
def test_what_is_wrong_with_a_run(home: Path, name: str, change: Change, what: str) -> None:
    change(home / "text" / name)
    found = [finding for finding in verify([home]) if finding.path == home / "text" / name and not finding.ok]
    assert re.search(what, found[0].what)


def test_a_snapshot_that_no_training_wrote(home: Path) -> None:
    run = Run(home / "text")
    shutil.copy(run.snapshot_path(4), run.snapshot_path(5))
    assert wrong(home) == {str(run.snapshot_path(5)): "is not in manifest.json"}


def test_what_killed_processes_left(home: Path) -> None:
    dead = f".tmp-{files._host()}.999999999.0-00000000"
    left = [home / f"{dead}-text", home / "text" / f"{dead}-config.yaml", home / "text" / PARTS / f"{dead}-x.npz"]
    for path in left:
        path.write_text("half of it")
    (home / "text" / f".tmp-{files._owner()}-00000000-log.jsonl").write_text("of a living one")
    assert set(wrong(home / "text")) == set(map(str, left))


def test_snapshots_reports_and_stores_alone(home: Path) -> None:
    snapshot, report = home / "text" / SNAPSHOT, home / "report"
    assert all(finding.ok for finding in verify([snapshot]))
    spoilt(snapshot)
    assert "manifest.json" in wrong(snapshot)[str(snapshot)]
    spoilt(report / "index.html")
    assert wrong(report) == {str(report / "index.html"): "is not as checksums.json has it"}
    (report / "checksums.json").write_text("{")
    assert list(wrong(report)) == [str(report / "checksums.json")]
    (report / "checksums.json").unlink()
    assert not wrong(report)  # of an earlier version
    store = home / "text" / "results" / "ablation_full.zarr"
    shutil.copytree(home / "text" / "results" / "heads.zarr", store)
    assert [finding.path.name for finding in verify([store])] == [store.name, f"{store.name}.partial"]


def test_stores_beside_a_run(home: Path) -> None:
    beside = Path(shutil.copytree(home / "text" / "results" / "heads.zarr", home / "pca.zarr"))
    (home / "other.zarr").mkdir()  # not known to be ours
    assert not wrong(home / "text")
    (beside / "copying" / "0.0.0").unlink()
    assert wrong(home / "text") == {str(beside / "copying" / "0.0.0"): "is missing"}


def test_the_command(home: Path, tmp_path: Path) -> None:
    chunk = home / "text" / CHUNK
    spoilt(chunk)
    result = call("verify", home / "text", "--json", tmp_path / "found.json")
    assert result.exit_code == 2
    assert result.stderr == f"error: verify: {chunk} has other bytes than were written\n"
    assert [line.split()[:2] for line in result.stdout.splitlines() if line.startswith("!")] == [["!", str(chunk)]]
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["ok"]
    assert {"file": str(chunk), "what": "has other bytes than were written", "ok": False} in found["files"]
    assert json.loads(call("verify", home / "report", "--json", "-").stdout)["ok"]


def test_where_there_is_nothing(home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "holds nothing of icl_fast"),
        (home / "text" / "config.yaml", "is no snapshot; give a run folder"),
    ):
        result = call("verify", path)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: path: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


# --- what is damaged is refused, and measured again where that is asked for -------------------------------------------

COMMANDS = {
    "text/results/ablation_pattern-preserving.zarr": "ablate --ckpt text --examples 7",
    "text/results/heads.zarr": "evaluate --ckpt text",
    "text/results/losses.zarr": "pca text --out pca.zarr --examples 7",
    "pca.zarr": "pca text --out pca.zarr --examples 7",
    "seeds/results/strategies.zarr": "evaluate --ckpt seeds --sequences 20",
    "seeds/results/ablation_direct.zarr": "ablate --ckpt seeds --mode direct --sequences 20",
    "toy_saddle.zarr": "toy phase-change --seeds 1 --steps 9 --plateau-seeds 1 --plateau-steps 9 --out toy.zarr",
    "toy.zarr": "toy coopetition --seeds 1 --steps 20 --out toy.zarr",
}


@pytest.mark.parametrize("store", COMMANDS)
def test_repair(home: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    command = COMMANDS[store].split()
    if not Path(store).exists():
        assert call(*command).exit_code == 0
    before = open_results(store)
    chunk = sorted(path for path in Path(store).rglob("*") if path.name[0].isdigit())[-1]
    chunk.unlink()
    result = call(*command)
    assert result.exit_code == 2
    missing = f"{chunk.relative_to(store)} is missing"
    assert result.stderr.splitlines()[-1] == f"error: results {store}: damaged: {missing}; --repair measures it again"
    assert not chunk.exists()
    assert call(*command, "--repair").exit_code == 0
    assert open_results(store).identical(before)
    assert list(home.rglob("*.partial")) == [home / "text" / PARTS]


@pytest.mark.parametrize("store", ["text/results/report/heads.zarr", "seeds/results/report/wiring.zarr"])
def test_repair_of_a_report(home: Path, store: str) -> None:
    runs, before = [home / "text", home / "seeds"], open_results(home / store)
    others = {path: path.stat().st_mtime_ns for path in home.rglob(".zmetadata") if path.parent != home / store}
    spoilt(home / store / ".zattrs")
    with pytest.raises(DamagedResults, match=rf"{store}: damaged: .zattrs has other bytes .*; --repair"):
        collect(runs, [], OPTIONS, silent)
    collect(runs, [], replace(OPTIONS, repair=True), silent)
    assert open_results(home / store).identical(before)
    assert others == {path: path.stat().st_mtime_ns for path in others}


def test_what_is_looked_at_is_not_written_over(home: Path) -> None:
    run = home / "text"
    before = (run / "config.yaml").read_bytes()
    result = CliRunner().invoke(cli, ["verify", str(run), "--json", str(run / "config.yaml")])
    assert result.exit_code == 2
    assert f"--json: {run / 'config.yaml'} is in {run}, which is only looked at" in result.stderr
    assert (run / "config.yaml").read_bytes() == before
