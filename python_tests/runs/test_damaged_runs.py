"""Run folders that something happened to: one line that names the file and says what is wrong, from every reader."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from icl_fast import InputError
from icl_fast.files import sha256
from icl_fast.measure.exemplar.curves import training_curves
from icl_fast.runs import Run, RunSeries, open_series, parse_config
from icl_fast.training import train

EXEMPLARS: dict[str, Any] = {
    "exemplars": {"kind": "gaussian", "classes": 20, "exemplars": 2, "width": 6, "encoder": "none"},
    "sequences": {"p_icl": 1.0, "classes": 12, "label_pool": 3, "held_out_classes": 4},
    "model": {"width": 8, "heads": 2},
    "training": {"steps": 8, "batch": 2, "lr": 1e-2, "log_every": 2},
    "evaluation": {"every": 4, "sequences": 10},
    "snapshots": {"every": 4},
    "members": 2,
}
KINDS = ["text", "exemplars"]
Edit = Callable[[Any], Any]


@pytest.fixture(scope="module", params=KINDS)
def begun(request: pytest.FixtureRequest, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing in the manifest says is finished: its state and its log may still change."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    if request.param == "text":
        shutil.copytree(tiny_run, folder)
    else:
        train(parse_config(EXEMPLARS), folder)
    Run(folder).forget("optimizer.pt", "log.jsonl")
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture
def text(tiny_run: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(tiny_run, tmp_path / "run"))


def refused(action: Callable[[], Any], pattern: str) -> None:
    with pytest.raises(InputError, match=pattern) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def resume(run: Run) -> Run:
    return train(Run(run.path).config, run.path, resume=True)


# --- the state -------------------------------------------------------------------------------------------------------


def edited(state: Any, path: str, edit: Edit) -> Any:
    """The state with the part at a path, such as `engine/exp_avg`, changed; a name may be the front of one."""
    name, _, rest = path.partition("/")
    key = next(key for key in state if str(key).startswith(name))
    return {**state, key: edited(state[key], rest, edit) if rest else edit(state[key])}


def without(state: dict[Any, Any]) -> dict[Any, Any]:
    return dict(list(state.items())[1:])


EDITS: list[tuple[str, str, Edit, str]] = [
    *(("all", "step", lambda _, value=value: value, "step ") for value in (13, -1, 10**9, 12.0, "12", None, True)),
    ("all", "model", without, "model missing or unknown: "),
    ("all", "model", lambda it: it | {"more": torch.zeros(1)}, "model missing or unknown: more"),
    ("all", "model", lambda it: list(it.values()), "model is list, the run's has parts"),
    ("all", "model/blocks", lambda it: it.double(), "blocks.* is torch.float64"),
    ("all", "model/blocks", lambda it: it[..., :1], r"blocks.* is torch.float32 \[.*1\], the run's is torch.float32"),
    ("all", "model/blocks", lambda it: it * torch.nan, "blocks.* holds NaN or infinity"),
    ("all", "model/blocks", lambda it: it.tolist(), "blocks.* is list, the run's is torch.float32"),
    ("text", "optimizer", lambda _: {}, "optimizer missing or unknown: param_groups, state"),
    ("text", "optimizer/state", lambda _: {}, "state missing or unknown: 0"),
    ("text", "optimizer/state", lambda it: it | {99: it[0]}, "state missing or unknown: 99"),
    ("text", "optimizer/state/0", without, "0 missing or unknown"),
    ("text", "optimizer/state/0/step", lambda it: it + 1, "optimizer: 0: step is 13, and in this run it is 12 to 12"),
    ("text", "optimizer/state/0/exp_avg", lambda it: it.half(), "exp_avg is torch.float16"),
    ("text", "optimizer/state/0/exp_avg_sq", lambda it: it / 0, "exp_avg_sq holds NaN or infinity"),
    ("text", "position_loss", lambda it: it[:3], r"position_loss is torch.float64 \[3\]"),
    ("text", "position_weight", lambda _: float("nan"), "position_weight is nan"),
    ("exemplars", "model/outputs", lambda it: it + 1, "outputs has other counts than the run's"),
    ("exemplars", "engine", lambda it: it | {"more": 1}, "engine missing or unknown: more"),
    ("exemplars", "engine/exp_avg", lambda it: it[:1], r"engine: exp_avg.* is torch.float32 \[1, "),
    ("exemplars", "engine/exp_avg_sq", lambda it: it.to(torch.bfloat16), "exp_avg_sq.* is torch.bfloat16"),
    ("exemplars", "losses", lambda it: it[:1], r"losses is torch.float64 \[1\], the run's is torch.float64 \[2\]"),
    ("exemplars", "losses", lambda it: it * torch.nan, "losses holds NaN or infinity"),
    ("exemplars", "since", lambda _: 9, "since is 9, and in this run it is 0 to 8"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "edit", "said"), EDITS)
def test_a_state_that_is_not_the_runs(run: Run, kind: str, path: str, edit: Edit, said: str) -> None:
    """Whether it was changed after it was written, or never carried a digest, as those of earlier versions."""
    if kind not in ("all", run.config.task):
        pytest.skip("other states have no such part")
    state = edited(torch.load(run.state_path), path, edit)
    torch.save(state, run.state_path)
    refused(
        lambda: resume(run), r"optimizer\.pt: damaged \(it is not as it was written\); put back a copy of the file, or"
    )
    torch.save({name: part for name, part in state.items() if name != "sha256"}, run.state_path)
    refused(lambda: resume(run), rf"optimizer\.pt: .*{said}.*; put back a copy of the file, or start the run anew")


def test_a_step_before_the_saved_one(run: Run) -> None:
    state = torch.load(run.state_path)
    torch.save(state | {"step": state["step"] - 1}, run.state_path)
    refused(lambda: resume(run), r"optimizer\.pt: damaged \(it is not as it was written\)")


@pytest.mark.parametrize("content", [[], {}, None, 3, torch.zeros(3), {"step": [torch.zeros(1).expand(10**12)]}])
def test_a_state_of_something_else(run: Run, content: Any) -> None:
    torch.save(content, run.state_path)
    refused(lambda: resume(run), r"optimizer\.pt(:| ).*; put back a copy")
    for raw in (b"", b"PK\x03\x04", b"text", bytes(1000)):
        run.state_path.write_bytes(raw)
        refused(lambda: resume(run), r"optimizer\.pt: damaged \(")


def test_a_changed_byte_of_the_state_is_noticed_or_changes_nothing(run: Run) -> None:
    def fingerprint() -> str:
        return str(torch.load(run.state_path, map_location="cpu")["sha256"])  # of all that is in it

    whole, random, same = run.state_path.read_bytes(), Random(0), 0
    before = fingerprint()
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        run.state_path.write_bytes(damaged)
        try:
            run.load_state()
        except InputError:
            continue
        assert fingerprint() == before
        same += 1
    assert same < 50


def test_states_of_any_model_are_resumed(tiny_values: dict[str, Any], tmp_path: Path) -> None:
    """Whatever parameters there are, each has its moments."""
    for number, model in enumerate(({"key": "smeared", "mlp": True}, {"position": "none", "norm_affine": False})):
        data = {**tiny_values["data"], "context": 1 + number}
        values = {**tiny_values, "model": {**tiny_values["model"], **model, "attention_bias": True}, "data": data}
        run = train(parse_config(values), tmp_path / str(number))
        run.forget("optimizer.pt")
        assert resume(run).load_snapshot(12).step == 12


def test_a_state_that_is_gone(run: Run) -> None:
    run.note("optimizer.pt")
    run.state_path.unlink()
    refused(
        lambda: resume(run), r"optimizer\.pt: is gone, and manifest\.json lists it; put it back, or start the run anew"
    )
    run.state_path.mkdir()
    refused(lambda: resume(run), r"optimizer\.pt is a folder; give a file")


# --- what does not fit together --------------------------------------------------------------------------------------


def readers(run: Run) -> list[Callable[[], Any]]:
    """All that reads a run, as the commands do."""
    step = run.snapshot_steps()[-1]
    return [
        lambda: Run(run.path).config,
        lambda: resume(run),
        lambda: open_series(run.path),
        lambda: open_series(run.snapshot_path(step)),
        lambda: Run(run.path).load_snapshot(step),
    ]


def test_a_config_that_was_edited(run: Run) -> None:
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("width: 16", "width: 32").replace("heads: 2", "heads: 4"))
    for read in readers(run):
        refused(
            read, r"config\.yaml: is not as the run wrote it .* take its line out of manifest\.json if the change is"
        )
    Run(run.path).note("config.yaml")  # the change is meant; but the snapshots are others
    refused(lambda: Run(run.path).load_snapshot(0), r"its (heads|width) is \d+ and that of .*config\.yaml \d+; one of")
    _, reasons = RunSeries(Run(run.path)).readable()
    assert all("and that of" in reason for reason in reasons.values())
    assert len(reasons) == 3


@pytest.mark.parametrize(
    ("kind", "edit", "said"),
    [
        ("text", lambda it: {**it, "data": {**it["data"], "context": 48}}, "context is 24 and that of .* 48"),
        ("text", lambda it: {**it, "data": {**it["data"], "vocab": 300}}, "vocab is 280"),
        ("all", lambda it: {**it, "training": {**it["training"], "batch": 5}}, "seen is "),
        ("exemplars", lambda it: {**it, "sequences": {**it["sequences"], "pairs": 3}}, "pairs is 2"),
        ("exemplars", lambda it: {**it, "members": 3}, "members is 2 and that of .* 3"),
    ],
)
def test_a_config_of_another_run(run: Run, kind: str, edit: Edit, said: str) -> None:
    if kind not in ("all", run.config.task):
        pytest.skip("of the other task")
    values = edit(run.config.model_dump(mode="json"))
    (run.path / "config.yaml").write_text(parse_config(values).to_yaml())
    run.note("config.yaml")
    refused(lambda: Run(run.path).load_snapshot(run.snapshot_steps()[1]), rf"its {said}")


def test_snapshots_of_other_steps_and_runs(run: Run) -> None:
    first, second, last = run.snapshot_steps()
    shutil.copy(run.snapshot_path(first), run.snapshot_path(second))
    refused(lambda: run.load_snapshot(second), r"its SHA-256 is not the one in manifest\.json")
    run.note(f"snapshots/{run.snapshot_path(second).name}")
    refused(lambda: run.load_snapshot(second), rf"its step is 0 and that of .*config\.yaml {second}")
    run.forget(f"snapshots/{run.snapshot_path(second).name}")
    refused(lambda: run.load_snapshot(second), r"is not in manifest\.json, so that another run wrote it")
    run.forget(f"snapshots/{run.snapshot_path(last).name}")
    assert run.load_snapshot(last).step == last  # as a kill between the two leaves it
    assert RunSeries(run).readable()[0].steps == [first, last]


def test_a_snapshot_that_is_listed_and_gone(run: Run) -> None:
    first, second, last = run.snapshot_steps()
    run.snapshot_path(last).unlink()
    assert open_series(run.path).missing() == {last: "missing"}
    for name in ("last", str(last)):
        refused(lambda name=name: open_series(run.path, name), rf"snapshots: .*{last}")
    for step in (first, second):
        run.snapshot_path(step).unlink()
    refused(lambda: open_series(run.path), r"ckpt: .* has none of its snapshots any more")


def test_a_tokenizer_that_was_edited(text: Run) -> None:
    whole = text.tokenizer_path.read_text()
    for content in (whole.replace("a", "b", 1), "{", "\xff" * 3, ""):
        text.tokenizer_path.write_bytes(content.encode("latin-1", "replace"))
        for read in (lambda: resume(text), RunSeries(text).tokenizer, RunSeries(text).evaluation_set):
            refused(read, r"tokenizer\.json: is not as the run wrote it")
    text.tokenizer_path.unlink()
    refused(RunSeries(text).evaluation_set, r"tokenizer\.json does not exist")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"), ("{", "is not JSON"), ("[" * 10**5, "is not JSON"), ("\x00", "is not JSON"),
        ('{"config.yaml": "0", "config.yaml": "1"}', "'config.yaml' is there twice"),
        ("[]", "no JSON object"), ("null", "no JSON object"), ("3", "no JSON object"), ("NaN", "no JSON object"),
        ('{"config.yaml": 3}', "config.yaml has no SHA-256"), ('{"config.yaml": null}', "config.yaml has no SHA-256"),
        ('{"log.jsonl": "abc"}', "log.jsonl has no SHA-256"), ('{"a": ["' + "0" * 64 + '"]}', "a has no SHA-256"),
    ],
)  # fmt: skip
def test_a_damaged_manifest(run: Run, content: str, said: str) -> None:
    manifest = run.path / "manifest.json"
    manifest.write_text(content)
    for read in readers(run):
        refused(read, rf"manifest\.json: .*{said}")
    manifest.unlink()
    manifest.mkdir()
    for read in readers(run):
        refused(read, r"manifest\.json is a folder; give a file")


@pytest.mark.parametrize(("make", "kind"), [(os.mkdir, "folder"), (os.mkfifo, "pipe")])
def test_a_config_that_is_no_file(run: Run, make: Callable[[Path], None], kind: str) -> None:
    config, files = run.path / "config.yaml", readers(run)
    config.unlink()
    make(config)
    for read in files:
        refused(read, rf"config\.yaml is a {kind}; give a file")


# --- the log ---------------------------------------------------------------------------------------------------------

LINES = [
    "", "text", "{", "[]", "3", "null", "{}", '{"loss": 1}', '{"step": NaN}', '{"step": -1}', '{"step": 1.5}',
    '{"step": "1"}', '{"step": true}', '{"step": null}', '{"step": 1e400}', '{"step": 9223372036854775808}',
    '{"step": ' + "1" * 5000 + "}", "[" * 10**5, '{"a":' * 10**5, '{"step": 1, "step": 2}', "\x00", "\ufeff{}",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:20])
def test_a_line_of_the_log_that_no_run_wrote(run: Run, line: str) -> None:
    log = run.path / "log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    for read in (run.read_log, lambda: resume(run)):
        refused(read, r"log\.jsonl: line 3: is (not JSON|no record of a step)")


def test_a_finished_log_that_was_edited(text: Run) -> None:
    log = text.path / "log.jsonl"
    log.write_text(log.read_text().replace("0.", "1.", 1))
    refused(text.read_log, r"log\.jsonl: is not as the run wrote it")


CURVES: list[tuple[Edit, str]] = [
    (lambda it: it.pop("sequences"), "sequences"),
    (lambda it: it.update(sequences="x"), "sequences"),
    (lambda it: it.update(sequences=10**30), "sequences"),
    (lambda it: it.update(loss="x") if "loss" in it else it["evaluators"].clear(), "is not what this run logs"),
    (lambda it: it.update(loss=[1.0]) if "loss" in it else it.update(evaluators=[]), "is not what this run logs"),
    (lambda it: it.update(loss=None) if "loss" in it else it.update(evaluators=None), "is not what this run logs"),
    (lambda it: it.update(loss=[[1.0], [2.0]]) if "loss" in it else it["evaluators"]["train"].pop("loss"), "is not"),
    (lambda it: it.update(loss=[1.0, "x"]) if "loss" in it else it["evaluators"]["icl"].update(loss=["x"]), "is not"),
]


@pytest.mark.parametrize("begun", ["exemplars"], indirect=True)
@pytest.mark.parametrize(("edit", "said"), CURVES)
def test_curves_of_an_edited_log(run: Run, edit: Edit, said: str) -> None:
    log = run.path / "log.jsonl"
    lines = log.read_text().splitlines()
    for number in range(len(lines)):
        record = json.loads(lines[number])
        edit(record)
        log.write_text("\n".join([*lines[:number], json.dumps(record), *lines[number + 1 :]]) + "\n")
        refused(lambda: training_curves(run), rf"log\.jsonl: line {number + 1}: .*{said}")


def test_a_log_that_is_gone(text: Run) -> None:
    (text.path / "log.jsonl").unlink()
    for read in (text.read_log, lambda: resume(text)):
        refused(read, r"log\.jsonl: is gone, and manifest\.json lists it; put it back, or start the run anew")


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["file", "pipe"])
def test_snapshots_that_are_no_folder(text: Run, make: Callable[[Path], None]) -> None:
    folder = text.path / "snapshots"
    shutil.rmtree(folder)
    make(folder)
    for read in (text.snapshot_steps, lambda: open_series(text.path)):
        refused(read, r"snapshots: cannot be read \(Not a directory\)")


# --- what may not be read or written ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["config.yaml", "manifest.json", "optimizer.pt", "log.jsonl", "snapshots", "tokenizer.json"]
)
def test_files_that_may_not_be_read(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (run.path / name).exists():
        pytest.skip("only of runs on text")

    def forbidding(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if Path(str(path)) == run.path / name:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return call

    monkeypatch.setattr("builtins.open", forbidding(open))
    monkeypatch.setattr("os.listdir", forbidding(os.listdir))
    reads = lambda: (RunSeries(run).load(0), run.read_log(), run.load_state(), run.tokenizer_json())  # noqa: E731
    for read in (reads, lambda: resume(run))[: 1 if name == "snapshots" else 2]:
        refused(read, rf"{name}:? cannot be read \(Permission denied\)")


@pytest.mark.parametrize(
    "name", ["log.jsonl", "optimizer.pt", "manifest.json", "config.yaml", "tokenizer.json", "snapshots"]
)
def test_files_that_cannot_be_written(
    name: str, tiny_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(source: Any, target: Any, *, real: Callable[..., None] = os.replace) -> None:
        if name in Path(target).parts:
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr("os.replace", replace)
    refused(
        lambda: train(parse_config(tiny_values), tmp_path / "run"),
        rf"{name}.*: cannot be written \(Permission denied\)",
    )


def test_older_runs_without_entries_are_read(run: Run) -> None:
    (run.path / "manifest.json").unlink()
    done = resume(run)
    assert open_series(done.path).steps == run.snapshot_steps()
    assert {"config.yaml", "optimizer.pt", "log.jsonl"} <= done.manifest().keys()
    assert done.manifest()["config.yaml"] == sha256(done.path / "config.yaml")
