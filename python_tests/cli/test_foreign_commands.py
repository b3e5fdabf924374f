"""Commands on other people's models, as a user types them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from icl_fast.cli.main import cli
from icl_fast.data.tokenizer import train_tokenizer
from icl_fast.measure import open_results

STEPS = (0, 4, 16, 64)


@pytest.fixture(scope="module")
def series(write_llama: Callable[..., Path], corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four snapshots, two of which are the same and one of which has NaN."""
    tokenizer = train_tokenizer([(corpus_folder / "00.txt").read_text()], 290)
    folder = tmp_path_factory.mktemp("theirs") / "tiny"
    for step in STEPS:
        write_llama(folder / f"step{step}", min(step, 4), tokenizer)
    file = folder / "step16" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, file)
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus_folder: Path) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)

    def run(command: str, *arguments: object) -> Result:
        return CliRunner().invoke(cli, [command, *map(str, arguments)])

    return run


def test_evaluate_and_ablate(run: Callable[..., Result], series: Path, corpus_folder: Path) -> None:
    common = ("--ckpt", series, "--text", corpus_folder, "--context", 24)
    stopped = run("evaluate", *common)
    assert stopped.exit_code == 2
    assert "step16: model.norm.weight holds NaN or infinity" in stopped.stderr
    result = run("evaluate", *common, "--skip-damaged")
    assert result.exit_code == 0, result.output
    assert "examples begin with <|bos|> (id 0), which stands between the texts of its family" in result.stderr
    assert "tiny: snapshots 4, 64 hold the same weights" in result.stderr
    assert "left out: step 16, model.norm.weight holds NaN or infinity" in result.stdout
    assert "results in results/tiny/heads.zarr" in result.stdout
    result = run("ablate", *common, "--skip-damaged", "--examples", 5, "--positions", "all")
    assert result.exit_code == 0, result.output
    assert "snapshot 16 is left out: model.norm.weight holds NaN" in result.stderr
    results = open_results(Path("results/tiny/ablation_pattern-preserving.zarr"))
    assert results["snapshot"].values.tolist() == [0, 4, 64]
    assert results["position_loss"].shape == (3, 9, 24)


def test_plan(run: Callable[..., Result], series: Path) -> None:
    result = run("ablate", "--ckpt", series / "step4", "--text", "repeated-random", "--context", 24, "--plan")
    assert result.exit_code == 0, result.output
    assert "8 ablations (pattern-preserving) of 1 snapshots on 512 examples of 24 tokens" in result.stdout


