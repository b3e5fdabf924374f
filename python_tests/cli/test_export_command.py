"""`icl-fast export` as a user sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from icl_fast.cli.main import cli
from icl_fast.models.foreign import load_foreign
from icl_fast.runs import open_series, parse_config
from icl_fast.training import train

TOKENS = torch.arange(12)[None]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, arguments)])


@pytest.mark.parametrize(
    ("to", "what"),
    [("transformer-lens", "HookedTransformer (TransformerLens)"), ("safetensors", "Transformer (icl_fast)")],
)
@pytest.mark.parametrize("step", [None, 6])
def test_a_run(tiny_run: Path, tmp_path: Path, to: str, what: str, step: int | None) -> None:
    out = tmp_path / "out"
    result = call("--ckpt", tiny_run, "--to", to, "--out", out, *([] if step is None else ["--snapshot", step]))
    assert result.exit_code == 0, result.output
    series = open_series(tiny_run)
    chosen = series.steps[-1] if step is None else step
    assert result.stdout == f"{what}: snapshot {chosen} of {tiny_run.name} in {out}\n"
    with torch.no_grad():
        expected = series.load(chosen).model(TOKENS)
        torch.testing.assert_close(load_foreign(out)(TOKENS), expected, rtol=0, atol=1e-5)
    assert (out / "tokenizer.json").read_text() == series.tokenizer().to_str()


def test_one_that_was_exported_is_exported_again(tiny_run: Path, tmp_path: Path) -> None:
    """Through the other format, back to the same weights, with the tokenizer."""
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    for ckpt, to, out in ((tiny_run, "safetensors", one), (one, "transformer-lens", two), (two, "safetensors", three)):
        result = call("--ckpt", ckpt, "--to", to, "--out", out)
        assert result.exit_code == 0, result.output
    first, last = load_foreign(one).state_dict(), load_foreign(three).state_dict()
    assert all(torch.equal(last[name], weight) for name, weight in first.items())
    assert (one / "tokenizer.json").read_text() == (three / "tokenizer.json").read_text()
    (one / "tokenizer.json").unlink()
    result = call("--ckpt", one, "--to", "safetensors", "--out", tmp_path / "four")
    assert result.exit_code == 0
    assert result.stderr.startswith("without a tokenizer: ")
    assert not (tmp_path / "four" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "hf"], "to: hf: no family has "),
        (["--to", "onnx"], "--to: 'onnx' is not one of"),
        (["--to", "safetensors", "--snapshot", 7], "--snapshot"),
        (["--to", "safetensors", "--snapshot", "last"], "--snapshot"),
    ],
)
def test_bad_input(tiny_run: Path, tmp_path: Path, arguments: list[object], message: str) -> None:
    result = call("--ckpt", tiny_run, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_runs_on_exemplars_have_no_place_elsewhere(tmp_path: Path) -> None:
    values = {
        "exemplars": {"kind": "gaussian", "classes": 30, "exemplars": 3, "width": 8, "encoder": "none"},
        "sequences": {"classes": 20, "held_out_classes": 6},
        "model": {"width": 16, "heads": 2},
        "training": {"steps": 1, "batch": 4, "engine": "plain"},
    }
    run = train(parse_config(values), tmp_path / "run").path
    result = call("--ckpt", run, "--to", "safetensors", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: --ckpt: {run} was trained on exemplars, and other programs have no such models; "
        "`icl-fast evaluate RUN` measures it here\n"
    )
