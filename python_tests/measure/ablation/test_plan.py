"""What a sweep will do: options however they are given, amounts of memory, positions, and the plan as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import xarray as xr

from icl_fast import InputError, Transformer, TransformerConfig, ablate
from icl_fast.data import EvaluationSet
from icl_fast.measure import AblationOptions, plan_sweep, sweep
from icl_fast.measure.ablation.memory import parse_memory
from icl_fast.measure.ablation.options import AblationKeywords
from icl_fast.measure.ablation.plan import make_plan
from icl_fast.measure.ablation.positions import parse_positions

TOKENS = torch.arange(30).view(3, 10) % 17


def plan_of(results: xr.Dataset) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(results.attrs["plan"])
    return plan


def test_keywords_are_the_fields_of_the_options() -> None:
    assert get_type_hints(AblationKeywords) == get_type_hints(AblationOptions)
    assert list(get_type_hints(AblationKeywords)) == [field.name for field in fields(AblationOptions)]


def test_options_and_keywords_are_the_same(noisy: Callable[..., Transformer]) -> None:
    model = noisy()
    options = AblationOptions(mode="full", heads="0.1", positions="2,5", dtype="float32")
    xr.testing.assert_identical(
        ablate(model, TOKENS, options=options),
        ablate(model, TOKENS, mode="full", heads="0.1", positions=[2, 5], dtype="float32"),
    )
    replaced = plan_of(ablate(model, TOKENS, options=options, heads="1.0", dtype=None))
    assert (replaced["mode"], replaced["ablations"][0]["name"], replaced["dtype"]) == ("full", "1.0", "float64")


def test_what_the_options_leave_open(noisy: Callable[..., Transformer], tiny_run: Path) -> None:
    for plan in (plan_of(ablate(noisy(), TOKENS)), plan_of(ablate(noisy(), TOKENS, options=AblationOptions()))):
        assert (plan["positions"]["listed"], plan["dtype"]) == (list(range(1, 10)), "float64")
    for planned in (plan_sweep(tiny_run).plan, plan_sweep(tiny_run, AblationOptions()).plan):
        assert planned.positions == parse_positions("paper", 24)
        assert planned.dtype == "float32"


def test_an_unknown_option(noisy: Callable[..., Transformer], tiny_run: Path) -> None:
    wrong: Any = {"head": "0.1"}
    for call in (
        lambda: ablate(noisy(), TOKENS, **wrong),
        lambda: sweep(tiny_run, **wrong),
        lambda: plan_sweep(tiny_run, **wrong),
    ):
        with pytest.raises(InputError, match=r"^head: there is no such option; those of an ablation are mode, heads, "):
            call()
    assert not (tiny_run / "results").exists()


def test_a_plan_as_json_is_that_of_older_stores() -> None:
    """A store is recognised by this JSON: with another name in it, what an older version wrote would be refused."""
    config = TransformerConfig(vocab=17, context=24, layers=2, width=8, heads=2)
    tokens = torch.zeros(5, 24, dtype=torch.int64)
    evaluation = EvaluationSet(tokens, tokens, torch.ones(5, dtype=torch.int64), "a digest")
    options = AblationOptions(heads="1.0,embed+0.1", preserve_heads="1.*", memory="1MiB", replacement="mean")
    assert make_plan(config, evaluation, options).as_json() == {
        "mode": "pattern-preserving",
        "preserve": ["pattern"],
        "preserve_heads": [[1, 0], [1, 1]],
        "replacement": "mean",
        "ablations": [
            {"name": "1.0", "heads": [[1, 0]], "embed": False},
            {"name": "embed+0.1", "heads": [[0, 1]], "embed": True},
        ],
        "positions": {"listed": [2, 23], "example": True, "early": [2], "late": [23]},
        "examples": 5,
        "chunk": 5,
        "evaluation": "a digest",
        "engine": "fast",
        "dtype": "float32",
        "memory": 2**20,
        "device": "cpu",
    }


def test_amounts_and_positions() -> None:
    assert [parse_memory(text) for text in ("2GiB", "500 MB", "1.5kib", 7)] == [2**31, 500_000_000, 1536, 7]
    assert parse_positions("paper", 512).listed == (50, 500)
    assert parse_positions("paper", 256, 5).listed == (23, 24, 25, 26, 27, 248, 249, 250, 251, 252)
    assert parse_positions("all", 8, 1).early == (1,)
    assert parse_positions("paper", 2048).listed == (50, 500)
    assert parse_positions("paper", 256).listed == (25, 250)
    assert parse_positions([500, 50], 512).listed == (50, 500)