def test_pca_beside_a_run_needs_the_same_examples(
    run: Callable[..., Result], series: Path, corpus_folder: Path
) -> None:
    result = run(
        "pca", series, "--revisions", "step0,step4,step64", "--text", corpus_folder, "--context", 24, "--out", "a.zarr"
    )
    assert result.exit_code == 0, result.output
    assert Path("results/tiny/losses.zarr").is_dir()
    assert open_results(Path("a.zarr"))["coordinates"].shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--context", 1), "--context: must be 2 or more, got 1"),
        (("--context", 65), "--context: 65 is more than the 64 positions that the model"),
        (("--text", "nowhere"), "--text: nowhere: no such folder"),
        (("--text", ""), "--text: an empty value"),
        (("--text", "stdlib", "--text", "stdlib"), "--text: stdlib is given twice"),
        (("--text", "stdlib", "--text", "repeated-random"), "--text: repeated-random is no text that goes with others"),
        (("--bos", "x"), "--bos: 'x' is neither auto, none nor the id"),
        (("--revisions", "step5"), "--revisions: "),
        (("--text-seed", -1), "--text-seed: must be 0 or more"),
        (("--tokenizer", "nowhere"), "--tokenizer: nowhere does not exist"),
        (("--keep-downloads", "no"), "--keep-downloads: "),
        (("--keep-downloads", "maybe"), "--keep-downloads: 'maybe' is not one of"),
        (("--examples", 10**9), "--examples: "),
        (("--snapshots", "5"), "--snapshots: none at step 5; there are 0, 4, 16, 64"),
        (("--sequences", 5), "--sequences: for runs on exemplars"),
    ],
)
def test_mistakes(run: Callable[..., Result], series: Path, arguments: tuple[object, ...], message: str) -> None:
    result = run("ablate", "--ckpt", series, *arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {message}"), result.stderr
    assert not Path("results").exists()


def test_out_is_not_among_the_models(run: Callable[..., Result], series: Path) -> None:
    for out in (series, series / "new", series / "step0", series.parent):
        result = run("evaluate", "--ckpt", series, "--out", out)
        assert result.exit_code == 2
        assert "is a place of other people's models; choose another one" in result.stderr


def test_what_is_no_model(run: Callable[..., Result], tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "mamba"}')
    for ckpt, message in {
        "someone/model-70m": "does not exist; one on the hub would be hf:someone/model-70m",
        "odd": "model_type 'mamba' is not known",
        "hf:one": "--ckpt: hf:one does not exist",
    }.items():
        result = run("ablate", "--ckpt", ckpt)
        assert result.exit_code == 2
        assert message in result.stderr, result.stderr
    result = run("ablate", "--ckpt", tiny_run, "--context", 12)
    assert result.stderr.startswith("error: --text: is for other people's models")


class _Hub(BaseHTTPRequestHandler):
    """The little of the hub that listing and downloading asks for: a folder a revision."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        model = "someone/pythia-1m"
        if path == f"api/models/{model}/refs":
            branches = [
                {"name": d.name, "ref": f"refs/heads/{d.name}", "targetCommit": d.name} for d in self._folders()
            ]
            return self._send(json.dumps({"branches": branches, "tags": [], "converts": []}).encode(), {}, body)
        if path.startswith(f"api/models/{model}"):
            revision = path.rpartition("/revision/")[2]
            files = [
                {"rfilename": file.name, "size": file.stat().st_size, "blobId": "b"}
                | (
                    {"lfs": {"sha256": _sha(file), "size": file.stat().st_size, "pointerSize": 9}}
                    if _large(file)
                    else {}
                )
                for file in sorted((self.folder / revision).iterdir())
            ]
            return self._send(json.dumps({"id": model, "sha": _commit(revision), "siblings": files}).encode(), {}, body)
        if path.startswith(f"{model}/resolve/"):
            commit, _, name = path.removeprefix(f"{model}/resolve/").partition("/")
            file = next(d / name for d in self._folders() if commit in (d.name, _commit(d.name)))
            self.asked.append(f"{file.parent.name}/{name}")
            return self._send(
                file.read_bytes(), {"ETag": f'"{_sha(file)}"', "X-Repo-Commit": _commit(file.parent.name)}, body
            )
        self.send_error(404)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def _send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _commit(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


def _large(file: Path) -> bool:
    return file.suffix == ".safetensors"


@pytest.fixture
def hub(series: Path) -> Iterator[tuple[str, list[str]]]:
    pytest.importorskip("huggingface_hub")
    asked: list[str] = []
    handler = type("Hub", (_Hub,), {"folder": series, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("keep", ["yes", "no"])
def test_a_model_of_the_hub(
    hub: tuple[str, list[str]], series: Path, corpus_folder: Path, tmp_path: Path, keep: str
) -> None:
    address, asked = hub
    cache = tmp_path / "cache"
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "ICL_FAST_CACHE": str(cache)}
    command = [sys.executable, "-m", "icl_fast", "ablate", "--ckpt", "hf:someone/pythia-1m"]
    command += ["--revisions", "step0,step64", "--text", str(corpus_folder), "--context", "24", "--examples", "4"]
    command += ["--keep-downloads", keep]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    results = open_results(tmp_path / "results" / "pythia-1m" / "ablation_pattern-preserving.zarr")
    assert results["tokens"].values.tolist() == [0, 64 * 2_097_152]
    local = CliRunner().invoke(
        cli,
        ["ablate", "--ckpt", str(series), *command[6:-2], "--out", str(tmp_path / "local.zarr")],
    )
    assert local.exit_code == 0, local.output
    there = open_results(tmp_path / "local.zarr")
    assert (results["position_loss"].values == there["position_loss"].values).all()
    assert not any(name.startswith(("step4/", "step16/")) for name in asked)
    kept = [*(tmp_path / "hf").rglob("*.safetensors")]
    assert bool(kept) == (keep == "yes")
    assert not [*cache.rglob("*.safetensors")]


def test_a_hub_that_does_not_have_it(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "icl_fast", "ablate", "--ckpt", "hf:someone/else"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --ckpt: hf:someone/else cannot be had from the hub (")
    assert len(done.stderr.splitlines()) == 1
