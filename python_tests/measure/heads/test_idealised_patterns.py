"""Idealised patterns: against loops over tokens, and whole models in which a pattern is forced."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icl_fast import InputError, Intervention, Transformer
from icl_fast.data import load_text
from icl_fast.measure import OtherResults, measure_idealised, open_results
from icl_fast.measure.heads import (
    PATTERNS,
    idealised_losses,
    idealised_patterns,
    matching_pattern,
    previous_token_pattern,
)
from icl_fast.models import site
from icl_fast.runs import Run


def matching_by_loops(tokens: list[int], longest: int) -> Tensor:
    pattern = torch.zeros(len(tokens), len(tokens))
    for row in range(len(tokens)):
        found = [0]
        for length in range(1, longest + 1):
            context = tokens[: row + 1][-length:]
            keys = [
                key
                for key in range(length, row + 1)
                if len(context) == length and tokens[key - length : key] == context
            ]
            found = keys or found
        for key in found:
            pattern[row, key] = 1 / len(found)
    return pattern


@given(st.lists(st.integers(0, 3), min_size=1, max_size=14), st.integers(1, 3))
def test_matching_against_loops(tokens: list[int], longest: int) -> None:
    found = matching_pattern(torch.tensor([tokens, tokens[::-1]]), longest)
    torch.testing.assert_close(found[0], matching_by_loops(tokens, longest))
    torch.testing.assert_close(found[1], matching_by_loops(tokens[::-1], longest))


def test_known_patterns() -> None:
    a, b, c, d = range(4)
    tokens = torch.tensor([[d, a, b, c, b, a, b]])
    assert previous_token_pattern(tokens)[0].argmax(-1).tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert previous_token_pattern(tokens).sum().item() == 7
    # the second b looks at c; the second a at the first b; the third b at what followed both, or "a b" alone
    assert matching_pattern(tokens)[0, 4].tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert matching_pattern(tokens)[0, 5].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert matching_pattern(tokens)[0, 6].tolist() == [0, 0, 0, 0.5, 0, 0.5, 0]
    assert matching_pattern(tokens, 2)[0, 6].tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert matching_pattern(tokens)[0, :4].argmax(-1).tolist() == [0, 0, 0, 0]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_against_whole_models_with_a_forced_pattern(
    architectures: st.SearchStrategy[dict[str, Any]],
    random_model: Callable[..., Transformer],
    data: st.DataObject,
) -> None:
    model = random_model(data.draw(architectures), torch.float64)
    text = torch.randint(0, 5, (3, model.config.context + 1))
    inputs, targets = text[:, :-1], text[:, 1:]
    whole, without, replaced = idealised_losses(model, inputs, targets)

    def losses(*interventions: Intervention) -> Tensor:
        logits = model(inputs, interventions=interventions)
        return torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none").mean(1)

    torch.testing.assert_close(whole, losses())
    layer, head = data.draw(st.integers(0, model.config.layers - 1)), data.draw(st.integers(0, model.config.heads - 1))
    torch.testing.assert_close(without[layer, head], losses(Intervention.zero(site("head_out", layer), heads=[head])))
    for number, pattern in enumerate(PATTERNS.values()):
        whole_site = pattern(inputs).double()[:, None].expand(-1, model.config.heads, -1, -1)
        expected = losses(Intervention.set(site("pattern", layer), whole_site, heads=[head]))
        torch.testing.assert_close(replaced[number, layer, head], expected)


def test_a_perfect_induction_circuit(induction: Callable[..., Transformer]) -> None:
    """Its patterns are the idealised ones, on repeats of tokens that differ."""
    model = induction(30, 17)
    half = torch.stack([torch.randperm(29, generator=torch.Generator().manual_seed(s))[:8] + 1 for s in range(6)])
    text = torch.cat([torch.zeros(6, 1, dtype=torch.int64), half, half], 1)
    whole, without, replaced = (losses.mean(-1) for losses in idealised_losses(model, text[:, :-1], text[:, 1:]))
    effect = without - whole
    assert (effect > 0.5).all()
    recovered = (without - replaced) / effect  # [patterns, layers, heads]
    assert recovered[0, 0, 0].item() == pytest.approx(1, abs=1e-6)
    assert max(recovered[0, 1, 0], recovered[1, 0, 0]).item() < 0.7  # each in the other's place
    assert recovered[1, 1, 0].item() >= 1  # without a copy the circuit's own pattern is worse: even on all tokens


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_over_snapshots(run: Path) -> None:
    target = measure_idealised(run, examples=7)
    assert target == run / "results" / "idealised.zarr"
    results, folder = open_results(target), Run(run)
    assert results["snapshot"].values.tolist() == [0, 6, 12]
    assert results["pattern"].values.tolist() == list(PATTERNS)
    text = load_text(folder.text_config.data).evaluation()
    for step in (0, 6, 12):
        at = results.sel(snapshot=step)
        losses = idealised_losses(folder.load_snapshot(step).model, text.inputs[:7], text.targets[:7])
        whole, without, replaced = (of.numpy() for of in losses)
        np.testing.assert_array_equal(at["loss"], whole.mean())
        np.testing.assert_allclose(at["effect"], without.mean(-1) - whole.mean(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(at["pattern_loss"], replaced.mean(-1))
        sem = (without - whole).std(-1, ddof=1) / 7**0.5
        np.testing.assert_allclose(at["effect_sem"], sem, rtol=1e-9)
        known = np.abs(at["effect"].values) >= 2 * sem
        np.testing.assert_array_equal(at["recovered"].notnull(), np.broadcast_to(known, (3, 2, 2)))
        share = (without.mean(-1) - replaced.mean(-1)) / (without.mean(-1) - whole.mean())
        np.testing.assert_allclose(at["recovered"].values[:, known], share[:, known], rtol=1e-6)
    with pytest.raises(OtherResults):
        measure_idealised(run, examples=6)


def test_the_error_of_a_share() -> None:
    """Against what the share does over many draws of examples."""
    random = np.random.default_rng(0)

    def draw() -> dict[str, np.ndarray]:
        whole = random.normal(2, 0.5, 200)
        without = whole + random.normal(0.3, 0.2, 200)
        replaced = whole + 0.4 * (without - whole) + random.normal(0, 0.1, 200)
        return {"whole": whole, "without": without[None, None], "replaced": replaced[None, None, None]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idealised_patterns, "PATTERNS", {"one": None})
        drawn = idealised_patterns._assemble([draw() for _ in range(400)], list(range(400)), list(range(400)))
    assert float(drawn["recovered"].mean()) == pytest.approx(0.6, abs=0.005)
    assert float(drawn["recovered"].std()) == pytest.approx(float(drawn["recovered_sem"].mean()), rel=0.15)


def test_bad_input(run: Path, noisy: Callable[..., Transformer]) -> None:
    with pytest.raises(InputError, match="examples: must be from 1 to"):
        measure_idealised(run, examples=10**6)
    with pytest.raises(InputError, match="inputs"):
        idealised_losses(noisy(), torch.tensor([[99, 1]]), torch.tensor([[1, 1]]))
