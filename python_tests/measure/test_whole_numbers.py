"""Integers of any kind, wherever a public function takes integers: numpy's, torch's, lists; and never True."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import icl_fast
from icl_fast import InputError, Intervention, Transformer, TransformerConfig, analysis
from icl_fast.data import template_text
from icl_fast.measure import (
    copying_scores,
    logit_attribution,
    measure_idealised,
    open_results,
    prefix_matching_scores,
    previous_token_scores,
)
from icl_fast.models import ExemplarConfig, ExemplarTransformer, make_clamps, save_snapshot
from icl_fast.runs import Run, open_series, parse_config

KINDS = [int, np.int64, np.int32, np.uint8, np.array, torch.tensor]
NO_NUMBERS = [True, np.True_, np.array(True), torch.tensor(True), 1.0, np.float64(1), np.array(1.0), "1.5", None]
Number = Callable[[int], Any]
SHAPE = ExemplarConfig(features=7, outputs=8, pairs=2, layers=2, width=12, heads=3)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(vocab=60, context=64, layers=2, width=8, heads=2))


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(60, (12, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [torch.Tensor.int, lambda t: t.numpy().astype(np.uint16), torch.Tensor.tolist])
def test_ids(model: Transformer, tokens: torch.Tensor, kind: Callable[[torch.Tensor], Any]) -> None:
    """The same bits as int64 tensors."""
    hidden, given, targets = torch.randn(12, 20, 8), kind(tokens), tokens.flip(0)
    torch.testing.assert_close(model(given), model(tokens), rtol=0, atol=0)
    assert torch.equal(model.token_losses(hidden, given), model.token_losses(hidden, tokens))
    where = tokens[:, 0] % 20 + 1
    effects = icl_fast.ablate(model, given, kind(targets), random_position=kind(where), heads="1.0")
    assert effects.identical(icl_fast.ablate(model, tokens, targets, random_position=where, heads="1.0"))
    assert torch.equal(previous_token_scores(model, given), previous_token_scores(model, tokens))
    found, expected = (logit_attribution(model, one, one, 1, 0) for one in (given, tokens))
    assert torch.equal(found.logits, expected.logits)
    ids = torch.arange(60)
    assert torch.equal(copying_scores(model, ids=kind(ids)), copying_scores(model, ids=ids))
    labels, exemplars = tokens[:4, :2].reshape(2, 2, 2) % 8, torch.randn(2, 2, 3, 7)
    pair = ExemplarTransformer(SHAPE, seeds=kind(torch.arange(2)))
    assert torch.equal(pair(exemplars, kind(labels))[0], pair(exemplars, labels)[0])


@pytest.mark.parametrize("number", KINDS)
def test_of_a_model(model: Transformer, tokens: torch.Tensor, number: Number, tmp_path: Path) -> None:
    config = TransformerConfig(vocab=number(60), context=number(64), layers=number(2), width=number(8), heads=number(2))
    assert config == model.config
    assert all(type(value) is not np.int64 for value in config.model_dump().values())
    zero = Intervention.zero("0.z", heads=[number(1)], positions=[number(0)], examples=[number(3)])
    expected = Intervention.zero("0.z", heads=[1], positions=[0], examples=[3])
    assert torch.equal(model(tokens, interventions=[zero]), model(tokens, interventions=[expected]))
    effects = icl_fast.ablate(
        model, tokens, positions=[number(2), number(18)], icl_positions=[number(2), number(18)], icl_window=number(1),
        memory=np.int64(2**28), heads="0.1",
    )  # fmt: skip
    assert effects.identical(
        icl_fast.ablate(model, tokens, positions="2,18", icl_positions="2,18", memory="256MiB", heads="0.1")
    )
    seed, bos = number(1), number(0)
    assert torch.equal(prefix_matching_scores(model, seed=seed, bos=bos), prefix_matching_scores(model, seed=1, bos=0))
    assert torch.equal(copying_scores(model, seed=seed), copying_scores(model, seed=1))
    assert template_text(number(3), seed) == template_text(3, 1)
    clamps = make_clamps(SHAPE, ["match", "pt-attend"], previous_token_heads=[seed], induction_heads=[bos])
    expected_clamps = make_clamps(SHAPE, ["match", "pt-attend"], previous_token_heads=[1], induction_heads=[0])
    assert str(clamps) == str(expected_clamps)
    save_snapshot(tmp_path / "one.safetensors", model, step=number(3), seen=number(5))
    assert icl_fast.load_snapshot(tmp_path / "one.safetensors").step == 3
    assert parse_config({"training": {"steps": number(5)}}) == parse_config({"training": {"steps": 5}})


@pytest.mark.parametrize("number", KINDS)
def test_of_a_run(tiny_run: Path, number: Number, tmp_path: Path) -> None:
    assert Run(tiny_run).load_snapshot(int(number(6))).step == 6
    for snapshots in ([number(0), number(6)], np.array([0, 6]), (0, 6), "0,6"):
        assert open_series(tiny_run, snapshots).steps == [0, 6]
    assert open_series(tiny_run, number(6)).steps == [6]
    series = open_series(tiny_run).at([number(6)])
    assert series.load(6).step == 6
    store = icl_fast.sweep(
        series, heads="0.1", examples=number(5), icl_window=number(1), icl_positions=[number(2), number(20)],
        out=tmp_path / "sweep.zarr",
    )  # fmt: skip
    # of the same identity: it is kept
    again = icl_fast.sweep(
        tiny_run, heads="0.1", examples=5, icl_positions="2,20", snapshots="6", out=tmp_path / "sweep.zarr"
    )
    assert store == again
    icl_fast.evaluate(tiny_run, snapshots=[number(6)], seed=number(1), out=tmp_path / "heads.zarr")
    icl_fast.evaluate(tiny_run, snapshots="6", seed=1, out=tmp_path / "heads.zarr")
    measure_idealised(tiny_run, snapshots=number(6), examples=number(3), out=tmp_path / "idealised.zarr")
    measure_idealised(tiny_run, snapshots="6", examples=3, out=tmp_path / "idealised.zarr")


@pytest.fixture(scope="module")
def swept(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("swept") / "all.zarr"
    return open_results(icl_fast.sweep(tiny_run, positions="all", examples=6, out=out))


@pytest.mark.parametrize("number", KINDS)
def test_of_an_analysis(swept: Any, number: Number) -> None:
    np.testing.assert_array_equal(
        analysis.icl_score(swept, number(2), [number(19), number(20)]), analysis.icl_score(swept, 2, [19, 20])
    )
    pairs = analysis.icl_score_variants(swept, [(number(2), number(20))])
    np.testing.assert_array_equal(pairs, analysis.icl_score_variants(swept, [(2, 20)]))
    heads = analysis.attribute_heads(swept, number(0), number(6))
    assert heads.identical(analysis.attribute_heads(swept, 0, 6))
    models = {"a": swept.isel(snapshot=0), "b": swept.isel(snapshot=2)}
    compared = analysis.compare_by_position(models, "a", first=number(10))
    assert compared.identical(analysis.compare_by_position(models, "a", first=10))


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_none(model: Transformer, tokens: torch.Tensor, tiny_run: Path, value: Any) -> None:
    for call in (
        lambda: icl_fast.load(tiny_run, value),
        lambda: open_series(tiny_run, [value]),
        lambda: Intervention.zero("0.z", heads=[value]),
        lambda: icl_fast.ablate(model, tokens, positions=[value]),
        lambda: copying_scores(model, seed=value),
        lambda: template_text(value),
    ):
        with pytest.raises(InputError):
            call()
    with pytest.raises(ValueError, match="layers"):
        TransformerConfig(vocab=60, context=64, layers=value, width=8, heads=2)
